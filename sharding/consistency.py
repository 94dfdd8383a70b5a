"""What can be told of a data set without reading its frames: whether its index makes sense, and whether the members
of a shard lie where, and in the order in which, the index says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import BinaryIO

from sharding.codec import CODECS, NPY_HEADER_BYTES
from sharding.errors import BadShardError
from sharding.schema import DATASET_MEMBER, Clip, Index, is_valid_key, member_names, parse_key
from sharding.tar import scan_tar


def index_faults(index: Index) -> Iterator[str]:
    """Faults that the index shows by itself: keys, order in time, shapes."""
    names = [shard.name for shard in index.shards]
    listed = set(names)
    keys = [clip.key for clip in index.clips]
    yield from (f"index: shard {name} is listed twice" for name in sorted(_twice(names)))
    yield from (f"index: clip {key} is listed twice" for key in sorted(_twice(keys)))
    previous: Clip | None = None
    closed: set[str] = set()
    for clip in index.clips:
        if clip.shard not in listed:
            yield f"index: {clip.key} lies in {clip.shard}, which is not listed"
        yield from _clip_faults(index, clip)
        if previous is not None and previous.sequence == clip.sequence:
            expected = previous.first_frame + previous.num_frames
            if clip.first_frame != expected:
                yield f"index: {clip.key} is out of order, expected frame {expected} after {previous.key}"
            if clip.shard != previous.shard:
                yield f"index: sequence {clip.sequence} spans {previous.shard} and {clip.shard}"
        elif clip.sequence in closed:
            yield f"index: {clip.key} is apart from the other clips of its sequence"
        closed.add(clip.sequence)
        previous = clip


def _twice(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _clip_faults(index: Index, clip: Clip) -> Iterator[str]:
    if not is_valid_key(clip.key) or parse_key(clip.key) != (clip.sequence, clip.first_frame):
        yield f"index: key {clip.key} does not fit sequence {clip.sequence}, frame {clip.first_frame}"
    expected = {"hr", "lr"} if index.flow == "none" else {"hr", "lr", "flow"}
    if set(clip.members) != expected:
        yield f"index: {clip.key} has the fields {sorted(clip.members)}, expected {sorted(expected)}"
        return
    for field, members in clip.members.items():
        if [member.name for member in members] != member_names(clip.key, field, index.codec, clip.num_frames):
            yield f"index: {clip.key} has other members for {field} than codec {index.codec} writes"
        for member in members:
            if member.shape != _expected_shape(index, clip, field):
                yield f"index: {member.name} has the shape {member.shape}, which does not fit its clip"
            mapped = field == "flow" or not CODECS[index.codec].per_frame
            if mapped and member.data_offset != member.offset + NPY_HEADER_BYTES:
                yield f"index: {member.name} has its data at another offset than its header ends"


def _expected_shape(index: Index, clip: Clip, field: str) -> tuple[int, ...]:
    """The shape that a member must have, given the first LR member's size."""
    height, width, channels = clip.frame_shape("lr")
    if field == "flow":
        return (clip.num_frames - 1, 2, height, width, 2)
    times = index.scale if field == "hr" else 1
    frame = (height * times, width * times, channels)
    return frame if CODECS[index.codec].per_frame else (clip.num_frames, *frame)


def layout_faults(file: BinaryIO, num_bytes: int, index: Index, clips: Sequence[Clip]) -> Iterator[str]:
    """Compare the tar's headers and json members with the index; stops at the first that is out of place."""
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
                yield f"holds '{entry.name}' where the index expects '{name or 'the end'}'"
                return
            known = expected.get(entry.name)
            if entry.name == DATASET_MEMBER:
                file.seek(entry.offset)
                yield from _dataset_faults(file.read(entry.num_bytes), index)
            if isinstance(known, Clip):
                file.seek(entry.offset)
                yield from _record_faults(file.read(entry.num_bytes), known)
            elif known is not None and known != (entry.offset, entry.num_bytes):
                yield f"'{entry.name}' lies at byte {entry.offset}, the index says {known[0]}"
    except BadShardError as error:
        yield str(error)
        return
    yield from (f"lacks '{name}', which the index lists" for name in names)


def _dataset_faults(payload: bytes, index: Index) -> Iterator[str]:
    """What a shard says of its whole data set, where the index says something else."""
    try:
        found = json.loads(payload)
        differing = sorted(name for name, value in index.dataset().items() if found.get(name) != value)
    except (ValueError, AttributeError):
        yield f"'{DATASET_MEMBER}' is not the JSON that pack writes"
        return
    if differing:
        yield f"is of another data set than the index: they differ in {', '.join(differing)}"


def _record_faults(payload: bytes, clip: Clip) -> Iterator[str]:
    """Faults of a clip's json member."""
    try:
        record = json.loads(payload)
        frames, times = list(record["frames"]), [t for t in record["times_s"] if t is not None]
    except (ValueError, KeyError, TypeError):
        yield f"'{clip.key}.json' is not the JSON that pack writes"
        return
    if frames != list(range(clip.first_frame, clip.first_frame + clip.num_frames)):
        yield f"'{clip.key}.json' has frames out of order: {frames}"
    if any(later <= earlier for earlier, later in pairwise(times)):
        yield f"'{clip.key}.json' has times that do not rise: {times}"
