"""The on-disk format: names of sequences, clips, shards and members, and the contents of `index.json`.

A data set is a folder of plain USTAR files `<split>-<000000>.tar` and an `index.json`, which is written last.
One sample is one **clip**: consecutive frames of one shot. The clips of a sequence are stored consecutively, in
time order, in one shard. This module opens no files.
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
# What `pack` keeps beside the shards: its plan, a record of each finished shard, and the scans of the sources.
JOURNAL_DIR = ".pack"
# webdataset skips members whose top folder is named `__...__`, so this one is not mistaken for a sample.
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
    """`text` in lower case, with each run of characters other than a-z and 0-9 replaced by one `_`.

    At most 60 characters, so that every member name fits a USTAR header; `x` if nothing is left.
    """
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60] or "x"


def format_sequence(slug: str, shot: int) -> str:
    """The sequence name `<slug>_s<shot>`, with at least three digits. Raises ValueError for an invalid slug."""
    if not _SLUG.fullmatch(slug) or shot < 0:
        raise ValueError(f"expected a slug of a-z, 0-9 and _, and a shot number of at least 0, got {slug!r}, {shot}")
    return f"{slug}_s{shot:03d}"


def parse_sequence(sequence: str) -> tuple[str, int]:
    """(slug, shot number) of a sequence name. Raises ValueError for any other text."""
    match = _SEQUENCE.fullmatch(sequence)
    if match is None:
        raise ValueError(f"expected a sequence name such as 'bikes_s000', got {sequence!r}")
    return match[1], int(match[2])


def format_key(sequence: str, first_frame: int) -> str:
    """The clip key `<sequence>-<first frame, eight digits>`; sorting keys sorts a sequence's clips by time."""
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
    """True if `key` has the form `<slug>_s<shot>-<first frame>`, without a dot."""
    return _KEY.fullmatch(key) is not None


def format_shard(split: str, number: int) -> str:
    """The shard's file name `<split>-<six digits>.tar`."""
    return f"{split}-{number:06d}.tar"


def parse_shard(name: str) -> tuple[str, int] | None:
    """(split, number) of a shard's file name; None for any other name."""
    match = _SHARD.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


@dataclass(frozen=True)
class Member:
    """One payload in a shard.

    The payload is `num_bytes` bytes at `offset` in the tar file; `xxh3` is its xxh3_64 in hex. For npy
    members, `data_offset` is the absolute offset of the raw C-ordered array of shape (T, H, W, 3), or
    (T-1, 2, H, W, 2) for flow. For image members `shape` is (H, W, 3), and `data_offset` is 0 and unused.
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
    """One sample: `num_frames` consecutive frames of a sequence, starting at frame `first_frame` of its source.

    `members` maps "hr", "lr" and, if stored, "flow" to their members: with npy, one for all frames; with an
    image codec, one per frame in time order. Flow is always one npy member.
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
    """One tar file: its name below the root, its size, and the xxh3_64 of all its bytes in hex."""

    name: str
    split: str
    num_bytes: int
    xxh3: str


@dataclass(frozen=True)
class Index:
    """Everything a reader needs to know about a data set.

    `degradation` is {"name": ..., **parameters}. Each entry of `sources` has `name` (slug), `kind`
    ("video", "frames" or "paired"), `file` (base name), `num_frames`, `fps` (a fraction such as "30000/1001",
    or None for sources without a frame rate), `size` ([height, width] before cropping), `shots` ([[first frame,
    number of frames], ...], including dropped shots) and `xxh3` (hash of its content). `clips` are in the order
    of the shards and of the members in each tar; the clips of a sequence are in time order.
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
        """xxh3_128 of the canonical JSON, 32 hex characters; identifies the data set and its content."""
        return xxhash.xxh3_128_hexdigest(canonical_json(self.to_dict()))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted({shard.split for shard in self.shards}))

    def sequences(self, split: str) -> dict[str, list[Clip]]:
        """Sequence name -> its clips in time order. Sequences are in shard order; empty for an unknown split."""
        found: dict[str, list[Clip]] = {}
        for clip in self.clips:
            if clip.split == split:
                found.setdefault(clip.sequence, []).append(clip)
        return {name: sorted(clips, key=lambda clip: clip.first_frame) for name, clips in found.items()}

    def clips_by_shard(self) -> dict[str, list[Clip]]:
        """Name of each listed shard -> its clips, in order."""
        found: dict[str, list[Clip]] = {shard.name: [] for shard in self.shards}
        for clip in self.clips:
            if clip.shard in found:
                found[clip.shard].append(clip)
        return found

    def dataset(self) -> dict[str, Any]:
        """The fields that describe the data set as a whole; each shard stores a copy in `DATASET_MEMBER`."""
        return {name: value for name, value in vars(self).items() if name in _DATASET_FIELDS}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the inverse of `from_dict`."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Index:
        """The index from a parsed `index.json`. Raises KeyError, TypeError or ValueError for invalid content."""
        unknown = [shard["name"] for shard in data["shards"] if parse_shard(shard["name"]) is None]
        if unknown:
            raise ValueError(f"invalid shard names: {unknown}")
        plain = {name: value for name, value in data.items() if name not in ("shards", "clips")}
        return Index(
            shards=tuple(Shard(**shard) for shard in data["shards"]),
            clips=tuple(clip_from_dict(clip) for clip in data["clips"]),
            **plain,
        )


_DATASET_FIELDS = {field.name for field in fields(Index)} - {"shards", "clips"}


def clip_from_dict(data: Mapping[str, Any]) -> Clip:
    """The clip from its JSON form. Raises KeyError, TypeError or ValueError for invalid content."""
    unknown = set(data["members"]) - set(FIELDS)
    if unknown:
        raise ValueError(f"clip {data['key']} has unknown fields: {sorted(unknown)}")
    members = {
        field: tuple(Member(**{**member, "shape": tuple(member["shape"])}) for member in data["members"][field])
        for field in FIELDS
        if field in data["members"]
    }
    return Clip(**{**data, "members": members})


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def member_names(key: str, field: str, codec: str, num_frames: int) -> list[str]:
    """Names of a clip's members for one field: `<key>.hr.npy`, or one per frame, such as `<key>.hr.000.png`."""
    if codec == "npy" or field == "flow":
        return [f"{key}.{field}.npy"]
    return [f"{key}.{field}.{number:03d}.{codec}" for number in range(num_frames)]
