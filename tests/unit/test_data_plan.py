"""The order of the training stream: properties that hold for any sizes, worlds and steps."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from vsr_dist.core.errors import BadConfigError
from vsr_dist.data.plan import (
    Window,
    batch_positions,
    list_windows,
    micro_batch_clips,
    permute,
    sample_at,
    spread_windows,
)

SEEDS = st.integers(0, 2**63 - 1)
LENGTHS = st.lists(st.integers(0, 12), max_size=6)


def global_batch(step, *, batch_clips, world_size, accumulation_steps, num_windows, seed):
    """What all ranks read in a step, in rank order, each with its micro-batches in turn."""
    return [
        sample_at(position, num_windows, seed)
        for rank in range(world_size)
        for micro in range(accumulation_steps)
        for position in batch_positions(
            step,
            micro,
            rank,
            batch_clips=batch_clips,
            world_size=world_size,
            accumulation_steps=accumulation_steps,
        )
    ]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), key=SEEDS)
def test_a_permutation_meets_every_number_once(size, key):
    assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


def test_every_order_of_four_comes_equally_often():
    num_keys = 6000
    orders = Counter(tuple(permute(index, 4, key) for index in range(4)) for key in range(num_keys))
    assert len(orders) == 24
    expected = num_keys / 24
    statistic = sum((count - expected) ** 2 / expected for count in orders.values())
    assert statistic < chi2.ppf(1 - 1e-4, 23)


def test_neighbours_are_torn_apart():
    order = np.array([permute(index, 1000, 3) for index in range(1000)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


@settings(max_examples=40, deadline=None)
@given(num_windows=st.integers(1, 90), epoch=st.integers(0, 10**9), seed=SEEDS, shuffle=st.booleans())
def test_every_window_comes_once_per_epoch(num_windows, epoch, seed, shuffle):
    first = epoch * num_windows
    samples = [sample_at(position, num_windows, seed, shuffle) for position in range(first, first + num_windows)]
    assert sorted(sample.window for sample in samples) == list(range(num_windows))
    assert len({sample.augment_seed for sample in samples}) == num_windows
    if not shuffle:
        assert [sample.window for sample in samples] == list(range(num_windows))


def test_epochs_and_seeds_have_orders_and_augmentations_of_their_own():
    def epoch_of(seed, epoch):
        return [sample_at(epoch * 50 + place, 50, seed) for place in range(50)]

    epochs = [epoch_of(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(sample.window for sample in samples) for samples in epochs}) == 16
    assert len({sample.augment_seed for samples in epochs for sample in samples}) == 16 * 50


@settings(max_examples=30, deadline=None)
@given(
    batch_clips=st.sampled_from([48, 96]),
    num_windows=st.integers(1, 200),
    step=st.integers(0, 10**6),
    seed=SEEDS,
)
def test_the_global_batch_is_the_same_for_any_world_and_accumulation(batch_clips, num_windows, step, seed):
    plans = [(world, accumulation) for world in (1, 2, 3, 4, 8) for accumulation in (1, 2)] + [(1, 48), (4, 3), (3, 8)]
    batches = [
        global_batch(
            step,
            batch_clips=batch_clips,
            world_size=world,
            accumulation_steps=accumulation,
            num_windows=num_windows,
            seed=seed,
        )
        for world, accumulation in plans
    ]
    # A sample holds its window and the seed of its augmentation, so both are compared.
    assert all(batch == batches[0] for batch in batches)
    assert [sample.position for sample in batches[0]] == list(range(step * batch_clips, (step + 1) * batch_clips))


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


@settings(max_examples=30, deadline=None)
@given(num_windows=st.integers(1, 60), num_steps=st.integers(1, 12), seed=SEEDS, data=st.data())
def test_resuming_at_any_step_goes_on_where_the_run_stopped(num_windows, num_steps, seed, data):
    """The whole stream, walked by another rule (one epoch after the other), is what the steps read."""
    batch_clips = 4
    stop = data.draw(st.integers(0, num_steps))

    def walk():
        position = 0
        while True:
            for _ in range(num_windows):
                yield sample_at(position, num_windows, seed)
                position += 1

    def steps(first, last, world_size):
        plan = {"batch_clips": batch_clips, "world_size": world_size, "accumulation_steps": 1}
        return [
            sample
            for step in range(first, last)
            for sample in global_batch(step, num_windows=num_windows, seed=seed, **plan)
        ]

    uninterrupted = list(islice(walk(), num_steps * batch_clips))
    assert steps(0, stop, 4) + steps(stop, num_steps, 2) == uninterrupted


@given(LENGTHS, st.integers(1, 6))
def test_windows_are_all_runs_of_frames_inside_their_sequence(lengths, num_frames):
    windows = list_windows(lengths, num_frames)
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
    every = list_windows(lengths, num_frames)
    chosen = spread_windows(lengths, num_frames, num_windows)
    places = [(window.sequence, window.start) for window in chosen]
    assert places == sorted(set(places))
    assert set(chosen) <= set(every)
    assert len(chosen) == min(num_windows, len(every))


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
        "data.batch_clips is 8; expected a multiple of processes x accumulation steps = 3 x 2 = 6, so that every "
        "rank gets equal micro-batches"
    )
