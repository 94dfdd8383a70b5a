"""Compact, the small generator released with Real-ESRGAN (SRVGGNetCompact; Wang et al. 2021, arXiv:2107.10833).

Convolutions at low resolution, frame by frame. The names of its tensors are those of the original, so that programs
which load Compact models, such as those that use spandrel, load its `generator.safetensors` too.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.models.base import Generator, check_clip, check_positive, check_scale
from vsr_dist.models.blocks import zero_conv

SCALES = (1, 2, 3, 4)


@dataclass(frozen=True)
class CompactConfig:
    """Width, and convolutions between the first and the last; the defaults are those of the released 4x video model."""

    kind: Literal["compact"] = "compact"
    channels: int = 64
    num_convs: int = 16

    def __post_init__(self) -> None:
        check_positive(self.kind, channels=self.channels, num_convs=self.num_convs)


class Compact(Generator):
    """3 x 3 convolutions with PReLU, pixel shuffle, plus the nearest-neighbour enlargement, as which it starts.

    621,424 parameters at the default sizes and scale 4.
    """

    def __init__(self, config: CompactConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale = scale
        width = config.channels
        layers: list[nn.Module] = []
        for num_in in (3, *[width] * config.num_convs):
            layers += [nn.Conv2d(num_in, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, zero_conv(width, 3 * scale**2))

    def forward(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor | None = None) -> Tensor:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale), not clamped; flow is not used."""
        del flow_BTKCHW
        check_clip(low_BTCHW)
        low_NCHW = low_BTCHW.flatten(0, 1)
        nearest_NCYX = low_NCHW.repeat_interleave(self.scale, dim=-2).repeat_interleave(self.scale, dim=-1)
        fake_NCYX = nearest_NCYX + F.pixel_shuffle(self.body(low_NCHW), self.scale)
        return torch.unflatten(fake_NCYX, 0, low_BTCHW.shape[:2])
