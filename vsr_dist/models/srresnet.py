"""SRResNet, the generator of SRGAN: Ledig et al. 2017 (arXiv:1609.04802), figure 4, frame by frame.

With the loss `image` alone it is SRResNet; with an adversarial and a perceptual term it is SRGAN's generator
(`configs/baselines`). The output is linear, as in the figure; the paper's base code adds a tanh.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vsr_dist.models.base import Generator, check_clip, check_positive, check_scale
from vsr_dist.models.paper_srgan import ResidualBlock

SCALES = (1, 2, 4, 8)


@dataclass(frozen=True)
class SrresnetConfig:
    """Width and depth; the defaults are the paper's."""

    kind: Literal["srresnet"] = "srresnet"
    channels: int = 64
    num_blocks: int = 16

    def __post_init__(self) -> None:
        check_positive(self.kind, channels=self.channels, num_blocks=self.num_blocks)


class Srresnet(Generator):
    """1,549,462 parameters at the default sizes and scale 4."""

    def __init__(self, config: SrresnetConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale = scale
        width = config.channels
        self.head = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(config.num_blocks)])
        self.merge = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        doubling: list[nn.Module] = []
        for _ in range(scale.bit_length() - 1):
            doubling += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.upsample = nn.Sequential(*doubling)
        self.tail = nn.Conv2d(width, 3, 9, padding=4)

    def forward(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor | None = None) -> Tensor:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale), not clamped; flow is not used.

        In evaluation mode frames do not see each other, and run one by one, so that memory does not grow with T.
        """
        del flow_BTKCHW
        check_clip(low_BTCHW)
        low_NCHW = low_BTCHW.flatten(0, 1)
        parts = (low_NCHW,) if self.training else torch.split(low_NCHW, 1)
        return torch.unflatten(torch.cat([self._enlarge(part) for part in parts]), 0, low_BTCHW.shape[:2])

    def _enlarge(self, low_NCHW: Tensor) -> Tensor:
        shallow: Tensor = self.head(low_NCHW)
        image: Tensor = self.tail(self.upsample(shallow + self.merge(self.blocks(shallow))))
        return image
