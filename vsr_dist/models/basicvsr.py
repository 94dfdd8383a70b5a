"""BasicVSR: Chan et al. 2021 (arXiv:2012.02181), with SPyNet of Ranjan and Black 2017 (arXiv:1611.00850) for its flow.

Features run through the clip twice, from the last frame to the first and back; before each step they are warped onto
the next frame. A 1 x 1 convolution joins both directions, and convolutions with pixel shuffle enlarge them. What the
papers leave open (sizes of kernels, slopes, what lies outside of an image) is as in the published weights, which
`vsr-dist import` turns into a generator of this kind.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution; N is any number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.models.base import Generator, check_clip, check_positive, check_scale
from vsr_dist.models.blocks import ResidualBlock
from vsr_dist.models.features import IMAGENET_MEAN, IMAGENET_STD
from vsr_dist.ops.warp import backward_warp

SCALES = (1, 2, 4)
NEGATIVE_SLOPE = 0.1
FLOW_LEVELS = 6
FLOW_WIDTHS = (8, 32, 64, 32, 16, 2)
# Of the sides that SPyNet sees, so that each level has twice the sides of the one below.
FLOW_MULTIPLE_PX = 2 ** (FLOW_LEVELS - 1)


@dataclass(frozen=True)
class BasicvsrConfig:
    """Width, and residual blocks in each direction; the defaults are the paper's: 6,291,311 parameters at scale 4."""

    kind: Literal["basicvsr"] = "basicvsr"
    channels: int = 64
    num_blocks: int = 30

    def __post_init__(self) -> None:
        check_positive(self.kind, channels=self.channels, num_blocks=self.num_blocks)


class Spynet(nn.Module):
    """Optical flow from coarse to fine: on each of six levels five 7 x 7 convolutions correct the doubled flow below.

    1,440,252 parameters. Any size; images are resized to multiples of 32 px, and the flow back.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_flow_level() for _ in range(FLOW_LEVELS))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, from_NCHW: Tensor, to_NCHW: Tensor) -> Tensor:
        """Pairs of RGB images in [0, 1] to (N, 2, H, W) float32 flow with `to(p + flow(p)) ~ from(p)`, in pixels."""
        height, width = from_NCHW.shape[-2:]
        pyramid = [(self._prepare(from_NCHW), self._prepare(to_NCHW))]
        for _ in range(FLOW_LEVELS - 1):
            start_NCHW, end_NCHW = pyramid[-1]
            pyramid.append((F.avg_pool2d(start_NCHW, 2), F.avg_pool2d(end_NCHW, 2)))
        flow_N2HW = torch.zeros_like(pyramid[-1][0][:, :2], dtype=torch.float32)
        for number, (level, (start_NCHW, end_NCHW)) in enumerate(zip(self.levels, reversed(pyramid), strict=True)):
            if number > 0:
                flow_N2HW = 2.0 * F.interpolate(flow_N2HW, scale_factor=2.0, mode="bilinear", align_corners=True)
            seen = torch.cat((start_NCHW, backward_warp(end_NCHW, flow_N2HW), flow_N2HW), dim=1)
            # Under bfloat16 autocast the sum over the levels stays in float32: it is a coordinate.
            flow_N2HW = flow_N2HW + level(seen).float()
        seen_height, seen_width = flow_N2HW.shape[-2:]
        dx_N1HW, dy_N1HW = torch.split(_resize(flow_N2HW, height, width), 1, dim=1)
        return torch.cat((dx_N1HW * (width / seen_width), dy_N1HW * (height / seen_height)), dim=1)

    def _prepare(self, images_NCHW: Tensor) -> Tensor:
        height, width = (-(-side // FLOW_MULTIPLE_PX) * FLOW_MULTIPLE_PX for side in images_NCHW.shape[-2:])
        return (_resize(images_NCHW, height, width) - self.mean) / self.deviation


def _flow_level() -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(FLOW_WIDTHS):
        layers += [nn.Conv2d(num_in, num_out, 7, padding=3), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _resize(images_NCHW: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images_NCHW, size=(height, width), mode="bilinear", align_corners=False)


class Propagation(nn.Module):
    """One direction of time: the features of the frame before are warped, and corrected by residual blocks."""

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.channels = channels
        head = nn.Conv2d(3 + channels, channels, 3, padding=1)
        blocks = [ResidualBlock(channels) for _ in range(num_blocks)]
        self.layers = nn.Sequential(head, nn.LeakyReLU(NEGATIVE_SLOPE), *blocks)

    def forward(self, frames: Sequence[Tensor], flows: Sequence[Tensor]) -> list[Tensor]:
        """Features (B, C, H, W) of each frame (B, 3, H, W), in the order in which the frames come.

        flows: from each frame but the first to the one before it. Features are 0 outside of the image and before the
        first frame.
        """
        features_BCHW = frames[0].new_zeros(len(frames[0]), self.channels, *frames[0].shape[-2:])
        history: list[Tensor] = []
        for low_BCHW, flow_B2HW in zip(frames, (None, *flows), strict=True):
            if flow_B2HW is not None:
                features_BCHW = backward_warp(features_BCHW, flow_B2HW, outside="zeros")
            features_BCHW = self.layers(torch.cat((low_BCHW, features_BCHW), dim=1))
            history.append(features_BCHW)
        return history


class Basicvsr(Generator):
    """Bilinear enlargement plus a residual from features of the whole clip; any size, for whole clips."""

    # The flow network sees pairs of frames only.
    min_frames = 2

    def __init__(self, config: BasicvsrConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale = scale
        width = config.channels
        self.flow = Spynet()
        self.backward_trunk = Propagation(width, config.num_blocks)
        self.forward_trunk = Propagation(width, config.num_blocks)
        layers: list[nn.Module] = [nn.Conv2d(2 * width, width, 1), nn.LeakyReLU(NEGATIVE_SLOPE)]
        for _ in range(scale.bit_length() - 1):
            layers += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(NEGATIVE_SLOPE)]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(NEGATIVE_SLOPE)]
        self.tail = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor | None = None) -> Tensor:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale), not clamped; the flow is its own."""
        del flow_BTKCHW
        check_clip(low_BTCHW)
        frames = low_BTCHW.unbind(dim=1)
        flows_onward, flows_back = self._flows(low_BTCHW)
        back = self.backward_trunk(frames[::-1], flows_back[::-1])[::-1]
        onward = self.forward_trunk(frames, flows_onward)
        images = [self._enlarge(*seen) for seen in zip(frames, back, onward, strict=True)]
        return torch.stack(images, dim=1)

    def _flows(self, low_BTCHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """For each pair of neighbours the flow from the later frame to the earlier one, and that back."""
        if low_BTCHW.shape[1] == 1:
            return [], []
        earlier_NCHW, later_NCHW = low_BTCHW[:, :-1].flatten(0, 1), low_BTCHW[:, 1:].flatten(0, 1)
        shape = (len(low_BTCHW), -1)
        onward_BT2HW = torch.unflatten(self.flow(later_NCHW, earlier_NCHW), 0, shape)
        back_BT2HW = torch.unflatten(self.flow(earlier_NCHW, later_NCHW), 0, shape)
        return list(onward_BT2HW.unbind(dim=1)), list(back_BT2HW.unbind(dim=1))

    def _enlarge(self, low_BCHW: Tensor, back_BCHW: Tensor, onward_BCHW: Tensor) -> Tensor:
        height, width = low_BCHW.shape[-2:]
        residual: Tensor = self.tail(torch.cat((back_BCHW, onward_BCHW), dim=1))
        return _resize(low_BCHW, height * self.scale, width * self.scale) + residual
