"""Overhead of a study's driver, and the speed-up by a second worker.

    python benchmarks/study_overhead.py [--trials 30] [--seconds 2] [--storages journal sqlite]

A trial is a script that writes the files of a training run (metrics at two steps, a summary) and sleeps in between, so
its own time is known. It is first run without a study, as often as a round has trials; the overhead is the difference
per trial. The check before trial 0 is reported separately, because it happens once per run. Then the same number of
trials runs with 2 workers. Real training runs share the cores, so their speed-up is smaller unless each has its own
GPU. Writes benchmarks/results/study_overhead.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe_machine

from sweeps.config import StudyConfig, check_study, parse_study
from sweeps.driver import run_study
from sweeps.storage import load_trials

RESULT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "study_overhead.json"
WANTED_OVERHEAD_S, WANTED_RATIO, NUM_ALONE = 1.0, 0.6, 5

TRAINER = """
import json, sys, time
from pathlib import Path

seconds, options = float(sys.argv[1]), sys.argv[2:]
overrides = dict(word.split("=", 1) for flag, word in zip(options, options[1:]) if flag == "--set")
run_dir = Path(overrides["run_dir"])
run_dir.mkdir(parents=True, exist_ok=True)
metrics = {"val/psnr_y": 30.0 - float(overrides["adversarial.weight"])}
with (run_dir / "metrics.jsonl").open("a") as file:
    for step in (5, 10):
        time.sleep(seconds / 2)
        file.write(json.dumps({"step": step, "time_s": time.time(), **metrics}) + "\\n")
        file.flush()
(run_dir / "summary.json").write_text(json.dumps({"exit_reason": "finished", "metrics": metrics}))
"""


def make_study(folder: Path, seconds: float, *, trials: int, workers: int, storage: str) -> StudyConfig:
    folder.mkdir()
    (folder / "base.yaml").write_text("name: base\ntrain: {steps: 10, warmup_steps: 5}\ntracking: {mlflow: false}\n")
    (folder / "trainer.py").write_text(TRAINER)
    tree = {
        "name": "overhead",
        "base": str(folder / "base.yaml"),
        "study_dir": str(folder / "study"),
        "num_trials": trials,
        "workers": workers,
        "launch": {"command": [sys.executable, str(folder / "trainer.py"), str(seconds)]},
        "space": {"adversarial.weight": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    }
    if storage == "journal":
        tree["storage"] = f"journal:{folder}/journal.log"
    return parse_study(tree, "study_overhead")


def seconds_alone(study: StudyConfig) -> float:
    """Median wall seconds of a trial's command by itself."""
    found = []
    for number in range(NUM_ALONE):
        overrides = [f"run_dir={study.directory / f'alone_{number}'}", "adversarial.weight=1e-3"]
        words = [word for override in overrides for word in ("--set", override)]
        begin_s = time.perf_counter()
        subprocess.run([*study.launch.command, *words], check=True)
        found.append(time.perf_counter() - begin_s)
    return statistics.median(found)


def seconds_of_study(study: StudyConfig) -> float:
    begin_s = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run_study(study)
    seconds = time.perf_counter() - begin_s
    states = [trial.state.name for trial in load_trials(study)]
    if states != ["COMPLETE"] * study.num_trials:
        raise SystemExit(f"error: expected {study.num_trials} complete trials, found {states}")
    return seconds


def measure(folder: Path, storage: str, trials: int, seconds: float) -> dict[str, float]:
    one = make_study(folder / f"{storage}-1", seconds, trials=trials, workers=1, storage=storage)
    two = make_study(folder / f"{storage}-2", seconds, trials=trials, workers=2, storage=storage)
    begin_s = time.perf_counter()
    check_study(one)
    check_s = time.perf_counter() - begin_s
    alone_s = seconds_alone(one)
    one_s, two_s = seconds_of_study(one), seconds_of_study(two)
    return {
        "trial_alone_s": alone_s,
        "check_before_trial_0_s": check_s,
        "one_worker_s": one_s,
        "two_workers_s": two_s,
        "overhead_per_trial_s": (one_s - check_s) / trials - alone_s,
        "two_to_one": two_s / one_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30, help="trials per round (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a trial, s (default: %(default)s)")
    parser.add_argument(
        "--storages",
        nargs="+",
        choices=["journal", "sqlite"],
        default=["journal", "sqlite"],
        help="Optuna storages (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULT, help="output file (default: benchmarks/results/study_overhead.json)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measure(Path(folder), name, arguments.trials, arguments.seconds) for name in arguments.storages}
    result = {
        "command": shlex.join(["python", "benchmarks/study_overhead.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "trials": arguments.trials,
        "seconds_per_trial": arguments.seconds,
        "storages": found,
        "wanted_overhead_s": WANTED_OVERHEAD_S,
        "wanted_ratio": WANTED_RATIO,
        "reached": all(
            each["overhead_per_trial_s"] < WANTED_OVERHEAD_S and each["two_to_one"] < WANTED_RATIO
            for each in found.values()
        ),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
