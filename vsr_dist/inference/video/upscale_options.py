"""The options of an upscaling job, and a look at the places that it writes to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from vsr_dist.core.errors import BadConfigError
from vsr_dist.inference.streaming.engine import StreamOptions
from vsr_dist.inference.streaming.runners import Precision
from vsr_dist.inference.video.codecs import container_of


@dataclass(frozen=True)
class UpscaleOptions:
    """What the command line says; see `vsr-dist upscale --help`. checkpoint: the generator's name, for people."""

    source: Path
    output: Path
    device: torch.device
    checkpoint: str
    overwrite: bool = False
    codec: str | None = None
    quality: int | None = None
    preset: str | None = None
    pixel_format: str | None = None
    compare: Path | None = None
    audio: bool = True
    subtitles: bool = True
    start_s: float | None = None
    num_frames: int | None = None
    deinterlace: bool = False
    image_rate: Fraction = Fraction(25)
    tile_px: int | None = None
    overlap_px: int | None = None
    precision: Precision = "fp32"
    compile: bool = False
    cuts: bool = True
    segment_frames: int = 250
    work_dir: Path | None = None

    def stream(self) -> StreamOptions:
        """Those of the network."""
        return StreamOptions(self.tile_px, self.overlap_px, self.precision, self.compile, self.cuts)


def check_paths(options: UpscaleOptions) -> str | None:  # noqa: C901 - a flat list of checks
    """The output's container, after a look at all places that are written to."""
    target = container_of(options.output)
    if options.output.name in ("", ".."):
        raise BadConfigError(f"OUTPUT {options.output} has no name of its own; expected a new folder or a video file")
    if target is None and options.output.is_symlink():
        # A folder of frames takes its place by a rename, which would replace the link or fail on it.
        raise BadConfigError(f"OUTPUT {options.output} is a link; name the folder {options.output.resolve()} itself")
    if options.output.exists():
        if options.source.exists() and os.path.samefile(options.source, options.output):
            raise BadConfigError(f"OUTPUT {options.output} is the input; name another file")
        if target is None and not options.output.is_dir():
            raise BadConfigError(
                f"OUTPUT {options.output} is a file; without a suffix it is a folder of frames: name another"
            )
        is_free = options.output.is_dir() and not any(options.output.iterdir())
        if not options.overwrite and not is_free:
            raise BadConfigError(
                f"OUTPUT {options.output} exists; name another file, or give --overwrite to replace it"
            )
        # A folder is replaced as a whole, and nothing but frames shall go with it.
        foreign = [path for path in options.output.iterdir() if not _is_frame(path)] if options.output.is_dir() else []
        if foreign:
            raise BadConfigError(
                f"OUTPUT {options.output} holds {foreign[0].name}, which is no frame; name a new folder"
            )
    _check_apart(options)
    for path in (options.output, options.compare):
        if path is not None:
            _check_writable(path)
    if options.compare is not None:
        if container_of(options.compare) is None:
            raise BadConfigError(f"--compare {options.compare}: expected a video file, such as comparison.mp4")
        if options.compare.exists() and not options.overwrite:
            raise BadConfigError(f"--compare {options.compare} exists; name another file, or give --overwrite")
    return target


def _check_apart(options: UpscaleOptions) -> None:
    """The comparison, the work folder and the output must not replace or remove each other or the input."""
    output, source = options.output.resolve(), options.source.resolve()
    if options.compare is not None and options.compare.resolve() in (output, source):
        raise BadConfigError(f"--compare {options.compare} is INPUT or OUTPUT; name another file")
    if options.work_dir is None:
        return
    work = options.work_dir.resolve()
    inside = [path for path in (output, options.compare, source) if path and path.resolve().is_relative_to(work)]
    if inside or work.is_relative_to(output):
        other = inside[0] if inside else output
        raise BadConfigError(
            f"--work-dir {work} and {other} lie in each other, and the work folder is removed at the end; name a new "
            "folder beside them"
        )


def _is_frame(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".png" or path.name == "timestamps.txt")


def _check_writable(path: Path) -> None:
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfigError(
            f"{folder} cannot be made ({error.strerror}); choose another place for {path.name}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadConfigError(f"{folder} cannot be written to; choose another place for {path.name}")
