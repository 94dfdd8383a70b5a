"""One trial: its trainings, started with `accelerate launch`, followed while they run, and judged at their end.

A finished trial, the best feasible one or one chosen by number, can be promoted to a configuration of its own.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from sweeps import supervisor
from sweeps.config import CUDA_VARIABLE, LaunchConfig, StudyConfig, visible_gpus
from sweeps.findings import Findings, load_findings
from sweeps.objective import Row, read_rows
from sweeps.space import Parameters, as_override, describe
from sweeps.verdict import Ending, Stop, Verdict, combine, has_result, judge
from vsr_dist.config import config_tree, dump_config, load_config, parse_config
from vsr_dist.core.config_io import read_yaml
from vsr_dist.core.errors import UserError
from vsr_dist.run_dir import CONFIG_NAME, ENDED_NAME, SUMMARY_NAME
from vsr_dist.training.tracking import METRICS_NAME

# Tags of a training's MLflow run that link it to its study.
TRIAL_TAGS = ("study", "trial", "kind", "role", "seed", "repeat_of")
_PORT_OPTION = "--main_process_port"
_LOG_DIGITS = 6
_POLL_S = 0.05
_LOOK_EVERY_S = 0.5
# Files that a living training changes.
_PROGRESS_FILES = (METRICS_NAME, ENDED_NAME, SUMMARY_NAME, "checkpoints")


class StoppedError(Exception):
    """The driver is stopping, or the trial is no longer its own; the training was stopped."""


@dataclass(frozen=True)
class TrialPlan:
    """A trial as its driver runs it.

    Attributes:
        number: of its first attempt, which names its folder, its run in MLflow and its trainings.
        parameters: sampled or given values, by configuration path.
        role: `search`, `start` or `repeat`.
        seeds: of its trainings.
        run_dirs: of its trainings.
        repeat_of: the trial that it repeats.
    """

    number: int
    parameters: Parameters
    role: str
    seeds: tuple[int, ...]
    run_dirs: tuple[Path, ...]
    repeat_of: int | None = None


class Watch(Protocol):
    """What a running trial is connected to: the driver and Optuna."""

    def check(self) -> None:
        """Raise StoppedError if the training should stop; called all the time."""

    def look(self, index: int, rows: Sequence[Row]) -> str | None:
        """Take the metrics of training number `index`, called when there are new ones; why it should stop, or None."""


def run_trial(config: StudyConfig, plan: TrialPlan, worker: int, watch: Watch) -> Verdict:
    """Run the trainings of a trial that have no result yet, one after another; returns the trial's verdict.

    A training that an earlier attempt began resumes from its last checkpoint. worker: number of the driver's worker,
    which decides on the trial's GPUs. Whatever ends this call, no process of the trial is left.
    """
    verdicts: list[Verdict] = []
    for index in range(len(plan.run_dirs)):
        try:
            verdict = _run_training(config, plan, index, worker, watch)
        except UserError as error:  # Such as a metrics file that cannot be read.
            verdict = Verdict("failed", reason=str(error))
        verdicts.append(verdict)
        if verdict.outcome != "complete":
            break
    return combine(verdicts)


def _run_training(config: StudyConfig, plan: TrialPlan, index: int, worker: int, watch: Watch) -> Verdict:
    run_dir, log_path = plan.run_dirs[index], config.log_path(plan.number)
    # An earlier attempt may have ended just before its driver could report it.
    pruned = watch.look(index, read_rows(run_dir))
    ending = Ending(exit_status=None, seconds=0.0)
    if not pruned and not has_result(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        process = _TrainingProcess(config, plan, index, worker)
        try:
            while process.poll() is None:
                watch.check()
                if pruned is None and process.has_new_metrics():
                    pruned = watch.look(index, read_rows(run_dir))
                    if pruned is not None:
                        process.stop("pruned")
                process.stop_if_overdue()
                time.sleep(_POLL_S)
        finally:
            ending = process.end()
        # Rows since the last look are reported; they come too late to prune.
        watch.look(index, read_rows(run_dir))
    return judge(config, run_dir, ending, log_path, pruned or "")


class _TrainingProcess:
    """A launched training under `supervisor.py`, in a session of its own: Ctrl-C reaches the driver only."""

    def __init__(self, config: StudyConfig, plan: TrialPlan, index: int, worker: int) -> None:
        self._config, self._run_dir, self._log_path = config, plan.run_dirs[index], config.log_path(plan.number)
        self._begin_s = self._progress_s = self._next_look_s = time.monotonic()
        self._stopped: Stop | None = None
        self._progress = self._look_for_progress()
        self._metrics_seen: tuple[float, int] | None = None
        lock_path = config.trial_dir(plan.number) / "trial.lock"
        supervised = [sys.executable, "-P", supervisor.__file__, str(lock_path), str(config.grace_s), str(os.getpid())]
        command = [*launch_command(config.launch, free_port()), *training_options(config, plan, index)]
        environment = {
            # Each training is an MLflow run of its own, whatever the driver was given.
            **{name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"},
            # torchrun kills its ranks this long after it passed a SIGTERM on to them.
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, int(config.grace_s))),
            **gpu_environment(config.launch.gpus_per_trial, worker),
        }
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*supervised, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """The exit status, or None while a process of the training lives."""
        return self._process.poll()

    def stop(self, reason: Stop) -> None:
        """Ask all processes to end; the supervisor kills them after `grace_s`."""
        if self._stopped is None:
            self._stopped = reason
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> Ending:
        """Stop it if it runs, and wait for its end; a second Ctrl-C kills it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return Ending(self._process.wait(), time.monotonic() - self._begin_s, self._stopped)

    def has_new_metrics(self) -> bool:
        """True if the metrics file has changed since the last call that said so; looks twice a second at most."""
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + _LOOK_EVERY_S
        found = _stat(self._run_dir / METRICS_NAME)
        changed, self._metrics_seen = found != self._metrics_seen, found
        return changed and found[1] > 0

    def stop_if_overdue(self) -> None:
        """Stop a training that takes longer, or is silent for longer, than the study allows."""
        now_s, config = time.monotonic(), self._config
        if config.trial_timeout_s is not None and now_s - self._begin_s > config.trial_timeout_s:
            self.stop("time_limit")
        elif config.stall_timeout_s is not None and now_s - self._progress_s > config.stall_timeout_s / 4:
            found = self._look_for_progress()
            if found != self._progress:
                self._progress, self._progress_s = found, now_s
            elif now_s - self._progress_s > config.stall_timeout_s:
                self.stop("stall")

    def _look_for_progress(self) -> list[tuple[float, int]]:
        return [_stat(path) for path in (self._log_path, *(self._run_dir / name for name in _PROGRESS_FILES))]


def _stat(path: Path) -> tuple[float, int]:
    """(Time of change in seconds, bytes) of a file; zeros if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return 0.0, 0
    return status.st_mtime, status.st_size


def launch_command(launch: LaunchConfig, port: int | None = None) -> list[str]:
    """The command up to the options of `vsr_dist.train`; `port`: where the trial's processes meet."""
    if launch.command:
        return list(launch.command)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch.config_file)]
    rendezvous = [] if port is None or _chooses_port(launch) else [_PORT_OPTION, str(port)]
    return [*accelerate, *rendezvous, *launch.args, "-m", "vsr_dist.train"]


def _chooses_port(launch: LaunchConfig) -> bool:
    """True if the options name a port, or the configuration has port 0, with which the launcher finds a free one."""
    if any(word.partition("=")[0] == _PORT_OPTION for word in launch.args):
        return True
    return read_yaml(Path(str(launch.config_file))).get("main_process_port") == 0


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gpu_environment(gpus_per_trial: int, worker: int) -> dict[str, str]:
    """The GPUs of a worker: the first `gpus_per_trial` visible ones for worker 0, the next for worker 1, ..."""
    if not gpus_per_trial:
        return {}
    first = worker * gpus_per_trial
    return {CUDA_VARIABLE: ",".join(visible_gpus()[first : first + gpus_per_trial])}


def training_options(config: StudyConfig, plan: TrialPlan, index: int) -> list[str]:
    """Options of `vsr_dist.train` for a trial's training number `index`.

    Overrides are, in order: the study's own, the sampled values, and the run's name, directory, seed and tags. Always
    `--resume auto`, which starts from step 0 where there is no checkpoint.
    """
    several = len(plan.run_dirs) > 1
    name = f"{config.name}-trial-{plan.number:04d}" + (f"-seed-{index}" if several else "")
    own: dict[str, Any] = {"name": name, "run_dir": str(plan.run_dirs[index])}
    tags = {"study": config.name, "trial": plan.number, "kind": "trial", "role": plan.role}
    if "seed" not in config.space:
        own["seed"] = tags["seed"] = plan.seeds[index]
    if plan.repeat_of is not None:
        tags["repeat_of"] = plan.repeat_of
    own |= {f"tracking.tags.{key}": str(value) for key, value in tags.items()}
    extra = {**_base_extra_params(config), **log10_parameters(config, plan.parameters)}
    if extra:
        own["tracking.extra_params"] = extra
    overrides = [*config.set, *(as_override(path, value) for path, value in (plan.parameters | own).items())]
    options = ["--config", config.base, *(part for override in overrides for part in ("--set", override))]
    return [*options, "--resume", "auto"]


def log10_parameters(config: StudyConfig, parameters: Mapping[str, object]) -> dict[str, str]:
    """`log10.PATH` -> log10 of the value, as text, for each parameter that is searched logarithmically.

    MLflow's charts have linear axes, on which weights between 1e-4 and 1e-2 could not be distinguished.
    """
    return {
        f"log10.{path}": repr(round(math.log10(value), _LOG_DIGITS))
        for path, value in parameters.items()
        if getattr(config.space.get(path), "log", False) and isinstance(value, (int, float))
    }


def _base_extra_params(config: StudyConfig) -> dict[str, str]:
    """The base's own further parameters, which the override of the whole mapping would remove."""
    tracking = read_yaml(Path(config.base)).get("tracking") or {}
    return dict(tracking.get("extra_params") or {})


def promote(config: StudyConfig, out: Path | None, number: int | None = None) -> tuple[FrozenTrial, Path]:
    """Write a trial's configuration to `out` (by default `<study_dir>/best.yaml`); the trial and the path.

    Without `number` it is the best feasible one, by the mean of its repeats if it was repeated; UserError, with the
    constraint that most trials violate, if none is feasible. It is the resolved configuration that the trial saved, so
    later changes of the base file do not matter. Name and run directory become the study's; tags and parameters that
    link a run to the study are removed.
    """
    findings = load_findings(config)
    chosen = best_trial(findings) if number is None else picked_trial(findings, number)
    resolved = findings.run_dirs(chosen)[0] / CONFIG_NAME
    if not resolved.is_file():
        raise UserError(
            f"trial {chosen.number} cannot be promoted: {resolved} is missing; restore the folder, or run this on the "
            "machine that ran the trial"
        )
    name = f"{config.name}-best"
    overrides = [as_override("name", name), as_override("run_dir", f"runs/{name}")]
    tree = config_tree(load_config(resolved, overrides))
    tracking = tree["tracking"]
    tracking["tags"] = {key: text for key, text in tracking["tags"].items() if key not in TRIAL_TAGS}
    logarithms = {f"log10.{path}" for path in config.space}
    tracking["extra_params"] = {key: text for key, text in tracking["extra_params"].items() if key not in logarithms}
    path = out or config.directory / "best.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_header(findings, chosen) + dump_config(parse_config(tree, str(resolved))), encoding="utf-8")
    return chosen, path


def best_trial(findings: Findings) -> FrozenTrial:
    """The best feasible trial; UserError if there is none."""
    best = findings.best
    if best is not None:
        return best
    name = findings.config.name
    if not findings.searched:
        raise UserError(f"study {name} has no complete trial ({len(findings.trials)} trials); run the study first")
    raise UserError(
        f"study {name}: {findings.answer.replace('**', '').replace('`', '')} Relax it, run more trials, or choose one "
        "with --number"
    )


def picked_trial(findings: Findings, number: int) -> FrozenTrial:
    """The trial with this number; UserError if there is none or it is not complete."""
    found = next((trial for trial in findings.trials if trial.number == number), None)
    if found is None:
        last = max((trial.number for trial in findings.trials), default=-1)
        raise UserError(
            f"study {findings.config.name} has no trial {number}, or it was retried under another number; the last "
            f"number is {last}, see vsr-dist study report"
        )
    if found.state != TrialState.COMPLETE:
        raise UserError(f"trial {number} is not complete ({found.state.name.lower()}); choose one that is")
    return found


def outcome(findings: Findings, trial: FrozenTrial) -> str:
    """A trial's objectives, and the results of its repeats, on one line."""
    objectives = findings.config.objectives
    values = ", ".join(f"{one.title} {value:.4f}" for one, value in zip(objectives, trial.values, strict=True))
    repeats = findings.repeats(trial)
    return values if repeats is None else f"{values}, with new seeds {repeats.describe()}"


def _header(findings: Findings, trial: FrozenTrial) -> str:
    config = findings.config
    kind = "Best" if findings.best is not None and findings.best.number == trial.number else "Chosen"
    lines = [f"# {kind} trial of study {config.name}: trial {trial.number}, {outcome(findings, trial)}."]
    lines += [f"# With {describe(trial.params)}."]
    missed = [
        f"{constraint.name} ({constraint.describe()}) is {constraint.measured(excess):.4g}"
        for constraint in config.constraints
        if (excess := findings.excess(trial).get(constraint.name, 0.0)) > 0
    ]
    if missed:
        lines.append(f"# It violates constraints: {'; '.join(missed)}.")
    if config.set:
        lines.append(f"# It still contains the study's `set`: {', '.join(config.set)}.")
    return "".join(f"{line}\n" for line in lines)
