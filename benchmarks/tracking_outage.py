"""Overhead of tracking while the MLflow server works, is killed during training, or is absent.

    python benchmarks/tracking_outage.py --data demo/data [--config configs/demo.yaml] [--steps 120] [--rounds 3]

One process and one thread, real clips from npy shards, a real `mlflow server` on loopback. Each round runs four cases:
no tracking; a working server; a server that is killed after a third of the steps and restarted after two thirds; no
server. The median of `perf/step_ms` is compared, which includes everything between two steps except validation and
checkpoints. For each run, points that MLflow lacks or has twice are counted after `vsr-dist track replay`. The share of
the step spent waiting for data is also measured. Writes benchmarks/results/tracking_outage.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
from machine import describe_machine

from vsr_dist.training.tracking import read_metrics

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/helpers"))
from mlflow_server import MlflowServer  # noqa: E402

ARMS = ("no tracking", "server works", "server dies", "no server")


def train(arm: str, run_dir: Path, server: MlflowServer, arguments: argparse.Namespace) -> None:
    overrides = {
        "data.root": arguments.data.resolve(),
        "run_dir": run_dir,
        "name": run_dir.name,
        "train.processes": 1,
        "train.threads": 1,
        "train.steps": arguments.steps,
        "train.warmup_steps": arguments.steps // 4,
        "train.log_every": arguments.log_every,
        "train.validate_every": arguments.steps // 3,
        "tracking.mlflow": str(arm != "no tracking").lower(),
        "tracking.uri": server.uri,
        "tracking.experiment": "outage",
        "tracking.log_model": "false",
    }
    command = [sys.executable, "-m", "vsr_dist.train", "--config", str(arguments.config)]
    for name, value in overrides.items():
        command += ["--set", f"{name}={value}"]
    if arm in {"server works", "server dies"}:
        server.start()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    if arm == "server dies":
        wait_for(run_dir, arguments.steps // 3, process)
        server.kill()
        wait_for(run_dir, 2 * arguments.steps // 3, process)
        server.start()
    if process.wait() != 0:
        raise RuntimeError(f"the training of arm {arm!r} failed")


def wait_for(run_dir: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    path = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and any(line["step"] >= step for line in read_metrics(path)):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the training ended before step {step}")


def points_lost_and_doubled(run_dir: Path, server: MlflowServer) -> tuple[int, int]:
    """After a replay: points of the run's own file that MLflow lacks, and steps that it has more than once."""
    replay = [sys.executable, "-m", "vsr_dist.cli", "track", "replay", str(run_dir)]
    subprocess.run(replay, check=True, stdout=subprocess.DEVNULL)
    mlflow.set_tracking_uri(server.uri)
    (run,) = mlflow.search_runs(
        experiment_names=["outage"], filter_string=f"run_name = '{run_dir.name}'", output_format="list"
    )
    client, lines = mlflow.MlflowClient(), read_metrics(run_dir / "metrics.jsonl")
    lost = doubled = 0
    for name in {key for line in lines for key in line} - {"step", "time_s"}:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        lost += len({line["step"] for line in lines if name in line} - set(steps))
        doubled += len(steps) - len(set(steps))
    return lost, doubled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set written by pack")
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "configs/demo.yaml",
        help="training configuration (default: configs/demo.yaml)",
    )
    parser.add_argument("--steps", type=int, default=120, help="optimiser steps per run (default: %(default)s)")
    parser.add_argument("--log-every", type=int, default=10, help="steps between log lines (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks/results/tracking_outage.json",
        help="output file (default: benchmarks/results/tracking_outage.json)",
    )
    arguments = parser.parse_args()
    step_ms: dict[str, list[float]] = {arm: [] for arm in ARMS}
    waits, lost, doubled = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        server = MlflowServer(Path(folder))
        for number in range(arguments.rounds):
            for arm in ARMS:
                run_dir = Path(folder) / f"{arm.replace(' ', '-')}-{number}"
                train(arm, run_dir, server, arguments)
                server.kill()
                lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "perf/step_ms" in line][1:]
                step_ms[arm].append(statistics.median(line["perf/step_ms"] for line in lines))
                waits += [line["perf/data_wait_ms"] / line["perf/step_ms"] for line in lines]
                if arm != "no tracking":
                    server.start()
                    missing, twice = points_lost_and_doubled(run_dir, server)
                    server.kill()
                    lost, doubled = lost + missing, doubled + twice
                print(f"round {number}, {arm}: {step_ms[arm][-1]:.1f} ms per step", flush=True)
    ratios = {
        arm: [round(own / none, 3) for own, none in zip(step_ms[arm], step_ms[ARMS[0]], strict=True)]
        for arm in ARMS[1:]
    }
    result = {
        "command": shlex.join(["python", "benchmarks/tracking_outage.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "step_ms": {arm: [round(value, 1) for value in values] for arm, values in step_ms.items()},
        "ratio_to_no_tracking": ratios,
        "median_ratio": {arm: statistics.median(values) for arm, values in ratios.items()},
        "points_lost": lost,
        "points_doubled": doubled,
        "data_wait_share_of_step": round(statistics.median(waits), 5),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
