"""VMAF of a sequence that arrives frame by frame, as torchmetrics computes it. Higher is better, near 0 to 100.

Its motion feature looks at the frame before and the frame behind, so windows overlap by one frame on each side: the
numbers are those of the whole sequence at once, in constant memory.

Axes: T frames, C channels, Y X rows and columns.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from vsr_dist.core.errors import BadInputError, MissingExtraError
from vsr_dist.ops.color import from_uint8

WINDOW_FRAMES = 6
MIN_PX = 32


def load_vmaf() -> Any:  # noqa: ANN401 - torchmetrics brings no types for it
    """torchmetrics' function. MissingExtraError if it or vmaf-torch is not installed."""
    try:
        importlib.import_module("vmaf_torch")
        return importlib.import_module("torchmetrics.functional.video").video_multi_method_assessment_fusion
    except (ImportError, AttributeError) as error:
        raise MissingExtraError(
            f'VMAF needs torchmetrics and vmaf-torch ({error}); run `pip install "vsr-dist[vmaf]"` or leave vmaf out '
            "of --metrics"
        ) from error


class VmafStream:
    """VMAF per frame of one sequence under one method."""

    def __init__(self) -> None:
        self._vmaf = load_vmaf()
        self._frames: list[tuple[Tensor, Tensor]] = []
        self._is_first = True

    def push(self, fake_YXC: Tensor, real_YXC: Tensor) -> list[float]:
        """Take the next frame, uint8 RGB; returns the scores that are known now, in order, mostly none."""
        if min(real_YXC.shape[:2]) < MIN_PX:
            raise BadInputError(f"VMAF: expected frames of at least {MIN_PX} pixels, found {min(real_YXC.shape[:2])}")
        self._frames.append((fake_YXC, real_YXC))
        if len(self._frames) < WINDOW_FRAMES + 2:
            return []
        scores = self._window()
        # The last frame has no successor yet; with the one before it, it opens the next window.
        known = scores[:-1] if self._is_first else scores[1:-1]
        self._frames, self._is_first = self._frames[-2:], False
        return known

    def end(self) -> list[float]:
        """The scores that are still missing; the stream is ready for another sequence."""
        known = [] if not self._frames else self._window()[0 if self._is_first else 1 :]
        self._frames, self._is_first = [], True
        return known

    def _window(self) -> list[float]:
        # One frame alone would be its own neighbour, whose motion is nothing: so it is with the tool of Netflix.
        clips = [torch.stack(side).permute(3, 0, 1, 2)[None] for side in zip(*self._frames, strict=True)]
        fake_BCTYX, real_BCTYX = (from_uint8(clip) for clip in clips)
        with torch.no_grad():
            scores: list[float] = self._vmaf(fake_BCTYX, real_BCTYX)[0].tolist()
        return scores
