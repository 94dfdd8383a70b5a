"""Write shards: each one is an idempotent task whose bytes follow from the plan alone.

A shard is written under a temporary name, described by a record in `.pack/`, and renamed; the record stands
before the tar does, so a tar without one is never ours. A rerun skips shards whose record is of the same
plan.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.codec import CODECS, NPY_HEADER_BYTES, Frame, npy_header
from sharding.flow import clip_flow
from sharding.index import publish, temporary_name, write_json
from sharding.parallel import report_frames
from sharding.plan import PackOptions, Plan, ShardPlan
from sharding.schema import (
    DATASET_MEMBER,
    Clip,
    Member,
    Shard,
    canonical_json,
    clip_from_dict,
    member_names,
)
from sharding.sources import ScannedSource
from sharding.stream import FramePair, iter_pairs
from sharding.tar import Chunk, TarWriter

JOURNAL_DIR = ".pack"


def write_shard(root: Path, plan: Plan, shard: ShardPlan) -> None:
    """Write one shard and its record below `root`. Whatever goes wrong, no file is left that looks whole.

    Of `plan`, options, sources and digest are used.
    """
    path, record_path = root / shard.name, record_file(root, shard.name)
    record_path.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            writer = TarWriter(file)
            writer.add(DATASET_MEMBER, canonical_json(plan.dataset()))
            clips = [asdict(clip) for clip in _write_clips(writer, plan, shard)]
            digest = writer.finish()
            file.flush()
            os.fsync(file.fileno())
        described = asdict(Shard(shard.name, shard.split, writer.num_bytes, digest))
        write_json(record_path, {"plan": plan.digest, "shard": described, "clips": clips})
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def record_file(root: Path, shard_name: str) -> Path:
    """Where the record of a shard lies."""
    return root / JOURNAL_DIR / f"{shard_name}.json"


def read_record(root: Path, shard_name: str, plan_digest: str) -> tuple[Shard, tuple[Clip, ...]] | None:
    """Shard and clips of a finished shard of this plan; None if it has to be made (again)."""
    path = root / shard_name
    try:
        record = json.loads(record_file(root, shard_name).read_bytes())
        if record["plan"] != plan_digest:
            return None
        shard = Shard(**record["shard"])
        clips = tuple(clip_from_dict(clip) for clip in record["clips"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if not path.is_file() or path.stat().st_size != shard.num_bytes:
        return None
    return shard, clips


def _write_clips(writer: TarWriter, plan: Plan, shard: ShardPlan) -> Iterator[Clip]:
    for sequence in shard.sequences:
        source = plan.sources[sequence.source]
        pairs = iter_pairs(source, sequence, plan.options)
        for key, first_frame, num_frames in sequence.clips(plan.options.clip_frames):
            frames = islice(pairs, num_frames)
            yield Clip(
                key=key,
                sequence=sequence.name,
                split=sequence.split,
                shard=shard.name,
                first_frame=first_frame,
                num_frames=num_frames,
                members=write_clip(writer, plan.options, source, (key, first_frame, num_frames), frames),
            )


def write_clip(
    writer: TarWriter,
    options: PackOptions,
    source: ScannedSource,
    clip: tuple[str, int, int],
    pairs: Iterator[FramePair],
) -> dict[str, tuple[Member, ...]]:
    """Write one clip (key, first frame, number of frames) as `pairs` yields it, and report its frames.

    HR goes to the file at once, so that of HR no more than one frame is held.
    """
    key, first_frame, num_frames = clip
    low: list[Frame] = []
    times_s: list[float | None] = []

    def high() -> Iterator[Frame]:
        for pair in pairs:
            low.append(pair.low)
            times_s.append(pair.time_s)
            yield pair.high
            report_frames(1)

    scale = options.scale
    shape = (source.height // scale * scale, source.width // scale * scale, 3)
    members = {"hr": _write_frames(writer, options.codec, (key, "hr"), (num_frames, *shape), high())}
    members["lr"] = _write_frames(writer, options.codec, (key, "lr"), (num_frames, *low[0].shape), low)
    if options.flow != "none":
        flow = clip_flow(low, options.flow)
        (name,) = member_names(key, "flow", "npy", num_frames)
        members["flow"] = (_write_array(writer, name, flow.shape, flow.dtype, [flow]),)
    record = clip_record(source.source.name, first_frame, times_s)
    writer.add(f"{key}.json", canonical_json(record))
    return members


def clip_record(source_name: str, first_frame: int, times_s: list[float | None]) -> dict[str, Any]:
    """What a clip's json member says: the source, and number and time in s (or None) of every frame."""
    return {
        "source": source_name,
        "frames": list(range(first_frame, first_frame + len(times_s))),
        "times_s": [None if time is None else round(time, 6) for time in times_s],
    }


def _write_frames(
    writer: TarWriter, codec: str, place: tuple[str, str], shape: tuple[int, ...], frames: Iterable[Frame]
) -> tuple[Member, ...]:
    """The members of one field; `place` is (key, field), `shape` is (T, H, W, 3)."""
    names = member_names(*place, codec, shape[0])
    if not CODECS[codec].per_frame:
        return (_write_array(writer, names[0], shape, np.dtype(np.uint8), frames),)
    members = []
    for name, frame in zip(names, frames, strict=True):
        payload = CODECS[codec].encode(frame)
        entry, digest = writer.add_stream(name, len(payload), [payload])
        members.append(Member(name, entry.offset, entry.num_bytes, frame.shape, frame.dtype.name, digest))
    return tuple(members)


def _write_array(
    writer: TarWriter,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    parts: Iterable[NDArray[Any]],
) -> Member:
    """An npy member whose C-ordered bytes are those of `parts`, one after another."""
    num_bytes = NPY_HEADER_BYTES + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    data: Iterator[Chunk] = (part.reshape(-1).view(np.uint8).data for part in parts)
    chunks = chain([npy_header(shape, dtype)], data)
    entry, digest = writer.add_stream(name, num_bytes, chunks)
    return Member(name, entry.offset, num_bytes, shape, dtype.name, digest, entry.offset + NPY_HEADER_BYTES)
