"""Image losses between a reconstruction and its ground truth, and total variation of a reconstruction alone.

The paper's TV weight of 2e-8 does nothing: the base code squares the steps of [0, 1] images and takes their *mean*, so
that on bicubic enlargements (x4) of three real videos the term's gradient is 1e-8 to 2e-8 of the MSE's. It becomes
3 % of it at a weight of 0.03 to 0.05 (`squared_mean`), 0.001 to 0.004 (`anisotropic`) or 0.003 to 0.007 (`isotropic`).

Axes of image losses: any, both tensors of one shape. Of total variation: B batch, T time, C channels, Y X rows and
columns. Range [0, 1] by convention.
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


TvName = Literal["squared_mean", "anisotropic", "isotropic"]
# Smooths the root at 0, where its derivative is not finite: a quarter of one 8-bit step on [0, 1] images.
ISOTROPIC_EPS = 1e-3


def total_variation(fake_BTCYX: Tensor) -> Tensor:
    """`2 (V / (C (Y-1) X) + H / (C Y (X-1))) / (B T)`; V and H sum the squared vertical and horizontal steps.

    Source: `TVLoss` of github.com/leftthomas/SRGAN, loss.py, with weight 1; every frame counts as one image.
    Images are float; at least 2 x 2 pixels. Scalar.
    """
    images_BCYX = fake_BTCYX.flatten(0, 1)
    vertical = images_BCYX[:, :, 1:, :] - images_BCYX[:, :, :-1, :]
    horizontal = images_BCYX[:, :, :, 1:] - images_BCYX[:, :, :, :-1]
    return 2.0 * (vertical.pow(2).mean() + horizontal.pow(2).mean())


def anisotropic_tv(fake_BTCYX: Tensor) -> Tensor:
    """Mean absolute vertical plus mean absolute horizontal step (Rudin et al. 1992, in the L1 form). Scalar.

    Images are float; at least 2 x 2 pixels.
    """
    return fake_BTCYX.diff(dim=-2).abs().mean() + fake_BTCYX.diff(dim=-1).abs().mean()


def isotropic_tv(fake_BTCYX: Tensor) -> Tensor:
    """Mean of `sqrt(v^2 + h^2 + eps^2) - eps`, v and h the steps down and right: Rudin et al. 1992. Scalar.

    The mean runs over the pixels that have both neighbours. Images are float; at least 2 x 2 pixels.
    """
    vertical = fake_BTCYX.diff(dim=-2)[..., :, :-1]
    horizontal = fake_BTCYX.diff(dim=-1)[..., :-1, :]
    return torch.mean(torch.sqrt(vertical**2 + horizontal**2 + ISOTROPIC_EPS**2) - ISOTROPIC_EPS)


TV: dict[TvName, Callable[[Tensor], Tensor]] = {
    "squared_mean": total_variation,
    "anisotropic": anisotropic_tv,
    "isotropic": isotropic_tv,
}
