"""Perceptual loss on features that the caller extracted (`vsr_dist.models.features`)."""

from __future__ import annotations

import torch
from torch import Tensor


def perceptual(fake_features: Tensor, real_features: Tensor, rescale: float = 1.0) -> Tensor:
    """`rescale` times the mean squared error of two feature maps of the same shape. Scalar.

    The perceptual loss of listing 3, with the factor of SRGAN (Ledig et al. 2017, section 3.2), which multiplies the
    features by 1/12.75 (so the loss by its square, 0.006) to bring the loss to the scale of the MSE. No
    gradient reaches `real_features`.
    """
    return rescale * torch.mean((fake_features - real_features.detach()) ** 2)
