"""A small trainable network for optical flow.

Axes: N pairs of images, C channels, H W rows and columns, 2 the flow components (dx, dy) in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.models.layers import zero_conv
from vsr_dist.ops.warp import backward_warp

NUM_LEVELS = 3
WIDTH = 24


class FlowNet(nn.Module):
    """Coarse to fine: each level of an image pyramid corrects the flow of the level below (SPyNet's scheme).

    Ranjan and Black 2017, arXiv:1611.00850, with 3 levels of four 3 x 3 convolutions each in place of their 7 x 7 ones:
    37,806 parameters. The last convolution of each level starts at zero, so the untrained network gives zero flow. It
    learns from the loss of the images that its flow helps to make; there is no flow to imitate. Any size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_level() for _ in range(NUM_LEVELS))

    def forward(self, from_NCHW: Tensor, to_NCHW: Tensor) -> Tensor:
        """Pairs of RGB images in [0, 1] to (N, 2, H, W) float32 flow with `to(p + flow(p)) ~ from(p)`."""
        pyramid = [(from_NCHW, to_NCHW)]
        for _ in range(NUM_LEVELS - 1):
            pyramid.append((_halve(pyramid[-1][0]), _halve(pyramid[-1][1])))
        coarsest = pyramid[-1][0]
        flow_N2HW = torch.zeros_like(coarsest[:, :2], dtype=torch.float32)
        for level, (start_NCHW, end_NCHW) in zip(self.levels, reversed(pyramid), strict=True):
            if start_NCHW is not coarsest:
                height, width = start_NCHW.shape[-2:]
                doubled = F.interpolate(flow_N2HW, scale_factor=2.0, mode="bilinear", align_corners=False)
                flow_N2HW = 2.0 * doubled[..., :height, :width]
            seen = torch.cat((start_NCHW, backward_warp(end_NCHW, flow_N2HW), flow_N2HW), dim=1)
            # Under bfloat16 autocast the sum over the levels stays in float32: it is a coordinate.
            flow_N2HW = flow_N2HW + level(seen).float()
        return flow_N2HW


def _level() -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_in in (8, WIDTH, WIDTH):
        layers += [nn.Conv2d(num_in, WIDTH, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, zero_conv(WIDTH, 2))


def _halve(images_NCHW: Tensor) -> Tensor:
    """Mean over 2 x 2; an odd last row or column is averaged by itself."""
    return F.avg_pool2d(images_NCHW, 2, ceil_mode=True, count_include_pad=False)
