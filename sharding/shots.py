"""Shot boundary detection: a streaming detector of hard cuts on luma thumbnails.

The score of a step from one frame to the next is the mean absolute luma difference of 64 x 36 thumbnails (0-255)
plus 100 times the distance of their 64-bin luma histograms (half the L1 distance, 0-1). A step is a cut if its score
is at least `MIN_SCORE` and at least `MIN_RATIO` times the median score of the neighbouring steps.

Measured on the four clips of `samples`: the five cuts of `bikes` (frames 30, 76, 137, 187 and 242, labelled by hand)
score 80 to 154, at least 3.4 times the median of their neighbours. Other steps that score above 15 (cars filling the
frame; 33 at most) reach at most 1.6 times that median. Dissolves are not detected; a flash of one frame counts as two
cuts.
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
NUM_STEPS_AROUND = 8  # on each side
# Stored with each scan: a scan with other detector settings is made again.
DETECTOR = [*THUMBNAIL_SIZE_PX, NUM_BINS, HISTOGRAM_WEIGHT, MIN_SCORE, MIN_RATIO, NUM_STEPS_AROUND]


class StepScorer:
    """Scores the steps between frames added in time order; `scores[i]` is for the step from frame i to i + 1."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self._previous: tuple[NDArray[Any], NDArray[Any]] | None = None

    def add(self, frame: Frame) -> None:
        """Add the next frame, uint8 RGB (H, W, 3)."""
        # Resized first: colour conversion of the thumbnail costs almost nothing.
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
    """The first frames of new shots, ascending: frame i + 1 for each step i that is a cut."""
    cuts = []
    for step, score in enumerate(scores):
        first = max(0, step - NUM_STEPS_AROUND)
        around = [*scores[first:step], *scores[step + 1 : step + 1 + NUM_STEPS_AROUND]]
        median = float(np.median(around)) if around else 0.0
        if score >= MIN_SCORE and score >= MIN_RATIO * median:
            cuts.append(step + 1)
    return cuts


def shots_between(cuts: Sequence[int], num_frames: int) -> list[tuple[int, int]]:
    """(first frame, number of frames) of each shot of a source with these cuts; together they cover all frames."""
    bounds = [0, *cuts, num_frames]
    return [(first, end - first) for first, end in pairwise(bounds) if end > first]
