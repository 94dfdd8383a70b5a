"""Read, write and rebuild `index.json`. No index means no data set."""

from __future__ import annotations

import json
import os
import secrets
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from sharding.codec import CODECS, NPY_HEADER_BYTES
from sharding.consistency import index_faults
from sharding.errors import BadShardError
from sharding.schema import (
    DATASET_MEMBER,
    FORMAT_VERSION,
    INDEX_NAME,
    Clip,
    Index,
    Member,
    Shard,
    canonical_json,
    parse_key,
    parse_shard,
)
from sharding.tar import TarEntry, hash_file, scan_tar

TEMPORARY_MARK = ".tmp."
MAX_NAMED = 10


def read_index(root: Path) -> Index:
    """The index of the data set in `root`, after every listed shard was found with its listed size.

    Raises BadShardError with one message that names all faulty shards, or that says why the index cannot be
    read.
    """
    index = load_index(root)
    check_index(root, index)
    faults = shard_size_faults(root, index)
    if faults:
        raise BadShardError(
            f"{root}: {len(faults)} of {len(index.shards)} shards are not as the index says: "
            f"{'; '.join(faults)}; "
            "rerun pack with the same options to make them again, or run verify to see every fault"
        )
    return index


def load_index(root: Path) -> Index:
    """The index of `root` without a look at its shards. Raises BadShardError if it is missing or bad."""
    path = root / INDEX_NAME
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadShardError(
            f"{root} holds no {INDEX_NAME}, so it is no finished data set; expected a folder that pack "
            "wrote: run pack, or rerun an interrupted one"
        ) from error
    except ValueError as error:
        raise BadShardError(f"{path} is not JSON ({error}); rerun pack to write it again") from error
    version = data.get("version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise BadShardError(f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; pack again")
    try:
        return Index.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadShardError(f"{path} does not hold the expected fields ({error}); rerun pack") from error


def check_index(root: Path | str, index: Index) -> None:
    """Raise BadShardError with every fault that the index shows by itself; `root` names the data set."""
    faults = list(index_faults(index))
    if faults:
        more = f" and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise BadShardError(f"{root}: {'; '.join(faults[:MAX_NAMED])}{more}; rerun pack to write the index again")


def shard_size_faults(root: Path, index: Index) -> list[str]:
    """One text per listed shard that is missing or has another size than listed."""
    faults = []
    for shard in index.shards:
        path = root / shard.name
        if not path.is_file():
            faults.append(f"{shard.name} is missing")
        elif path.stat().st_size != shard.num_bytes:
            faults.append(f"{shard.name} has {path.stat().st_size} bytes, expected {shard.num_bytes}")
    return faults


def write_index(root: Path, index: Index) -> None:
    """Write `index.json` so that a reader sees the old file, or none, or the whole new one."""
    write_json(root / INDEX_NAME, index.to_dict())


def write_json(path: Path, value: object) -> None:
    """Write canonical JSON by temporary name, fsync and rename."""
    write_bytes(path, canonical_json(value) + b"\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by temporary name, fsync and rename; processes on several machines may do so at once."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where a file is written before it gets its name: beside it, and apart from every other process's.

    Process numbers would not do: each container of a job may be number 1.
    """
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{secrets.token_hex(6)}")


def publish(temporary: Path, path: Path) -> None:
    """Rename an fsynced file and fsync the folder, so that the name survives a power cut."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def rebuild_index(root: Path) -> Index:
    """The index that pack wrote for the tars in `root`, equal to it in every field. It is not written.

    All payloads are read. Which shards there should be is not known: a lost shard is not noticed. Raises
    BadShardError if there is no shard, one is damaged, or they are of different data sets.
    """
    names = sorted(path.name for path in root.iterdir() if parse_shard(path.name)) if root.is_dir() else []
    if not names:
        raise BadShardError(f"{root} holds no shard; expected files such as train-000000.tar that pack wrote")
    shards: list[Shard] = []
    clips: list[Clip] = []
    datasets: list[dict[str, Any]] = []
    for name in names:
        try:
            shard, dataset, shard_clips = _read_shard(root, name)
        except (BadShardError, KeyError, ValueError) as error:
            raise BadShardError(f"{root / name} cannot be read ({error}); remove it and rerun pack") from error
        shards.append(shard)
        clips += shard_clips
        datasets.append(dataset)
        if dataset != datasets[0]:
            raise BadShardError(f"{root}: {names[0]} and {name} are of different packs; keep one of them")
    return Index(**datasets[0], shards=tuple(shards), clips=tuple(clips))


def _read_shard(root: Path, name: str) -> tuple[Shard, dict[str, Any], list[Clip]]:
    path = root / name
    num_bytes = path.stat().st_size
    split, _ = parse_shard(name) or ("", 0)
    with path.open("rb") as file:
        shard = Shard(name, split, num_bytes, hash_file(file))
        entries = list(scan_tar(file, num_bytes))
        if not entries or entries[0].name != DATASET_MEMBER:
            raise BadShardError(f"expected '{DATASET_MEMBER}' as first member")
        dataset = json.loads(_payload(file, entries[0]))
        codec = str(dataset["codec"])
        groups = groupby(entries[1:], key=lambda entry: entry.name.partition(".")[0])
        clips = [_read_clip(file, codec, shard, key, list(group)) for key, group in groups]
    return shard, dataset, clips


def _read_clip(file: BinaryIO, codec: str, shard: Shard, key: str, entries: list[TarEntry]) -> Clip:
    sequence, first_frame = parse_key(key)
    members: dict[str, tuple[Member, ...]] = {}
    num_frames = 0
    for entry in entries:
        field = entry.name.split(".")[1]
        if field == "json":
            num_frames = len(json.loads(_payload(file, entry))["frames"])
            continue
        member = _read_member(file, entry, "npy" if field == "flow" else codec)
        members[field] = (*members.get(field, ()), member)
    if num_frames == 0:
        raise BadShardError(f"expected '{key}.json' with the numbers of its frames")
    return Clip(key, sequence, shard.split, shard.name, first_frame, num_frames, members)


def _read_member(file: BinaryIO, entry: TarEntry, codec: str) -> Member:
    payload = _payload(file, entry)
    array = CODECS[codec].decode(payload)
    return Member(
        name=entry.name,
        offset=entry.offset,
        num_bytes=entry.num_bytes,
        shape=array.shape,
        dtype=array.dtype.name,
        xxh3=xxhash.xxh3_64_hexdigest(payload),
        data_offset=0 if CODECS[codec].per_frame else entry.offset + NPY_HEADER_BYTES,
    )


def _payload(file: BinaryIO, entry: TarEntry) -> bytes:
    file.seek(entry.offset)
    return file.read(entry.num_bytes)
