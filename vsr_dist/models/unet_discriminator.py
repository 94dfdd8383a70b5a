"""A U-Net that scores every pixel: the discriminator of Real-ESRGAN, every frame by itself, no condition.

Source: `UNetDiscriminatorSN` of github.com/xinntao/Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833), after
Schoenfeld et al. 2020 (arXiv:2002.12655): levels of stride 2 down, as many bilinear steps up with additive skip
connections, spectral norm on every convolution but the first and the last. With 3 levels it is that network.

Axes: B batch, T time, C channels, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.models.base import Discriminator, check_clip, check_positive
from vsr_dist.models.blocks import score

SLOPE = 0.2
MAX_LEVELS = 5


@dataclass(frozen=True)
class UnetConfig:
    """Width of the first layer, doubled at each of the stride-2 levels; image sides are multiples of 2^levels."""

    kind: Literal["unet"] = "unet"
    filters: int = 64
    levels: int = 3

    def __post_init__(self) -> None:
        check_positive(self.kind, filters=self.filters, levels=self.levels)
        if self.levels > MAX_LEVELS:
            raise BadConfigError(f"model {self.kind!r}: expected levels 1 to {MAX_LEVELS}, found {self.levels}")


def _normed(num_in: int, num_out: int, kernel: int, stride: int = 1) -> nn.Module:
    conv: nn.Module = spectral_norm(nn.Conv2d(num_in, num_out, kernel, stride=stride, padding=1, bias=False))
    return conv


class _UnetTrunk(nn.Module):
    """Images (N, 3, Y, X) to logits (N, 1, Y, X)."""

    def __init__(self, filters: int, levels: int) -> None:
        super().__init__()
        widths = [filters * 2**level for level in range(levels + 1)]
        self.first = nn.Conv2d(3, filters, 3, padding=1)
        self.down = nn.ModuleList(_normed(widths[i], widths[i + 1], 4, stride=2) for i in range(levels))
        self.up = nn.ModuleList(_normed(widths[i + 1], widths[i], 3) for i in reversed(range(levels)))
        self.head = nn.Sequential(
            _normed(filters, filters, 3),
            nn.LeakyReLU(SLOPE),
            _normed(filters, filters, 3),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(filters, 1, 3, padding=1),
        )

    def forward(self, images_NCYX: Tensor) -> Tensor:
        """Down, and up again; each step up adds the features of its size from the way down."""
        features: Tensor = F.leaky_relu(self.first(images_NCYX), SLOPE)
        skips = []
        for conv in self.down:
            skips.append(features)
            features = F.leaky_relu(conv(features), SLOPE)
        for conv, skip in zip(self.up, reversed(skips), strict=True):
            larger = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
            features = F.leaky_relu(conv(larger), SLOPE) + skip
        logits: Tensor = self.head(features)
        return logits


class UnetDiscriminator(Discriminator):
    """Logits (B, T, Y, X), one per pixel. 4,376,897 parameters at the default size."""

    def __init__(self, config: UnetConfig, scale: int) -> None:
        super().__init__()
        del scale  # It sees high-resolution images only.
        self.min_px = self.multiple_px = 2**config.levels
        self.net = _UnetTrunk(config.filters, config.levels)

    def forward(self, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor, full_precision: bool = False) -> Tensor:
        """Logits (B, T, Y, X) of a clip in [0, 1]; the enlarged input is not looked at."""
        del bicubic_BTCYX
        check_clip(clip_BTCYX)
        if any(side % self.multiple_px for side in clip_BTCYX.shape[-2:]):
            sides = tuple(clip_BTCYX.shape[-2:])
            raise BadInputError(f"unet discriminator: expected sides in multiples of {self.multiple_px}, found {sides}")
        logits_N1YX = score(self.net, clip_BTCYX.flatten(0, 1), full_precision)
        return torch.unflatten(logits_N1YX.squeeze(1), 0, clip_BTCYX.shape[:2])
