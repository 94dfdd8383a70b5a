"""Write shards: each one is an idempotent task whose bytes follow from the plan alone.

A shard is written under a temporary name, described by a record in `.pack/`, and renamed; the record stands
before the tar does, so a tar without one is never ours. A rerun skips shards whose record is of the same
plan.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sharding.codec import CODECS, NPY_HEADER_BYTES, Frame
from sharding.degrade import crop_to_multiple, get_recipe
from sharding.errors import BadInputError
from sharding.flow import clip_flow
from sharding.index import publish, write_json
from sharding.plan import PackOptions, Plan, SequencePlan, ShardPlan
from sharding.schema import (
    DATASET_MEMBER,
    Clip,
    Member,
    Shard,
    canonical_json,
    clip_from_dict,
    member_names,
)
from sharding.sources import Source
from sharding.tar import TarWriter
from sharding.video import iter_timed_frames

JOURNAL_DIR = ".pack"


def write_shard(root: Path, plan: Plan, shard: ShardPlan) -> None:
    """Write one shard and its record below `root`. Whatever goes wrong, no file is left that looks whole.

    Of `plan`, options, sources and digest are used.
    """
    path, record_path = root / shard.name, record_file(root, shard.name)
    record_path.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    temporary = root / f"{shard.name}.tmp.{os.getpid()}"
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


@dataclass(frozen=True)
class _ClipFrames:
    """The decoded frames of one clip: HR, LR, and the time of each in s."""

    key: str
    first_frame: int
    high: list[Frame]
    low: list[Frame]
    times_s: list[float | None]


def _write_clips(writer: TarWriter, plan: Plan, shard: ShardPlan) -> Iterator[Clip]:
    for sequence in shard.sequences:
        source = plan.sources[sequence.source].source
        for frames in _decode_clips(source, sequence, plan.options):
            yield Clip(
                key=frames.key,
                sequence=sequence.name,
                split=sequence.split,
                shard=shard.name,
                first_frame=frames.first_frame,
                num_frames=len(frames.low),
                members=_write_clip(writer, plan.options, source.name, frames),
            )


def _decode_clips(source: Source, sequence: SequencePlan, options: PackOptions) -> Iterator[_ClipFrames]:
    """The clips of a sequence, decoded one at a time."""
    triples = _decode_frames(source, sequence, options)
    for key, first, num_frames in sequence.clips(options.clip_frames):
        taken = list(islice(triples, num_frames))
        if len(taken) != num_frames:
            raise BadInputError(
                f"{source.path} ends before frame {first + num_frames}, which it had a moment ago; expected "
                "a source that does not change while it is packed: run pack again"
            )
        yield _ClipFrames(key, first, [t[0] for t in taken], [t[1] for t in taken], [t[2] for t in taken])


def _decode_frames(
    source: Source, sequence: SequencePlan, options: PackOptions
) -> Iterator[tuple[Frame, Frame, float | None]]:
    """(HR, LR, time in s) from the first frame of a sequence on."""
    high = iter_timed_frames(source.path, sequence.first_frame, sequence.start_pts)
    if source.low_path is not None:
        low = iter_timed_frames(source.low_path, sequence.first_frame)
        for low_frame, high_frame in zip(low, high, strict=True):
            yield high_frame.rgb, low_frame.rgb, None
        return
    recipe = get_recipe(options.degradation)
    for frame in high:
        cropped = np.ascontiguousarray(crop_to_multiple(frame.rgb, options.scale))
        yield cropped, recipe.apply(cropped, options.scale), frame.time_s


def _write_clip(
    writer: TarWriter, options: PackOptions, source_name: str, frames: _ClipFrames
) -> dict[str, tuple[Member, ...]]:
    members = {
        "hr": _write_frames(writer, frames.key, "hr", options.codec, frames.high),
        "lr": _write_frames(writer, frames.key, "lr", options.codec, frames.low),
    }
    if options.flow != "none":
        (name,) = member_names(frames.key, "flow", "npy", len(frames.low))
        members["flow"] = (_write_array(writer, name, "npy", clip_flow(frames.low, options.flow)),)
    record = clip_record(source_name, frames.first_frame, frames.times_s)
    writer.add(f"{frames.key}.json", canonical_json(record))
    return members


def clip_record(source_name: str, first_frame: int, times_s: list[float | None]) -> dict[str, Any]:
    """What a clip's json member says: the source, and number and time in s (or None) of every frame."""
    return {
        "source": source_name,
        "frames": list(range(first_frame, first_frame + len(times_s))),
        "times_s": [None if time is None else round(time, 6) for time in times_s],
    }


def _write_frames(writer: TarWriter, key: str, field: str, codec: str, frames: list[Frame]) -> tuple[Member, ...]:
    names = member_names(key, field, codec, len(frames))
    arrays = frames if CODECS[codec].per_frame else [np.stack(frames)]
    return tuple(_write_array(writer, name, codec, array) for name, array in zip(names, arrays, strict=True))


def _write_array(writer: TarWriter, name: str, codec: str, array: NDArray[Any]) -> Member:
    payload = CODECS[codec].encode(array)
    entry = writer.add(name, payload)
    return Member(
        name=name,
        offset=entry.offset,
        num_bytes=entry.num_bytes,
        shape=array.shape,
        dtype=array.dtype.name,
        xxh3=xxhash.xxh3_64_hexdigest(payload),
        data_offset=0 if CODECS[codec].per_frame else entry.offset + NPY_HEADER_BYTES,
    )
