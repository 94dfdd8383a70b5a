"""Windows of frames and the cut of global batches: properties that hold for any sizes, worlds and steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_dist.core.errors import BadConfigError
from vsr_dist.data.plan import Run, Window, WindowTable, batch_positions, micro_batch_clips, spread_windows

LENGTHS = st.lists(st.integers(0, 12), max_size=6)


def table_of(lengths, num_frames):
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
    windows = list(table_of(lengths, num_frames))
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
    every = list(table_of(lengths, num_frames))
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
        "data.batch_clips is 8; expected a multiple of processes x accumulation steps = 3 x 2 = 6, so that every "
        "rank gets equal micro-batches"
    )
