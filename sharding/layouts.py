"""Data sets of LR and HR pairs by their layout on disk: two folders, or RealVSR with its training and test set.

Names, counts and sizes are compared, and only the first image of each folder is opened, so that all faults of a data
set are listed at once, before its images are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from sharding.errors import BadInputError
from sharding.images import has_alpha, image_size, is_folder, list_images, natural_key, subfolders
from sharding.schema import make_slug
from sharding.sources import Source, name_faults
from sharding.video import HAS_ALPHA, SourceInfo

_Size = tuple[int, int]
_MAX_LISTED = 10


def find_pairs(low_root: Path, high_root: Path, scale: int) -> list[Source]:
    """One source per subfolder that both roots have, or one for the roots themselves if the images are there.

    Both roots are folders or zip archives. LR frames are either `scale` times smaller or of the same size, in which
    case `low_scale` is 1. Raises BadInputError that lists all faults: subfolders on one side only, and counts,
    numbers or sizes that do not match.
    """
    sources, faults = _match(low_root, high_root, scale, None)
    return _check(sources, faults)


def find_realvsr(root: Path, scale: int, drop_overlap: bool) -> list[Source]:
    """The sequences in `root`, with `GT` and `LQ` and, for split val, `GT_test` and `LQ_test` (folders or .zip).

    The published GT.zip and LQ.zip contain the test sequences as well. A sequence in both sets is a fault unless
    `drop_overlap` removes it from the training set. Raises BadInputError that lists all faults.
    """
    roots = {name: _find_root(root, name) for name in ("LQ", "GT", "LQ_test", "GT_test")}
    missing = [name for name in ("LQ", "GT") if roots[name] is None]
    if (roots["LQ_test"] is None) != (roots["GT_test"] is None):
        missing.append("LQ_test" if roots["LQ_test"] is None else "GT_test")
    if missing:
        raise BadInputError(
            f"{root} has no {', '.join(missing)}; expected the folders or zip archives GT and LQ, and GT_test and "
            "LQ_test for the test set, each with one folder of images per sequence"
        )
    sources: list[Source] = []
    faults: list[str] = []
    for low, high, split in ((roots["LQ"], roots["GT"], "train"), (roots["LQ_test"], roots["GT_test"], "val")):
        if low is not None and high is not None:
            found, found_faults = _match(low, high, scale, split)
            sources += found
            faults += found_faults
    held_out = {source.name for source in sources if source.split == "val"}
    overlap = [source for source in sources if source.split == "train" and source.name in held_out]
    if overlap and not drop_overlap:
        faults.append(
            f"{len(overlap)} sequences are in both the training and the test set: "
            f"{_shorten([source.path.name for source in overlap])}; use --drop-overlap to remove them from the "
            "training set"
        )
    return _check([source for source in sources if source not in overlap], faults)


def _check(sources: list[Source], faults: list[str]) -> list[Source]:
    if len({source.low_scale for source in sources}) > 1:
        same = [source.path.name for source in sources if source.low_scale == 1]
        faults.append(f"LQ has the size of GT in {_shorten(same)} but not elsewhere; pack them as two data sets")
    faults += name_faults(sources)
    if faults:
        raise BadInputError(f"the pairs do not match ({len(faults)} faults): {'; '.join(faults)}")
    return sources


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _find_root(root: Path, name: str) -> Path | None:
    """The folder `name` in `root` or in `name`.zip, or the top level of `name`.zip; None if neither exists."""
    if (root / name).is_dir():
        return root / name
    archive = root / f"{name}.zip"
    if not archive.is_file():
        return None
    return archive / name if is_folder(archive / name) else archive


def _match(low_root: Path, high_root: Path, scale: int, split: str | None) -> tuple[list[Source], list[str]]:
    """(pairs, faults) of two roots."""
    for root in (low_root, high_root):
        if not is_folder(root):
            raise BadInputError(f"{root} is not a folder; expected two folders or zip files: --paired lq=DIR,gt=DIR")
    low, high = _sequences(low_root), _sequences(high_root)
    if not low and not high:
        low, high = {high_root.stem: low_root}, {high_root.stem: high_root}
    faults = [f"{low[name]} has no counterpart in {high_root}" for name in low if name not in high]
    faults += [f"{high[name]} has no counterpart in {low_root}" for name in high if name not in low]
    sources = []
    for name in sorted(set(low) & set(high), key=natural_key):
        try:
            sizes, names = _images(low[name], high[name])
        except BadInputError as error:
            faults.append(str(error))
            continue
        faults += _numbering_faults(low[name], high[name], names, scale)
        low_scale = _low_scale(sizes, scale)
        if low_scale is None:
            (low_height, low_width), (height, width) = sizes
            faults.append(
                f"{high[name]} is {width} x {height} px, {low[name]} is {low_width} x {low_height}; expected {scale} "
                "times the size, or the same size: check --scale"
            )
            continue
        notes = (HAS_ALPHA,) if any(has_alpha(list_images(side[name])[0]) for side in (low, high)) else ()
        info = SourceInfo(name, len(names[1]), None, sizes[1][1], sizes[1][0], notes)
        sources.append(Source(make_slug(name), "paired", high[name], info, low[name], low_scale, split))
    return sources, faults


def _sequences(root: Path) -> dict[str, Path]:
    return {path.name: Path(os.path.abspath(path)) for path in subfolders(root)}


def _images(low: Path, high: Path) -> tuple[tuple[_Size, _Size], tuple[list[str], list[str]]]:
    """((first LR size, first HR size), (LR names, HR names)). Raises BadInputError for the faults of both sides."""
    images: list[list[Path]] = []
    sizes: list[_Size] = []
    faults = []
    for folder in (low, high):
        try:
            images.append(list_images(folder))
            sizes.append(image_size(images[-1][0]))
        except BadInputError as error:
            faults.append(str(error))
    if faults:
        raise BadInputError("; ".join(faults))
    return (sizes[0], sizes[1]), ([path.stem for path in images[0]], [path.stem for path in images[1]])


def _low_scale(sizes: tuple[_Size, _Size], scale: int) -> int | None:
    """HR size over LR size: `scale`, or 1 if both have the same size; None for any other ratio."""
    small, large = sizes
    if large == (small[0] * scale, small[1] * scale):
        return scale
    return 1 if small == large else None


def _numbering_faults(low: Path, high: Path, names: tuple[list[str], list[str]], scale: int) -> list[str]:
    """Different numbers of images; otherwise the first frame number that differs, or gaps in the numbering."""
    low_names, high_names = names
    if len(low_names) != len(high_names):
        return [f"{low} has {len(low_names)} images, {high} has {len(high_names)}; expected the same number"]
    for low_name, high_name in zip(low_names, high_names, strict=True):
        if _numbers(low_name, scale) != _numbers(high_name, scale):
            return [f"image '{low_name}' of {low} would be paired with '{high_name}' of {high}; expected equal numbers"]
    columns = zip(*(_numbers(name, scale) for name in high_names), strict=False)
    counting = [column for column in columns if len(set(column)) > 1]
    if len(counting) != 1:
        return []
    steps = list(pairwise(counting[0]))
    smallest = min(b - a for a, b in steps)
    gaps = [f"{a} to {b}" for a, b in steps if b - a != smallest]
    return [f"the image numbers of {high} have gaps: {_shorten(gaps)}"] if gaps else []


def _numbers(name: str, scale: int) -> list[int]:
    """The numbers in an image's name, without a suffix such as `x4`."""
    return [int(digits) for digits in re.findall(r"[0-9]+", name.removesuffix(f"x{scale}"))]
