"""Sets of ready pairs: any two folders, and RealVSR's layout of training and test set.

Nothing is decoded here but one image of each folder: partners, names and counts are compared, so that all
faults of a set can be listed at once before anything is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from sharding.errors import BadInputError
from sharding.images import image_size, is_folder, list_images, natural_key, subfolders
from sharding.schema import make_slug
from sharding.sources import Source, name_faults
from sharding.video import SourceInfo

_Size = tuple[int, int]
_MAX_NAMED = 10


def find_pairs(low_root: Path, high_root: Path, scale: int) -> list[Source]:
    """One source per subfolder that both roots have, or one for the roots themselves if they hold the images.

    Both roots are folders or zip archives. The LR side is either `scale` times smaller or of the same size, in
    which case the pair's `low_scale` is 1. Raises BadInputError with all faults: subfolders without partner,
    counts, numbers or sizes that do not fit.
    """
    sources, faults = _match(low_root, high_root, scale, None)
    return _checked(sources, faults)


def find_realvsr(root: Path, scale: int, drop_overlap: bool) -> list[Source]:
    """The sequences of a folder with `GT`, `LQ` and, for split val, `GT_test`, `LQ_test` (folders or .zip).

    A sequence that is in both sets is a fault; with `drop_overlap` it is left out of the training set. Raises
    BadInputError with all faults.
    """
    roots = {name: _side(root, name) for name in ("LQ", "GT", "LQ_test", "GT_test")}
    lacking = [name for name in ("LQ", "GT") if roots[name] is None]
    if (roots["LQ_test"] is None) != (roots["GT_test"] is None):
        lacking.append("LQ_test" if roots["LQ_test"] is None else "GT_test")
    if lacking:
        raise BadInputError(
            f"{root} lacks {', '.join(lacking)}; expected the folders or zip archives GT and LQ, and for the test "
            "set GT_test and LQ_test, each with one folder of images per sequence"
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
            f"{len(overlap)} sequences are both in the training and in the test set: "
            f"{_some([source.path.name for source in overlap])}; give --drop-overlap to leave them out of training"
        )
    return _checked([source for source in sources if source not in overlap], faults)


def _checked(sources: list[Source], faults: list[str]) -> list[Source]:
    if len({source.low_scale for source in sources}) > 1:
        same = [source.path.name for source in sources if source.low_scale == 1]
        faults.append(f"LQ is as large as GT in {_some(same)} and smaller elsewhere; pack them as two sets")
    faults += name_faults(sources)
    if faults:
        raise BadInputError(f"the pairs do not fit ({len(faults)} faults): {'; '.join(faults)}")
    return sources


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _side(root: Path, name: str) -> Path | None:
    """The folder `name`, or what `name`.zip holds, which may be one folder of that name; None if neither is there."""
    if (root / name).is_dir():
        return root / name
    archive = root / f"{name}.zip"
    if not archive.is_file():
        return None
    return archive / name if is_folder(archive / name) else archive


def _match(low_root: Path, high_root: Path, scale: int, split: str | None) -> tuple[list[Source], list[str]]:
    """(the pairs, every fault) of two roots."""
    for root in (low_root, high_root):
        if not is_folder(root):
            raise BadInputError(f"{root} is no folder; expected --paired lq=DIR,gt=DIR with two folders or zip files")
    low, high = _sequences(low_root), _sequences(high_root)
    if not low and not high:
        low, high = {high_root.stem: low_root}, {high_root.stem: high_root}
    faults = [f"{low[name]} has no partner in {high_root}" for name in low if name not in high]
    faults += [f"{high[name]} has no partner in {low_root}" for name in high if name not in low]
    sources = []
    for name in sorted(set(low) & set(high), key=natural_key):
        try:
            sizes, names = _images(low[name], high[name])
        except BadInputError as error:
            faults.append(str(error))
            continue
        faults += _name_order_faults(low[name], high[name], names, scale)
        low_scale = _low_scale(sizes, scale)
        if low_scale is None:
            (low_height, low_width), (height, width) = sizes
            faults.append(
                f"{high[name]} is {width} x {height} px, {low[name]} {low_width} x {low_height}; expected {scale} "
                "times the size, or the same: check --scale"
            )
            continue
        info = SourceInfo(name, len(names[1]), None, sizes[1][1], sizes[1][0])
        sources.append(Source(make_slug(name), "paired", high[name], info, low[name], low_scale, split))
    return sources, faults


def _sequences(root: Path) -> dict[str, Path]:
    return {path.name: Path(os.path.abspath(path)) for path in subfolders(root)}


def _images(low: Path, high: Path) -> tuple[tuple[_Size, _Size], tuple[list[str], list[str]]]:
    """((first LR size, first HR size), (LR names, HR names)). Raises BadInputError for both sides at once."""
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
    """HR size over LR size: the scale, or 1 where both are as large; None for anything else."""
    small, large = sizes
    if large == (small[0] * scale, small[1] * scale):
        return scale
    return 1 if small == large else None


def _name_order_faults(low: Path, high: Path, names: tuple[list[str], list[str]], scale: int) -> list[str]:
    """Counts that differ; else the first place where the frames' numbers differ, and gaps in them."""
    low_names, high_names = names
    if len(low_names) != len(high_names):
        return [f"{low} has {len(low_names)} images, {high} {len(high_names)}; expected as many"]
    for low_name, high_name in zip(low_names, high_names, strict=True):
        if _numbers(low_name, scale) != _numbers(high_name, scale):
            return [f"image '{low_name}' of {low} would be paired with '{high_name}' of {high}; expected equal numbers"]
    columns = zip(*(_numbers(name, scale) for name in high_names), strict=False)
    moving = [column for column in columns if len(set(column)) > 1]
    if len(moving) != 1:
        return []
    steps = list(pairwise(moving[0]))
    usual = min(b - a for a, b in steps)
    jumps = [f"{a} to {b}" for a, b in steps if b - a != usual]
    return [f"the images of {high} do not follow on one another: number {_some(jumps)}"] if jumps else []


def _numbers(name: str, scale: int) -> list[int]:
    """The numbers in an image's name, without an ending such as `x4`."""
    return [int(digits) for digits in re.findall(r"[0-9]+", name.removesuffix(f"x{scale}"))]
