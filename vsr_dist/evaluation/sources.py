"""The data of an evaluation, as whole sequences in time order: a shard set, or folders and videos side by side.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import xxhash

from sharding.images import IMAGE_SUFFIXES, is_folder, list_images, subfolders
from sharding.schema import parse_sequence
from sharding.video import iter_thumbnails, list_videos, note_lines
from vsr_dist.core.errors import BadInputError
from vsr_dist.data.stream import SplitStream
from vsr_dist.inference.frames import Frame, fingerprint
from vsr_dist.inference.video.video_in import MediaReader, Place, read_facts

FOLDER_FPS = Fraction(25)
PIECE_FRAMES = 16
_MAX_NAMED = 10


@dataclass(frozen=True)
class SequenceInfo:
    """One sequence: its own name, the video that it is from, and how many frames of it are measured."""

    name: str
    source: str
    num_frames: int
    fps: Fraction


@dataclass(frozen=True)
class Piece:
    """The next frames of a sequence, uint8 or uint16 RGB; without an input or a finished result that side is None."""

    sequence: str
    first_frame: int
    low_THWC: Frame | None
    fake_TYXC: Frame | None
    real_TYXC: Frame


class EvaluationSource(Protocol):
    """What can be evaluated."""

    scale: int
    # Shown in the report's title, and what kind of source it is, for metrics.json.
    title: str
    description: dict[str, Any]

    @property
    def has_low(self) -> bool:
        """Whether there is an input to upscale."""
        ...

    @property
    def sequences(self) -> list[SequenceInfo]:
        """All sequences, in the order in which they come."""
        ...

    @property
    def notes(self) -> list[str]:
        """Lines on how the files are read."""
        ...

    def pieces(self, names: Collection[str]) -> Iterator[Piece]:
        """The frames of the named sequences, in the order of `sequences`."""
        ...


class ShardSource:
    """One split of a packed set."""

    has_low = True

    @property
    def notes(self) -> list[str]:
        """See `EvaluationSource`."""
        return []

    def __init__(self, root: Path, split: str, max_frames: int | None = None) -> None:
        """Open the set. `max_frames`: at most so many of each sequence, from its beginning."""
        self._stream = SplitStream(root, split)
        self._max_frames = max_frames
        self.scale = self._stream.index.scale
        self.title = f"split `{split}` of {root}"
        self.description = {"kind": "shards", "split": split, "data_digest": self._stream.index.digest}

    @property
    def sequences(self) -> list[SequenceInfo]:
        """See `EvaluationSource`."""
        lengths: dict[str, int] = {}
        for clip in self._stream.clips:
            lengths[clip.sequence] = lengths.get(clip.sequence, 0) + clip.num_frames
        found = []
        for name, length in lengths.items():
            source, _ = parse_sequence(name)
            kept = length if self._max_frames is None else min(length, self._max_frames)
            found.append(SequenceInfo(name, source, kept, self._stream.fps(source)))
        return found

    def pieces(self, names: Collection[str]) -> Iterator[Piece]:
        """See `EvaluationSource`."""
        part = copy.copy(self._stream)
        left = {info.name: info.num_frames for info in self.sequences if info.name in names}
        part.clips, needed = [], dict(left)
        for clip in self._stream.clips:
            if needed.get(clip.sequence, 0) > 0:
                part.clips.append(clip)
                needed[clip.sequence] -= clip.num_frames
        for read in part:
            kept = slice(0, left[read.sequence])
            left[read.sequence] -= len(read.real_TYXC)
            yield Piece(read.sequence, read.first_frame, read.low_THWC[kept], None, read.real_TYXC[kept])


@dataclass(frozen=True)
class _Sequence:
    """One sequence: the path of each side, `low`, `fake` and `real`, and their properties.

    notes: what the user should know of how each path is read.
    """

    info: SequenceInfo
    paths: Mapping[str, Path]
    scale: int
    notes: Mapping[str, tuple[str, ...]]


class PairSource:
    """Sequences with the same names on every side. Every mismatch is an error before the first frame."""

    def __init__(
        self, low: Path | None, fake: Path | None, real: Path, max_frames: int | None = None, scale: int | None = None
    ) -> None:
        """Each side: a video, a folder of images, or a folder of such, one per sequence.

        `scale`: enlargement of the input; without an input, that of the result, 1 if unknown.
        """
        roots = {"low": low, "fake": fake, "real": real}
        self._roots = {side: root for side, root in roots.items() if root is not None}
        named = {side: _find_sequences(side, root) for side, root in self._roots.items()}
        if all(len(found) == 1 for found in named.values()):
            # One sequence on each side: its name need not be the same.
            name = next(iter(named["real"]))
            named = {side: {name: next(iter(found.values()))} for side, found in named.items()}
        _check_partners(named, self._roots)
        self._sequences = [
            _open(name, {side: found[name] for side, found in named.items()}, max_frames) for name in named["real"]
        ]
        self._max_frames = max_frames
        self.scale = self._one_scale() if self.has_low else scale or 1
        if scale not in (None, self.scale):
            raise BadInputError(f"--scale is {scale}, but {real} is x{self.scale} as large as {low}; remove --scale")
        self.title = f"`{real}`"
        self.description: dict[str, Any] = {"kind": "pairs", **{s: str(root) for s, root in self._roots.items()}}
        self.description["data_digest"] = _truth_digest(named["real"])

    @property
    def has_low(self) -> bool:
        """See `EvaluationSource`."""
        return "low" in self._roots

    @property
    def sequences(self) -> list[SequenceInfo]:
        """See `EvaluationSource`."""
        return [sequence.info for sequence in self._sequences]

    @property
    def notes(self) -> list[str]:
        """See `EvaluationSource`."""
        return note_lines({path: texts for one in self._sequences for path, texts in one.notes.items()})

    def pieces(self, names: Collection[str]) -> Iterator[Piece]:
        """See `EvaluationSource`."""
        for sequence in self._sequences:
            if sequence.info.name in names:
                yield from self._pieces_of(sequence)

    def _pieces_of(self, sequence: _Sequence) -> Iterator[Piece]:
        with ExitStack() as stack:
            streams = [_frames(path) for path in sequence.paths.values()]
            # A generator that is not exhausted keeps its file open until it is closed.
            for stream in streams:
                stack.enter_context(closing(stream))  # type: ignore[type-var]
            frames = islice(zip_longest(*streams), sequence.info.num_frames)
            first = 0
            while rows := list(islice(frames, PIECE_FRAMES)):
                sides = {
                    side: self._stacked(sequence, side, [row[place] for row in rows], first)
                    for place, side in enumerate(sequence.paths)
                }
                yield Piece(sequence.info.name, first, sides.get("low"), sides.get("fake"), sides["real"])
                first += len(rows)

    def _stacked(self, sequence: _Sequence, side: str, frames: list[Frame | None], first: int) -> Frame:
        path = sequence.paths[side]
        whole = [frame for frame in frames if frame is not None]
        if len(whole) < len(frames):
            raise BadInputError(f"{path} ends after {first + len(whole)} frames; it had more when it was opened")
        if len({frame.shape for frame in whole}) > 1:
            raise BadInputError(f"{path}: the size of its frames changes; expected one size")
        return cast(Frame, np.stack(whole))

    def _one_scale(self) -> int:
        scales = {sequence.scale: sequence.info.name for sequence in self._sequences}
        if len(scales) > 1:
            found = ", ".join(f"x{scale} in {name}" for scale, name in sorted(scales.items()))
            raise BadInputError(f"the sequences have different scales ({found}); evaluate them one by one")
        return next(iter(scales))


def _frames(path: Path) -> Iterator[Frame]:
    """All frames of a video or a folder, read as `vsr-dist upscale` reads its input: with the video's colour tags."""
    for frame in MediaReader(read_facts(path, FOLDER_FPS)).frames(Place()):
        yield frame.rgb


def _truth_digest(sequences: Mapping[str, Path]) -> str:
    """Identifies a ground truth by its content: results on different ones cannot be compared."""
    digest = xxhash.xxh3_128()
    for name in sorted(sequences):
        found = fingerprint(sequences[name])
        digest.update(f"{name}\0{found['bytes']}\0{found['digest']}\n".encode())
    return digest.hexdigest()


def _find_sequences(side: str, root: Path) -> dict[str, Path]:
    """Name -> video or folder of images. BadInputError if there is none."""
    if not root.exists() and not is_folder(root):
        raise BadInputError(f"--{side} {root} does not exist; expected a video, or a folder of images or of sequences")
    if not is_folder(root):
        return {root.stem: root}
    if root.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()):
        return {root.name: root}
    found = {path.name: path for path in subfolders(root)}
    found |= {path.stem: path for path in list_videos(root)}
    if found:
        return found
    list_images(root)
    return {root.stem: root}


def _check_partners(named: Mapping[str, Mapping[str, Path]], roots: Mapping[str, Path]) -> None:
    faults = []
    for side, found in named.items():
        for other, names in named.items():
            missing = [name for name in found if name not in names]
            if side != other and missing and (side == "real" or other == "real"):
                more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
                some = ", ".join(missing[:_MAX_NAMED]) + more
                faults.append(f"{some} of --{side} {roots[side]} is not in --{other} {roots[other]}")
    if faults:
        raise BadInputError(f"the sequences do not match: {'; '.join(faults)}; expected the same names on every side")


def _open(name: str, paths: Mapping[str, Path], max_frames: int | None) -> _Sequence:
    """Counts, sizes and frame numbers of one sequence, checked against the truth's."""
    facts = {side: read_facts(path, FOLDER_FPS) for side, path in paths.items()}
    counts = {side: _count(path, max_frames) for side, path in paths.items()}
    sizes = {side: (found.width, found.height) for side, found in facts.items()}
    for side, path in paths.items():
        if counts[side] != counts["real"]:
            raise BadInputError(
                f"{path} has {counts[side]} frames, {paths['real']} {counts['real']}; expected equal numbers: "
                "cut the longer one, or measure the first frames of both with --frames"
            )
        _check_numbers(path, paths["real"], max_frames)
    scale = 1
    if "low" in paths:
        scale = _scale(paths["low"], sizes["low"], paths["real"], sizes["real"])
    if "fake" in paths and sizes["fake"] != sizes["real"]:
        raise BadInputError(
            f"{paths['fake']} is {_size(sizes['fake'])}, {paths['real']} {_size(sizes['real'])}; expected a result of "
            "the size of the truth"
        )
    fps = next((found.rate for found in facts.values() if found.is_video), FOLDER_FPS)
    info = SequenceInfo(name, name, counts["real"], fps)
    return _Sequence(info, paths, scale, {str(paths[side]): found.notes for side, found in facts.items()})


def _count(path: Path, max_frames: int | None) -> int:
    """How many frames there are, at most `max_frames`: a container's own count may be wrong, so a video is decoded."""
    if is_folder(path):
        found = len(list_images(path))
    else:
        found = sum(1 for _ in islice(iter_thumbnails(path), max_frames))
    return found if max_frames is None else min(found, max_frames)


def _scale(low: Path, low_size: tuple[int, int], real: Path, real_size: tuple[int, int]) -> int:
    factors = {Fraction(large, small) for large, small in zip(real_size, low_size, strict=True)}
    factor = next(iter(factors))
    if len(factors) > 1 or factor.denominator > 1:
        raise BadInputError(
            f"{low} is {_size(low_size)}, {real} {_size(real_size)}; expected the truth to be the same whole number "
            "of times as large in both directions"
        )
    return int(factor)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _check_numbers(path: Path, real: Path, max_frames: int | None) -> None:
    """The running numbers in the names of two folders' images must be the same; the rest of the names may differ."""
    if path == real or not (is_folder(path) and is_folder(real)):
        return
    columns = [_running_numbers([image.stem for image in list_images(side)[:max_frames]]) for side in (path, real)]
    if None not in columns and columns[0] != columns[1]:
        place = next(n for n, pair in enumerate(zip(*columns, strict=True)) if pair[0] != pair[1])
        names = [list_images(side)[place].name for side in (path, real)]
        raise BadInputError(
            f"frame '{names[0]}' of {path} would be measured against '{names[1]}' of {real}; expected equal numbers"
        )


def _running_numbers(names: list[str]) -> list[int] | None:
    """The one number that changes from name to name; None if no number or several do."""
    rows = [[int(digits) for digits in re.findall(r"[0-9]+", name)] for name in names]
    if len({len(row) for row in rows}) != 1:
        return None
    moving = [column for column in zip(*rows, strict=True) if len(set(column)) > 1]
    return list(moving[0]) if len(moving) == 1 else None
