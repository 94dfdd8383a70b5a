"""Read a whole data set and list every fault: bytes, tar structure, arrays, frame order, index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import xxhash

from sharding.codec import CODECS
from sharding.errors import BadShardError
from sharding.index import index_faults, load_index
from sharding.schema import DATASET_MEMBER, Clip, Index, Member, Shard, parse_shard
from sharding.tar import hash_file, scan_tar


def verify(root: Path) -> list[str]:
    """Every fault of the data set in `root`, one text each; empty if there is none."""
    try:
        index = load_index(root)
    except BadShardError as error:
        return [str(error)]
    faults = list(index_faults(index))
    listed = {shard.name for shard in index.shards}
    faults += [
        f"{path.name}: is in the folder but not in the index"
        for path in sorted(root.iterdir())
        if parse_shard(path.name) is not None and path.name not in listed
    ]
    clips = index.clips_by_shard()
    for shard in index.shards:
        faults += [f"{shard.name}: {fault}" for fault in shard_faults(root, index, shard, clips[shard.name])]
    return faults


def shard_faults(root: Path, index: Index, shard: Shard, clips: list[Clip]) -> Iterator[str]:
    """Faults of one tar file compared with the index."""
    path = root / shard.name
    if not path.is_file():
        yield "is missing"
        return
    num_bytes = path.stat().st_size
    if num_bytes != shard.num_bytes:
        yield f"has {num_bytes} bytes, expected {shard.num_bytes}"
    with path.open("rb") as file:
        if hash_file(file) != shard.xxh3:
            yield "its hash differs from the index: its bytes have changed"
        yield from layout_faults(file, num_bytes, index, clips)
        for clip in clips:
            for field, members in clip.members.items():
                codec = "npy" if field == "flow" else index.codec
                for member in members:
                    yield from _payload_faults(file, member, codec)


def layout_faults(file: BinaryIO, num_bytes: int, index: Index, clips: Sequence[Clip]) -> Iterator[str]:
    """Faults of the headers and json members of a tar compared with the index; payloads of frames are not read.

    Stops at the first member that is not the expected one.
    """
    expected: dict[str, tuple[int, int] | Clip] = {}
    for clip in clips:
        for members in clip.members.values():
            expected.update({member.name: (member.offset, member.num_bytes) for member in members})
        expected[f"{clip.key}.json"] = clip
    names = iter([DATASET_MEMBER, *expected])
    try:
        for entry in scan_tar(file, num_bytes):
            name = next(names, None)
            if entry.name != name:
                yield f"has '{entry.name}' where the index expects '{name or 'the end'}'"
                return
            known = expected.get(entry.name)
            if entry.name == DATASET_MEMBER:
                file.seek(entry.offset)
                yield from _dataset_faults(file.read(entry.num_bytes), index)
            if isinstance(known, Clip):
                file.seek(entry.offset)
                yield from _record_faults(file.read(entry.num_bytes), known)
            elif known is not None and known != (entry.offset, entry.num_bytes):
                yield f"'{entry.name}' is at byte {entry.offset}, the index says {known[0]}"
    except BadShardError as error:
        yield str(error)
        return
    yield from (f"has no '{name}', which the index lists" for name in names)


def _dataset_faults(payload: bytes, index: Index) -> Iterator[str]:
    """Differences between the description of the data set in a shard and the one in the index."""
    try:
        found = json.loads(payload)
        differing = sorted(name for name, value in index.dataset().items() if found.get(name) != value)
    except (ValueError, AttributeError):
        yield f"'{DATASET_MEMBER}' is not JSON as pack writes it"
        return
    if differing:
        yield f"belongs to another data set than the index: they differ in {', '.join(differing)}"


def _record_faults(payload: bytes, clip: Clip) -> Iterator[str]:
    """Faults of a clip's json member."""
    try:
        record = json.loads(payload)
        frames, times = list(record["frames"]), [t for t in record["times_s"] if t is not None]
    except (ValueError, KeyError, TypeError):
        yield f"'{clip.key}.json' is not JSON as pack writes it"
        return
    if frames != list(range(clip.first_frame, clip.first_frame + clip.num_frames)):
        yield f"'{clip.key}.json' has frames out of order: {frames}"
    if any(later <= earlier for earlier, later in pairwise(times)):
        yield f"'{clip.key}.json' has times that do not increase: {times}"


def _payload_faults(file: BinaryIO, member: Member, codec: str) -> Iterator[str]:
    file.seek(member.offset)
    payload = file.read(member.num_bytes)
    if xxhash.xxh3_64_hexdigest(payload) != member.xxh3:
        yield f"'{member.name}' is damaged: its hash differs from the index"
        return
    try:
        array = CODECS[codec].decode(payload)
    except BadShardError as error:
        yield f"'{member.name}' cannot be decoded: {error}"
        return
    if array.shape != member.shape or array.dtype.name != member.dtype:
        yield f"'{member.name}' is {array.dtype} {array.shape}, the index says {member.dtype} {member.shape}"
