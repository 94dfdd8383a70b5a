"""Cuts found while a video comes are those that packing finds in the whole of it."""

from __future__ import annotations

import numpy as np
import pytest

from sharding.shots import StepScorer, find_cuts
from sharding.sources import find_samples
from sharding.video import iter_frames
from vsr_dist.inference.engine import CutFinder

BIKES = next(path for path in find_samples() if path.stem == "bikes")


def streamed(frames, finder=None):
    """The frames that begin a shot, and how many answers each push gave."""
    finder = finder or CutFinder()
    answers, counts = [], []
    for frame in frames:
        settled = finder.push(frame)
        answers += settled
        counts.append(len(settled))
    answers += finder.finish()
    assert len(answers) == len(frames)
    return [number for number, starts in enumerate(answers) if starts], counts


def whole(frames):
    scorer = StepScorer()
    for frame in frames:
        scorer.add(frame)
    return find_cuts(scorer.scores)


def flicker(num_frames, seed):
    """Grey frames whose level often jumps: many steps that might be cuts, close to one another."""
    rng = np.random.default_rng(seed)
    jumps = rng.choice([0, 3, 20, 60, 120], num_frames, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    levels = np.cumsum(jumps) % 256
    return [np.full((36, 64, 3), level, np.uint8) for level in levels]


def test_the_cuts_of_a_real_clip_are_packings():
    frames = list(iter_frames(BIKES))
    found, counts = streamed(frames)
    assert found == whole(frames) == [30, 76, 137, 187, 242]
    # Only where something large happens is there anything to wait for.
    assert sum(count == 1 for count in counts) > 0.7 * len(frames)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 9, 10, 17, 18, 60])
def test_any_length_and_any_density_of_cuts(num_frames):
    some = 0
    for seed in range(12):
        frames = flicker(num_frames, seed)
        expected = whole(frames)
        assert streamed(frames)[0] == expected
        some += len(expected)
    assert some > 0 or num_frames < 3


def test_sixteen_bits_give_the_same_cuts():
    frames = flicker(60, 3)
    assert streamed([frame.astype(np.uint16) * 257 for frame in frames])[0] == whole(frames) != []


@pytest.mark.parametrize("place", [0, 1, 7, 20, 33, 59])
def test_a_restored_finder_goes_on(place):
    frames = flicker(60, 5)
    finder, before = CutFinder(), []
    for frame in frames[:place]:
        before += finder.push(frame)
    restored = CutFinder.restored({name: tensor.clone() for name, tensor in finder.state().items()})
    rest = [settled for frame in frames[place:] for settled in restored.push(frame)] + restored.finish()
    assert [number for number, starts in enumerate(before + rest) if starts] == whole(frames)


def test_memory_does_not_grow():
    finder = CutFinder()
    for frame in flicker(200, 1):
        finder.push(frame)
        assert sum(tensor.numel() for tensor in finder.state().values()) < 3 * 36 * 64 + 2 + 20
