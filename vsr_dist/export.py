"""Export a trained generator as a graph that runs without this package: ONNX, or a program of torch.export.

vsr-dist export --checkpoint demo/run --format onnx --out demo/generator.onnx
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError, OneLineParser, run_cli
from vsr_dist.inference.exported import (
    TOLERANCE,
    Exportable,
    ExportError,
    largest_difference,
    need_onnx,
    write_onnx,
    write_torch,
)
from vsr_dist.upscaler import find_generator

_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist export`."""
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="run directory, generator.safetensors, or models:/NAME/VERSION (default: the packaged generator)",
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow server (default: MLFLOW_TRACKING_URI)")
    parser.add_argument("--format", choices=list(_SUFFIXES), required=True, help="onnx, or torch for torch.export")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="output file, *.onnx or *.pt2")
    parser.add_argument("--height", metavar="PX", type=int, help="input height (default: any)")
    parser.add_argument("--width", metavar="PX", type=int, help="input width (default: any)")
    parser.add_argument(
        "--frames",
        metavar="N",
        type=int,
        help="frames per window, only for generators without a streaming step (default: 8 and their context)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Export as the parsed arguments say; the file appears once it is complete and agrees with the generator."""
    out: Path = arguments.out
    _check(arguments)
    if arguments.format == "onnx":
        need_onnx()
    generator, description = find_generator(arguments.checkpoint, arguments.tracking_uri)
    size = None if arguments.height is None else (arguments.height, arguments.width)
    exportable = Exportable(generator, size, arguments.frames)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfigError(f"--out {out} cannot be written: {error}; name another folder") from error
    # torch.export.save expects the suffix at the end.
    temporary = out.with_name(f".{out.stem}.part{out.suffix}")
    try:
        write = write_onnx if arguments.format == "onnx" else write_torch
        multiple_px = write(exportable, temporary, description)
        worst = largest_difference(exportable, arguments.format, temporary, multiple_px)
        if not worst <= TOLERANCE:
            raise ExportError(
                f"the exported graph differs from the generator by {worst:.1e}, more than the allowed {TOLERANCE:.0e}; "
                "no file was written"
            )
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    contract = exportable.contract(multiple_px)
    sizes = "free" if exportable.size is None else "x".join(str(side) for side in exportable.size)
    if exportable.size is None and multiple_px > 1:
        sizes = f"multiples of {multiple_px}"
    say(f"{out}: {', '.join(contract.inputs)} -> {', '.join(contract.outputs)}; rows and columns {sizes}")
    say(contract.rule)
    say(f"largest difference from the generator over four inputs: {worst:.1e}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    suffix = _SUFFIXES[arguments.format]
    faults = []
    if arguments.out.suffix != suffix:
        faults.append(f"--out with the suffix {suffix} for --format {arguments.format}, found {arguments.out}")
    if arguments.out.is_dir():
        faults.append(f"--out as a file, found the folder {arguments.out}")
    if (arguments.height is None) != (arguments.width is None):
        faults.append("--height and --width together, or neither")
    numbers = {"--height": arguments.height, "--width": arguments.width, "--frames": arguments.frames}
    faults += [
        f"{name} of at least 1, found {value}" for name, value in numbers.items() if value is not None and value < 1
    ]
    if faults:
        raise BadConfigError(f"expected {'; '.join(faults)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m vsr_dist.export`; returns the exit status."""
    parser = OneLineParser(
        prog="vsr_dist.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run_cli(lambda arguments: run(parser.parse_args(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
