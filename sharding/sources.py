"""From what the user named to scanned sources: content hash, number of frames, shots, times of frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import xxhash

from sharding.errors import BadInputError
from sharding.images import image_size, is_folder, list_images, read_file
from sharding.parallel import report_frames
from sharding.schema import make_slug
from sharding.shots import StepScorer, find_cuts, shots_between
from sharding.video import SourceInfo, iter_thumbnails, probe

SourceKind = Literal["video", "frames", "paired"]
_READ_BYTES = 4 << 20
_REPORT_FRAMES = 16


@dataclass(frozen=True)
class Source:
    """A source before it is read: slug, where its HR frames are, and for pairs where its LR frames are.

    `split` is None where the options decide on train and val. `info` is what `probe` said of the HR frames;
    `low_scale` is HR size over LR size of a pair, 1 where both are as large.
    """

    name: str
    kind: SourceKind
    path: Path
    info: SourceInfo
    low_path: Path | None = None
    low_scale: int = 1
    split: str | None = None


@dataclass(frozen=True)
class ScannedSource:
    """A source after one full pass over its frames.

    `height` and `width` are those of the HR frames before cropping, `shots` are (first frame, number of
    frames) and cover all frames. `pts` has one entry per frame, or is empty where the source cannot be
    entered by time. `xxh3` is the hex of xxh3_128 over the content.
    """

    source: Source
    num_frames: int
    fps: Fraction | None
    height: int
    width: int
    shots: tuple[tuple[int, int], ...]
    pts: tuple[int, ...]
    xxh3: str

    def describe(self) -> dict[str, Any]:
        """The entry of this source in the index; nothing in it depends on where the source lies."""
        return {
            "name": self.source.name,
            "kind": self.source.kind,
            "file": self.source.path.name,
            "num_frames": self.num_frames,
            "fps": None if self.fps is None else f"{self.fps.numerator}/{self.fps.denominator}",
            "size": [self.height, self.width],
            "shots": [list(shot) for shot in self.shots],
            "xxh3": self.xxh3,
        }


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """One source per path, in the given order. Raises BadInputError that names all faults at once."""
    faults = []
    sources = []
    for given in paths:
        path = Path(os.path.abspath(given))
        try:
            info = probe(path)
        except BadInputError as error:
            faults.append(str(error))
            continue
        folder = is_folder(path)
        kind: SourceKind = "frames" if folder else "video"
        sources.append(Source(make_slug(path.name if folder else path.stem), kind, path, info))
    faults += name_faults(sources)
    if faults:
        raise BadInputError("; ".join(faults))
    return sources


def name_faults(sources: Sequence[Source]) -> list[str]:
    """One text for each name that several sources would have in the data set."""
    by_name: dict[str, list[str]] = {}
    for source in sources:
        by_name.setdefault(source.name, []).append(str(source.path))
    return [
        f"{' and '.join(paths)} would both be named '{name}' in the data set; rename one of them"
        for name, paths in by_name.items()
        if len(paths) > 1
    ]


def scan_frames(source: Source, xxh3: str, num_threads: int = 1) -> ScannedSource:
    """Decode a video or a folder once from end to end, frame by frame; `xxh3` is its `content_hash`.

    Raises BadInputError if it breaks off, changes its size, or is interlaced or damaged.
    """
    scorer = StepScorer()
    pts: list[int | None] = []
    info = source.info
    for frame in iter_thumbnails(source.path, num_threads):
        if (frame.height, frame.width) != (info.height, info.width):
            raise BadInputError(
                f"{source.path} changes its size at frame {len(pts)}: expected {info.width} x {info.height} "
                f"px, got {frame.width} x {frame.height}; cut it there"
            )
        scorer.add(frame.rgb)
        pts.append(frame.pts)
        if len(pts) % _REPORT_FRAMES == 0:
            report_frames(_REPORT_FRAMES)
    report_frames(len(pts) % _REPORT_FRAMES)
    known = [value for value in pts if value is not None]
    rising = len(known) == len(pts) and all(a < b for a, b in pairwise(known))
    return ScannedSource(
        source=source,
        num_frames=len(pts),
        fps=info.fps,
        height=info.height,
        width=info.width,
        shots=tuple(shots_between(find_cuts(scorer.scores), len(pts))),
        pts=tuple(known) if rising else (),
        xxh3=xxh3,
    )


def content_hash(path: Path) -> str:
    """Hex of the xxh3_128 over the bytes of a video, or over names and bytes of all images of a folder."""
    state = xxhash.xxh3_128()
    if is_folder(path):
        for image in list_images(path):
            state.update(image.name.encode() + b"\0")
            state.update(read_file(image))
        return str(state.hexdigest())
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            state.update(block)
    return str(state.hexdigest())


def scan_pair(source: Source, low_path: Path) -> ScannedSource:
    """Sizes and hash of both sides of a pair, which is one shot; nothing is decoded.

    Raises BadInputError that names every image at fault.
    """
    state = xxhash.xxh3_128()
    faults: list[str] = []
    num_frames = source.info.num_frames or 0
    for path, times in ((source.path, 1), (low_path, source.low_scale)):
        expected = (source.info.height // times, source.info.width // times)
        for image in list_images(path):
            try:
                data = read_file(image)
                state.update(image.name.encode() + b"\0")
                state.update(data)
                height, width = image_size(image, data)
            except BadInputError as error:
                faults.append(str(error))
                continue
            if (height, width) != expected:
                faults.append(f"{image} is {width} x {height} px, expected {expected[1]} x {expected[0]}")
        report_frames(num_frames // 2 if times == 1 else num_frames - num_frames // 2)
    if faults:
        raise BadInputError("; ".join(faults))
    return ScannedSource(
        source=source,
        num_frames=num_frames,
        fps=None,
        height=source.info.height,
        width=source.info.width,
        shots=((0, num_frames),),
        pts=(),
        xxh3=str(state.hexdigest()),
    )
