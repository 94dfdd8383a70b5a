"""Perceptual loss on features that the caller extracted (`vsr_dist.models.features`)."""

from __future__ import annotations

import torch
from torch import Tensor


def perceptual(fake_features: Tensor, real_features: Tensor) -> Tensor:
    """Mean squared error of two feature maps of the same shape: the perceptual loss of listing 3. Scalar.

    No gradient reaches `real_features`.
    """
    return torch.mean((fake_features - real_features.detach()) ** 2)
