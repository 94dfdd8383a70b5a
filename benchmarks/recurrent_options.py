"""What alignment, smoothing, cell and direction change in a `recurrent` generator, after equally many steps.

    .venv/bin/python benchmarks/recurrent_options.py        run again to go on; --report-only shows what is finished

Packs the demo's clips as the demo does (last fifth of each and all of carphone held out) with Farneback flow. Every arm
is configs/demo.yaml without its adversary and perceptual term, at `--channels`, on 7-frame windows inside packed clips,
one process on one thread; it differs from the others in the named settings only. `vsr-dist evaluate` measures the first
`--frames` frames of each held-out sequence. Nothing was chosen by looking at held-out clips. Differences to the plain
ConvGRU are taken seed by seed; only what holds for every seed is called better or worse. The CPU time of a frame is
measured at the end, all arms taking turns. Whatever is finished is kept; writes
benchmarks/results/recurrent_options.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
from machine import describe_machine
from paper_report import spread, verdict
from paper_table import pack_demo
from runner import Runner, run_alone

from vsr_dist.core.errors import BadConfigError, run_cli
from vsr_dist.data.stream import SplitStream
from vsr_dist.inference.engine import StreamOptions, VideoStream
from vsr_dist.inference.frames import Frame
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.metrics.registry import METRICS
from vsr_dist.models.base import Generator

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/demo.yaml"
PLAIN = "ConvGRU"
PACKED = ("alignment=packed", "flow_method=farneback")
ARMS: dict[str, tuple[str, ...]] = {
    "single frames": ("recurrence=none",),
    PLAIN: (),
    "ConvLSTM": ("recurrence=convlstm",),
    "ConvGRU, packed flow": PACKED,
    "ConvGRU, learned flow": ("alignment=learned",),
    "ConvGRU, packed flow, EMA": (*PACKED, "smoothing=ema"),
    "ConvGRU, bidirectional": ("bidirectional=true",),
}
COMPARED = ("psnr_y", "tof")
TIMED_FRAMES, TIMED_ROUNDS = 10, 5
SETTINGS = (
    "loss.adversarial=0",
    "loss.perceptual=0",
    "train.warmup_steps=0",
    "train.ramp_steps=0",
    "train.processes=1",
    "train.threads=1",
    "train.pictures=0",
    "train.best_metric=null",
    "tracking.mlflow=false",
    "data.clip_frames=7",
    "data.batch_clips=4",
    "data.flow=true",
)


def settings_of(arm: str, arguments: argparse.Namespace) -> list[str]:
    sizes = [f"generator.channels={arguments.channels}", f"data.root={arguments.work / 'data'}"]
    return [*SETTINGS, *sizes, *(f"generator.{setting}" for setting in ARMS[arm])]


def folder_of(arm: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in arm.lower())


def check_options(arguments: argparse.Namespace, runner: Runner) -> None:
    """Refuse to go on with other options than those with which the folder was begun."""
    path = arguments.work / "options.json"
    fixed = {"steps": arguments.steps, "channels": arguments.channels, "frames": arguments.frames}
    found = json.loads(path.read_text()) if path.exists() else fixed
    if found != fixed:
        raise BadConfigError(f"{arguments.work} was begun with {found}, now asked for {fixed}; use --work")
    runner.publish(path, fixed)


def train_and_evaluate(arm: str, seed: int, arguments: argparse.Namespace, runner: Runner) -> None:
    steps = arguments.steps
    run_dir = run_of(arm, seed, arguments)
    settings = [*settings_of(arm, arguments), f"run_dir={run_dir}", f"seed={seed}", f"train.steps={steps}"]
    settings += [f"train.validate_every={steps}", f"train.checkpoint_every={max(1, steps // 5)}"]
    runner.train(CONFIG, [*settings, "train.keep_checkpoints=1"], run_dir)
    measured = ["--checkpoint", str(run_dir), "--metrics", ",".join(COMPARED), "--frames", str(arguments.frames)]
    runner.evaluate([*measured, "--no-pictures"], arguments.work / "data", evaluation_of(arm, seed, arguments))


def run_of(arm: str, seed: int, arguments: argparse.Namespace) -> Path:
    return Path(arguments.work) / "runs" / f"{folder_of(arm)}-seed{seed}"


def evaluation_of(arm: str, seed: int, arguments: argparse.Namespace) -> Path:
    return Path(arguments.work) / "evaluations" / run_of(arm, seed, arguments).name


def scores_of(arm: str, arguments: argparse.Namespace) -> dict[int, dict[str, dict[str, dict[str, float]]]]:
    """Seed -> video or `overall` -> `ours` or `bicubic` -> metric, of the seeds that are finished."""
    found = {}
    for seed in arguments.seeds:
        path = evaluation_of(arm, seed, arguments) / "metrics.json"
        if path.exists():
            found[seed] = json.loads(path.read_text())["table"]
    return found


def entry_of(arm: str, plain: dict, arguments: argparse.Namespace) -> dict[str, object]:
    """What is known of one arm; `plain`: the scores of the plain ConvGRU, for the differences seed by seed."""
    tables = scores_of(arm, arguments)
    gains, against = {}, {}
    for metric in COMPARED:
        sign = METRICS[metric].direction
        better = [sign * (t["overall"]["ours"][metric] - t["overall"]["bicubic"][metric]) for t in tables.values()]
        gains[metric] = asdict(spread(better))
        pairs = [
            sign * (found["overall"]["ours"][metric] - plain[seed]["overall"]["ours"][metric])
            for seed, found in tables.items()
            if seed in plain
        ]
        if pairs and arm != PLAIN:
            against[metric] = {**asdict(spread(pairs)), "seeds": len(pairs), "verdict": verdict(spread(pairs))}
    return {
        "settings": list(ARMS[arm]),
        "cpu_s": {seed: Runner.cpu_s(run_of(arm, seed, arguments)) for seed in tables},
        "better_than_bicubic_by": gains,
        "better_than_plain_by": against,
        "tables": tables,
    }


def measure(generators: dict[str, Generator], low_THWC: Sequence[Frame]) -> dict[str, float]:
    """CPU milliseconds per frame on one thread, the median of some rounds in which all take turns."""
    torch.set_num_threads(1)
    streams = {arm: VideoStream(g, StreamOptions(), torch.device("cpu")) for arm, g in generators.items()}
    found: dict[str, list[float]] = {arm: [] for arm in streams}
    for turn in range(TIMED_ROUNDS + 1):
        for arm, stream in streams.items():
            begin_s = time.process_time()
            for low_HWC in low_THWC:
                stream.push(low_HWC)
            stream.finish()
            if turn:
                found[arm].append(1000.0 * (time.process_time() - begin_s) / len(low_THWC))
    return {arm: statistics.median(values) for arm, values in found.items()}


def report(arguments: argparse.Namespace) -> None:
    clip = next(islice(SplitStream(arguments.work / "data", "val"), 1))
    low_THWC = list(clip.low_THWC[:TIMED_FRAMES])
    plain = scores_of(PLAIN, arguments)
    finished = {arm: scores_of(arm, arguments) for arm in arguments.arms if scores_of(arm, arguments)}
    generators = {arm: load_generator(run_of(arm, min(seeds), arguments))[0] for arm, seeds in finished.items()}
    frame_ms = measure(generators, low_THWC)
    arms = {
        arm: {
            "parameters": sum(parameter.numel() for parameter in generator.parameters()),
            "frame_cpu_ms": frame_ms[arm],
            **entry_of(arm, plain, arguments),
        }
        for arm, generator in generators.items()
    }
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "steps": arguments.steps,
        "channels": arguments.channels,
        "evaluated_frames_per_sequence": arguments.frames,
        "frame_px": list(low_THWC[0].shape[:2]),
        "arms": arms,
        "machine": describe_machine(),
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(table(arms))


def table(arms: dict[str, dict]) -> str:
    """Markdown: a row per arm, mean and range over its seeds; better is above 0 in every column of gains."""
    lines = ["| arm | parameters | CPU ms per frame | seeds | PSNR-Y over bicubic, dB | tOF less than bicubic, px |"]
    lines[0] += " PSNR-Y over ConvGRU, dB | tOF less than ConvGRU, px |"
    lines.append("|" + "---|" * 8)
    for arm, entry in arms.items():
        cells = [arm, f"{entry['parameters']:,}", f"{entry['frame_cpu_ms']:.0f}"]
        cells.append(str(len(entry["tables"])))
        for name in ("better_than_bicubic_by", "better_than_plain_by"):
            for metric, digits in zip(COMPARED, (2, 3), strict=True):
                value = entry[name].get(metric)
                span = (
                    "-" if value is None else "{mean:+.{n}f} ({low:+.{n}f} to {high:+.{n}f})".format(n=digits, **value)
                )
                cells.append(span)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def make(arguments: argparse.Namespace, runner: Runner) -> None:
    check_options(arguments, runner)
    if not (arguments.work / "data" / "index.json").exists():
        pack_demo(arguments.work, runner)
    if not arguments.report_only:
        # Seed by seed, so that an early look has every arm.
        for seed in arguments.seeds:
            for arm in arguments.arms:
                train_and_evaluate(arm, seed, arguments, runner)
                runner.say(f"{arm}, seed {seed}: done")
    report(arguments)
    runner.say(f"written: {arguments.result}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/recurrent-options"), help="default: %(default)s")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16, help="frames of each held-out sequence that are measured")
    parser.add_argument("--report-only", action="store_true", help="train nothing; report what is finished")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks/results/recurrent_options.json")
    return run_cli(lambda argv: _run(parser.parse_args(argv)), None)


def _run(arguments: argparse.Namespace) -> int:
    return run_alone(arguments.work, "recurrent_options.py", lambda runner: make(arguments, runner))


if __name__ == "__main__":
    sys.exit(main())
