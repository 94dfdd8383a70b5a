"""Re-read a whole data set and list every fault: bytes, structure, arrays, order, index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash

from sharding.codec import CODECS
from sharding.consistency import index_faults, layout_faults
from sharding.errors import BadShardError
from sharding.index import load_index
from sharding.schema import Clip, Index, Member, Shard, parse_shard
from sharding.tar import hash_file


def verify(root: Path) -> list[str]:
    """Every fault of the data set in `root`, one text each; an empty list means that all is well."""
    try:
        index = load_index(root)
    except BadShardError as error:
        return [str(error)]
    faults = list(index_faults(index))
    listed = {shard.name for shard in index.shards}
    faults += [
        f"{path.name}: is in the folder and not in the index"
        for path in sorted(root.iterdir())
        if parse_shard(path.name) is not None and path.name not in listed
    ]
    clips = index.clips_by_shard()
    for shard in index.shards:
        faults += [f"{shard.name}: {fault}" for fault in shard_faults(root, index, shard, clips[shard.name])]
    return faults


def shard_faults(root: Path, index: Index, shard: Shard, clips: list[Clip]) -> Iterator[str]:
    """Faults of one tar against what the index says of it."""
    path = root / shard.name
    if not path.is_file():
        yield "is missing"
        return
    num_bytes = path.stat().st_size
    if num_bytes != shard.num_bytes:
        yield f"has {num_bytes} bytes, expected {shard.num_bytes}"
    with path.open("rb") as file:
        if hash_file(file) != shard.xxh3:
            yield "its hash is not the one in the index: its bytes were changed"
        yield from layout_faults(file, num_bytes, index, clips)
        for clip in clips:
            for field, members in clip.members.items():
                codec = "npy" if field == "flow" else index.codec
                for member in members:
                    yield from _payload_faults(file, member, codec)


def _payload_faults(file: BinaryIO, member: Member, codec: str) -> Iterator[str]:
    file.seek(member.offset)
    payload = file.read(member.num_bytes)
    if xxhash.xxh3_64_hexdigest(payload) != member.xxh3:
        yield f"'{member.name}' is damaged: its hash is not the one in the index"
        return
    try:
        array = CODECS[codec].decode(payload)
    except BadShardError as error:
        yield f"'{member.name}' cannot be decoded: {error}"
        return
    if array.shape != member.shape or array.dtype.name != member.dtype:
        yield f"'{member.name}' holds {array.dtype} {array.shape}, not what the index says"
