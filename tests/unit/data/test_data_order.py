"""The orders of the training stream: properties that hold for any sizes, worlds and steps."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.rng import mix, purpose
from vsr_dist.data.order import (
    BlockOrder,
    Run,
    SequentialOrder,
    ShuffleOrder,
    Window,
    WindowTable,
    batch_positions,
    micro_batch_clips,
    permute,
    spread_windows,
)

SEEDS = st.integers(0, 2**63 - 1)
# Lengths of sequences, shard by shard.
SHARDS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=7)
FRAMES = 3


def table_of(shards, num_frames=FRAMES):
    lengths = [(shard, length) for shard, sequences in enumerate(shards) for length in sequences]
    return WindowTable([Run(n, 0, length, shard) for n, (shard, length) in enumerate(lengths)], num_frames)


def count_table(num_windows):
    return table_of([[num_windows]], 1)


def permuted(size, key):
    return permute(np.arange(size, dtype=np.uint64), size, key).tolist()


def make(name, table, seed, *, lanes=4, block_shards=2):
    kinds = {
        "shuffle": lambda: ShuffleOrder(table, seed),
        "block": lambda: BlockOrder(table, seed, block_shards),
        "ordered": lambda: SequentialOrder(table, seed, lanes),
    }
    return kinds[name]()


def global_batch(order, step, batch_clips, world_size, accumulation_steps):
    """What all ranks read in a step, in rank order, each with its micro-batches in turn."""
    plan = {"batch_clips": batch_clips, "world_size": world_size, "accumulation_steps": accumulation_steps}
    return [
        sample
        for rank in range(world_size)
        for micro in range(accumulation_steps)
        for sample in order.samples(batch_positions(step, micro, rank, **plan))
    ]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), key=SEEDS)
def test_a_permutation_meets_every_number_once(size, key):
    assert sorted(permuted(size, key)) == list(range(size))


def feistel(index, size, key):
    """The same permutation once more, in plain integers and one number at a time."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for round_number in range(6):
            left, right = right, left ^ (mix(key, round_number, right) & mask)
        index = (left << half_bits) | right
        if index < size:
            return index


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 10**12), key=SEEDS, data=st.data())
def test_many_at_once_are_what_one_at_a_time_would_be(size, key, data):
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6))
    assert permute(np.array(places, dtype=np.uint64), size, key).tolist() == [feistel(p, size, key) for p in places]


def test_every_order_of_four_comes_equally_often():
    num_keys = 3000
    orders = Counter(tuple(permuted(4, key)) for key in range(num_keys))
    assert len(orders) == 24
    expected = num_keys / 24
    statistic = sum((count - expected) ** 2 / expected for count in orders.values())
    assert statistic < chi2.ppf(1 - 1e-4, 23)


def test_neighbours_are_torn_apart():
    order = np.array(permuted(1000, 3))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_the_shuffled_stream_is_the_one_that_runs_were_made_with():
    """Position by position as first defined, so that a seed keeps its meaning."""
    samples = ShuffleOrder(count_table(50), 7).samples(range(120))
    for position, sample in enumerate(samples):
        epoch, place = divmod(position, 50)
        assert sample.window.start == feistel(place, 50, mix(purpose("order"), 7, epoch))
        assert sample.augment_seed == mix(purpose("augment"), 7, position)


@pytest.mark.parametrize("name", ["shuffle", "block"])
@settings(max_examples=40, deadline=None)
@given(shards=SHARDS, epoch=st.integers(0, 10**6), seed=SEEDS, block_shards=st.integers(1, 8))
def test_every_window_comes_once_per_epoch(name, shards, epoch, seed, block_shards):
    table = table_of(shards)
    if not len(table):
        return
    order = make(name, table, seed, block_shards=block_shards)
    samples = order.samples(range(epoch * len(table), (epoch + 1) * len(table)))
    assert sorted((s.window.sequence, s.window.start) for s in samples) == [(w.sequence, w.start) for w in table]
    assert len({sample.augment_seed for sample in samples}) == len(table)
    assert all(sample.starts for sample in samples)


@pytest.mark.parametrize("name", ["shuffle", "block"])
def test_epochs_and_seeds_have_orders_and_augmentations_of_their_own(name):
    table = table_of([[8], [8], [8], [8], [8]])
    size = len(table)
    epochs = [
        make(name, table, seed).samples(range(epoch * size, (epoch + 1) * size))
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len({tuple(sample.window for sample in samples) for samples in epochs}) == 16
    assert len({sample.augment_seed for samples in epochs for sample in samples}) == 16 * size


@pytest.mark.parametrize("name", ["shuffle", "block", "ordered"])
@settings(max_examples=20, deadline=None)
@given(shards=SHARDS, batch_clips=st.sampled_from([24, 48]), step=st.integers(0, 10**6), seed=SEEDS)
def test_the_global_batch_is_the_same_for_any_world_and_accumulation(name, shards, batch_clips, step, seed):
    table = table_of([*shards, [150]])
    plans = [(1, 1), (1, 2), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 2), (8, 1), (8, 3), (1, 24)]
    order = make(name, table, seed, lanes=batch_clips)
    batches = [global_batch(order, step, batch_clips, *plan) for plan in plans]
    # A sample holds its window, the seed of its augmentation and whether it starts, so all are compared.
    assert all(batch == batches[0] for batch in batches)
    assert [sample.position for sample in batches[0]] == list(range(step * batch_clips, (step + 1) * batch_clips))


@pytest.mark.parametrize("name", ["shuffle", "block", "ordered"])
@settings(max_examples=25, deadline=None)
@given(shards=SHARDS, num_steps=st.integers(1, 12), seed=SEEDS, data=st.data())
def test_resuming_at_any_step_goes_on_where_the_run_stopped(name, shards, num_steps, seed, data):
    """One long walk through the stream is what the steps read, before and after a stop, at two sizes of the world."""
    table = table_of([*shards, [20]])
    stop = data.draw(st.integers(0, num_steps))
    walk = make(name, table, seed)
    uninterrupted = [walk.samples([position])[0] for position in range(4 * num_steps)]
    before, after = make(name, table, seed), make(name, table, seed)
    found = [sample for step in range(stop) for sample in global_batch(before, step, 4, 4, 1)]
    found += [sample for step in range(stop, num_steps) for sample in global_batch(after, step, 4, 2, 1)]
    assert found == uninterrupted


@settings(max_examples=40, deadline=None)
@given(shards=SHARDS, epoch=st.integers(0, 50), seed=SEEDS, block_shards=st.integers(1, 8))
def test_a_block_is_read_to_its_end_before_the_next_is_touched(shards, epoch, seed, block_shards):
    table = table_of([*shards, [9]])
    order = BlockOrder(table, seed, block_shards)
    size = len(table)
    shard_of = {run.sequence: run.shard for run in table.runs}
    filled = {shard_of[window.sequence] for window in table}
    positions = range(epoch * size, (epoch + 1) * size)
    samples = order.samples(positions)
    num_blocks = -(-len(filled) // block_shards)
    blocks = [(order.shards_ahead(positions[0]), set())]
    for position, sample in zip(positions, samples, strict=True):
        shard = shard_of[sample.window.sequence]
        if len(blocks) < num_blocks and shard in blocks[-1][0]:
            blocks.append((order.shards_ahead(position), set()))
        assert order.shards_ahead(position) == blocks[-1][0]
        blocks[-1][1].add(shard)
    assert set.union(*(touched for _, touched in blocks)) == filled
    assert sum(len(touched) for _, touched in blocks) == len(filled)
    assert all(len(touched) == block_shards for _, touched in blocks[:-1])
    # What was announced is what came next.
    assert all(set(ahead) == touched for (ahead, _), (_, touched) in pairwise(blocks))


def test_a_block_order_stays_near_while_a_shuffle_roams():
    """Distinct shards in 1,000 samples, 100 shards of 250 windows: the locality that docs/loading.md states."""
    table = table_of([[252]] * 100)
    found = {}
    for name, order in {
        "shuffle": ShuffleOrder(table, 1),
        **{f"block {size}": BlockOrder(table, 1, size) for size in (1, 4, 8)},
    }.items():
        shards = [table.runs[s.window.sequence].shard for s in order.samples(range(25_000))]
        found[name] = np.mean([len(set(shards[first : first + 1000])) for first in range(0, 25_000, 1000)])
    assert found["shuffle"] > 99.9
    assert (found["block 1"], found["block 4"], found["block 8"]) == (4, 4, pytest.approx(8, abs=0.5))


def steps_of(order, first, num_steps):
    """Samples by lane."""
    lanes = order.num_lanes
    samples = order.samples(range(first * lanes, (first + num_steps) * lanes))
    return [samples[lane::lanes] for lane in range(lanes)]


@settings(max_examples=60, deadline=None)
@given(shards=SHARDS, lanes=st.integers(1, 6), epoch=st.integers(0, 20), seed=SEEDS)
def test_lanes_walk_front_to_back_and_miss_only_the_stated_tail(shards, lanes, epoch, seed):
    table = table_of([*shards, [FRAMES * lanes]])
    order = SequentialOrder(table, seed, lanes)
    num_pieces = sum(run.num_frames // FRAMES for run in table.runs)
    steps = num_pieces // lanes
    walked = steps_of(order, epoch * steps, steps)
    seen = Counter()
    for samples in walked:
        assert samples[0].starts
        for before, sample in zip([None, *samples], samples, strict=False):
            seen.update((sample.window.sequence, sample.window.start + frame) for frame in range(FRAMES))
            if not sample.starts:
                assert sample.window == Window(before.window.sequence, before.window.start + FRAMES, FRAMES)
                assert sample.augment_seed == before.augment_seed
            elif before is not None:
                assert sample.augment_seed != before.augment_seed
    # No frame twice; what is missing are fewer pieces than lanes, and each sequence's rest of a division.
    assert set(seen.values()) == {1}
    rests = sum(run.num_frames % FRAMES if run.num_frames >= FRAMES else run.num_frames for run in table.runs)
    total = sum(run.num_frames for run in table.runs)
    assert len(seen) == steps * lanes * FRAMES
    assert total - len(seen) - rests == (num_pieces % lanes) * FRAMES
    inside = {run.sequence: run.num_frames for run in table.runs}
    assert all(0 <= frame < inside[sequence] for sequence, frame in seen)


def test_every_frame_is_met_over_the_epochs_of_an_ordered_stream():
    table = table_of([[11, 7], [5, 13]])
    order = SequentialOrder(table, 4, 4)
    seen = {
        (sample.window.sequence, sample.window.start + frame)
        for lane in steps_of(order, 0, order.lane_windows * 20)
        for sample in lane
        for frame in range(FRAMES)
    }
    assert seen == {(sequence, frame) for sequence, length in enumerate([11, 7, 5, 13]) for frame in range(length)}


def test_a_long_sequence_keeps_its_lane():
    """With as many equal sequences as lanes, each lane walks one sequence and starts once per epoch."""
    order = SequentialOrder(table_of([[12]] * 4), 9, 4)
    for lane in steps_of(order, 0, 8):
        assert [sample.starts for sample in lane] == [True, False, False, False] * 2
        assert len({sample.window.sequence for sample in lane[:4]}) == 1


def test_too_few_windows_for_the_lanes_are_refused():
    with pytest.raises(BadConfigError, match=r"data.batch_clips is 8, but .* has only 7 consecutive windows of 3"):
        SequentialOrder(table_of([[11], [13]]), 0, 8)


def test_a_replacement_depends_on_the_position_and_the_attempt_only():
    order = ShuffleOrder(count_table(1000), 3)
    samples = order.samples(range(40))
    first = [order.replacement(sample, 1) for sample in samples]
    assert first == [ShuffleOrder(count_table(1000), 3).replacement(sample, 1) for sample in samples]
    assert all(sample.is_replacement for sample in first)
    assert [s.augment_seed for s in first] == [s.augment_seed for s in samples]
    assert len({sample.window for sample in first}) > 30
    second = [order.replacement(sample, 2) for sample in samples]
    assert sum(a.window == b.window for a, b in zip(first, second, strict=True)) < 3


LENGTHS = st.lists(st.integers(0, 12), max_size=6)


def runs_table(lengths, num_frames):
    return WindowTable([Run(number, 0, length) for number, length in enumerate(lengths)], num_frames)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 1000))
def test_ranks_and_micro_batches_are_equal_parts(size, world_size, accumulation_steps, step):
    plan = {
        "batch_clips": size * world_size * accumulation_steps,
        "world_size": world_size,
        "accumulation_steps": accumulation_steps,
    }
    assert micro_batch_clips(**plan) == size
    for rank in range(world_size):
        parts = [batch_positions(step, micro, rank, **plan) for micro in range(accumulation_steps)]
        assert {len(part) for part in parts} == {size}
        # A rank's micro-batches are one slice, so that accumulation is a matter of memory alone.
        assert [position for part in parts for position in part] == list(range(parts[0].start, parts[-1].stop))


@given(LENGTHS, st.integers(1, 6))
def test_windows_are_all_runs_of_frames_inside_their_sequence(lengths, num_frames):
    windows = list(runs_table(lengths, num_frames))
    frames = {(w.sequence, tuple(range(w.start, w.start + w.num_frames))) for w in windows}
    expected = {
        (sequence, run)
        for sequence, length in enumerate(lengths)
        for run in zip(*[range(first, length) for first in range(num_frames)], strict=False)
    }
    assert len(windows) == len(frames)
    assert frames == expected


@given(LENGTHS, st.integers(1, 6), st.integers(0, 40))
def test_spread_windows_are_distinct_sorted_and_as_many_as_there_can_be(lengths, num_frames, num_windows):
    every = list(runs_table(lengths, num_frames))
    chosen = spread_windows(lengths, num_frames, num_windows)
    places = [(window.sequence, window.start) for window in chosen]
    assert places == sorted(set(places))
    assert set(chosen) <= set(every)
    assert len(chosen) == min(num_windows, len(every))


def test_windows_inside_clips_do_not_cross_their_borders():
    table = WindowTable([Run(0, 0, 4), Run(0, 4, 2), Run(1, 0, 3), Run(1, 3, 4)], 3)
    assert list(table) == [Window(0, 0, 3), Window(0, 1, 3), Window(1, 0, 3), Window(1, 3, 3), Window(1, 4, 3)]
    assert len(table) == 5
    for number in (-1, 5):
        with pytest.raises(IndexError):
            table[number]


def test_spread_windows_reach_from_the_first_frame_to_the_last():
    assert spread_windows([20, 3, 11], 5, 5) == [
        Window(0, 0, 5),
        Window(0, 8, 5),
        Window(0, 15, 5),
        Window(2, 0, 5),
        Window(2, 6, 5),
    ]


def test_a_short_sequence_gives_its_share_to_the_others():
    chosen = spread_windows([4, 30], 3, 8)
    assert [window.start for window in chosen if window.sequence == 0] == [0, 1]
    assert [window.start for window in chosen if window.sequence == 1] == [0, 5, 11, 16, 22, 27]


def test_a_batch_that_cannot_be_cut_evenly_says_what_would_fit():
    with pytest.raises(BadConfigError) as caught:
        micro_batch_clips(8, 3, 2)
    assert str(caught.value) == (
        "data.batch_clips is 8; expected a multiple of processes x accumulation steps = 3 x 2 = 6, so that all "
        "micro-batches have equal size"
    )
