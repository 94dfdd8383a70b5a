"""ST-LPIPS of the held-out windows, without looking at the same truth twice.

Axis letters: T time, C channels, Y X high-resolution rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vsr_dist.metrics.perceptual import Features, ShiftTolerantLpips
from vsr_dist.ops.color import from_uint8, to_uint8

# Features of a 96 x 96 frame are 2.5 MB, of a 256 x 256 frame 17 MB; the rest is computed anew each time.
_KEPT_BYTES = 128_000_000


class PerceptualJudge:
    """Compares the middle frame of a window with its truth, both rounded to 8 bits."""

    def __init__(self) -> None:
        """Raises what `ShiftTolerantLpips` raises without its weights."""
        self._metric = ShiftTolerantLpips()
        self._truth: dict[int, Features] = {}
        self._num_bytes = 0

    def to(self, device: torch.device) -> PerceptualJudge:
        """Move the network; returns itself."""
        self._metric.to(device)
        return self

    @torch.no_grad()
    def distance(self, number: int, fake_TCYX: Tensor, real_TCYX: Tensor) -> float:
        """ST-LPIPS of a clip in [0, 1] against window `number`, whose truth is the same at every call."""
        middle = real_TCYX.shape[0] // 2
        truth = self._truth.get(number)
        if truth is None:
            truth = self._metric.features(from_uint8(to_uint8(real_TCYX[middle : middle + 1])))
            size = sum(layer.nbytes for layer in truth)
            if self._num_bytes + size <= _KEPT_BYTES:
                self._truth[number] = truth
                self._num_bytes += size
        found = self._metric.features(from_uint8(to_uint8(fake_TCYX[middle : middle + 1])))
        return float(self._metric.distance(found, truth))
