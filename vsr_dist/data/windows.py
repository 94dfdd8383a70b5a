"""Read one window: augmentation, random access to shards, and replacement of damaged samples.

Crops of `npy` shards are copied from the memory map; frames of image codecs are decoded and cached.

Axis letters: T time, H W LR rows and columns, Y X HR rows and columns, C channels. Flow has K = 2 directions (forward,
backward) and 2 components (dx to the right, dy down).
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

import cv2
import numpy as np
import numpy.typing as npt

from sharding.codec import CODECS
from sharding.schema import Clip, Index, Member
from vsr_dist.core.errors import BadConfigError, BadShardError
from vsr_dist.core.rng import mix, purpose
from vsr_dist.data.config import DataConfig
from vsr_dist.data.order import Order, Run, Sample, Window
from vsr_dist.data.shards import BadSampleError, FirstUseChecks, OpenShard, ShardSet

Frames = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.int16]
_DRAW = purpose("draw")
_REPLACEMENT_TRIES = 20


class Augmentation(NamedTuple):
    """Crop position in LR pixels, and the symmetries applied to the crop, in the order of the fields."""

    top_px: int
    left_px: int
    flip_rows: bool = False
    flip_columns: bool = False
    transpose: bool = False
    reverse_time: bool = False


def draw_augmentation(
    seed: int, height_px: int, width_px: int, crop_px: int, *, symmetries: bool, time_reversal: bool = True
) -> Augmentation:
    """A random augmentation for LR frames of the given size; a pure function of its arguments.

    Without `symmetries` only the crop position is drawn. Without `time_reversal` time runs forward and everything else
    is drawn as with it. All values come from the 63 bits of one number by division (bias below 1e-9 for frames of up to
    65,536 pixels per side); a generator object would take longer than copying the crop.
    """
    number, top = divmod(mix(_DRAW, seed), height_px - crop_px + 1)
    number, left = divmod(number, width_px - crop_px + 1)
    if not symmetries:
        return Augmentation(top, left)
    flip_rows, flip_columns, transpose, reverse_time = (bool(number >> bit & 1) for bit in range(4))
    return Augmentation(top, left, flip_rows, flip_columns, transpose, reverse_time and time_reversal)


def center_crop(height_px: int, width_px: int, crop_px: int) -> Augmentation:
    """The centred crop without symmetries, for validation."""
    return Augmentation((height_px - crop_px) // 2, (width_px - crop_px) // 2)


def copy_frames(source_TYXC: Frames, augmentation: Augmentation, target_TYXC: Frames) -> None:
    """Copy square crops to a contiguous array, flipped and transposed by `augmentation`; time is not reversed.

    NumPy copies a reversed or transposed axis pixel by pixel, 10 to 20 times slower than rows, so column flips and
    transpositions use OpenCV, frame by frame.
    """
    if not (augmentation.flip_columns or augmentation.transpose):
        np.copyto(target_TYXC, source_TYXC[:, ::-1] if augmentation.flip_rows else source_TYXC)
        return
    for source_YXC, target_YXC in zip(source_TYXC, target_TYXC, strict=True):
        if not augmentation.transpose:
            cv2.flip(source_YXC, -1 if augmentation.flip_rows else 1, target_YXC)
            continue
        cv2.transpose(source_YXC, target_YXC)
        # Flipping rows before a transposition is flipping columns after it.
        if augmentation.flip_rows or augmentation.flip_columns:
            both = augmentation.flip_rows and augmentation.flip_columns
            cv2.flip(target_YXC, -1 if both else 1 if augmentation.flip_rows else 0, target_YXC)


def copy_flow(source_TKHW2: Flow, augmentation: Augmentation, target_TKHW2: Flow) -> None:
    """Copy crops of the flow between the frames of a window, augmented like the frames, including time reversal.

    Axis 0 counts pairs of consecutive frames. A flip negates one component, a transposition swaps the components, and
    time reversal swaps forward and backward.
    """
    # Both components of a pixel are copied as one 32-bit number.
    pairs_TKHW = source_TKHW2.view(np.int32)[..., 0]
    if augmentation.reverse_time:
        pairs_TKHW = pairs_TKHW[::-1, ::-1]
    if augmentation.flip_rows:
        pairs_TKHW = pairs_TKHW[:, :, ::-1]
    if augmentation.flip_columns:
        pairs_TKHW = pairs_TKHW[:, :, :, ::-1]
    if augmentation.transpose:
        pairs_TKHW = pairs_TKHW.transpose(0, 1, 3, 2)
    np.copyto(target_TKHW2.view(np.int32)[..., 0], pairs_TKHW)
    for component, flipped in enumerate((augmentation.flip_columns, augmentation.flip_rows)):
        if flipped:
            values = target_TKHW2[..., component]
            # -32768 cannot be negated in int16; no real displacement is that long (1024 px).
            np.negative(np.maximum(values, -32767), out=values)
    if augmentation.transpose:
        target_TKHW2[:] = target_TKHW2[..., ::-1].copy()


@dataclass(frozen=True)
class SequenceInfo:
    """One sequence of a split: its clips in time order and the size of its frames in pixels."""

    name: str
    clips: tuple[Clip, ...]
    low_height_px: int
    low_width_px: int

    @cached_property
    def first_frames(self) -> tuple[int, ...]:
        """The first frame of each clip, counted within the sequence, then the number of frames."""
        return (0, *accumulate(clip.num_frames for clip in self.clips))

    @property
    def num_frames(self) -> int:
        """Number of frames in all clips."""
        return self.first_frames[-1]


@dataclass(frozen=True)
class ClipArrays:
    """Output arrays for one window: contiguous uint8 crops and, if flow is read, int16 flow (T-1, 2, H, W, 2)."""

    low_THWC: Frames
    real_TYXC: Frames
    flow_TKHW2: Flow | None = None


class _Piece(NamedTuple):
    """Frames `start` to `stop` of a clip, which are the frames of a window from number `at`."""

    clip: Clip
    start: int
    stop: int
    at: int


class FrameCache:
    """Decoded frames by member name; the least recently used are dropped beyond `max_bytes`. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._frames: OrderedDict[str, Frames] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> Frames | None:
        """The frame, or None if it is not cached."""
        with self._lock:
            frame = self._frames.get(name)
            if frame is not None:
                self._frames.move_to_end(name)
            return frame

    def holds(self, name: str) -> bool:
        """True if the frame is cached."""
        return name in self._frames

    def put(self, name: str, frame: Frames) -> None:
        """Add a frame."""
        with self._lock:
            if name in self._frames or frame.nbytes > self.max_bytes:
                return
            self._frames[name] = frame
            self._num_bytes += frame.nbytes
            while self._num_bytes > self.max_bytes:
                self._num_bytes -= self._frames.popitem(last=False)[1].nbytes


class ShardWindows:
    """Reads windows of one split of a data set. Thread-safe."""

    def __init__(
        self, shards: ShardSet, split: str, *, check_hashes: bool = True, frame_cache_bytes: int = 256_000_000
    ) -> None:
        """Raises BadShardError for an unknown split. `check_hashes`: compare with the index, see `FirstUseChecks`."""
        self.shards, self.root = shards, shards.root
        self.index: Index = shards.index
        if split not in self.index.splits:
            known = ", ".join(sorted(self.index.splits)) or "none"
            raise BadShardError(f"{self.root} has no split '{split}'; expected one of: {known}")
        self.split = split
        self.scale: int = self.index.scale
        self.sequences = tuple(
            SequenceInfo(name, tuple(clips), *_low_size(clips[0]))
            for name, clips in self.index.sequences(split).items()
        )
        self._checks = FirstUseChecks(self.root, self.index) if check_hashes else None
        self._frames = FrameCache(frame_cache_bytes)

    @property
    def sequence_num_frames(self) -> list[int]:
        """Number of frames of each sequence, in order."""
        return [sequence.num_frames for sequence in self.sequences]

    def runs(self, *, inside_clips: bool = False) -> list[Run]:
        """The runs from which windows are taken: sequences or, with `inside_clips`, clips."""
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

    def read(self, window: Window, augmentation: Augmentation, out: ClipArrays) -> None:
        """Read an augmented square crop of a window into `out`, whose shape gives the size of the crop.

        Flow can only be read for windows inside one clip. Raises BadSampleError if a clip is damaged.
        """
        for piece in self._pieces(window):
            shard = self.shards.acquire(piece.clip.shard)
            try:
                if self._checks is not None:
                    self._checks.check_clip(piece.clip, out.flow_TKHW2 is not None, shard)
                self._prefetch(piece, augmentation, out, shard)
                self._read_piece(piece, augmentation, out, shard)
            finally:
                self.shards.release(piece.clip.shard)

    def _read_piece(self, piece: _Piece, augmentation: Augmentation, out: ClipArrays, shard: OpenShard) -> None:
        steps = slice(None, None, -1 if augmentation.reverse_time else 1)
        for field, target_TYXC in (("lr", out.low_THWC), ("hr", out.real_TYXC)):
            top, left, size = _crop_box(augmentation, out, 1 if field == "lr" else self.scale)
            rows, columns = slice(top, top + size), slice(left, left + size)
            flipped_TYXC = target_TYXC[steps][piece.at : piece.at + piece.stop - piece.start]
            if self.index.codec == "npy":
                array_TYXC = cast(Frames, shard.array(piece.clip.members[field][0]))
                copy_frames(array_TYXC[piece.start : piece.stop, rows, columns], augmentation, flipped_TYXC)
                continue
            for number, flipped_YXC in zip(range(piece.start, piece.stop), flipped_TYXC, strict=True):
                frame_YXC = self._decoded(piece.clip, piece.clip.members[field][number], shard)
                copy_frames(frame_YXC[None, rows, columns], augmentation, flipped_YXC[None])
        if out.flow_TKHW2 is not None:
            top, left, size = _crop_box(augmentation, out, 1)
            flow_TKHW2 = cast(Flow, shard.array(piece.clip.members["flow"][0]))[piece.start : piece.stop - 1]
            copy_flow(flow_TKHW2[:, :, top : top + size, left : left + size], augmentation, out.flow_TKHW2)

    def _pieces(self, window: Window) -> Iterator[_Piece]:
        """The parts of clips that make up a window."""
        info = self.sequences[window.sequence]
        end = window.start + window.num_frames
        number = bisect_right(info.first_frames, window.start) - 1
        while number < len(info.clips) and info.first_frames[number] < end:
            clip, first = info.clips[number], info.first_frames[number]
            start = max(window.start - first, 0)
            yield _Piece(clip, start, min(end - first, clip.num_frames), first + start - window.start)
            number += 1

    def _prefetch(self, piece: _Piece, augmentation: Augmentation, out: ClipArrays, shard: OpenShard) -> None:
        """Request the bytes of a piece from the disk, all at once, unless they are in memory.

        For mapped fields these are the rows of the crop; only its first and last frame are tested for presence.
        """
        members = piece.clip.members
        frames = slice(piece.start, piece.stop)
        if self.index.codec != "npy":
            needed = [*members["lr"][frames], *members["hr"][frames]]
            shard.will_need((m.offset, m.num_bytes) for m in needed if not self._frames.holds(m.name))
            return
        top, left, size = _crop_box(augmentation, out, self.scale)
        first, last = slice(piece.start, piece.start + 1), slice(piece.stop - 1, piece.stop)
        if all(shard.is_resident(*_row_bands(members["hr"][0], one, top, left, size)[0]) for one in (first, last)):
            return
        shard.will_need(_row_bands(members["hr"][0], frames, top, left, size))
        shard.will_need(_row_bands(members["lr"][0], frames, *_crop_box(augmentation, out, 1)))
        if out.flow_TKHW2 is not None:
            pairs = slice(2 * piece.start, 2 * (piece.stop - 1))
            shard.will_need(_row_bands(members["flow"][0], pairs, *_crop_box(augmentation, out, 1)))

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
            raise BadSampleError(f"{place} has shape {frame_YXC.shape}, expected {member.shape}; pack it again")
        self._frames.put(member.name, frame_YXC)
        return frame_YXC


def _crop_box(augmentation: Augmentation, out: ClipArrays, scale: int) -> tuple[int, int, int]:
    """(top, left, side) of the crop in pixels of frames that are `scale` times larger than LR."""
    return augmentation.top_px * scale, augmentation.left_px * scale, out.low_THWC.shape[1] * scale


def _row_bands(member: Member, planes: slice, top: int, left: int, size: int) -> list[tuple[int, int]]:
    """(offset, number of bytes) from the first to the last pixel of a crop in each of some planes of a member.

    A plane is one frame, or one direction of flow.
    """
    height, width, channels = member.shape[-3:]
    pixel_bytes = channels * np.dtype(member.dtype).itemsize
    first = member.data_offset + (top * width + left) * pixel_bytes
    num_bytes = ((size - 1) * width + size) * pixel_bytes
    plane_bytes = height * width * pixel_bytes
    return [(first + number * plane_bytes, num_bytes) for number in range(planes.start, planes.stop)]


def _low_size(clip: Clip) -> tuple[int, int]:
    height, width, _ = clip.frame_shape("lr")
    return height, width


class SampleReader:
    """Reads the samples of an order: augmentation, window, replacement of damaged ones. Thread-safe.

    The result depends on the sample and the data set only.
    """

    def __init__(self, config: DataConfig, windows_of: ShardWindows, order: Order) -> None:
        self.config, self.windows_of, self.order = config, windows_of, order

    def read(self, sample: Sample, out: ClipArrays) -> Sample:
        """Read a sample into `out`. Returns the sample that was read: another one if `sample` is damaged.

        With `data.on_bad_sample: error` a damaged sample raises BadSampleError.
        """
        requested = sample
        for attempt in range(1, _REPLACEMENT_TRIES + 1):
            try:
                self._read_window(sample, out)
            except BadSampleError:
                if self.config.on_bad_sample == "error":
                    raise
                sample = self.order.replacement(requested, attempt)
            else:
                return sample
        raise BadShardError(
            f"{self.windows_of.root}: window {self.name(requested.window)} and its {_REPLACEMENT_TRIES - 1} "
            "replacements are all damaged; run 'vsr-dist verify' on the data set and pack it again"
        )

    def name(self, window: Window) -> str:
        """Sequence and first frame, in the form of a clip's key."""
        return f"{self.windows_of.sequences[window.sequence].name}-{window.start:08d}"

    def _read_window(self, sample: Sample, out: ClipArrays) -> None:
        info = self.windows_of.sequences[sample.window.sequence]
        augmentation = draw_augmentation(
            sample.augment_seed,
            info.low_height_px,
            info.low_width_px,
            self.config.crop_px,
            symmetries=self.config.symmetries,
            time_reversal=self.config.order != "ordered",
        )
        self.windows_of.read(sample.window, augmentation, out)


def open_split(shards: ShardSet, config: DataConfig, split: str) -> ShardWindows:
    """The windows of a split, read as configured."""
    return ShardWindows(
        shards,
        split,
        check_hashes=config.check_hashes == "first_touch",
        frame_cache_bytes=config.frame_cache_mb * 1_000_000,
    )


def check_sizes(windows_of: ShardWindows, crop_px: int, clip_frames: int, key: str) -> None:
    """Raise BadConfigError if a sequence is smaller than the crop, or all are shorter than a window."""
    small = [s for s in windows_of.sequences if min(s.low_height_px, s.low_width_px) < crop_px]
    if small:
        listed = ", ".join(f"{s.name} ({s.low_width_px}x{s.low_height_px})" for s in small)
        raise BadConfigError(
            f"{key} is {crop_px}, larger than the low-resolution frames of {listed} in split "
            f"'{windows_of.split}' of {windows_of.root}; choose a smaller crop or pack larger videos"
        )
    if max(windows_of.sequence_num_frames, default=0) < clip_frames:
        raise BadConfigError(
            f"data.clip_frames is {clip_frames}, but the longest sequence in split '{windows_of.split}' of "
            f"{windows_of.root} has {max(windows_of.sequence_num_frames, default=0)} frames"
        )


def check_flow(windows_of: ShardWindows, clip_frames: int) -> None:
    """Raise BadConfigError if flow was not packed, or no clip is long enough for a window."""
    if windows_of.index.flow == "none":
        raise BadConfigError(
            f"data.flow is true, but {windows_of.root} was packed without flow; pack it with --flow dis, or set "
            "data.flow=false"
        )
    longest = max(run.num_frames for run in windows_of.runs(inside_clips=True))
    if longest < clip_frames:
        raise BadConfigError(
            f"data.clip_frames is {clip_frames}, but with data.flow a window must be inside one packed clip, and the "
            f"longest in split '{windows_of.split}' of {windows_of.root} has {longest} frames; pack with "
            f"--clip-frames {clip_frames} or more"
        )
