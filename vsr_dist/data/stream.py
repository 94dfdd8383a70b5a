"""Whole sequences in time order, read sequentially with plain webdataset, for evaluation.

Axis letters: T time, H W LR rows and columns, Y X HR rows and columns, C channels.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np
import webdataset as wds
import xxhash

from sharding.codec import CODECS
from sharding.index import read_index
from sharding.schema import Clip, Index, parse_sequence
from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadShardError
from vsr_dist.data.windows import Frames


@dataclass(frozen=True)
class StreamedClip:
    """A clip of a split: uint8 RGB frames, and the sequence and source video that they belong to."""

    sequence: str
    source: str
    first_frame: int
    low_THWC: Frames
    real_TYXC: Frames


class SplitStream:
    """Clips of one split, sequence by sequence, each in time order."""

    def __init__(self, root: Path, split: str) -> None:
        """Open the data set; index and shard sizes are checked. Raises BadShardError for an unknown split."""
        self.root, self.split = root, split
        self.index: Index = read_index(root)
        if split not in self.index.splits:
            raise BadShardError(
                f"{root} has no split '{split}'; expected one of: {', '.join(sorted(self.index.splits))}"
            )
        self.clips = [clip for clips in self.index.sequences(split).values() for clip in clips]
        self._known = {clip.key for clip in self.clips}

    @property
    def sequences(self) -> list[str]:
        """Names of the sequences, in the order in which they are read."""
        return list(dict.fromkeys(clip.sequence for clip in self.clips))

    def part(self, world: World) -> SplitStream:
        """The sequences of this rank, in the same order; each sequence belongs to exactly one rank."""
        lengths: dict[str, int] = {}
        for clip in self.clips:
            lengths[clip.sequence] = lengths.get(clip.sequence, 0) + clip.num_frames
        mine = set(share_sequences(lengths, world.size)[world.rank])
        part = copy.copy(self)
        part.clips = [clip for clip in self.clips if clip.sequence in mine]
        return part

    def fps(self, source: str) -> Fraction:
        """Frame rate of a source video; 25 for folders of images, which have none."""
        text = next(entry["fps"] for entry in self.index.sources if entry["name"] == source)
        return Fraction(text or 25)

    def __iter__(self) -> Iterator[StreamedClip]:
        shards = list(dict.fromkeys(clip.shard for clip in self.clips))
        urls = [str(self.root / name) for name in shards]
        expected = {clip.key: clip for clip in self.clips}
        if not shards:
            return
        # Splitting by node and by worker is off: each process reads all clips of its own list, in order.
        samples = wds.WebDataset(urls, shardshuffle=False, nodesplitter=lambda urls: urls, empty_check=False)
        for sample in self._iter_samples(samples):
            key = sample["__key__"]
            if key in expected:
                yield self._decoded(expected.pop(key), sample)
            elif key not in self._known:
                raise BadShardError(f"{self.root}: clip {key} is not in the index; run 'vsr-dist verify'")
        if expected:
            raise BadShardError(
                f"{self.root}: {len(expected)} clips of the index are not in the shards, first {min(expected)}"
            )

    def _iter_samples(self, samples: wds.WebDataset) -> Iterator[dict[str, Any]]:
        try:
            yield from samples
        except TarError as error:
            # webdataset appends the open file and the path of the shard.
            raise BadShardError(f"{error.args[-1]} is not a complete tar ({error.args[0]}); pack it again") from error

    def _decoded(self, clip: Clip, sample: dict[str, Any]) -> StreamedClip:
        low_THWC, real_TYXC = (self._field(clip, sample, field) for field in ("lr", "hr"))
        source, _ = parse_sequence(clip.sequence)
        return StreamedClip(clip.sequence, source, clip.first_frame, low_THWC, real_TYXC)

    def _field(self, clip: Clip, sample: dict[str, Any], field: str) -> Frames:
        codec = CODECS[self.index.codec]
        names = [member.name.removeprefix(f"{clip.key}.") for member in clip.members[field]]
        missing = [name for name in names if name not in sample]
        if missing:
            raise BadShardError(f"{self.root / clip.shard}: clip {clip.key} has no {', '.join(missing)}")
        for name, member in zip(names, clip.members[field], strict=True):
            if xxhash.xxh3_64_hexdigest(sample[name]) != member.xxh3:
                raise BadShardError(
                    f"clip {clip.key} in {self.root / clip.shard}: the bytes of {member.name} differ from the index; "
                    "run 'vsr-dist verify' on the data set and pack the shard again"
                )
        parts = [codec.decode(sample[name]) for name in names]
        return np.stack(parts) if codec.per_frame else parts[0]


def share_sequences(lengths: Mapping[str, int], num_ranks: int) -> list[list[str]]:
    """Sequence names for each rank: longest first, each to the rank with the fewest frames so far."""
    shares: list[list[str]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for name in sorted(lengths, key=lambda name: (-lengths[name], name)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(name)
        heapq.heappush(loads, (load + lengths[name], rank))
    return shares
