"""The plan of a pack: which frames become which sequences, clips and shards. Pure functions.

A sequence is a shot, or the part of a shot on one side of the boundary between train and val; it is never split
between two shards. Sequences are numbered per source, including those that are dropped, so that their names do not
change with `min_frames`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import xxhash

from sharding.codec import CODECS
from sharding.degrade import SCALES, describe, get_recipe
from sharding.errors import BadConfigError, BadInputError, nearest_hint
from sharding.flow import METHODS, MIN_SIDE_PX
from sharding.schema import (
    FLOW_NAMES,
    FORMAT_VERSION,
    canonical_json,
    format_key,
    format_sequence,
    format_shard,
)
from sharding.sources import ScannedSource

TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class PackOptions:
    """All options that change the bytes of a data set.

    `holdout_tail` in [0, 1): this fraction of the frames of each source, rounded to whole frames, at its end, is
    split `val`. `holdout` names sources that are `val` as a whole. `shard_bytes` is a target size; only a shard with
    a single sequence can be larger. Sequences shorter than `min_frames` are dropped. `degradation` is the recipe
    that makes LR from HR, or "paired" if LR is given. With `shrink_pairs` LR is made from the given LQ frames. `crf`
    is the rate factor of a recipe that has one; None for its default.
    """

    scale: int = 4
    codec: str = "npy"
    degradation: str = "bicubic"
    flow: str = "none"
    clip_frames: int = 16
    shard_bytes: int = 256_000_000
    holdout_tail: float = 0.0
    holdout: tuple[str, ...] = ()
    min_frames: int = 2
    crf: int | None = None
    shrink_pairs: bool = False


@dataclass(frozen=True)
class SequencePlan:
    """`num_frames` frames of source number `source`, from `first_frame`, whose timestamp is `start_pts`."""

    name: str
    split: str
    source: int
    first_frame: int
    num_frames: int
    start_pts: int | None

    def clips(self, clip_frames: int) -> Iterator[tuple[str, int, int]]:
        """(key, first frame, number of frames) of each clip; the last one may be shorter."""
        end = self.first_frame + self.num_frames
        for first in range(self.first_frame, end, clip_frames):
            yield format_key(self.name, first), first, min(clip_frames, end - first)


@dataclass(frozen=True)
class ShardPlan:
    """One tar file: its name and its sequences, in order."""

    name: str
    split: str
    sequences: tuple[SequencePlan, ...]

    @property
    def num_frames(self) -> int:
        """Number of frames in all its sequences."""
        return sum(sequence.num_frames for sequence in self.sequences)


@dataclass(frozen=True)
class Plan:
    """The plan of a whole pack. Plans with equal `digest` write the same bytes."""

    options: PackOptions
    sources: tuple[ScannedSource, ...]
    shards: tuple[ShardPlan, ...]
    num_dropped_sequences: int
    num_dropped_frames: int
    digest: str

    def dataset(self) -> dict[str, Any]:
        """The fields of the index that describe the data set as a whole."""
        return dataset_record(self.options, self.sources)


def check_options(options: PackOptions) -> None:
    """Raise BadConfigError that lists all invalid options."""
    faults = []
    if options.scale not in SCALES:
        faults.append(f"--scale is {options.scale}, expected one of {', '.join(map(str, SCALES))}")
    if options.codec not in CODECS:
        hint = nearest_hint(options.codec, CODECS)
        faults.append(f"--codec is '{options.codec}', expected one of {', '.join(CODECS)}{hint}")
    if options.flow not in FLOW_NAMES:
        faults.append(f"--flow is '{options.flow}', expected one of {', '.join(FLOW_NAMES)}")
    if options.clip_frames < 1 or options.clip_frames > 999:
        faults.append(f"--clip-frames is {options.clip_frames}, expected 1 to 999")
    if options.min_frames < 1:
        faults.append(f"--min-frames is {options.min_frames}, expected at least 1")
    if options.shard_bytes < 1:
        faults.append(f"--shard-mb is {options.shard_bytes / 1e6:g}, expected more than 0")
    if not 0.0 <= options.holdout_tail < 1.0:
        faults.append(f"--holdout-tail is {options.holdout_tail}, expected a fraction of at least 0 and less than 1")
    if options.degradation == "paired":
        if options.crf is not None:
            faults.append(f"--crf is {options.crf}, but it has no effect on pairs that are stored unchanged")
    else:
        try:
            get_recipe(options.degradation, options.crf)
        except BadConfigError as error:
            faults.append(str(error))
    if faults:
        raise BadConfigError("; ".join(faults))


def make_plan(sources: Sequence[ScannedSource], options: PackOptions) -> Plan:
    """The plan of a pack. Raises BadConfigError for invalid options, BadInputError if there is nothing to pack."""
    check_options(options)
    _check_holdout(sources, options)
    _check_sizes(sources, options)
    parts = [part for number, source in enumerate(sources) for part in _split_into_sequences(number, source, options)]
    kept = [part for part in parts if part.num_frames >= options.min_frames]
    if not kept:
        longest = max((part.num_frames for part in parts), default=0)
        raise BadInputError(
            f"nothing to pack: the longest shot has {longest} frames, expected at least "
            f"{options.min_frames}; use longer videos or a smaller --min-frames"
        )
    shards = [shard for split in (TRAIN, VAL) for shard in _group_into_shards(split, kept, sources, options)]
    dropped = [part.num_frames for part in parts if part.num_frames < options.min_frames]
    layout = [asdict(shard) for shard in shards]
    record = {**dataset_record(options, sources), "options": asdict(options), "layout": layout}
    return Plan(
        options=options,
        # Not needed any more: sequences have their start_pts, and the plan is sent to every worker.
        sources=tuple(replace(source, pts=()) for source in sources),
        shards=tuple(shards),
        num_dropped_sequences=len(dropped),
        num_dropped_frames=sum(dropped),
        digest=xxhash.xxh3_128_hexdigest(canonical_json(record)),
    )


def dataset_record(options: PackOptions, sources: Sequence[ScannedSource]) -> dict[str, Any]:
    """The fields of the index that describe the data set as a whole, as plain values."""
    described = [source.describe() for source in sources]
    recipe = describe(options.degradation, options.crf)
    return {
        "version": FORMAT_VERSION,
        "scale": options.scale,
        "codec": options.codec,
        "clip_frames": options.clip_frames,
        "degradation": {"name": "paired", "shrink": recipe} if options.shrink_pairs else recipe,
        "sources": described,
        "source_hash": xxhash.xxh3_128_hexdigest(canonical_json(described)),
        "flow": options.flow,
    }


def frame_bytes(source: ScannedSource, options: PackOptions) -> int:
    """Rough size of one frame of a source in a shard: HR, LR and flow."""
    low_pixels = (source.height // options.scale) * (source.width // options.scale)
    coded = 3 * low_pixels * (options.scale**2 + 1) * CODECS[options.codec].size_ratio
    return int(coded) + (0 if options.flow == "none" else 8 * low_pixels)


def _check_holdout(sources: Sequence[ScannedSource], options: PackOptions) -> None:
    names = [source.source.name for source in sources]
    faults = [
        f"--holdout {name} is not a source; expected one of {', '.join(names)}{nearest_hint(name, names)}"
        for name in options.holdout
        if name not in names
    ]
    if faults:
        raise BadConfigError("; ".join(faults))


def _check_sizes(sources: Sequence[ScannedSource], options: PackOptions) -> None:
    least = options.scale * (MIN_SIDE_PX if options.flow in METHODS else 1)
    faults = [
        f"{source.source.path} is {source.width} x {source.height} px"
        for source in sources
        if min(source.width, source.height) < least
    ]
    if faults:
        raise BadInputError(
            f"expected frames of at least {least} x {least} px for --scale {options.scale} and --flow "
            f"{options.flow}: {'; '.join(faults)}; remove these sources"
        )


def _split_into_sequences(number: int, source: ScannedSource, options: PackOptions) -> Iterator[SequencePlan]:
    """All sequences of a source in time order, including short ones."""
    if source.source.split == VAL or source.source.name in options.holdout:
        boundary = 0
    else:
        boundary = source.num_frames - round(source.num_frames * options.holdout_tail)
    parts = []
    for first, num_frames in source.shots:
        end = first + num_frames
        middle = min(max(boundary, first), end)
        parts += [(first, middle, TRAIN), (middle, end, VAL)]
    for shot, (first, end, split) in enumerate(part for part in parts if part[1] > part[0]):
        yield SequencePlan(
            name=format_sequence(source.source.name, shot),
            split=split,
            source=number,
            first_frame=first,
            num_frames=end - first,
            start_pts=source.pts[first] if source.pts else None,
        )


def _group_into_shards(
    split: str, parts: Sequence[SequencePlan], sources: Sequence[ScannedSource], options: PackOptions
) -> Iterator[ShardPlan]:
    """The shards of one split: sequences in order, a new shard if the next sequence would exceed the target size."""
    taken: list[SequencePlan] = []
    num_bytes = number = 0
    for part in (part for part in parts if part.split == split):
        part_bytes = part.num_frames * frame_bytes(sources[part.source], options)
        if taken and num_bytes + part_bytes > options.shard_bytes:
            yield ShardPlan(format_shard(split, number), split, tuple(taken))
            taken, num_bytes, number = [], 0, number + 1
        taken.append(part)
        num_bytes += part_bytes
    if taken:
        yield ShardPlan(format_shard(split, number), split, tuple(taken))
