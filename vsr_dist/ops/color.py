"""Colour and pixel-format conversions.

Axes: B batch, T time, C channels, Y X image rows and columns; a leading `...` means any axes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# ITU-R BT.601-7, section 2.5: luma 0.299 R + 0.587 G + 0.114 B, quantised to 219 steps above black at 16. The
# products 219 * 0.299 and so on are the constants of MATLAB's rgb2ycbcr, which super-resolution papers use.
BT601_BLACK = 16.0
BT601_RED = 65.481
BT601_GREEN = 128.553
BT601_BLUE = 24.966

FloatArray = npt.NDArray[np.float64]
ByteArray = npt.NDArray[np.uint8]


def rgb_to_y_bt601(rgb_CYX: Tensor) -> Tensor:
    """Studio-range luma of RGB images with axes (..., 3, Y, X), float in [0, 1].

    Returns (..., 1, Y, X) of the same dtype in [16/255, 235/255]. Source of the constants: ITU-R BT.601-7.
    """
    red, green, blue = rgb_CYX.unbind(dim=-3)
    luma = (BT601_BLACK + BT601_RED * red + BT601_GREEN * green + BT601_BLUE * blue) / 255.0
    return luma.unsqueeze(-3)


def rgb_to_y_bt601_array(rgb_YXC: ByteArray) -> FloatArray:
    """Studio-range luma of RGB images with axes (..., Y, X, 3), uint8 in 0..255.

    Returns (..., Y, X) float64 in [16, 235], not rounded. Source of the constants: ITU-R BT.601-7.
    """
    weights = np.array([BT601_RED, BT601_GREEN, BT601_BLUE]) / 255.0
    luma: FloatArray = rgb_YXC.astype(np.float64) @ weights + BT601_BLACK
    return luma


def to_uint8(image: Tensor) -> Tensor:
    """Clamp a float image of any shape to [0, 1] and round it to uint8 in 0..255 (halves to even)."""
    return image.detach().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)


def from_uint8(image: Tensor) -> Tensor:
    """A uint8 image of any shape as float32 in [0, 1]; `to_uint8` gives it back exactly."""
    return image.to(torch.float32).div(255.0)
