"""Scene cuts: a small streamed detector on luma thumbnails.

The score of a step between two frames is the mean absolute luma difference of 64 x 36 thumbnails (0-255)
plus 100 times the distance of their 64-bin luma histograms (half the L1 distance, 0-1). A step is a cut if
its score is at least `MIN_SCORE` and at least `MIN_RATIO` times the median score of the steps around it.

Measured on the four clips of `samples`: the five cuts of `bikes` (frames 30, 76, 137, 187 and 242, found by eye)
score 80 to 154 and are at least 3.4 times their surroundings. Of all other steps, those above a score of 15 (cars
that fill the picture, at most 33) are at most 1.6 times theirs. Hard cuts only: a dissolve is no cut, a flash of
one frame is two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.codec import Frame

THUMBNAIL_SIZE_PX = (64, 36)  # width, height
NUM_BINS = 64
HISTOGRAM_WEIGHT = 100.0
MIN_SCORE = 30.0
MIN_RATIO = 2.4
NUM_STEPS_AROUND = 8  # to each side
# What a kept scan was made with.
DETECTOR = [*THUMBNAIL_SIZE_PX, NUM_BINS, HISTOGRAM_WEIGHT, MIN_SCORE, MIN_RATIO, NUM_STEPS_AROUND]


class StepScorer:
    """Feed frames in time order with `add`; `scores` then holds one score per step, frame i to i + 1."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self._previous: tuple[NDArray[Any], NDArray[Any]] | None = None

    def add(self, frame: Frame) -> None:
        """Take the next uint8 RGB frame (H, W, 3)."""
        # Thumbnail first: colour conversion of the small picture costs next to nothing.
        small = cv2.resize(frame, THUMBNAIL_SIZE_PX, interpolation=cv2.INTER_AREA)
        luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        histogram = np.bincount(luma.ravel() // (256 // NUM_BINS), minlength=NUM_BINS) / luma.size
        current = (luma.astype(np.float32), histogram)
        if self._previous is not None:
            difference = float(np.abs(current[0] - self._previous[0]).mean())
            distance = float(np.abs(current[1] - self._previous[1]).sum()) / 2
            self.scores.append(difference + HISTOGRAM_WEIGHT * distance)
        self._previous = current


def find_cuts(scores: Sequence[float]) -> list[int]:
    """The frames that begin a new shot, ascending: frame i + 1 for every step i that is a cut."""
    cuts = []
    for step, score in enumerate(scores):
        first = max(0, step - NUM_STEPS_AROUND)
        around = [*scores[first:step], *scores[step + 1 : step + 1 + NUM_STEPS_AROUND]]
        usual = float(np.median(around)) if around else 0.0
        if score >= MIN_SCORE and score >= MIN_RATIO * usual:
            cuts.append(step + 1)
    return cuts


def shots_between(cuts: Sequence[int], num_frames: int) -> list[tuple[int, int]]:
    """(first frame, number of frames) of every shot of a source with these cuts; they cover all frames."""
    bounds = [0, *cuts, num_frames]
    return [(first, end - first) for first, end in pairwise(bounds) if end > first]
