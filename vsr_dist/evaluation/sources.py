"""What an evaluation reads, as whole sequences in time order: a shard set, or folders and videos side by side.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from sharding.schema import parse_sequence
from vsr_dist.data.augment import Frames
from vsr_dist.data.stream import SplitStream

FOLDER_FPS = Fraction(25)


@dataclass(frozen=True)
class SequenceInfo:
    """One sequence: its own name, the video that it is from, and how many frames of it are measured."""

    name: str
    source: str
    num_frames: int
    fps: Fraction


@dataclass(frozen=True)
class Piece:
    """The next frames of a sequence, uint8 RGB; without a low-resolution side or a finished result it is None."""

    sequence: str
    first_frame: int
    low_THWC: Frames | None
    fake_TYXC: Frames | None
    real_TYXC: Frames


class EvaluationSource(Protocol):
    """What can be evaluated."""

    scale: int
    # Shown in the report's title, and what kind of source it is, for metrics.json.
    title: str
    description: dict[str, Any]

    @property
    def has_low(self) -> bool:
        """Whether there is an input that a method can enlarge."""
        ...

    @property
    def sequences(self) -> list[SequenceInfo]:
        """All sequences, in the order in which they come."""
        ...

    def pieces(self, names: Collection[str]) -> Iterator[Piece]:
        """The frames of the named sequences, in the order of `sequences`."""
        ...


class ShardSource:
    """One split of a packed set."""

    has_low = True

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
