"""Enlarge a video, or a folder of images, with a trained generator.

vsr-dist upscale in.mp4 out.mp4
accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.upscale in.mp4 out.mp4
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import torch

from vsr_dist.core.collectives import from_main, is_lost_rank, join_ranks, raise_on_all_ranks, shutdown
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError, LostRankError, OneLineParser, run_cli
from vsr_dist.core.world import World
from vsr_dist.inference.video.codecs import ENCODERS
from vsr_dist.inference.video.upscale_job import (
    PreparedJob,
    begin,
    finish,
    prepare,
    run_part,
    wait_for_others,
)
from vsr_dist.inference.video.upscale_options import UpscaleOptions, check_paths
from vsr_dist.inference.video.upscale_report import tell
from vsr_dist.upscaler import find_device, find_generator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist upscale`."""
    parser.add_argument("input", type=Path, metavar="INPUT", help="video that FFmpeg opens, or a folder of images")
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT", help=".mp4, .mkv, .mov or .webm; without a suffix a folder of PNG frames"
    )
    parser.add_argument("--checkpoint", help="run folder, generator.safetensors or models:/NAME/VERSION of MLflow "
                        "(default: the generator that comes with this package)")  # fmt: skip
    parser.add_argument("--tracking-uri", help="MLflow server of a models:/ or runs:/ checkpoint")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUTPUT if it exists, once the new one is whole"
    )
    _add_video_options(parser.add_argument_group("the output's video"))
    _add_track_options(parser.add_argument_group("what is taken from the input"))
    _add_network_options(parser.add_argument_group("how the network runs"))
    _add_work_options(parser.add_argument_group("the work"))


def _add_video_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--codec", metavar="NAME", help=f"{', '.join(ENCODERS)} (default: libx264; libvpx-vp9 for .webm)"
    )
    group.add_argument("--quality", type=int, metavar="N", help="crf, lower is better; of prores_ks its profile "
                       "(default: 16 for libx264, 18 libx265, 24 libsvtav1 and libvpx-vp9)")  # fmt: skip
    group.add_argument("--preset", metavar="NAME", help="speed of the encoder, such as veryfast or slow "
                       "(default: medium for libx264)")  # fmt: skip
    group.add_argument("--pixel-format", metavar="NAME", help="such as yuv420p10le (default: bits and chroma as in the "
                       "input)")  # fmt: skip
    group.add_argument("--compare", type=Path, metavar="FILE", help="also write bicubic and the result side by side")


def _add_track_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--no-audio", action="store_true", help="leave the sound out")
    group.add_argument("--no-subtitles", action="store_true", help="leave the subtitles out")
    group.add_argument("--start", type=float, metavar="SECONDS", help="begin there (default: at the beginning)")
    group.add_argument("--frames", type=int, metavar="N", help="stop after so many frames (default: at the end)")
    group.add_argument("--deinterlace", action="store_true", help="make interlaced video progressive first (bwdif)")
    group.add_argument("--fps", type=_rate, default=Fraction(25), metavar="RATE", help="frame rate of a folder of "
                       "images, such as 24 or 30000/1001 (default: %(default)s)")  # fmt: skip


def _rate(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"expected a rate such as 24 or 30000/1001, found {text}") from error


def _add_network_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU if there is one)")
    group.add_argument("--tile", type=int, metavar="PX", help="largest side of the input that the network sees at once "
                       "(default: what fits into the free memory)")  # fmt: skip
    group.add_argument(
        "--tile-overlap", type=int, metavar="PX", help="what tiles share (default: what the network needs)"
    )
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="default: %(default)s; bf16 is "
                       "faster on GPUs")  # fmt: skip
    group.add_argument("--compile", action="store_true", help="compile the network: a slow start, then faster")
    group.add_argument("--no-cuts", action="store_true", help="do not look for scene cuts")


def _add_work_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--segment-frames", type=int, default=250, metavar="N", help="frames between places where "
                       "an interrupted job can go on (default: %(default)s)")  # fmt: skip
    group.add_argument("--work-dir", type=Path, metavar="DIR", help="new folder where unfinished work is kept "
                       "(default: .OUTPUT.work beside OUTPUT)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Upscale as the parsed arguments say; returns the exit status.

    On several processes each enlarges a range of frames, and rank 0 joins them. A run that was interrupted goes on when
    the same command is given again.
    """
    began_s = time.monotonic()
    world = join_ranks()
    try:
        with ExitStack() as stack:
            job = raise_on_all_ranks(lambda: _prepare(arguments, world))
            planned = raise_on_all_ranks(lambda: begin(job, world.size, stack) if world.is_main else None)
            plan = from_main(planned)
            assert plan is not None, "rank 0 has made it"
            raise_on_all_ranks(lambda: job.hold_part(world.rank, stack))
            try:
                before = job.num_done(plan)
                report = run_part(job, plan, world)
                if world.is_main:
                    wait_for_others(job, plan)
                    result = finish(job, plan)
                    tell(job, result, report, result.num_frames - before, time.monotonic() - began_s)
            except KeyboardInterrupt:
                _say_how_to_go_on(job, world)
                raise
    except RuntimeError as error:
        if is_lost_rank(error):
            raise LostRankError("another process of this job has ended; its own message says why") from error
        raise
    finally:
        shutdown()
    return 0


def _say_how_to_go_on(job: PreparedJob, world: World) -> None:
    if world.is_main and job.work.path.exists():
        say(f"stopped; the same command goes on at the last finished segment ({job.work.path} keeps the work)")


def _prepare(arguments: argparse.Namespace, world: World) -> PreparedJob:
    options = _options(arguments, world)
    check_paths(options)
    generator, _ = find_generator(arguments.checkpoint, arguments.tracking_uri)
    return prepare(options, generator)


def _options(arguments: argparse.Namespace, world: World) -> UpscaleOptions:
    for name, least in (
        ("segment_frames", 1),
        ("frames", 1),
        ("start", 0),
        ("tile", 1),
        ("tile_overlap", 0),
        ("fps", 0),
    ):
        value = getattr(arguments, name)
        if value is not None and (value < least or (name == "fps" and value == 0)):
            option = "--" + name.replace("_", "-")
            raise BadConfigError(
                f"{option} {value}: expected {'more than 0' if name == 'fps' else f'at least {least}'}"
            )
    return UpscaleOptions(
        source=arguments.input,
        output=arguments.output,
        checkpoint=arguments.checkpoint or "the generator that comes with this package",
        overwrite=arguments.overwrite,
        codec=arguments.codec,
        quality=arguments.quality,
        preset=arguments.preset,
        pixel_format=arguments.pixel_format,
        compare=arguments.compare,
        audio=not arguments.no_audio,
        subtitles=not arguments.no_subtitles,
        start_s=arguments.start,
        num_frames=arguments.frames,
        deinterlace=arguments.deinterlace,
        image_rate=arguments.fps,
        device=_device(arguments.device, world),
        tile_px=arguments.tile,
        overlap_px=arguments.tile_overlap,
        precision=arguments.precision,
        compile=arguments.compile,
        cuts=not arguments.no_cuts,
        segment_frames=arguments.segment_frames,
        work_dir=arguments.work_dir,
    )


def _device(name: str | None, world: World) -> torch.device:
    """The device that was asked for; with several processes on a machine with GPUs, each takes its own."""
    device = find_device(name)
    # `device` always has a number: that of the current GPU where none was named.
    if device.type != "cuda" or (name and torch.device(name).index is not None) or world.size == 1:
        return device
    return find_device(f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.upscale`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.upscale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
