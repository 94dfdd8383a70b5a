"""Train the paper's models, ours and baselines under one CPU budget, and measure them on held-out video.

    make paper-table                                        in the background; run again to go on
    .venv/bin/python benchmarks/paper_table.py --jobs 2     the same in the foreground

Packs the demo's clips as the demo does (last fifth of each and all of carphone held out), with flow; measures the CPU
time per step of each model; trains every model and seed for as many steps as fill the budget, one process and thread
each; evaluates with `vsr-dist evaluate`; and writes docs/paper_table.md, docs/images/paper_table.png and
benchmarks/results/paper_table.json. Whatever is finished is kept; interrupted trainings resume from their checkpoint.

The paper's networks are as wide as leaves them about a thousand steps of 20 CPU-minutes: 32 channels (4.0 CPU-seconds
per step at 64, 1.2 at 32, 0.6 at 16). No setting was chosen by looking at held-out clips.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
from machine import describe_machine
from paper_report import Trained, as_data, document, draw
from runner import Runner, python, run_alone

from vsr_dist.core.config_io import add_override_option
from vsr_dist.core.errors import BadConfigError, run_cli
from vsr_dist.data.stream import SplitStream
from vsr_dist.evaluation.subjects import NamedMethod
from vsr_dist.inference.engine import StreamOptions, VideoStream
from vsr_dist.inference.frames import Frame, FrameStream
from vsr_dist.inference.generator_io import load_generator

ROOT = Path(__file__).resolve().parents[1]
DEMO_CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
TIMED_FRAMES, TIMED_ROUNDS = 5, 3


@dataclass(frozen=True)
class Entry:
    """A model of the table: its configuration, and the share of its steps that are warm-up, as in that configuration.

    is_papers: its width is `--width`, the others keep that of their configuration.
    """

    title: str
    config: str
    is_papers: bool = False
    warmup_share: float = 0.0


MODELS = {
    "base": Entry("paper: base", "configs/paper/base.yaml", is_papers=True),
    "lstm": Entry("paper: base + LSTM", "configs/paper/lstm.yaml", is_papers=True),
    "improved": Entry("paper: improved", "configs/paper/improved.yaml", is_papers=True),
    "recurrent": Entry("recurrent (ours)", "configs/demo.yaml", warmup_share=0.85),
    "espcn": Entry("ESPCN", "configs/baselines/espcn.yaml"),
    "vsrnet": Entry("VSRnet", "configs/baselines/vsrnet.yaml"),
    "srresnet": Entry("SRResNet", "configs/baselines/srresnet.yaml"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", type=Path, default=Path("runs/paper-table"), help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="packed shard set; default: WORK/data, packed from the sample clips")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU-minutes per model and seed")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one core each")
    parser.add_argument("--width", type=int, default=32, help="channels of the paper's networks")
    parser.add_argument("--calibration-s", type=float, default=30.0, help="CPU-seconds to measure a step")
    add_override_option(parser, "data.crop_px=16")
    parser.add_argument("--table", type=Path, default=ROOT / "docs/paper_table.md")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/paper_table.png")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks/results/paper_table.json")


def settings_of(name: str, arguments: argparse.Namespace) -> list[str]:
    """What a model's training changes in its configuration, but for seed, steps and folder."""
    entry, width = MODELS[name], arguments.width
    found = ["train.processes=1", "train.threads=1", "tracking.mlflow=false", "train.pictures=0"]
    if entry.is_papers:
        found += [f"generator.channels={width}", f"discriminator.filters={width}"]
        found += [f"generator.lstm_hidden={4 * width}"] if name != "base" else []
    return [*found, *arguments.overrides]


def warmup_of(name: str, steps: int) -> list[str]:
    share = MODELS[name].warmup_share
    if share == 0.0:
        return []
    warmup = int(share * steps)
    return [f"train.warmup_steps={warmup}", f"train.ramp_steps={max(1, (steps - warmup) // 8)}"]


def calibrate(name: str, arguments: argparse.Namespace, data: Path, runner: Runner) -> float:
    """Mean CPU seconds per step, warm-up and rest weighted as in the run."""
    share = MODELS[name].warmup_share
    phases = [(0, 1.0 - share)] + ([(10**6 - 1, share)] if share else [])
    settings = [*settings_of(name, arguments), f"data.root={data}", "train.steps=1000000", "train.log_every=1"]
    settings += ["train.validate_every=1000000", "train.checkpoint_every=1000000", "data.val_clips=1"]
    mean = 0.0
    for warmup, weight in phases:
        folder = arguments.work / "calibration" / f"{name}-{'warmup' if warmup else 'full'}"
        phase = [*settings, f"train.warmup_steps={warmup}", f"run_dir={folder}"]
        step_s = runner.cpu_per_step(ROOT / MODELS[name].config, phase, folder, arguments.calibration_s)
        mean += weight * step_s
    return mean


def plan(arguments: argparse.Namespace, data: Path, runner: Runner) -> dict[str, dict[str, float]]:
    """Model -> CPU seconds per step and steps; measured once and kept, so that a resumed run has the same steps."""
    path = arguments.work / "plan.json"
    fixed = {"minutes": arguments.minutes, "width": arguments.width, "overrides": arguments.overrides}
    found = json.loads(path.read_text()) if path.exists() else {"options": fixed, "models": {}}
    if found["options"] != fixed:
        raise BadConfigError(f"{arguments.work} was begun with {found['options']}, now asked for {fixed}; use --work")
    missing = [name for name in arguments.models if name not in found["models"]]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # As many side by side as later: neighbours on the same machine slow each other down.
        for name, step_s in zip(
            missing, pool.map(lambda name: calibrate(name, arguments, data, runner), missing), strict=True
        ):
            steps = max(2, round(60.0 * arguments.minutes / step_s))
            found["models"][name] = {"step_cpu_s": step_s, "steps": steps}
            runner.say(f"{name}: {step_s:.3f} CPU-s per step, {steps} steps")
            runner.publish(path, found)
    models: dict[str, dict[str, float]] = found["models"]
    return models


def train_and_evaluate(
    name: str, seed: int, steps: int, arguments: argparse.Namespace, data: Path, runner: Runner
) -> None:
    run_dir = arguments.work / "runs" / f"{name}-seed{seed}"
    settings = [*settings_of(name, arguments), *warmup_of(name, steps), f"data.root={data}", f"run_dir={run_dir}"]
    settings += [f"seed={seed}", f"name={name}-seed{seed}", f"train.steps={steps}", f"train.validate_every={steps}"]
    settings += [f"train.checkpoint_every={max(1, steps // 10)}", "train.keep_checkpoints=1"]
    try:
        runner.train(ROOT / MODELS[name].config, settings, run_dir)
        runner.evaluate(["--checkpoint", str(run_dir)], data, arguments.work / "evaluations" / run_dir.name)
    except RuntimeError as error:
        # The other runs go on; the table waits until this one has been made to work.
        runner.say(f"{run_dir.name} FAILED: {error}")
        raise


def pack_demo(work: Path, runner: Runner) -> Path:
    """The demo's shards, with the flow that VSRnet trains with; a finished set is found finished by the packer."""
    clips, data = work / "clips", work / "data"
    runner.run(python("samples", str(clips)), work / "pack.log")
    sources = [str(clips / f"{name}.mp4") for name in DEMO_CLIPS]
    options = ["--holdout-tail", "0.2", "--holdout", "carphone_pristine", "--flow", "farneback"]
    runner.run(python("pack", *sources, "--out", str(data), *options), work / "pack.log")
    return data


def frame_ms(stream: FrameStream, low_THWC: Sequence[Frame]) -> float:
    """CPU milliseconds per frame on one thread, the median of some rounds."""
    measured = []
    for _ in range(TIMED_ROUNDS):
        begin_s = time.process_time()
        for low_HWC in low_THWC:
            stream.push(low_HWC)
        stream.finish()
        measured.append(1000.0 * (time.process_time() - begin_s) / len(low_THWC))
    return statistics.median(measured)


def report(arguments: argparse.Namespace, planned: dict[str, dict[str, float]], data: Path) -> None:
    """Everything that is finished, gathered and written."""
    torch.set_num_threads(1)
    stream = SplitStream(data, "val")
    clip = next(islice(stream, 1))
    low_THWC = list(clip.low_THWC[:TIMED_FRAMES])
    cpu = torch.device("cpu")
    evaluated = arguments.work / "evaluations"
    baseline = json.loads((evaluated / "bicubic" / "metrics.json").read_text())
    bicubic = baseline["table"]["overall"]["bicubic"]
    models, by_video = [], {}
    for name in arguments.models:
        folders = {seed: arguments.work / "runs" / f"{name}-seed{seed}" for seed in arguments.seeds}
        generator, _ = load_generator(folders[arguments.seeds[0]])
        tables = {
            seed: json.loads((evaluated / folder.name / "metrics.json").read_text())["table"]
            for seed, folder in folders.items()
        }
        by_video[name] = {seed: {scope: row["ours"] for scope, row in found.items()} for seed, found in tables.items()}
        models.append(
            Trained(
                MODELS[name].title,
                " ".join([MODELS[name].config, *settings_of(name, arguments)]),
                sum(parameter.numel() for parameter in generator.parameters()),
                int(planned[name]["steps"]),
                planned[name]["step_cpu_s"],
                {seed: Runner.cpu_s(folder) for seed, folder in folders.items()},
                frame_ms(VideoStream(generator, StreamOptions(), cpu), low_THWC),
                {seed: found["overall"]["ours"] for seed, found in tables.items()},
            )
        )
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "minutes": arguments.minutes,
        "width": arguments.width,
        "calibration_s": arguments.calibration_s,
        "bicubic_frame_ms": frame_ms(NamedMethod("bicubic", stream.index.scale, cpu), low_THWC),
        "frame_px": "{} x {}".format(*low_THWC[0].shape[:2]),
        "protocol": baseline["protocol"],
        "data_digest": baseline["data_digest"],
    }
    result = {**facts, "bicubic": bicubic, "models": as_data(models, bicubic), "videos": by_video}
    for path in (arguments.result, arguments.table, arguments.picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps({**result, "machine": describe_machine()}, indent=1) + "\n")
    arguments.table.write_text(document(models, bicubic, facts))
    draw(models, bicubic, arguments.picture)


def run(arguments: argparse.Namespace) -> int:
    return run_alone(arguments.work, "paper_table.py", lambda runner: make_table(arguments, runner))


def make_table(arguments: argparse.Namespace, runner: Runner) -> None:
    data = arguments.data or pack_demo(arguments.work, runner)
    planned = plan(arguments, data, runner)
    runner.evaluate(["--method", "bicubic"], data, arguments.work / "evaluations" / "bicubic")
    # Seed by seed, so that an early look has every model.
    tasks = [(name, seed) for seed in arguments.seeds for name in arguments.models]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = [
            pool.submit(train_and_evaluate, name, seed, int(planned[name]["steps"]), arguments, data, runner)
            for name, seed in tasks
        ]
        for task, future in zip(tasks, done, strict=True):
            future.result()
            runner.say(f"{task[0]}, seed {task[1]}: done")
    report(arguments, planned, data)
    runner.say(f"written: {arguments.table}, {arguments.picture}, {arguments.result}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run_cli(lambda argv: run(parser.parse_args(argv)), None)


if __name__ == "__main__":
    sys.exit(main())
