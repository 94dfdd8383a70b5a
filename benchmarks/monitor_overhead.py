"""Cost of the drift monitor and of the metrics file, relative to training.

    python benchmarks/monitor_overhead.py [--config configs/demo.yaml] [--steps 12] [--rounds 3] [--threads 1]

The networks, losses and sizes of a configuration on synthetic clips, one process. Measured: an adversarial training
step with the controllers off and on; one call of the monitor (`data.val_clips` held-out and as many training windows of
`data.val_crop_px`); the validation at the same step; and one line of `metrics.jsonl`. The shares are those at the
default intervals (`train.validate_every`, `train.log_every` of
`TrainConfig`). MLflow is not measured: it is served in the background. Writes benchmarks/results/monitor_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe_machine
from step_time import batches, gan_step

from vsr_dist.config import Config, load_config
from vsr_dist.core.collectives import World
from vsr_dist.data.loader import ClipBatch
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.training.config import GammaControl, TrainConfig, WeightControl
from vsr_dist.training.control import Controllers
from vsr_dist.training.drift import DriftMonitor
from vsr_dist.training.gan_step import GanStep
from vsr_dist.training.tracking import Tracker
from vsr_dist.training.validation import Validator

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "monitor_overhead.json"
WANTED_SHARE, NUM_LINES, POINTS_PER_LINE = 0.05, 200, 30
ALL_ON = {"gamma_control": GammaControl(target=0.72), "weight_control": WeightControl(ratio=0.1)}
ALL_OFF = {"gamma_control": GammaControl(), "weight_control": WeightControl()}


def clips(config: Config, side_px: int, number: int) -> ClipBatch:
    sized = replace(config, data=replace(config.data, crop_px=side_px))
    low, real = batches(sized, number, 1)[0]
    return ClipBatch(low, real, tuple(f"w{n}" for n in range(number)), torch.ones(number, dtype=torch.bool))


def seconds_of(call: Callable[[], object], rounds: int) -> float:
    """Median wall seconds; one unmeasured call first."""
    call()
    found = []
    for _ in range(rounds):
        begin_s = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin_s)
    return statistics.median(found)


def step_seconds(config: Config, step: GanStep, num_steps: int) -> dict[str, float]:
    """Controllers off and on take turns."""
    batch = clips(config, config.data.crop_px, config.data.batch_clips)
    sides = {
        name: Controllers(replace(config.adversarial, **controls), config.loss, torch.device("cpu"))
        for name, controls in (("controllers off", ALL_OFF), ("controllers on", ALL_ON))
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(num_steps + 1):
        for name, controllers in sides.items():
            begin_s = time.perf_counter()
            controllers.learn(step.run(iter([batch]), controllers.plan(1.0), 0))
            if turn:
                found[name].append(time.perf_counter() - begin_s)
    return {name: statistics.median(values) for name, values in found.items()}


def measure(config: Config, num_steps: int, rounds: int) -> dict[str, object]:
    step = gan_step(config)
    per_step = step_seconds(config, step, num_steps)
    held, reference = (
        Validator(
            clips(config, config.data.val_crop_px, config.data.val_clips), World(), config.scale, torch.device("cpu")
        )
        for _ in range(2)
    )
    generator, discriminator = step.generator.network, step.discriminator.network
    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(Path(folder) / "metrics.jsonl")
        values = {f"metric/{number}": number / 7.0 for number in range(POINTS_PER_LINE)}
        line_s = seconds_of(lambda: [tracker.metrics(1, values) for _ in range(NUM_LINES)], rounds) / NUM_LINES
    monitor = DriftMonitor(held, reference, ADVERSARIAL[config.adversarial.loss], config.loss)
    monitor.history = [(number * 500, 0.5 + number % 7 / 100) for number in range(1, 2001)]
    weight = config.adversarial.weight
    monitor_s = seconds_of(
        lambda: monitor.measure(generator, discriminator, done=10**6 + 500, adversarial_weight=weight), rounds
    )
    quality_s = seconds_of(lambda: held.quality(generator), rounds)
    intervals = TrainConfig()
    share = monitor_s / intervals.validate_every + line_s / intervals.log_every
    share /= per_step["controllers off"]
    return {
        "step_s": per_step,
        "monitor_s": monitor_s,
        "quality_s": quality_s,
        "metrics_line_s": line_s,
        "validate_every": intervals.validate_every,
        "log_every": intervals.log_every,
        "share_of_step_time": share,
        "controllers_ratio": per_step["controllers on"] / per_step["controllers off"],
        "wanted_share": WANTED_SHARE,
        "reached": share < WANTED_SHARE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config",
        type=Path,
        default=ROOT / "configs" / "demo.yaml",
        help="training configuration (default: configs/demo.yaml)",
    )
    parser.add_argument("--steps", type=int, default=12, help="training steps per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config)
    found = measure(config, arguments.steps, arguments.rounds)
    result = {
        "command": shlex.join(["python", "benchmarks/monitor_overhead.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "config": config.name,
        "threads": arguments.threads,
        "clips": config.data.batch_clips,
        "held_out": [config.data.val_clips, config.data.clip_frames, config.data.val_crop_px],
        **found,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
