"""Random access to windows of a shard set: crops copied straight from the memory map of `npy` shards, decoded
frames for the image codecs.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels; K the
two directions of flow.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, cast

import numpy as np

from sharding.codec import CODECS
from sharding.schema import Clip, Index, Member
from vsr_dist.core.errors import BadShardError
from vsr_dist.data.augment import Augmentation, Flow, Frames, copy_flow, copy_frames
from vsr_dist.data.checks import BadSampleError, TouchChecks
from vsr_dist.data.plan import Run, Window
from vsr_dist.data.shards import OpenShard, ShardSet


@dataclass(frozen=True)
class SequenceInfo:
    """One sequence of a split: its clips in time order and the size of its frames in pixels."""

    name: str
    clips: tuple[Clip, ...]
    low_height_px: int
    low_width_px: int

    @cached_property
    def first_frames(self) -> tuple[int, ...]:
        """The first frame of each clip, counted within the sequence, and behind them the number of frames."""
        return (0, *accumulate(clip.num_frames for clip in self.clips))

    @property
    def num_frames(self) -> int:
        """Frames over all clips."""
        return self.first_frames[-1]


@dataclass(frozen=True)
class ClipArrays:
    """Where a window is read into: uint8 crops, contiguous, and int16 flow (T-1, 2, H, W, 2) if it is wanted."""

    low_THWC: Frames
    real_TYXC: Frames
    flow_TKHW2: Flow | None = None


class _Piece(NamedTuple):
    """Frames `start` to `stop` of a clip, which are the frames of a window from its `at`-th on."""

    clip: Clip
    start: int
    stop: int
    at: int


class FrameCache:
    """Decoded frames by member name, least recently used thrown away beyond `max_bytes`. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._frames: OrderedDict[str, Frames] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> Frames | None:
        """The frame, or None if it is not kept."""
        with self._lock:
            frame = self._frames.get(name)
            if frame is not None:
                self._frames.move_to_end(name)
            return frame

    def holds(self, name: str) -> bool:
        """True if the frame is kept."""
        return name in self._frames

    def put(self, name: str, frame: Frames) -> None:
        """Keep a frame."""
        with self._lock:
            if name in self._frames or frame.nbytes > self.max_bytes:
                return
            self._frames[name] = frame
            self._num_bytes += frame.nbytes
            while self._num_bytes > self.max_bytes:
                self._num_bytes -= self._frames.popitem(last=False)[1].nbytes


class ShardWindows:
    """Reads windows of one split of a shard set. Safe to use from several threads."""

    def __init__(
        self, shards: ShardSet, split: str, *, check_hashes: bool = True, frame_cache_bytes: int = 256_000_000
    ) -> None:
        """`split` must exist; with `check_hashes` what is read is compared with the index, see `checks.py`."""
        self.shards, self.root = shards, shards.root
        self.index: Index = shards.index
        if split not in self.index.splits:
            known = ", ".join(sorted(self.index.splits)) or "none"
            raise BadShardError(f"{self.root} has no split '{split}'; it has: {known}. Name one of these or pack it")
        self.split = split
        self.scale: int = self.index.scale
        self.sequences = tuple(
            SequenceInfo(name, tuple(clips), *_low_size(clips[0]))
            for name, clips in self.index.sequences(split).items()
        )
        self._checks = TouchChecks(self.root, self.index) if check_hashes else None
        self._frames = FrameCache(frame_cache_bytes)

    @property
    def sequence_num_frames(self) -> list[int]:
        """Frames of each sequence, in order."""
        return [sequence.num_frames for sequence in self.sequences]

    def runs(self, *, inside_clips: bool = False) -> list[Run]:
        """What windows may be cut from: sequences or, with `inside_clips`, clips."""
        shard_numbers = {shard.name: number for number, shard in enumerate(self.index.shards)}
        runs = []
        for number, info in enumerate(self.sequences):
            shard = shard_numbers[info.clips[0].shard]
            if inside_clips:
                pairs = zip(info.first_frames, info.clips, strict=False)
                runs += [Run(number, first, clip.num_frames, shard) for first, clip in pairs]
            else:
                runs.append(Run(number, 0, info.num_frames, shard))
        return runs

    def read(self, window: Window, choice: Augmentation, out: ClipArrays) -> None:
        """Fill `out` with a square crop of a window, symmetries applied; `out` decides the side of the crop.

        Flow can be read of windows inside one clip only. Raises BadSampleError if a clip is damaged.
        """
        for piece in self._pieces(window):
            shard = self.shards.acquire(piece.clip.shard)
            try:
                if self._checks is not None:
                    self._checks.check_clip(piece.clip, out.flow_TKHW2 is not None, shard)
                self._prefetch(piece, choice, out, shard)
                self._read_piece(piece, choice, out, shard)
            finally:
                self.shards.release(piece.clip.shard)

    def _read_piece(self, piece: _Piece, choice: Augmentation, out: ClipArrays, shard: OpenShard) -> None:
        steps = slice(None, None, -1 if choice.reverse_time else 1)
        for field, target_TYXC in (("lr", out.low_THWC), ("hr", out.real_TYXC)):
            top, left, size = _place(choice, out, 1 if field == "lr" else self.scale)
            rows, columns = slice(top, top + size), slice(left, left + size)
            turned_TYXC = target_TYXC[steps][piece.at : piece.at + piece.stop - piece.start]
            if self.index.codec == "npy":
                array_TYXC = cast(Frames, shard.array(piece.clip.members[field][0]))
                copy_frames(array_TYXC[piece.start : piece.stop, rows, columns], choice, turned_TYXC)
                continue
            for number, turned_YXC in zip(range(piece.start, piece.stop), turned_TYXC, strict=True):
                frame_YXC = self._decoded(piece.clip, piece.clip.members[field][number], shard)
                copy_frames(frame_YXC[None, rows, columns], choice, turned_YXC[None])
        if out.flow_TKHW2 is not None:
            top, left, size = _place(choice, out, 1)
            flow_TKHW2 = cast(Flow, shard.array(piece.clip.members["flow"][0]))[piece.start : piece.stop - 1]
            copy_flow(flow_TKHW2[:, :, top : top + size, left : left + size], choice, out.flow_TKHW2)

    def _pieces(self, window: Window) -> Iterator[_Piece]:
        """The clips that a window runs over, each with the frame range used of it."""
        info = self.sequences[window.sequence]
        end = window.start + window.num_frames
        number = bisect_right(info.first_frames, window.start) - 1
        while number < len(info.clips) and info.first_frames[number] < end:
            clip, first = info.clips[number], info.first_frames[number]
            start = max(window.start - first, 0)
            yield _Piece(clip, start, min(end - first, clip.num_frames), first + start - window.start)
            number += 1

    def _prefetch(self, piece: _Piece, choice: Augmentation, out: ClipArrays, shard: OpenShard) -> None:
        """Ask for what a piece needs from the disk, all at once, if it is not in memory.

        Of mapped fields these are the rows of the crop; the first and the last frame speak for all the others.
        """
        members = piece.clip.members
        frames = slice(piece.start, piece.stop)
        if self.index.codec != "npy":
            wanted = [*members["lr"][frames], *members["hr"][frames]]
            shard.will_need((m.offset, m.num_bytes) for m in wanted if not self._frames.holds(m.name))
            return
        top, left, size = _place(choice, out, self.scale)
        first, last = slice(piece.start, piece.start + 1), slice(piece.stop - 1, piece.stop)
        if all(shard.is_resident(*_row_bands(members["hr"][0], one, top, left, size)[0]) for one in (first, last)):
            return
        shard.will_need(_row_bands(members["hr"][0], frames, top, left, size))
        shard.will_need(_row_bands(members["lr"][0], frames, *_place(choice, out, 1)))
        if out.flow_TKHW2 is not None:
            pairs = slice(2 * piece.start, 2 * (piece.stop - 1))
            shard.will_need(_row_bands(members["flow"][0], pairs, *_place(choice, out, 1)))

    def _decoded(self, clip: Clip, member: Member, shard: OpenShard) -> Frames:
        frame_YXC = self._frames.get(member.name)
        if frame_YXC is not None:
            return frame_YXC
        payload = shard.payload(member)
        if self._checks is not None:
            self._checks.check_image(clip, member, payload)
        place = f"clip {clip.key} in {self.root}/{clip.shard}: {member.name}"
        try:
            frame_YXC = CODECS[self.index.codec].decode(payload)
        except BadShardError as error:
            raise BadSampleError(f"{place}: {error}") from error
        if frame_YXC.shape != member.shape:
            raise BadSampleError(f"{place} is of shape {frame_YXC.shape}, expected {member.shape}; pack the set again")
        self._frames.put(member.name, frame_YXC)
        return frame_YXC


def _place(choice: Augmentation, out: ClipArrays, scale: int) -> tuple[int, int, int]:
    """(Top, left, side) of the crop in pixels of the frames that are `scale` times the low-resolution ones."""
    return choice.top_px * scale, choice.left_px * scale, out.low_THWC.shape[1] * scale


def _row_bands(member: Member, planes: slice, top: int, left: int, size: int) -> list[tuple[int, int]]:
    """(Offset, bytes) from the first to the last pixel of a crop, in some (rows, columns, channels) of an array."""
    height, width, channels = member.shape[-3:]
    pixel_bytes = channels * np.dtype(member.dtype).itemsize
    first = member.data_offset + (top * width + left) * pixel_bytes
    num_bytes = ((size - 1) * width + size) * pixel_bytes
    plane_bytes = height * width * pixel_bytes
    return [(first + number * plane_bytes, num_bytes) for number in range(planes.start, planes.stop)]


def _low_size(clip: Clip) -> tuple[int, int]:
    height, width, _ = clip.frame_shape("lr")
    return height, width
