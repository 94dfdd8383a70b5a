"""Scene cuts of a video that comes frame by frame: packing's detector, with a window in place of the whole video."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharding.shots import MIN_SCORE, NUM_STEPS_AROUND, THUMBNAIL_SIZE_PX, StepScorer, find_cuts
from vsr_dist.inference.frames import Frame, to_8_bits

# Before a place from which on the same cuts are found as from the start of the video: the steps around the first one.
CONTEXT_FRAMES = NUM_STEPS_AROUND + 1


class CutFinder:
    """Says of every frame whether it begins a new shot, as `sharding.shots.find_cuts` would on the whole video.

    A step that changes little is no cut, whatever surrounds it, and is settled at once; a larger one when the eight
    steps behind it are known. Memory is constant.
    """

    def __init__(self) -> None:
        self._scorer = StepScorer()
        self._thumbnail_HWC: NDArray[np.uint8] | None = None
        # Scores of the steps not yet settled, with up to eight before them; steps are numbered from 0.
        self._scores: deque[float] = deque()
        self._first_step = 0
        self._num_settled = 0

    def push(self, frame_HWC: Frame) -> list[bool]:
        """Take the next frame; for each frame that is settled now, in order: does it begin a new shot?

        The first frame of a video begins no new one.
        """
        small_HWC: Frame = cv2.resize(frame_HWC, THUMBNAIL_SIZE_PX, interpolation=cv2.INTER_AREA)
        is_first = self._thumbnail_HWC is None
        self._thumbnail_HWC = to_8_bits(small_HWC)
        # The scorer makes its thumbnail from ours, which leaves it as it is.
        self._scorer.add(self._thumbnail_HWC)
        self._scores.extend(self._scorer.scores)
        self._scorer.scores.clear()
        return [False] if is_first else self._settle(at_end=False)

    def finish(self) -> list[bool]:
        """The frames that are left at the end of the video."""
        return self._settle(at_end=True)

    def _settle(self, *, at_end: bool) -> list[bool]:
        settled = []
        while (position := self._num_settled - self._first_step) < len(self._scores):
            is_large = self._scores[position] >= MIN_SCORE
            if is_large and not at_end and position + NUM_STEPS_AROUND >= len(self._scores):
                break
            scores = list(self._scores)
            first = max(0, position - NUM_STEPS_AROUND)
            window = scores[first : position + 1 + NUM_STEPS_AROUND]
            settled.append(is_large and position - first + 1 in find_cuts(window))
            self._num_settled += 1
            while self._num_settled - self._first_step > NUM_STEPS_AROUND:
                self._scores.popleft()
                self._first_step += 1
        return settled

    def state(self) -> dict[str, Tensor]:
        """Everything that shapes later answers."""
        state = {
            "scores": torch.tensor(list(self._scores), dtype=torch.float64),
            "steps": torch.tensor([self._first_step, self._num_settled]),
        }
        if self._thumbnail_HWC is not None:
            state["thumbnail"] = torch.from_numpy(self._thumbnail_HWC.copy())
        return state

    @classmethod
    def restored(cls, state: dict[str, Tensor]) -> CutFinder:
        """One that goes on as the finder whose state this was."""
        finder = cls()
        finder._scores.extend(state["scores"].tolist())
        finder._first_step, finder._num_settled = (int(number) for number in state["steps"])
        if "thumbnail" in state:
            finder._thumbnail_HWC = state["thumbnail"].numpy().copy()
            finder._scorer.add(finder._thumbnail_HWC)
        return finder
