"""Random access to windows of a shard set: crops copied straight from the memory map of `npy` shards, decoded
frames for the image codecs.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from sharding.codec import CODECS
from sharding.index import read_index
from sharding.schema import Clip, Index
from vsr_dist.core.errors import BadShardError
from vsr_dist.data.augment import Augmentation, Frames, apply_symmetries, crop
from vsr_dist.data.plan import Window

_DECODED_CLIPS_KEPT = 8


@dataclass(frozen=True)
class SequenceInfo:
    """One sequence of a split: its clips in time order and the size of its frames in pixels."""

    name: str
    clips: tuple[Clip, ...]
    low_height_px: int
    low_width_px: int

    @property
    def num_frames(self) -> int:
        """Frames over all clips."""
        return sum(clip.num_frames for clip in self.clips)


class ShardWindows:
    """Reads windows of one split of a shard set. Safe to use from several threads."""

    def __init__(self, root: Path, split: str) -> None:
        """Open the set; its index and shard sizes are checked, and the split must exist."""
        self.root = root
        self.index: Index = read_index(root)
        if split not in self.index.splits:
            known = ", ".join(sorted(self.index.splits)) or "none"
            raise BadShardError(f"{root} has no split '{split}'; it has: {known}. Name one of these or pack it")
        self.split = split
        self.scale: int = self.index.scale
        self.sequences = tuple(
            SequenceInfo(name, tuple(clips), *_low_size(clips[0]))
            for name, clips in self.index.sequences(split).items()
        )
        self._maps: dict[str, np.memmap] = {}
        self._checked: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._decoded = lru_cache(_DECODED_CLIPS_KEPT)(self._decode_clip)

    @property
    def sequence_num_frames(self) -> list[int]:
        """Frames of each sequence, in order."""
        return [sequence.num_frames for sequence in self.sequences]

    def read(self, window: Window, choice: Augmentation, crop_px: int) -> tuple[Frames, Frames]:
        """(low_THWC, real_TYXC), uint8 RGB: a square crop of a window, its symmetries applied, as new arrays."""
        low_parts, real_parts = [], []
        for clip, start, stop in self._pieces(window):
            low_parts.append(crop(self._field(clip, "lr")[start:stop], choice, crop_px))
            real_parts.append(crop(self._field(clip, "hr")[start:stop], choice, crop_px, self.scale))
        low_THWC = apply_symmetries(np.concatenate(low_parts), choice)
        real_TYXC = apply_symmetries(np.concatenate(real_parts), choice)
        return np.ascontiguousarray(low_THWC), np.ascontiguousarray(real_TYXC)

    def _pieces(self, window: Window) -> list[tuple[Clip, int, int]]:
        """The clips that a window runs over, each with the frame range used of it."""
        pieces, first = [], 0
        for clip in self.sequences[window.sequence].clips:
            start = max(window.start - first, 0)
            stop = min(window.start + window.num_frames - first, clip.num_frames)
            if start < stop:
                pieces.append((clip, start, stop))
            first += clip.num_frames
        return pieces

    def _field(self, clip: Clip, field: str) -> Frames:
        if self.index.codec != "npy":
            return self._decoded(clip.key, field)
        member = clip.members[field][0]
        shard = self._map(clip.shard)
        self._check_once(clip, field, shard)
        num_bytes = int(np.prod(member.shape))
        flat = shard[member.data_offset : member.data_offset + num_bytes]
        return flat.reshape(member.shape)

    def _decode_clip(self, key: str, field: str) -> Frames:
        clip = next(c for s in self.sequences for c in s.clips if c.key == key)
        shard = self._map(clip.shard)
        self._check_once(clip, field, shard)
        decode = CODECS[self.index.codec].decode
        frames = [
            decode(shard[member.offset : member.offset + member.num_bytes].tobytes()) for member in clip.members[field]
        ]
        return np.stack(frames)

    def _map(self, shard_name: str) -> np.memmap:
        with self._lock:
            if shard_name not in self._maps:
                self._maps[shard_name] = np.memmap(self.root / shard_name, dtype=np.uint8, mode="r")
            return self._maps[shard_name]

    def _check_once(self, clip: Clip, field: str, shard: np.memmap) -> None:
        """Compare a field's bytes with the index when they are first used: silent damage must not train."""
        if (clip.key, field) in self._checked:
            return
        for member in clip.members[field]:
            payload = shard[member.offset : member.offset + member.num_bytes]
            if xxhash.xxh3_64_hexdigest(payload.data) != member.xxh3:
                raise BadShardError(
                    f"clip {clip.key} in {self.root / clip.shard}: the bytes of {member.name} differ from the "
                    "index; run 'vsr-dist verify' on the set and pack the shard again"
                )
        self._checked.add((clip.key, field))


def _low_size(clip: Clip) -> tuple[int, int]:
    shape = clip.members["lr"][0].shape
    height, width = shape[-3], shape[-2]
    return height, width
