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
from sharding.schema import make_slug
from sharding.shots import StepScorer, find_cuts, shots_between
from sharding.video import SourceInfo, iter_timed_frames, list_images, natural_key, probe

SourceKind = Literal["video", "frames", "paired"]
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class Source:
    """A source before it is read: slug, where its HR frames are, and for pairs where its LR frames are."""

    name: str
    kind: SourceKind
    path: Path
    low_path: Path | None = None


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
        if not path.exists():
            faults.append(f"{given} does not exist; expected a video file or a folder of images")
            continue
        try:
            probe(path)
        except BadInputError as error:
            faults.append(str(error))
            continue
        kind: SourceKind = "frames" if path.is_dir() else "video"
        sources.append(Source(make_slug(path.name if path.is_dir() else path.stem), kind, path))
    faults += _name_faults(sources)
    if faults:
        raise BadInputError("; ".join(faults))
    return sources


def _name_faults(sources: Sequence[Source]) -> list[str]:
    by_name: dict[str, list[str]] = {}
    for source in sources:
        by_name.setdefault(source.name, []).append(str(source.path))
    return [
        f"{' and '.join(paths)} would both be named '{name}' in the data set; rename one of them"
        for name, paths in by_name.items()
        if len(paths) > 1
    ]


def find_pairs(low_root: Path, high_root: Path, scale: int) -> list[Source]:
    """One source per subfolder that both roots have, or one for the roots themselves if they hold the images.

    Raises BadInputError with all faults: subfolders without partner, counts or sizes that do not fit.
    """
    for root in (low_root, high_root):
        if not root.is_dir():
            raise BadInputError(f"{root} is no folder; expected --paired lq=DIR,gt=DIR with two folders")
    low, high = _subfolders(low_root), _subfolders(high_root)
    if not low and not high:
        low, high = {high_root.name: low_root}, {high_root.name: high_root}
    faults = [f"{low[name]} has no partner in {high_root}" for name in low if name not in high]
    faults += [f"{high[name]} has no partner in {low_root}" for name in high if name not in low]
    sources = []
    for name in sorted(set(low) & set(high), key=natural_key):
        faults += _pair_faults(low[name], high[name], scale)
        sources.append(Source(make_slug(name), "paired", high[name], low[name]))
    faults += _name_faults(sources)
    if faults:
        raise BadInputError(f"the pairs do not fit ({len(faults)} faults): {'; '.join(faults)}")
    return sources


def _subfolders(root: Path) -> dict[str, Path]:
    return {path.name: Path(os.path.abspath(path)) for path in root.iterdir() if path.is_dir()}


def _pair_faults(low: Path, high: Path, scale: int) -> list[str]:
    infos: list[SourceInfo] = []
    faults = []
    for folder in (low, high):
        try:
            infos.append(probe(folder))
        except BadInputError as error:
            faults.append(str(error))
    if faults:
        return faults
    small, large = infos
    if small.num_frames != large.num_frames:
        faults.append(f"{low} has {small.num_frames} images, {high} {large.num_frames}; expected as many")
    if (large.width, large.height) != (small.width * scale, small.height * scale):
        faults.append(
            f"{high} is {large.width} x {large.height} px, {low} {small.width} x {small.height}; expected "
            f"{scale} times the size: check --scale"
        )
    return faults


def scan_source(source: Source) -> ScannedSource:
    """Read a source once from end to end, frame by frame. Raises BadInputError if it breaks off."""
    info = probe(source.path)
    scorer = StepScorer()
    pts: list[int | None] = []
    for frame in iter_timed_frames(source.path):
        if frame.rgb.shape[:2] != (info.height, info.width):
            raise BadInputError(
                f"{source.path} changes its size at frame {len(pts)}: expected {info.width} x {info.height} "
                f"px, got {frame.rgb.shape[1]} x {frame.rgb.shape[0]}; cut it there"
            )
        if source.kind != "paired":
            scorer.add(frame.rgb)
        pts.append(frame.pts)
    cuts = find_cuts(scorer.scores)
    known = [value for value in pts if value is not None]
    rising = len(known) == len(pts) and all(a < b for a, b in pairwise(known))
    return ScannedSource(
        source=source,
        num_frames=len(pts),
        fps=info.fps,
        height=info.height,
        width=info.width,
        shots=tuple(shots_between(cuts, len(pts))),
        pts=tuple(known) if rising else (),
        xxh3=_content_hash(source),
    )


def _content_hash(source: Source) -> str:
    """xxh3_128 over the bytes of the video, or over names and bytes of all images, LR ones too."""
    state = xxhash.xxh3_128()
    for path in (source.path, source.low_path):
        if path is None:
            continue
        for file_path in list_images(path) if path.is_dir() else [path]:
            if path.is_dir():
                state.update(file_path.name.encode() + b"\0")
            with file_path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    state.update(block)
    return str(state.hexdigest())
