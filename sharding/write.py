"""Write shards: each one is an idempotent task whose bytes depend on the plan only.

A shard is written to a temporary file, its record to `.pack/`, and then the file is renamed. The record is written
first, so a finished tar always has one. A rerun skips shards whose record belongs to the same plan.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.codec import CODECS, NPY_HEADER_BYTES, Frame, npy_header
from sharding.degrade import Recipe, crop_to_multiple, get_recipe
from sharding.errors import BadInputError
from sharding.flow import clip_flow
from sharding.index import publish, temporary_name, write_json
from sharding.parallel import report_frames
from sharding.plan import PackOptions, Plan, SequencePlan, ShardPlan
from sharding.schema import (
    DATASET_MEMBER,
    JOURNAL_DIR,
    Clip,
    Member,
    Shard,
    canonical_json,
    clip_from_dict,
    member_names,
)
from sharding.sources import ScannedSource
from sharding.tar import Chunk, TarWriter
from sharding.video import TimedFrame, iter_timed_frames


def write_shard(root: Path, plan: Plan, shard: ShardPlan) -> None:
    """Write one shard and its record below `root`. After any failure no file is left that looks complete.

    Only the options, sources and digest of `plan` are used.
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
    """The path of a shard's record."""
    return root / JOURNAL_DIR / f"{shard_name}.json"


def read_record(root: Path, shard_name: str, plan_digest: str) -> tuple[Shard, tuple[Clip, ...]] | None:
    """The entries of a finished shard of this plan for the index; None if the shard must be written."""
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
    """Write one clip (key, first frame, number of frames) from `pairs`, and report its frames as done.

    HR frames are written as they arrive, so that only one is in memory.
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
    """The content of a clip's json member: the source, and the number and time in s (or None) of each frame."""
    return {
        "source": source_name,
        "frames": list(range(first_frame, first_frame + len(times_s))),
        "times_s": [None if time is None else round(time, 6) for time in times_s],
    }


def _write_frames(
    writer: TarWriter, codec: str, key_and_field: tuple[str, str], shape: tuple[int, ...], frames: Iterable[Frame]
) -> tuple[Member, ...]:
    """Write the members of one field of a clip; `shape` is (T, H, W, 3)."""
    names = member_names(*key_and_field, codec, shape[0])
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
    """Write an npy member whose data are the arrays `parts`, concatenated along the first axis."""
    num_bytes = NPY_HEADER_BYTES + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    data: Iterator[Chunk] = (part.reshape(-1).view(np.uint8).data for part in parts)
    chunks = chain([npy_header(shape, dtype)], data)
    entry, digest = writer.add_stream(name, num_bytes, chunks)
    return Member(name, entry.offset, num_bytes, shape, dtype.name, digest, entry.offset + NPY_HEADER_BYTES)


@dataclass(frozen=True)
class FramePair:
    """The HR and the LR frame of one time step, uint8 RGB (H, W, 3), and its time in s, if the source has times."""

    high: Frame
    low: Frame
    time_s: float | None


def iter_pairs(source: ScannedSource, sequence: SequencePlan, options: PackOptions) -> Iterator[FramePair]:
    """The frame pairs of a sequence in time order. Raises BadInputError if the source changed since its scan."""
    high = _iter_cropped(source, sequence, options.scale)
    low_path = source.source.low_path
    if low_path is None:
        yield from _degrade(high, get_recipe(options.degradation, options.crf), options.scale)
        return
    low_frames = islice(iter_timed_frames(low_path, sequence.first_frame), sequence.num_frames)
    low: Iterator[Frame] = (frame.rgb for frame in low_frames)
    if options.shrink_pairs:
        recipe = get_recipe(options.degradation, options.crf)
        cropped = (np.ascontiguousarray(crop_to_multiple(frame, options.scale)) for frame in low)
        low = recipe.stream(cropped, options.scale)
    for high_frame, low_frame in zip(high, low, strict=True):
        yield FramePair(high_frame.rgb, low_frame, None)


def _iter_cropped(source: ScannedSource, sequence: SequencePlan, scale: int) -> Iterator[TimedFrame]:
    """The HR frames of a sequence, cropped to multiples of the scale."""
    frames = iter_timed_frames(source.source.path, sequence.first_frame, sequence.start_pts)
    # The scan keeps no pts if timestamps do not increase; the times are unusable then.
    has_times = sequence.start_pts is not None
    for number in range(sequence.num_frames):
        frame = next(frames, None)
        if frame is None or frame.rgb.shape[:2] != (source.height, source.width):
            raise BadInputError(
                f"{source.source.path} changed after it was scanned: at frame {sequence.first_frame + number} it "
                "ends or has another frame size; run pack again"
            )
        rgb = np.ascontiguousarray(crop_to_multiple(frame.rgb, scale))
        yield TimedFrame(rgb, frame.time_s if has_times else None, frame.pts)


def _degrade(frames: Iterator[TimedFrame], recipe: Recipe, scale: int) -> Iterator[FramePair]:
    """HR frames with the LR frames made from them; HR frames are queued while the recipe reads ahead."""
    queue: deque[TimedFrame] = deque()

    def enqueued() -> Iterator[Frame]:
        for frame in frames:
            queue.append(frame)
            yield frame.rgb

    for low in recipe.stream(enqueued(), scale):
        frame = queue.popleft()
        yield FramePair(frame.rgb, low, frame.time_s)
