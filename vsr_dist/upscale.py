"""Upscale a video, or a folder of images, with a trained generator.

vsr-dist upscale in.mp4 out.mp4
accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.upscale in.mp4 out.mp4
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from vsr_dist.core.collectives import World, barrier, from_main, is_lost_rank, join_ranks, raise_on_all_ranks, shutdown
from vsr_dist.core.console import format_duration, say
from vsr_dist.core.errors import LostRankError, OneLineParser, number_type, run_cli
from vsr_dist.inference.engine import add_stream_arguments
from vsr_dist.inference.video.job import (
    UpscaleJob,
    UpscaleOptions,
    begin,
    finish,
    num_finished,
    prepare,
    run_part,
)
from vsr_dist.inference.video.part import PartState
from vsr_dist.inference.video.video_out import ENCODERS
from vsr_dist.upscaler import find_device, find_generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist upscale`; their destinations are the fields of `UpscaleOptions`."""
    add = parser.add_argument
    add("source", type=Path, metavar="INPUT", help="a video that FFmpeg opens, or a folder of images")
    add(
        "output", type=Path, metavar="OUTPUT", help=".mp4, .mkv, .mov or .webm; without a suffix, a folder of PNG files"
    )
    add("--checkpoint", metavar="RUN", help="run directory, generator.safetensors, or models:/NAME/VERSION in MLflow "
        "(default: the packaged generator)")  # fmt: skip
    add("--tracking-uri", metavar="URI", help="MLflow server of models:/... (default: MLFLOW_TRACKING_URI)")
    add("--overwrite", action="store_true", help="replace an existing OUTPUT, once the new one is complete")

    add = parser.add_argument_group("output video").add_argument
    add("--codec", metavar="NAME", help=f"{', '.join(ENCODERS)} (default: libx264; for .webm libvpx-vp9, above 8 bits "
        "libsvtav1)")  # fmt: skip
    add("--quality", type=int, metavar="N", help="rate factor, lower is better; prores_ks: profile (default: 16 for "
        "libx264, 18 for libx265, 24 for libsvtav1 and libvpx-vp9)")  # fmt: skip
    add("--preset", metavar="NAME", help="speed of the encoder, such as veryfast or slow (default: medium for libx264)")
    add("--pixel-format", metavar="NAME", help="such as yuv420p10le (default: bits and chroma of the input)")
    add("--compare", type=Path, metavar="FILE", help="also write a video with bicubic and the result side by side")

    add = parser.add_argument_group("input").add_argument
    add("--no-audio", dest="audio", action="store_false", help="drop the audio")
    add("--encode-audio", action="store_true", help="encode audio that OUTPUT cannot hold (AAC, in .webm Opus)")
    add("--no-subtitles", dest="subtitles", action="store_false", help="drop the subtitles")
    add(
        "--start", dest="start_s", type=number_type(float, 0), metavar="SECONDS", help="start at this time (default: 0)"
    )
    add(
        "--frames",
        dest="num_frames",
        type=number_type(int, 1),
        metavar="N",
        help="upscale N frames (default: all)",
    )
    add("--deinterlace", action="store_true", help="make interlaced video progressive first (bwdif)")
    add("--fps", dest="image_rate", type=number_type(Fraction, 0, above=True), default=Fraction(25), metavar="RATE",
        help="frame rate of a folder of images, such as 24 or 30000/1001 (default: %(default)s)")  # fmt: skip

    add = parser.add_argument_group("network").add_argument
    add("--device", metavar="NAME", help="cpu or cuda (default: a GPU if there is one)")
    add_stream_arguments(add)

    add = parser.add_argument_group("resume").add_argument
    add("--segment-frames", type=number_type(int, 1), default=250, metavar="N", help="frames per segment; a job "
        "resumes at the last finished one (default: %(default)s)")  # fmt: skip
    add("--work-dir", type=Path, metavar="DIR", help="new folder for finished segments, removed at the end "
        "(default: .OUTPUT.work next to OUTPUT)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Upscale as the parsed arguments say; returns the exit status.

    With several processes each upscales a range of frames, and rank 0 joins them. An interrupted job resumes when the
    same command is given again.
    """
    began_s = time.monotonic()
    world = join_ranks()
    try:
        with ExitStack() as stack:
            job = raise_on_all_ranks(lambda: _prepare(arguments, world))
            parts = from_main(raise_on_all_ranks(lambda: begin(job, world.size, stack) if world.is_main else []))
            num_before = num_finished(job, parts)
            try:
                network_s = run_part(job, parts, world, stack)
                barrier()
                if world.is_main:
                    total = finish(job, parts)
                    _report(job, total, total.num_frames - num_before, network_s, time.monotonic() - began_s)
            except KeyboardInterrupt:
                if world.is_main and job.work.exists():
                    say(f"stopped; run the same command again to resume at the last finished segment (in {job.work})")
                raise
    except RuntimeError as error:
        if is_lost_rank(error):
            raise LostRankError(
                "another process of this job has ended, see its own message; run the same command again to resume at "
                "the last finished segments"
            ) from error
        raise
    finally:
        shutdown()
    return 0


def _prepare(arguments: argparse.Namespace, world: World) -> UpscaleJob:
    values = {one.name: getattr(arguments, one.name) for one in fields(UpscaleOptions)}
    values["device"] = _device(arguments.device, world)
    values["checkpoint"] = arguments.checkpoint or "the packaged generator"
    generator, _ = find_generator(arguments.checkpoint, arguments.tracking_uri)
    return prepare(UpscaleOptions(**values), generator)


def _device(name: str | None, world: World) -> torch.device:
    """The device that was asked for; with several processes on a machine with GPUs, each takes its own."""
    device = find_device(name)
    # `device` always has a number: that of the current GPU where none was named.
    if device.type != "cuda" or (name and torch.device(name).index is not None) or world.size == 1:
        return device
    return find_device(f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}")


def _report(job: UpscaleJob, total: PartState, num_new: int, network_s: float, wall_s: float) -> None:
    """Say what was written and what it took; warn of what was lost. num_new: frames of this run, in all processes."""
    facts, options, settings, scale = job.facts, job.options, job.join.settings, job.generator.scale
    speed = "all frames were finished; only the join ran"
    if num_new:
        speed = f"{num_new / wall_s:.{1 if num_new >= wall_s else 2}f} frames/s"
        speed += f", {network_s / wall_s:.0%} of it in the network" if network_s else ""
    size = f"{facts.width} x {facts.height} to {facts.width * scale} x {facts.height * scale} px"
    lines = [
        f"{_counted(total.num_frames, 'frame')}, {size}, in {format_duration(wall_s)} ({speed})",
        f"network: {options.checkpoint}, x{scale}, {_how(total.facts)}; {_counted(total.num_cuts, 'scene cut')}; "
        f"peak memory {_peak_memory(options.device)}",
    ]
    if settings is not None:
        kept = [track.kind for track in job.join.tracks if track.action != "drop"]
        tracks = ", ".join(_counted(kept.count(kind), f"{kind} track") for kind in ("audio", "subtitle"))
        video = f"{settings.codec} {settings.pixel_format}, {float(facts.rate):.6g} frames/s"
        lines.append(f"video: {video}; kept {tracks}")
    lines.append(f"output: {options.output}")
    lines += [f"comparison: {options.compare}"] if options.compare is not None else []
    say("\n".join([*lines, *(f"note: {text}" for text in job.notes)]))
    if total.damage:
        stated = f" of {facts.num_frames}" if facts.num_frames else ""
        found = "; ".join(text.format(number) for text, number in total.damage.items())
        kept_s = float(total.num_frames / facts.rate)
        sys.stderr.write(f"warning: {facts.path}: {found}. Kept {total.num_frames}{stated} frames, {kept_s:.2f} s\n")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _how(facts: dict[str, Any]) -> str:
    """How the network ran, from what its stream reports."""
    reason = f" ({facts['precision_reason']})" if "precision_reason" in facts else ""
    words = f"{facts.get('precision')}{reason} on {facts.get('device')}"
    words += ", compiled" if facts.get("compiled") else ""
    tiles = f", {facts.get('num_tiles')} tiles of up to {facts.get('tile_px')} px, overlap {facts.get('overlap_px')} px"
    words += tiles if (facts.get("num_tiles") or 1) > 1 else ", whole frames"
    retries = facts.get("out_of_memory_retries")
    return words + (f", out of memory {retries} times, then smaller tiles" if retries else "")


def _peak_memory(device: torch.device) -> str:
    # Linux counts in KiB.
    main = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6:.0f} MB"
    if device.type != "cuda":
        return main
    return f"{main}, on the GPU {torch.cuda.max_memory_allocated(device) / 1e6:.0f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.upscale`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.upscale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
