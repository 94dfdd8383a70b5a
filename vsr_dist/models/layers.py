"""Building blocks of the generators without normalisation.

Axes: N images, C channels, H W low-resolution rows and columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# EDSR scales each residual branch by 0.1; here its last convolution starts that small, at no cost per step.
RESIDUAL_INIT = 0.1


class ResidualBlock(nn.Module):
    """conv, ReLU, conv, plus the input (EDSR's block, Lim et al. 2017); (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(RESIDUAL_INIT)
            if self.second.bias is not None:
                self.second.bias.zero_()

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Add the block's correction to its input."""
        correction: Tensor = self.second(F.relu(self.first(features_NCHW)))
        return features_NCHW + correction


def zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution whose weights and bias start at zero."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
