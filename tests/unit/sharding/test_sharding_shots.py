from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from sharding.shots import StepScorer, find_cuts, shots_between
from sharding.sources import find_samples
from sharding.video import iter_thumbnails

# Found by eye on contact sheets of the clips.
CUTS = {"bikes": [30, 76, 137, 187, 242], "bigbuckbunny": [], "carphone_pristine": [], "carphone_distorted": []}
CLIPS = {path.stem: path for path in find_samples()}


def thumbnails(name: str, num_frames: int | None = None) -> list[np.ndarray]:
    return [thumbnail.rgb for thumbnail in islice(iter_thumbnails(CLIPS[name]), num_frames)]


def scores_of(frames: list[np.ndarray]) -> list[float]:
    scorer = StepScorer()
    for frame in frames:
        scorer.add(frame)
    return scorer.scores


@pytest.mark.parametrize("name", list(CUTS))
def test_real_clips_are_cut_where_they_cut_and_nowhere_else(name: str) -> None:
    assert find_cuts(scores_of(thumbnails(name))) == CUTS[name]


def test_spliced_clips_are_cut_at_the_splice() -> None:
    parts = [thumbnails(name, 40) for name in ("carphone_pristine", "bigbuckbunny", "bikes")]
    parts.append(thumbnails("carphone_pristine", 75)[60:])
    frames = [frame for part in parts for frame in part]
    # 40 frames of bikes hold its own cut at 30.
    assert find_cuts(scores_of(frames)) == [40, 80, 110, 120]


def test_shots_of_one_and_two_frames_are_found() -> None:
    black, grey, white = (np.full((36, 64, 3), value, np.uint8) for value in (0, 120, 255))
    assert find_cuts(scores_of([black, white])) == [1]
    frames = [*[black] * 12, white, *[grey] * 12]
    assert find_cuts(scores_of(frames)) == [12, 13]


def test_steady_fast_motion_is_no_cut() -> None:
    assert find_cuts([60.0] * 30) == []
    assert find_cuts([3.0] * 20 + [25.0] + [3.0] * 20) == []


def test_shots_cover_all_frames() -> None:
    assert shots_between([3, 7], 10) == [(0, 3), (3, 4), (7, 3)]
    assert shots_between([], 5) == [(0, 5)]
    assert shots_between([], 0) == []
