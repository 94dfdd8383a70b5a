"""Image losses between a reconstruction and its ground truth.

Axes: any; both tensors have the same shape. Range [0, 1] by convention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

# The value of LapSRN (Lai et al. 2017, arXiv:1704.03915): a quarter of one 8-bit step on [0, 1] images.
CHARBONNIER_EPS = 1e-3

PixelName = Literal["mse", "charbonnier"]


def mse(fake: Tensor, real: Tensor) -> Tensor:
    """Mean squared error over all elements: the image loss of listing 3. Scalar."""
    return torch.mean((fake - real) ** 2)


def charbonnier(fake: Tensor, real: Tensor, eps: float = CHARBONNIER_EPS) -> Tensor:
    """Mean of `sqrt((fake - real)^2 + eps^2)`: a smooth absolute error. Scalar, at least eps."""
    return torch.mean(torch.sqrt((fake - real) ** 2 + eps**2))


PIXEL: dict[PixelName, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "charbonnier": charbonnier}
