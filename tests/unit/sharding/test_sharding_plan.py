from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.errors import BadConfigError, BadInputError
from sharding.plan import PackOptions, Plan, frame_bytes, make_plan
from sharding.schema import is_valid_key
from sharding.sources import ScannedSource, Source
from sharding.video import SourceInfo

INFO = SourceInfo("", None, None, 0, 0)


def scanned(name: str, *lengths: int, height: int = 144, width: int = 176, pts: bool = True) -> ScannedSource:
    shots, first = [], 0
    for length in lengths:
        shots.append((first, length))
        first += length
    return ScannedSource(
        source=Source(name, "video", Path(f"/{name}.mp4"), INFO),
        num_frames=first,
        fps=Fraction(25),
        height=height,
        width=width,
        shots=tuple(shots),
        pts=tuple(range(0, 512 * first, 512)) if pts else (),
        xxh3="00",
    )


def frames_of(plan: Plan, split: str) -> list[tuple[int, int]]:
    return [
        (sequence.source, frame)
        for shard in plan.shards
        if shard.split == split
        for sequence in shard.sequences
        for frame in range(sequence.first_frame, sequence.first_frame + sequence.num_frames)
    ]


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), min_size=1, max_size=3),
    st.floats(0, 0.9),
    st.integers(1, 20),
    st.integers(10_000, 10_000_000),
)
def test_splits_partition_the_frames(lengths, tail: float, clip_frames: int, shard_bytes: int) -> None:
    sources = [scanned(f"s{number}", *shots) for number, shots in enumerate(lengths)]
    options = PackOptions(holdout_tail=tail, clip_frames=clip_frames, shard_bytes=shard_bytes, min_frames=1)
    plan = make_plan(sources, options)
    train, val = frames_of(plan, "train"), frames_of(plan, "val")
    every = [(number, frame) for number, source in enumerate(sources) for frame in range(source.num_frames)]
    assert sorted(train + val) == every
    assert train == sorted(train)
    assert val == sorted(val)
    for number, source in enumerate(sources):
        in_val = [frame for owner, frame in val if owner == number]
        assert len(in_val) == round(source.num_frames * tail)
        assert in_val == list(range(source.num_frames - len(in_val), source.num_frames))


def test_a_sequence_lies_within_one_shot_and_one_shard() -> None:
    plan = make_plan([scanned("a", 30, 46, 61), scanned("b", 120)], PackOptions(shard_bytes=10_000_000))
    names = [sequence.name for shard in plan.shards for sequence in shard.sequences]
    assert names == ["a_s000", "a_s001", "a_s002", "b_s000"]
    assert [(shard.name, len(shard.sequences)) for shard in plan.shards] == [
        ("train-000000.tar", 2),
        ("train-000001.tar", 1),
        ("train-000002.tar", 1),
    ]
    assert [sequence.start_pts for sequence in plan.shards[0].sequences] == [0, 30 * 512]


def test_shards_keep_to_the_target_unless_one_sequence_is_larger() -> None:
    sources = [scanned("a", *[10] * 9, 100)]
    options = PackOptions(shard_bytes=2_500_000)
    per_frame = frame_bytes(sources[0], options)
    sizes = [sum(s.num_frames for s in shard.sequences) * per_frame for shard in make_plan(sources, options).shards]
    assert all(size <= options.shard_bytes for size in sizes[:-1])
    assert sizes[-1] == 100 * per_frame


def test_clips_cover_a_sequence_in_time_order() -> None:
    plan = make_plan([scanned("a", 3, 37)], PackOptions(clip_frames=16))
    sequence = plan.shards[0].sequences[1]
    clips = list(sequence.clips(16))
    assert [(first, length) for _, first, length in clips] == [(3, 16), (19, 16), (35, 5)]
    assert all(is_valid_key(key) for key, _, _ in clips)


def test_short_shots_are_dropped_counted_and_do_not_rename_the_others() -> None:
    sources = [scanned("a", 30, 1, 40)]
    plan = make_plan(sources, PackOptions())
    assert [sequence.name for sequence in plan.shards[0].sequences] == ["a_s000", "a_s002"]
    assert (plan.num_dropped_sequences, plan.num_dropped_frames) == (1, 1)
    assert make_plan(sources, PackOptions(min_frames=1)).num_dropped_sequences == 0


def test_holdout_takes_a_source_as_a_whole() -> None:
    plan = make_plan([scanned("a", 20), scanned("b", 20)], PackOptions(holdout=("b",)))
    assert {source for source, _ in frames_of(plan, "val")} == {1}
    assert {source for source, _ in frames_of(plan, "train")} == {0}


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 2},
        {"codec": "png"},
        {"degradation": "blur_decimate"},
        {"flow": "dis"},
        {"clip_frames": 8},
        {"holdout_tail": 0.5},
        {"holdout": ("a",)},
        {"min_frames": 25},
        {"shard_bytes": 100_000},
    ],
)
def test_every_option_is_in_the_digest(change) -> None:
    sources = [scanned("a", 20, 30)]
    options = PackOptions()
    changed = make_plan(sources, replace(options, **change))
    assert changed.digest != make_plan(sources, options).digest
    assert make_plan(sources, options).digest == make_plan(sources, options).digest


def test_content_is_in_the_digest_and_place_is_not() -> None:
    source = scanned("a", 20)
    digest = make_plan([source], PackOptions()).digest
    assert make_plan([replace(source, xxh3="01")], PackOptions()).digest != digest
    elsewhere = replace(source, source=replace(source.source, path=Path("/elsewhere/a.mp4")))
    assert make_plan([elsewhere], PackOptions()).digest == digest


def test_all_faults_of_options_come_at_once() -> None:
    options = PackOptions(
        scale=5, codec="gif", flow="raft", clip_frames=0, min_frames=0, holdout_tail=1.0, degradation="bicubik"
    )
    with pytest.raises(BadConfigError) as caught:
        make_plan([scanned("a", 20)], options)
    for word in ("--scale", "--codec", "--flow", "--clip-frames", "--min-frames", "--holdout-tail", "bicubik"):
        assert word in str(caught.value)


def test_unknown_holdout_names_the_nearest() -> None:
    with pytest.raises(BadConfigError, match="did you mean 'bikes'"):
        make_plan([scanned("bikes", 20)], PackOptions(holdout=("bike",)))


def test_too_short_or_too_small_sources_are_refused() -> None:
    with pytest.raises(BadInputError, match="longest shot has 1 frames"):
        make_plan([scanned("a", 1, 1)], PackOptions())
    with pytest.raises(BadInputError, match="at least 4 x 4 px"):
        make_plan([scanned("a", 20, height=3)], PackOptions())
    with pytest.raises(BadInputError, match="--flow dis"):
        make_plan([scanned("a", 20, height=32)], PackOptions(flow="dis"))
