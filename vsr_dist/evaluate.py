"""Measure a generator (or bicubic) on a held-out split, beside bicubic, and show what it does.

vsr-dist evaluate --checkpoint demo/run --data demo/data --out demo/evaluation
accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.evaluate --checkpoint ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vsr_dist.core.collectives import gather_lists, join_ranks, shutdown, together
from vsr_dist.core.errors import BadConfigError, OneLineParser, run_cli
from vsr_dist.core.world import World
from vsr_dist.data.stream import SplitStream
from vsr_dist.evaluation.measure import measure
from vsr_dist.evaluation.output import clear, write
from vsr_dist.evaluation.subject import Subject, open_device, open_subject


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist evaluate`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="finished run directory, or its generator.safetensors")
    what.add_argument("--method", choices=["bicubic"], help="evaluate a method that needs no training")
    parser.add_argument("--data", type=Path, required=True, help="folder of a packed shard set")
    parser.add_argument("--split", default="val", help="split to measure (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics, pictures, videos and report")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate as the parsed arguments say; returns the exit status.

    On several processes each measures whole sequences of its own, and rank 0 writes what one process would write.
    """
    world = join_ranks()
    try:
        stream, subject, device = together(lambda: _open(arguments, world))
        together(lambda: clear(arguments.out) if world.is_main else None)
        part = stream.part(world)
        measured = together(lambda: measure(part, subject, device, arguments.out, world))
        measured = sorted(gather_lists(measured), key=lambda one: stream.sequences.index(one.sequence))
        if world.is_main:
            write(arguments, stream.index, subject, measured)
    finally:
        shutdown()
    return 0


def _open(arguments: argparse.Namespace, world: World) -> tuple[SplitStream, Subject, torch.device]:
    """What is measured, by what and where; whatever cannot be used is an error here."""
    stream = SplitStream(arguments.data, arguments.split)
    device = open_device(arguments.device, world)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise BadConfigError(f"--out {arguments.out} is a file; expected a folder, or a name that is free")
    return (
        stream,
        open_subject(arguments.method, arguments.checkpoint, stream.index.scale, arguments.data, device),
        device,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.evaluate`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
