"""The on-disk contract: key grammar, member names, and the model of `index.json`.

A data set is a folder of plain USTAR files `<split>-<000000>.tar` and an `index.json` that is written last.
One sample is one **clip**: consecutive frames of one shot. Clips of a sequence lie one behind the other, in
time order, in one shard. Everything here is pure: no file is opened in this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import xxhash

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
# Plain webdataset skips members whose first path part is `__name__`, so the tar can describe itself.
DATASET_MEMBER = "__vsr__/dataset.json"

CodecName = Literal["npy", "png", "webp", "jpg"]
FlowName = Literal["none", "farneback", "dis"]
CODEC_NAMES: tuple[str, ...] = get_args(CodecName)
# The order of the members of a clip in its tar.
FIELDS = ("hr", "lr", "flow")
FLOW_NAMES: tuple[str, ...] = get_args(FlowName)

_SLUG = re.compile(r"[a-z0-9_]+")
_SEQUENCE = re.compile(r"([a-z0-9_]+)_s([0-9]{3,})")
_KEY = re.compile(r"([a-z0-9_]+_s[0-9]{3,})-([0-9]{8})")
_SHARD = re.compile(r"([a-z0-9_]+)-([0-9]{6})\.tar")


def make_slug(text: str) -> str:
    """`text` in lower case, every run of other signs than a-z and 0-9 as one `_`; `x` if none is left.

    At most 60 characters, so that every member name fits a USTAR header.
    """
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60] or "x"


def format_sequence(slug: str, shot: int) -> str:
    """The sequence name `<slug>_s<shot>`, three digits or more. Raises ValueError for other slugs."""
    if not _SLUG.fullmatch(slug) or shot < 0:
        raise ValueError(f"expected a slug of a-z, 0-9, _ and a shot number from 0, got {slug!r}, {shot}")
    return f"{slug}_s{shot:03d}"


def parse_sequence(sequence: str) -> tuple[str, int]:
    """(slug, shot number) of a sequence name. Raises ValueError for any other text."""
    match = _SEQUENCE.fullmatch(sequence)
    if match is None:
        raise ValueError(f"expected a sequence name such as 'bikes_s000', got {sequence!r}")
    return match[1], int(match[2])


def format_key(sequence: str, first_frame: int) -> str:
    """The clip key `<sequence>-<first frame, eight digits>`; text order is time order within a sequence."""
    key = f"{sequence}-{first_frame:08d}"
    parse_key(key)
    return key


def parse_key(key: str) -> tuple[str, int]:
    """(sequence, first frame) of a clip key. Raises ValueError for any other text."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"expected a clip key such as 'bikes_s000-00000016', got {key!r}")
    return match[1], int(match[2])


def is_valid_key(key: str) -> bool:
    """True if `key` follows the grammar `<slug>_s<shot>-<first frame>`, which holds no dot."""
    return _KEY.fullmatch(key) is not None


def format_shard(split: str, number: int) -> str:
    """The shard's file name `<split>-<six digits>.tar`."""
    return f"{split}-{number:06d}.tar"


def parse_shard(name: str) -> tuple[str, int] | None:
    """(split, number) of a shard's file name, or None if the name is not one of ours."""
    match = _SHARD.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


@dataclass(frozen=True)
class Member:
    """One payload in a shard.

    `offset` and `num_bytes` delimit the payload in the tar file, `xxh3` is the hex of its xxh3_64. For npy
    members `data_offset` is the absolute offset of the raw C-ordered array (shape (T, H, W, 3), or
    (T-1, 2, H, W, 2) for flow); for image members it is 0 and unused, and `shape` is (H, W, 3).
    """

    name: str
    offset: int
    num_bytes: int
    shape: tuple[int, ...]
    dtype: str
    xxh3: str
    data_offset: int = 0


@dataclass(frozen=True)
class Clip:
    """One sample: `num_frames` consecutive frames of a sequence, from frame `first_frame` of its source.

    `members` maps "hr", "lr" and, if packed, "flow" to their members: one for npy (all frames in one
    array), one per frame in time order for image codecs. Flow is always one npy member.
    """

    key: str
    sequence: str
    split: str
    shard: str
    first_frame: int
    num_frames: int
    members: dict[str, tuple[Member, ...]]

    def frame_shape(self, field: str) -> tuple[int, int, int]:
        """(height, width, channels) of one frame of field "hr" or "lr"."""
        height, width, channels = self.members[field][0].shape[-3:]
        return height, width, channels


@dataclass(frozen=True)
class Shard:
    """One tar file: its name below the root, its size and the hex of the xxh3_64 of all its bytes."""

    name: str
    split: str
    num_bytes: int
    xxh3: str


@dataclass(frozen=True)
class Index:
    """All that a reader needs to know of a data set.

    `degradation` is {"name": ..., and its parameters}. Each entry of `sources` holds `name` (slug), `kind`
    ("video", "frames" or "paired"), `file` (base name), `num_frames`, `fps` (text such as "30000/1001", or
    None where the source has no rate), `size` ([height, width] before cropping), `shots` ([[first frame,
    number of frames], ...], dropped shots included) and `xxh3` of its content. `clips` are in shard order,
    within a shard in the order of the tar; a sequence's clips are in time order.
    """

    version: int
    scale: int
    codec: str
    clip_frames: int
    degradation: dict[str, Any]
    sources: list[dict[str, Any]]
    source_hash: str
    flow: str
    shards: tuple[Shard, ...]
    clips: tuple[Clip, ...]

    @cached_property
    def digest(self) -> str:
        """32 hex characters, xxh3_128 over the canonical JSON: two indexes are equal if their digests are."""
        return xxhash.xxh3_128_hexdigest(canonical_json(self.to_dict()))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted({shard.split for shard in self.shards}))

    def sequences(self, split: str) -> dict[str, list[Clip]]:
        """Sequence name -> its clips in time order; sequences in shard order. Empty if no such split."""
        found: dict[str, list[Clip]] = {}
        for clip in self.clips:
            if clip.split == split:
                found.setdefault(clip.sequence, []).append(clip)
        return {name: sorted(clips, key=lambda clip: clip.first_frame) for name, clips in found.items()}

    def clips_by_shard(self) -> dict[str, list[Clip]]:
        """Name of every listed shard -> its clips, in order."""
        found: dict[str, list[Clip]] = {shard.name: [] for shard in self.shards}
        for clip in self.clips:
            if clip.shard in found:
                found[clip.shard].append(clip)
        return found

    def dataset(self) -> dict[str, Any]:
        """The fields that speak of the data set as a whole, as each shard's `DATASET_MEMBER` repeats them."""
        return {name: value for name, value in vars(self).items() if name in _DATASET_FIELDS}

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON; `from_dict` turns them back."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Index:
        """The index of a parsed `index.json`. Raises KeyError, TypeError or ValueError for other content."""
        unknown = [shard["name"] for shard in data["shards"] if parse_shard(shard["name"]) is None]
        if unknown:
            raise ValueError(f"shards with foreign names: {unknown}")
        plain = {name: value for name, value in data.items() if name not in ("shards", "clips")}
        return Index(
            shards=tuple(Shard(**shard) for shard in data["shards"]),
            clips=tuple(clip_from_dict(clip) for clip in data["clips"]),
            **plain,
        )


_DATASET_FIELDS = {field.name for field in fields(Index)} - {"shards", "clips"}


def clip_from_dict(data: Mapping[str, Any]) -> Clip:
    """The clip of its JSON form. Raises KeyError, TypeError or ValueError for other content."""
    foreign = set(data["members"]) - set(FIELDS)
    if foreign:
        raise ValueError(f"clip {data['key']} has foreign fields: {sorted(foreign)}")
    members = {
        field: tuple(Member(**{**member, "shape": tuple(member["shape"])}) for member in data["members"][field])
        for field in FIELDS
        if field in data["members"]
    }
    return Clip(**{**data, "members": members})


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def member_names(key: str, field: str, codec: str, num_frames: int) -> list[str]:
    """Names of a clip's members of one field: `<key>.hr.npy`, or `<key>.hr.000.png` and so on per frame."""
    if codec == "npy" or field == "flow":
        return [f"{key}.{field}.npy"]
    return [f"{key}.{field}.{number:03d}.{codec}" for number in range(num_frames)]
