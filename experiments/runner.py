"""Runs the trainings of an experiment: measured in CPU time, resumed after a kill, never repeated once finished.

A script of this folder lists its runs and calls `main`:

    from runner import Run, main
    runs = [Run(f"{arm}-seed{seed}", CONFIG, ARMS[arm], seed=seed) for seed in range(5) for arm in ARMS]
    main("drift", __doc__, runs, prepare=pack_data, report=write_page)

A finished run leaves one file, `experiments/results/<experiment>/<run>.json`, which is committed. A run whose file is
there is skipped, so an experiment can go on on another machine. Everything else lies in `runs/<experiment>/`.
Run the scripts as `python experiments/<script>.py`; commands of a run start in the root of the repository.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import fnmatch
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from machine import describe_machine  # noqa: E402 - benchmarks/machine.py, shared by both folders

from vsr_dist.config import load_config  # noqa: E402
from vsr_dist.core.errors import BadConfigError, run_cli  # noqa: E402
from vsr_dist.inference.generator_io import WEIGHTS_NAME, save_generator  # noqa: E402
from vsr_dist.models import build_generator  # noqa: E402

POLL_S = 0.02
WATCH_EVERY_S = 0.5
TAIL_LINES = 15
MAX_CURVE_POINTS = 200
STOPPED_STATUS = 143
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

Row = Mapping[str, float]


def beside(run_dir: Path, ending: str) -> Path:
    """The file beside a work folder that has its name and `ending`; a point in the name stays ("cure_0.3")."""
    return run_dir.with_name(run_dir.name + ending)


class Stopped(Exception):  # noqa: N818 - not an error: it is how the work ends that was told to
    """The work was told to stop."""


@dataclass(frozen=True)
class Run:
    """One training of an experiment, and what is measured of it.

    Attributes:
        name: unique in the experiment; the name of its result file and of its work folder.
        config: YAML configuration, relative to the root of the repository.
        settings: `PATH=VALUE` overrides, in which `{work}` stands for the experiment's work folder, as it does in
            `config` and `evaluations`. `run_dir`, `name` and `seed` are set by the runner.
        seed: the training's `seed`.
        columns: metrics of `metrics.jsonl` that the result keeps for each validation.
        evaluations: name -> options of `vsr-dist evaluate`, beside --checkpoint and --out, run after the training.
        stop_when: called twice a second with the rows of `metrics.jsonl` that hold a validation and the CPU
            seconds so far (earlier calls included); the training is ended, as finished, when it returns True.
    """

    name: str
    config: str
    settings: tuple[str, ...] = ()
    seed: int = 0
    columns: tuple[str, ...] = ("val/psnr_y", "val/ssim_y")
    evaluations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stop_when: Callable[[Sequence[Row], float], bool] | None = None


def python(*arguments: str) -> list[str]:
    """A `vsr-dist` command."""
    return [sys.executable, "-m", "vsr_dist.cli", *arguments]


def train_command(config: Path | str, settings: Sequence[str]) -> list[str]:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return python("train", "--config", str(config), "--resume", "auto", *overrides)


class Runner:
    """Runs commands from any thread; `stop` ends those that run with SIGTERM, and no further one starts."""

    def __init__(self) -> None:
        self._live: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._lock = threading.RLock()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._live:
                os.kill(process.pid, signal.SIGTERM)

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def publish(self, path: Path, data: object) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(data, indent=1))
        os.replace(temporary, path)

    def train(
        self,
        config: Path | str,
        settings: Sequence[str],
        run_dir: Path,
        stop_when: Callable[[Sequence[Row], float], bool] | None = None,
    ) -> None:
        """One run to its end; a finished one is left alone, an interrupted one goes on."""
        ended_early = beside(run_dir, ".ended_early")
        if (run_dir / "summary.json").exists() or ended_early.exists():
            return
        log, cpu = beside(run_dir, ".log"), beside(run_dir, ".cpu")
        command = train_command(config, settings)

        def is_enough(cpu_s: float) -> bool:
            return stop_when is not None and stop_when(validation_rows(run_dir / "metrics.jsonl"), cpu_s)

        status = self._run_watched(command, log, cpu, is_enough)
        if status == "ended early":
            ended_early.touch()
        self.say(f"{run_dir.name}: trained, {(self.cpu_s(run_dir) or 0.0) / 60:.1f} CPU-minutes")

    def evaluate(self, what: Sequence[str], data: Path, out: Path) -> None:
        """`vsr-dist evaluate --data`, unless its result is there."""
        self.evaluate_with([*what, "--data", str(data)], out)

    def evaluate_with(self, options: Sequence[str], out: Path) -> float:
        """`vsr-dist evaluate`, unless its result is there; metrics.json is among the last files that it writes."""
        if (out / "metrics.json").exists():
            return 0.0
        out.mkdir(parents=True, exist_ok=True)
        return self.run(python("evaluate", *options, "--out", str(out)), out / "log.txt")

    @staticmethod
    def cpu_s(run_dir: Path) -> float | None:
        """CPU seconds of all processes that a run took, repeated steps of an interrupted one included."""
        noted = beside(run_dir, ".cpu")
        return float(noted.read_text()) if noted.exists() else None

    def run(self, command: Sequence[str], log: Path) -> float:
        """Run to the end, output appended to `log`; returns CPU seconds. A failure raises with the end of the log."""
        process = self._start(command, log)
        spent = self._wait(process)
        self._raise_if_failed(process, command, log)
        return spent

    def _run_watched(self, command: Sequence[str], log: Path, cpu: Path, is_enough: Callable[[float], bool]) -> str:
        """As `run`, with the CPU seconds noted in `cpu` as they grow, so that a kill of this script loses few."""
        before = float(cpu.read_text()) if cpu.exists() else 0.0
        process = self._start(command, log)
        watched = psutil.Process(process.pid)
        enough = False
        while _runs(process):
            time.sleep(WATCH_EVERY_S)
            used = watched.cpu_times()
            total = before + used.user + used.system + used.children_user + used.children_system
            _replace_text(cpu, f"{total:.2f}")
            if not enough and is_enough(total):
                enough = True
                os.kill(process.pid, signal.SIGTERM)
        _replace_text(cpu, f"{before + self._wait(process):.2f}")
        if enough and process.returncode == STOPPED_STATUS and not self._stopping:
            return "ended early"
        self._raise_if_failed(process, command, log)
        return "finished"

    def _raise_if_failed(self, process: subprocess.Popen[bytes], command: Sequence[str], log: Path) -> None:
        if self._stopping:
            raise Stopped
        if process.returncode:
            raise _failure(command, process.returncode, log)

    def cpu_per_step(self, config: Path | str, settings: Sequence[str], run_dir: Path, limit_s: float) -> float:
        """CPU seconds per step, from a run that logs every step and is ended after `limit_s` CPU seconds of them.

        The first step, which sets things up, is not counted.
        """
        shutil.rmtree(run_dir, ignore_errors=True)
        log = beside(run_dir, ".log")
        command = train_command(config, settings)
        process = self._start(command, log)
        watched = psutil.Process(process.pid)
        first = last = (0, 0.0)
        metrics = run_dir / "metrics.jsonl"
        while _runs(process) and (last[0] < first[0] + 2 or last[1] - first[1] < limit_s):
            time.sleep(POLL_S)
            steps = metrics.read_text().count("perf/step_ms") if metrics.exists() else 0
            if steps > last[0] and _runs(process):
                used = watched.cpu_times()
                last = (steps, used.user + used.system)
                first = first if first[0] else last
        ended_early = not _runs(process)
        os.kill(process.pid, signal.SIGTERM)
        self._wait(process)
        if self._stopping:
            raise Stopped
        if ended_early:
            raise _failure(command, process.returncode, log)
        shutil.rmtree(run_dir)
        return (last[1] - first[1]) / (last[0] - first[0])

    def _start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, log.open("a") as file:
            if self._stopping:
                raise Stopped
            # A session of its own: Ctrl-C reaches this script alone, which stops its children in order.
            process = subprocess.Popen(
                list(command),
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no Python lock is taken
            )
            self._live.add(process)
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> float:
        """Wait for the end; CPU seconds of the process and its children.

        Reaped under the lock, so that `stop` signals no process that has taken over the number.
        """
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._live.discard(process)
        return usage.ru_utime + usage.ru_stime


def _die_with_parent() -> None:
    """In a child before it starts: SIGTERM when this script is killed, so that no training goes on without it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _runs(process: subprocess.Popen[bytes]) -> bool:
    """False once the process has ended; does not reap it."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _failure(command: Sequence[str], status: int, log: Path) -> RuntimeError:
    tail = "\n".join(log.read_text().splitlines()[-TAIL_LINES:])
    return RuntimeError(f"{' '.join(command)} ended with status {status}; the end of {log}:\n{tail}")


def run_alone(work: Path, script: str, do: Callable[[Runner], None]) -> int:
    """Run a resumable script as the only one in `work`; SIGTERM and Ctrl-C stop its processes. Returns the status."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadConfigError(f"{work} is in use by another {script}; wait for it or stop it") from error
        runner = Runner()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: runner.stop())
        try:
            do(runner)
        except Stopped:
            runner.say("stopped; run the same command to resume")
            return STOPPED_STATUS
    return 0


def write_stopped_generator(run_dir: Path) -> None:
    """The averaged generator of a stopped run's last checkpoint, as the run would have published it had it finished."""
    config = load_config(run_dir / "config.yaml")
    checkpoint = max((run_dir / "checkpoints").glob("step_*"))
    averaged = load_file(checkpoint / "ema.safetensors")
    generator = build_generator(config.generator, config.scale)
    prefix = "module."
    generator.load_state_dict({k.removeprefix(prefix): v for k, v in averaged.items() if k.startswith(prefix)})
    save_generator(run_dir, generator, config.generator, {"checkpoint": checkpoint.name})


def validation_rows(metrics: Path) -> list[dict[str, float]]:
    """Rows of `metrics.jsonl` that hold a validation, by step, with all that was logged there; the later value wins."""
    rows: dict[float, dict[str, float]] = {}
    for line in metrics.read_text().splitlines() if metrics.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed run
            continue
        rows[row["step"]] = rows.get(row["step"], {}) | row
    found = (rows[step] for step in sorted(rows))
    return [row for row in found if any(key.startswith("val/") for key in row)]


def rounded(value: Any) -> Any:
    """Floats in any nesting of lists and mappings to 5 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def curve_of(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Any]:
    """The table of the chosen columns at each validation, thinned to every k-th from the end if there are too many."""
    every = -(-len(rows) // MAX_CURVE_POINTS) if rows else 1
    kept = rows[::-1][::every][::-1]
    found = [name for name in columns if any(name in row for row in kept)]
    table = [[row["step"], *(row.get(name) for name in found)] for row in kept]
    return {"every": every, "columns": ["step", *found], "rows": rounded(table)}


def git_commit() -> str:
    """The commit of the code, with `+changes` if files other than results and docs differ from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    found = git("rev-parse", "HEAD")
    if found.returncode:
        return "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", ".", ":!experiments/results", ":!docs").returncode
    return found.stdout.strip() + ("+changes" if changed else "")


@dataclass(frozen=True)
class Experiment:
    """Where an experiment reads and writes, and the options of this call."""

    name: str
    work: Path
    results: Path
    jobs: int = 1
    only: str = "*"
    limit_hours: float = float("inf")
    overrides: tuple[str, ...] = ()

    def run_dir(self, name: str) -> Path:
        return self.work / name

    def result_path(self, name: str) -> Path:
        return self.results / f"{name}.json"

    def fill(self, text: str) -> str:
        """The text with `{work}` replaced by the work folder."""
        return text.replace("{work}", _shown(self.work))

    def load(self, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
        """Name -> result of the finished ones among `runs`, in their order."""
        paths = {run.name: self.result_path(run.name) for run in runs}
        return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def do_run(run: Run, experiment: Experiment, runner: Runner) -> float:
    """Train, evaluate, write the result; returns the CPU seconds of this call. Nothing is done if the result exists."""
    result_path, run_dir = experiment.result_path(run.name), experiment.run_dir(run.name)
    if result_path.exists():
        return 0.0
    # What this machine does not set by itself comes before, so that a run may override it.
    settings = ["tracking.mlflow=false", "train.processes=1", "train.threads=1", "train.keep_checkpoints=1"]
    settings += [*(experiment.fill(setting) for setting in run.settings), *experiment.overrides]
    settings += [f"run_dir={_shown(run_dir)}", f"name={run.name}", f"seed={run.seed}"]
    before = runner.cpu_s(run_dir) or 0.0
    config = experiment.fill(run.config)
    runner.train(config, settings, run_dir, run.stop_when)
    spent = (runner.cpu_s(run_dir) or 0.0) - before
    if run.evaluations and not (run_dir / WEIGHTS_NAME).exists():
        write_stopped_generator(run_dir)
    tables, evaluated_s = {}, 0.0
    for name, options in run.evaluations.items():
        out = experiment.work / "evaluations" / run.name / name
        evaluated_s += runner.evaluate_with(["--checkpoint", str(run_dir), *map(experiment.fill, options)], out)
        found = json.loads((out / "metrics.json").read_text())
        tables[name] = {key: found.get(key) for key in ("protocol", "data_digest", "table")}
    rows = validation_rows(run_dir / "metrics.jsonl")
    machine = describe_machine()
    result = {
        "name": run.name,
        "config": config,
        "settings": settings,
        "seed": run.seed,
        "steps": int(rows[-1]["step"]) if rows else None,
        "ended_early": beside(run_dir, ".ended_early").exists(),
        "cpu_s": rounded(runner.cpu_s(run_dir)),
        "evaluation_cpu_s": rounded(evaluated_s),
        "curve": curve_of(rows, run.columns),
        "evaluations": rounded(tables),
        "versions": machine.pop("packages"),
        "machine": machine,
        "commit": git_commit(),
        "command": shlex.join(["vsr-dist", *train_command(config, settings)[3:]]),
    }
    summary_path = run_dir / "summary.json"
    summary = json.loads(summary_path.read_text()) if summary_path.exists() else {}
    result |= {key: summary[key] for key in ("data_digest", "init_generator_sha256") if key in summary}
    result_path.parent.mkdir(parents=True, exist_ok=True)
    _replace_text(result_path, _compact(result) + "\n")
    runner.say(f"{run.name}: written {_shown(result_path)}")
    return spent + evaluated_s


def _shown(path: Path) -> str:
    """Relative to the repository where it lies in it: results name no path of this machine."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _compact(result: Mapping[str, Any]) -> str:
    """JSON with one line per key, and one per row of the curve."""
    rows = ",\n".join("  " + json.dumps(row) for row in result["curve"]["rows"])
    curve = {**result["curve"], "rows": []}
    curve_text = json.dumps(curve)[:-2] + (f"\n{rows}\n ]}}" if rows else "]}")
    parts = {key: json.dumps(value) for key, value in result.items()} | {"curve": curve_text}
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {text}" for key, text in parts.items()) + "\n}"


def do_runs(runs: Sequence[Run], experiment: Experiment, runner: Runner) -> list[str]:
    """All chosen runs in their order, `jobs` side by side; returns what failed, a line each, after the others ended."""
    lock, spent_s, failures = threading.Lock(), 0.0, []

    def one(run: Run) -> None:
        nonlocal spent_s
        with lock:
            if spent_s >= 3600.0 * experiment.limit_hours:
                return
        try:
            spent = do_run(run, experiment, runner)
        except RuntimeError as error:
            runner.say(f"{run.name} FAILED: {error}")
            failures.append(f"{run.name}: {str(error).splitlines()[-1]}")
            return
        with lock:
            spent_s += spent

    chosen = [run for run in runs if fnmatch.fnmatch(run.name, experiment.only)]
    with ThreadPoolExecutor(experiment.jobs) as pool:
        for future in [pool.submit(one, run) for run in chosen]:
            future.result()
    missing = [run.name for run in chosen if not experiment.result_path(run.name).exists()]
    runner.say(f"{len(chosen) - len(missing)} of {len(chosen)} runs are finished; {spent_s / 60:.1f} CPU-minutes now")
    if spent_s >= 3600.0 * experiment.limit_hours and missing:
        runner.say(f"--limit-hours reached; not started or not finished: {', '.join(missing)}")
    return failures


def _with_absolute_paths(arguments: argparse.Namespace) -> argparse.Namespace:
    """Paths are relative to where the user is, but the work is done in the root of the repository."""
    found = {name: value.resolve() if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    return argparse.Namespace(**found)


def main(
    experiment: str,
    doc: str | None,
    runs: Sequence[Run] | Callable[[Experiment], Sequence[Run]],
    *,
    prepare: Callable[[Experiment, Runner], None] | None = None,
    report: Callable[[Experiment, argparse.Namespace], None] | None = None,
    extra_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Command line of an experiment; returns the exit status: 0, 1 if a run failed, 143 if it was stopped.

    runs: the runs, or what makes them once `prepare` is done, where they depend on what it measures.
    prepare: packs data, trains what all runs start from; called before the runs, must be quick when all is there.
    report: writes the page from `experiment.load(runs)`; called after the runs, and alone with `--report`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="training runs in parallel, one core each (default: 1)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="only runs whose name matches (default: all)")
    parser.add_argument(
        "--limit-hours",
        type=float,
        default=float("inf"),
        metavar="HOURS",
        help="start no run after so many CPU-hours (default: no limit)",
    )
    parser.add_argument("--list", action="store_true", help="list all runs and which are finished; run nothing")
    parser.add_argument("--report", action="store_true", help="write the page from the finished runs; run nothing")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override one key in every run; may be repeated",
    )
    parser.add_argument(
        "--work",
        metavar="DIR",
        type=Path,
        default=ROOT / "runs" / experiment,
        help=f"folder for data and runs (default: runs/{experiment})",
    )
    parser.add_argument(
        "--results",
        metavar="DIR",
        type=Path,
        default=ROOT / "experiments/results" / experiment,
        help=f"folder for result files (default: experiments/results/{experiment})",
    )
    if extra_options is not None:
        extra_options(parser)

    def run(argv: Sequence[str] | None) -> int:
        arguments = _with_absolute_paths(parser.parse_args(argv))
        here = Experiment(
            experiment,
            arguments.work,
            arguments.results,
            arguments.jobs,
            arguments.only,
            arguments.limit_hours,
            tuple(arguments.overrides),
        )

        def listed() -> Sequence[Run]:
            found = runs(here) if callable(runs) else runs
            assert len({one.name for one in found}) == len(found), "names of runs must differ"
            return found

        if arguments.list:
            for one in listed():
                print(f"{'finished' if here.result_path(one.name).exists() else '-':9} {one.name}")
            return 0
        failures: list[str] = []
        status = 0
        if not arguments.report:
            os.chdir(ROOT)

            def work(runner: Runner) -> None:
                if prepare is not None:
                    prepare(here, runner)
                failures.extend(do_runs(listed(), here, runner))

            status = run_alone(here.work, f"experiments/{experiment}.py", work)
        if report is not None and status == 0:
            report(here, arguments)
        for failure in failures:
            print(f"FAILED  {failure}", file=sys.stderr)
        return status or (1 if failures else 0)

    return run_cli(run, None)
