"""ESPCN, the efficient sub-pixel network of Shi et al. 2016 (arXiv:1609.05158), frame by frame.

The paper trains on luma and enlarges chroma with bicubic; here RGB goes in and comes out of one network, as with
every other generator, so the first layer has 3 input channels and the last 3 * scale^2.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vsr_dist.models.base import Generator, check_clip, check_positive, check_scale

SCALES = (1, 2, 3, 4)


@dataclass(frozen=True)
class EspcnConfig:
    """Widths of the two hidden layers; the defaults are the paper's (section 3.2, n1 and n2)."""

    kind: Literal["espcn"] = "espcn"
    channels: int = 64
    inner_channels: int = 32

    def __post_init__(self) -> None:
        check_positive(self.kind, channels=self.channels, inner_channels=self.inner_channels)


class Espcn(Generator):
    """5x5, tanh, 3x3, tanh, 3x3, pixel shuffle. 37,200 parameters at the default widths and scale 4."""

    def __init__(self, config: EspcnConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale = scale
        self.net = nn.Sequential(
            nn.Conv2d(3, config.channels, 5, padding=2),
            nn.Tanh(),
            nn.Conv2d(config.channels, config.inner_channels, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(config.inner_channels, 3 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor | None = None) -> Tensor:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale), not clamped; flow is not used."""
        del flow_BTKCHW
        check_clip(low_BTCHW)
        fake_NCYX: Tensor = self.net(low_BTCHW.flatten(0, 1))
        return torch.unflatten(fake_NCYX, 0, low_BTCHW.shape[:2])
