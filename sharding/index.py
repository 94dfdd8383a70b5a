"""Read, check, write and rebuild `index.json`. A folder without an index is not a data set."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from sharding.codec import CODECS, NPY_HEADER_BYTES
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
    is_valid_key,
    member_names,
    parse_key,
    parse_shard,
)
from sharding.tar import TarEntry, hash_file, scan_tar

TEMPORARY_INFIX = ".tmp."
_HASH = re.compile("[0-9a-f]{16}")
MAX_LISTED = 10


def read_index(root: Path) -> Index:
    """The checked index of the data set in `root`; every listed shard exists and has the listed size.

    Raises BadShardError with one message that names all missing or wrong shards, or the reason why the index
    cannot be read.
    """
    index = load_index(root)
    check_index(root, index)
    faults = shard_size_faults(root, index)
    if faults:
        raise BadShardError(
            f"{root}: {len(faults)} of {len(index.shards)} shards do not match the index: {'; '.join(faults)}; "
            "rerun pack with the same options to write them again, or run verify to list all faults"
        )
    return index


def load_index(root: Path) -> Index:
    """The index of `root`; its shards are not looked at. Raises BadShardError if it is missing or invalid."""
    path = root / INDEX_NAME
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadShardError(
            f"{root} has no {INDEX_NAME}, so it is not a complete data set; expected a folder written by pack: "
            "run pack, or rerun it if it was interrupted"
        ) from error
    except ValueError as error:
        raise BadShardError(f"{path} is not valid JSON ({error}); rerun pack to write it again") from error
    version = data.get("version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise BadShardError(f"{path} has format version {version!r}, expected {FORMAT_VERSION}; pack the set again")
    try:
        return Index.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadShardError(f"{path} does not have the expected fields ({error}); rerun pack") from error


def check_index(root: Path | str, index: Index) -> None:
    """Raise BadShardError that lists the faults of the index itself; `root` names the data set."""
    faults = list(index_faults(index))
    if faults:
        more = f" and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise BadShardError(f"{root}: {'; '.join(faults[:MAX_LISTED])}{more}; rerun pack to write the index again")


def index_faults(index: Index) -> Iterator[str]:
    """Faults of an index that can be found without its shards: keys, time order, shapes; one text each."""
    names = [shard.name for shard in index.shards]
    listed = set(names)
    keys = [clip.key for clip in index.clips]
    # Like the name, the hash is part of the path of a shard in the cache.
    strange = [shard for shard in index.shards if not _HASH.fullmatch(shard.xxh3)]
    yield from (f"index: {shard.name} has the hash {shard.xxh3!r}, expected 16 hex digits" for shard in strange)
    yield from (f"index: shard {name} is listed twice" for name in sorted(_duplicates(names)))
    yield from (f"index: clip {key} is listed twice" for key in sorted(_duplicates(keys)))
    sizes = {shard.name: shard.num_bytes for shard in index.shards}
    previous: Clip | None = None
    seen: set[str] = set()
    for clip in index.clips:
        if clip.shard not in listed:
            yield f"index: {clip.key} is in {clip.shard}, which is not listed"
        elif any(not _is_inside(member, sizes[clip.shard]) for part in clip.members.values() for member in part):
            yield f"index: {clip.key} has members that are not inside {clip.shard}"
        yield from _clip_faults(index, clip)
        if previous is not None and previous.sequence == clip.sequence:
            expected = previous.first_frame + previous.num_frames
            if clip.first_frame != expected:
                yield f"index: {clip.key} is out of order: expected frame {expected} after {previous.key}"
            if clip.shard != previous.shard:
                yield f"index: sequence {clip.sequence} is split between {previous.shard} and {clip.shard}"
        elif clip.sequence in seen:
            yield f"index: {clip.key} is separated from the other clips of its sequence"
        seen.add(clip.sequence)
        previous = clip


def _is_inside(member: Member, shard_bytes: int) -> bool:
    # The flow of a single frame has a shape that begins with 0.
    return 0 <= member.offset <= member.offset + member.num_bytes <= shard_bytes and min(member.shape) >= 0


def _duplicates(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _clip_faults(index: Index, clip: Clip) -> Iterator[str]:
    if not is_valid_key(clip.key) or parse_key(clip.key) != (clip.sequence, clip.first_frame):
        yield f"index: key {clip.key} does not match sequence {clip.sequence}, frame {clip.first_frame}"
    expected = {"hr", "lr"} if index.flow == "none" else {"hr", "lr", "flow"}
    if set(clip.members) != expected:
        yield f"index: {clip.key} has the fields {sorted(clip.members)}, expected {sorted(expected)}"
        return
    for field, members in clip.members.items():
        if [member.name for member in members] != member_names(clip.key, field, index.codec, clip.num_frames):
            yield f"index: {clip.key} has other members for {field} than codec {index.codec} stores"
        for member in members:
            if member.shape != _expected_shape(index, clip, field):
                yield f"index: {member.name} has shape {member.shape}, which does not match its clip"
            mapped = field == "flow" or not CODECS[index.codec].per_frame
            if mapped and member.data_offset != member.offset + NPY_HEADER_BYTES:
                yield f"index: {member.name} has a data offset that is not the end of its header"


def _expected_shape(index: Index, clip: Clip, field: str) -> tuple[int, ...]:
    """The shape of a member of `field`, derived from the size of the first LR member."""
    height, width, channels = clip.frame_shape("lr")
    if field == "flow":
        return (clip.num_frames - 1, 2, height, width, 2)
    scale = index.scale if field == "hr" else 1
    frame = (height * scale, width * scale, channels)
    return frame if CODECS[index.codec].per_frame else (clip.num_frames, *frame)


def shard_size_faults(root: Path, index: Index) -> list[str]:
    """One text for each listed shard that is missing or has the wrong size."""
    faults = []
    for shard in index.shards:
        path = root / shard.name
        if not path.is_file():
            faults.append(f"{shard.name} is missing")
        elif path.stat().st_size != shard.num_bytes:
            faults.append(f"{shard.name} has {path.stat().st_size} bytes, expected {shard.num_bytes}")
    return faults


def write_index(root: Path, index: Index) -> None:
    """Write `index.json` atomically: a reader sees the old file, none, or the complete new one."""
    write_json(root / INDEX_NAME, index.to_dict())


def write_json(path: Path, value: object) -> None:
    """Write canonical JSON atomically, see `write_bytes`."""
    write_bytes(path, canonical_json(value) + b"\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, by temporary file, fsync and rename; safe for several machines at once."""
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
    """A unique path in the same folder, for writing a file before it is renamed to `path`.

    Random, not the process id: processes in different containers may have the same id.
    """
    return path.with_name(f"{path.name}{TEMPORARY_INFIX}{secrets.token_hex(6)}")


def publish(temporary: Path, path: Path) -> None:
    """Rename an fsynced file to `path` and fsync the folder, so that the rename survives a power failure."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def rebuild_index(root: Path) -> Index:
    """The index of the tars in `root`, equal to what pack wrote. It is returned, not written to disk.

    Reads all payloads. A missing shard is not noticed, since only the index lists them. Raises BadShardError if
    there is no shard, one is damaged, or they belong to different data sets.
    """
    names = sorted(path.name for path in root.iterdir() if parse_shard(path.name)) if root.is_dir() else []
    if not names:
        raise BadShardError(f"{root} has no shards; expected files such as train-000000.tar written by pack")
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
            raise BadShardError(f"{root}: {names[0]} and {name} belong to different data sets; keep one of them")
    return Index(**datasets[0], shards=tuple(shards), clips=tuple(clips))


def _read_shard(root: Path, name: str) -> tuple[Shard, dict[str, Any], list[Clip]]:
    path = root / name
    num_bytes = path.stat().st_size
    split, _ = parse_shard(name) or ("", 0)
    with path.open("rb") as file:
        shard = Shard(name, split, num_bytes, hash_file(file))
        entries = list(scan_tar(file, num_bytes))
        if not entries or entries[0].name != DATASET_MEMBER:
            raise BadShardError(f"the first member is not '{DATASET_MEMBER}'")
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
        raise BadShardError(f"'{key}.json' with the frame numbers is missing")
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
