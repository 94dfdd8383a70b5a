"""Damage must not train in silence: what is compared with the index when a process first touches it."""

from __future__ import annotations

import xxhash

from sharding.schema import Clip, Index, Member
from sharding.verify import layout_faults
from vsr_dist.core.errors import BadShardError
from vsr_dist.data.shards import OpenShard


class BadSampleError(BadShardError):
    """The content of one clip is damaged: what `data.on_bad_sample` decides about."""


class TouchChecks:
    """The checks of one set in one process; each is made once. Safe to use from several threads.

    A shard's headers, its records of frame numbers and times, and its name of the data set are read when a shard is
    first used; the bytes of a mapped field (codec npy, flow) when a clip is; those of an image each time it is decoded.
    """

    def __init__(self, root: str, index: Index) -> None:
        self.root, self.index = root, index
        self._clips = index.clips_by_shard()
        self._shards: set[str] = set()
        self._whole_members: dict[str, bool] = {}
        self._checked: tuple[set[str], set[str]] = (set(), set())

    def check_clip(self, clip: Clip, with_flow: bool, shard: OpenShard) -> None:
        """Raise BadShardError for a shard that is not laid out as the index says, BadSampleError for a damaged field.

        Of an image codec only the flow is a mapped field.
        """
        checked = self._checked[with_flow]
        if clip.key in checked:
            return
        if clip.shard not in self._shards:
            self._check_layout(clip.shard, shard)
            self._shards.add(clip.shard)
        mapped = ("lr", "hr") if self.index.codec == "npy" else ()
        for field in (*mapped, "flow") if with_flow else mapped:
            (member,) = clip.members[field]
            whole = self._whole_members.get(member.name)
            if whole is None:
                whole = self._whole_members[member.name] = shard.hexdigest(member) == member.xxh3
            if not whole:
                raise self.damage(clip, member)
        checked.add(clip.key)

    def check_image(self, clip: Clip, member: Member, payload: bytes) -> None:
        """Raise BadSampleError if an image's bytes are not those that were packed."""
        if xxhash.xxh3_64_hexdigest(payload) != member.xxh3:
            raise self.damage(clip, member)

    def damage(self, clip: Clip, member: Member) -> BadSampleError:
        """The error for a member whose content is not what the index says."""
        return BadSampleError(
            f"clip {clip.key} in {self.root}/{clip.shard}: the bytes of {member.name} differ from the index; "
            "run 'vsr-dist verify' on the set and pack the shard again"
        )

    def _check_layout(self, name: str, shard: OpenShard) -> None:
        with shard.path.open("rb", buffering=0) as file:
            faults = list(layout_faults(file, len(shard.data), self.index, self._clips[name]))
        if faults:
            raise BadShardError(
                f"{self.root}/{name} {'; '.join(faults)}; run 'vsr-dist verify' on the set and pack the shard again"
            )
