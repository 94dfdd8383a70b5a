"""Our training step compared with a plain transcription of the paper's; `recurrent` compared with a naive version.

    python benchmarks/step_time.py [--channels 64] [--rounds 5] [--threads 1 2]

Training: the model of configs/paper/improved.yaml (LSTM, listing 1 as printed, all five loss terms on all frames) at
`--channels`, the paper's learning rate, the same initial weights and the same batches for every side. First, five steps
on five batches are run on each side and their losses compared; then all sides run in turn, step by step, on one batch.
To separate rounding from errors, the five steps are also compared in float64 (slow), on one clip of half the width and
height. `transcription, used passes` omits the two forward passes of the base code whose results are not used.

Inference: a clip through `recurrent`, on the whole at once, frame by frame, and naively: frame by frame, with one
convolution of the concatenated input and state per gate. The three results are compared.

The FLOPs are those that torch.utils.flop_counter counts (a multiplication and an addition are two), with the LSTM split
into operators that it knows. Writes benchmarks/results/step_time.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import paper_transcription as paper
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from machine import describe_machine
from naive_recurrent import NaiveRecurrent
from torch.utils.flop_counter import FlopCounterMode

from vsr_dist.build import build_networks, make_step
from vsr_dist.config import Config, load_config
from vsr_dist.data.loader import ClipBatch
from vsr_dist.models import build_generator
from vsr_dist.models.features import PerceptualTrunk
from vsr_dist.ops.color import from_uint8
from vsr_dist.training import gan_step as step_module
from vsr_dist.training.config import make_optimizer
from vsr_dist.training.control import Controllers
from vsr_dist.training.gan_step import GanStep

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "step_time.json"
NUM_COMPARED_STEPS, MAX_LOSS_DIFFERENCE, WANTED_RATIO = 5, 1e-4, 1.3
# In double precision nothing is left of rounding that Adam, which divides by the gradient's size, blows up.
MAX_DOUBLE_DIFFERENCE = 1e-9
OURS, LITERAL, USED = "ours", "transcription", "transcription, used passes"
MODELS = {
    "paper base": "configs/paper/base.yaml",
    "paper + LSTM": "configs/paper/lstm.yaml",
    "paper improved": "configs/paper/improved.yaml",
    "recurrent": "configs/demo.yaml",
    "ESPCN": "configs/baselines/espcn.yaml",
    "VSRnet": "configs/baselines/vsrnet.yaml",
    "SRResNet": "configs/baselines/srresnet.yaml",
}
Step = Callable[[torch.Tensor, torch.Tensor], tuple[float, float]]


def paper_config(channels: int, crop_px: int) -> Config:
    sizes = [f"generator.channels={channels}", f"discriminator.filters={channels}", f"generator.input_px={crop_px}"]
    sizes += [f"generator.lstm_hidden={4 * channels}", "generator.alignment=as_printed", "train.perceptual_frames=0"]
    # The listing has no factor on the perceptual loss.
    sizes += [f"data.crop_px={crop_px}", f"data.val_crop_px={crop_px}", "perceptual.rescale=1"]
    return load_config(ROOT / "configs/paper/improved.yaml", sizes)


def gan_step(config: Config, dtype: torch.dtype = torch.float32) -> GanStep:
    """A step on the CPU as a training has it."""
    accelerator = Accelerator(cpu=True)
    generator, discriminator = (network.to(dtype) for network in build_networks(config))
    optimizers = [
        make_optimizer(generator, config.generator_optimizer),
        make_optimizer(discriminator, config.discriminator_optimizer),
    ]
    prepared = accelerator.prepare(generator, discriminator, *optimizers)
    features = PerceptualTrunk(config.perceptual).to(dtype) if config.loss.perceptual > 0 else None
    return make_step(config, accelerator, prepared, features)


def our_step(config: Config, dtype: torch.dtype = torch.float32) -> Step:
    step = gan_step(config, dtype)
    controllers = Controllers(config.adversarial, config.loss, torch.device("cpu"))

    def run(low: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
        batch = ClipBatch(low, real, ("",) * len(low), torch.ones(len(low), dtype=torch.bool))
        scalars = step.run(iter([batch]), controllers.plan(1.0), 0)[0].scalars
        return float(scalars["loss_g/total"]), float(scalars["loss_d/total"])

    return run


def transcribed_step(config: Config, dead_code: bool, dtype: torch.dtype = torch.float32) -> Step:
    """The transcription with our initial weights, which lie in the same order."""
    side = config.data.crop_px
    ours_g, ours_d = build_networks(config)
    theirs_g = paper.Generator(
        config.scale, config.generator.num_blocks, config.generator.channels, side, config.generator.lstm_hidden
    )
    theirs_d = paper.Discriminator(config.discriminator.filters)
    for ours, theirs in ((ours_g, theirs_g), (ours_d, theirs_d)):
        values = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
        theirs.to(dtype).load_state_dict(dict(values))
    return paper.PaperTraining(theirs_g, theirs_d, PerceptualTrunk(config.perceptual).to(dtype), dead_code).step


@contextmanager
def in_double() -> Iterator[None]:
    """Our step takes its bytes for float64; the values are those of float32, as in the transcription."""
    with mock.patch.object(step_module, "from_uint8", lambda image: from_uint8(image).double()):
        yield


def losses_in_double(config: Config) -> dict[str, object]:
    """The compared steps in float64, on one clip per batch, and how far they part in float32."""
    data = batches(config, 1, NUM_COMPARED_STEPS)

    def run(dtype: torch.dtype) -> dict[str, list[tuple[float, float]]]:
        sides = {OURS: our_step(config, dtype), USED: transcribed_step(config, dead_code=False, dtype=dtype)}
        return {name: [step(*batch) for batch in data] for name, step in sides.items()}

    single = run(torch.float32)
    with in_double():
        losses = run(torch.float64)
    difference = largest_difference(losses[OURS], losses[USED])
    return {
        "clips": 1,
        "crop_px": config.data.crop_px,
        "losses_g_d": losses,
        "largest_loss_difference": difference,
        "losses_equal": difference <= MAX_DOUBLE_DIFFERENCE,
        "largest_loss_difference_in_float32": largest_difference(single[OURS], single[USED]),
    }


def largest_difference(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(abs(first - second) for pair in pairs for first, second in zip(*pair, strict=True))


def batches(config: Config, num_clips: int, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """uint8 clips of smooth random texture that moves, and their high-resolution truth."""
    generator = torch.Generator().manual_seed(0)
    side, num_frames = config.data.crop_px, config.data.clip_frames
    found = []
    for _ in range(number):
        coarse = torch.rand(num_clips, 3, side // 2 + num_frames, side // 2 + num_frames, generator=generator)
        wide = F.interpolate(coarse, scale_factor=2.0 * config.scale, mode="bicubic").clamp(0, 1)
        edge = side * config.scale
        starts = range(0, 4 * num_frames, 4)
        real = torch.stack([wide[..., start : start + edge, start : start + edge] for start in starts], dim=1)
        low = F.avg_pool2d(real.flatten(0, 1), config.scale).unflatten(0, real.shape[:2])
        found.append(((low * 255).round().byte(), (real * 255).round().byte()))
    return found


def compare_training(config: Config, num_clips: int, rounds: int, threads: list[int]) -> dict[str, object]:
    data = batches(config, num_clips, NUM_COMPARED_STEPS)
    torch.set_num_threads(threads[-1])
    sides = {
        OURS: our_step(config),
        LITERAL: transcribed_step(config, dead_code=True),
        USED: transcribed_step(config, dead_code=False),
    }
    losses = {name: [step(*batch) for batch in data] for name, step in sides.items()}
    difference = max(largest_difference(losses[OURS], losses[name]) for name in (LITERAL, USED))
    flops = {}
    for name, step in sides.items():
        flops[name] = count_flops(lambda step=step: step(*data[0]))
    timed = {}
    for count in threads:
        torch.set_num_threads(count)
        seconds = interleave({name: lambda step=step: step(*data[0]) for name, step in sides.items()}, rounds)
        timed[f"{count} thread(s)"] = {
            "step_s": seconds,
            "ratio": seconds[LITERAL] / seconds[OURS],
            "ratio_used_passes": seconds[USED] / seconds[OURS],
        }
    return {
        "channels": config.generator.channels,
        "clips": num_clips,
        "frames": config.data.clip_frames,
        "crop_px": config.data.crop_px,
        "losses_g_d": losses,
        "largest_loss_difference": difference,
        "losses_equal": difference <= MAX_LOSS_DIFFERENCE,
        "float64": losses_in_double(paper_config(config.generator.channels, config.data.crop_px // 2)),
        "flops_per_step": flops,
        "timed": timed,
        "wanted_ratio": WANTED_RATIO,
        "reached": all(entry["ratio"] >= WANTED_RATIO for entry in timed.values()),
    }


def interleave(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall seconds of each way; they take turns, one unmeasured round first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, call in ways.items():
            begin_s = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - begin_s)
    return {name: statistics.median(values) for name, values in seconds.items()}


def count_flops(call: Callable[[], object]) -> int:
    # oneDNN's LSTM is one operator that the counter does not know; without it the LSTM is matrix products.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@torch.no_grad()
def compare_inference(height: int, width: int, num_frames: int, rounds: int, threads: list[int]) -> dict[str, object]:
    config = load_config(ROOT / "configs/demo.yaml")
    torch.manual_seed(0)
    generator = build_generator(config.generator, config.scale).eval()
    for parameter in generator.parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)
    low = torch.rand(num_frames, 3, height, width)

    def frame_by_frame() -> torch.Tensor:
        state, images = None, []
        for frame in low.split(1):
            image, state = generator.step(frame, state)
            images.append(image)
        return torch.cat(images)

    naive = NaiveRecurrent(generator)
    ways = {
        "whole clip": lambda: generator(low[None])[0],
        "frame by frame": frame_by_frame,
        "naive": lambda: naive(low),
    }
    whole, stepped, plain = (way() for way in ways.values())
    timed = {}
    for count in threads:
        torch.set_num_threads(count)
        seconds = interleave(ways, rounds)
        ratios = {name: seconds["naive"] / seconds[name] for name in ("whole clip", "frame by frame")}
        timed[f"{count} thread(s)"] = {
            "frame_ms": {name: 1000 * value / num_frames for name, value in seconds.items()},
            "ratio": ratios,
        }
    difference = max(float((other - whole).abs().max()) for other in (stepped, plain))
    return {"low_px": [height, width], "frames": num_frames, "largest_difference": difference, "timed": timed}


@torch.no_grad()
def sizes() -> dict[str, dict[str, float]]:
    """Parameters, and FLOPs per frame and low-resolution pixel, of each model as its configuration says."""
    found = {}
    for name, path in MODELS.items():
        config = load_config(ROOT / path)
        generator = build_generator(config.generator, config.scale).eval()
        side = generator.input_px or 48
        low = torch.rand(1, 5, 3, side, side)
        found[name] = {
            "parameters": sum(parameter.numel() for parameter in generator.parameters()),
            "flops_per_frame_and_low_pixel": count_flops(lambda g=generator, low=low: g(low)) / (5 * side**2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64, help="width of both networks (default: 64, the paper's)")
    parser.add_argument(
        "--crop-px", type=int, default=24, help="low-resolution crop (default: %(default)s); 64 in the paper"
    )
    parser.add_argument("--clips", type=int, default=2, help="clips per batch (default: %(default)s)")
    parser.add_argument(
        "--frame-px", type=int, nargs=2, default=[90, 160], help="rows and columns for inference (default: 90 160)"
    )
    parser.add_argument("--frames", type=int, default=10, help="frames for inference (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="CPU threads, each measured (default: %(default)s)"
    )
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="output file (default: benchmarks/results/step_time.json)"
    )
    arguments = parser.parse_args()
    config = paper_config(arguments.channels, arguments.crop_px)
    training = compare_training(config, arguments.clips, arguments.rounds, arguments.threads)
    inference = compare_inference(*arguments.frame_px, arguments.frames, arguments.rounds, arguments.threads)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "training": training,
        "inference": inference,
        "models": sizes(),
        "machine": describe_machine(),
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
