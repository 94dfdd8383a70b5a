"""DDP scaling efficiency: step time of the GAN with one and two processes, with equal threads per process.

The micro-batch per process is constant, so perfect scaling keeps the step time: efficiency = time with one process /
time with two. Needs a machine without other load; writes benchmarks/results/ddp_scaling.json:

    python benchmarks/ddp_scaling.py --data demo/data [--steps 40]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import yaml
from machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
CLIPS_PER_PROCESS = 4


def step_times_ms(config: Path, data: Path, run_dir: Path, processes: int, steps: int) -> list[float]:
    """Step times of the log intervals after the first, which holds the warming up."""
    overrides = {
        "data.root": data,
        "data.batch_clips": CLIPS_PER_PROCESS * processes,
        "run_dir": run_dir,
        "train.processes": processes,
        "train.threads": 1,
        "train.steps": steps,
        "train.warmup_steps": 0,
        "train.log_every": 5,
        "train.validate_every": 100000,
        "train.checkpoint_every": 100000,
        "train.best_metric": "null",
        "tracking.mlflow": "false",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "vsr_dist.train", "--config", str(config)]
    for name, value in overrides.items():
        command += ["--set", f"{name}={value}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["perf/step_ms"] for line in lines if "perf/step_ms" in line][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set written by pack")
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "configs/demo.yaml",
        help="training configuration (default: configs/demo.yaml)",
    )
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps per run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs per number of processes (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks/results/ddp_scaling.json",
        help="output file (default: benchmarks/results/ddp_scaling.json)",
    )
    arguments = parser.parse_args()
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        # In turns, so that a machine that slows down slows both.
        for repeat in range(arguments.repeats):
            for processes in times:
                run_dir = Path(folder) / f"{processes}_{repeat}"
                found = step_times_ms(arguments.config, arguments.data.resolve(), run_dir, processes, arguments.steps)
                times[processes] += found
    one, two = median(times[1]), median(times[2])
    result = {
        "command": shlex.join(["python", "benchmarks/ddp_scaling.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "config": yaml.safe_load(arguments.config.read_text())["name"],
        "clips_per_process": CLIPS_PER_PROCESS,
        "step_ms": {"1": round(one, 1), "2": round(two, 1)},
        "efficiency": round(one / two, 3),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
