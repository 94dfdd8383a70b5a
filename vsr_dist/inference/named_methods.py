"""Methods that need no training, by name.

Axis letters: T time, C channels, H W low-resolution, Y X high-resolution rows and columns.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from vsr_dist.inference.sequence import BicubicUpscaler, SequenceUpscaler
from vsr_dist.ops.color import from_uint8, to_uint8

# OpenCV's filters, on 8-bit frames with pixel centres at half-integers. `bicubic` is ours (`ops/resample.py`).
_OPENCV = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "lanczos": cv2.INTER_LANCZOS4}
NAMED_METHODS = ("bicubic", "nearest", "bilinear", "lanczos", "identity")


class OpenCvUpscaler:
    """Every frame by itself through `cv2.resize`, on the CPU."""

    def __init__(self, name: str, scale: int) -> None:
        self.scale, self._filter = scale, _OPENCV[name]

    def upscale(self, low_TCHW: Tensor) -> Tensor:
        """See `SequenceUpscaler`."""
        low_THWC = to_uint8(low_TCHW).permute(0, 2, 3, 1).cpu().numpy()
        size = (low_THWC.shape[2] * self.scale, low_THWC.shape[1] * self.scale)
        fake_TYXC = np.stack([cv2.resize(frame, size, interpolation=self._filter) for frame in low_THWC])
        return from_uint8(torch.from_numpy(fake_TYXC).to(low_TCHW.device)).permute(0, 3, 1, 2)

    def reset(self) -> None:
        """Nothing is remembered."""


def make_method(name: str, scale: int) -> SequenceUpscaler:
    """One of `NAMED_METHODS`; `identity` is for scale 1 and gives back its input."""
    if name in _OPENCV:
        return OpenCvUpscaler(name, scale)
    return BicubicUpscaler(scale)
