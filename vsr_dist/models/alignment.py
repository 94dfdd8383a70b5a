"""Flow for the alignment of a recurrent state: taken as given, estimated or learned, and smoothed over time.

Axes: B batch, T time, C channels, H W low-resolution rows and columns, 2 the flow components (dx, dy) in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.core.errors import BadInputError
from vsr_dist.models.base import State
from vsr_dist.models.blocks import zero_conv
from vsr_dist.ops.flow import FlowMethod, Smoothing, empty_history, estimate_flow, smooth_step
from vsr_dist.ops.warp import backward_warp


class Aligner(nn.Module):
    """For each frame the flow from it to the one before.

    method: the classical method that stands in where no flow is given; None for the flow network, which takes no
    notice of flow that is given. The state is (previous frame, and the history of `smooth_step`).
    """

    def __init__(self, method: FlowMethod | None, smoothing: Smoothing) -> None:
        super().__init__()
        self.method, self.smoothing = method, smoothing
        self.network = FlowNet() if method is None else None
        self.history_names = () if smoothing == "none" else ("flows before", "which of the flows before exist")

    def forward(
        self, low_BTCHW: Tensor, state: State | None, flow_BT2HW: Tensor | None
    ) -> tuple[list[Tensor | None], State]:
        """Frames in the order in which they are visited, to one flow each and the new state.

        flow_BT2HW: from each frame that has a predecessor, be it in `state`, to that one. Without a state the first
        frame has no predecessor, and its flow is None.
        """
        flows: list[Tensor | None] = []
        if state is None:
            frames_BTCHW, history = low_BTCHW, empty_history(low_BTCHW[:, 0], self.smoothing)
            flows.append(None)
        else:
            frames_BTCHW, history = torch.cat((state[0][:, None], low_BTCHW), dim=1), state[1:]
        if frames_BTCHW.shape[1] > 1:
            for flow_B2HW in self._flow(frames_BTCHW, flow_BT2HW).unbind(dim=1):
                smoothed_B2HW, history = smooth_step(flow_B2HW, history, self.smoothing)
                flows.append(smoothed_B2HW)
        return flows, (low_BTCHW[:, -1], *history)

    def _flow(self, frames_BTCHW: Tensor, flow_BT2HW: Tensor | None) -> Tensor:
        """Flow of all pairs of neighbours, before smoothing."""
        now_NCHW, before_NCHW = frames_BTCHW[:, 1:].flatten(0, 1), frames_BTCHW[:, :-1].flatten(0, 1)
        if self.network is not None:
            flow_N2HW: Tensor = self.network(now_NCHW, before_NCHW)
        elif flow_BT2HW is not None:
            _check_flow(flow_BT2HW, frames_BTCHW)
            return flow_BT2HW
        else:
            assert self.method is not None, "without a network there is a method"
            flow_N2HW = estimate_flow(now_NCHW, before_NCHW, self.method)
        return torch.unflatten(flow_N2HW, 0, (len(frames_BTCHW), -1))


def _check_flow(flow_BT2HW: Tensor, frames_BTCHW: Tensor) -> None:
    batch, num_frames, _, height, width = frames_BTCHW.shape
    expected = (batch, num_frames - 1, 2, height, width)
    if tuple(flow_BT2HW.shape) != expected:
        raise BadInputError(
            f"expected flow of shape {expected} (batch, pairs of frames, dx and dy, rows, columns) for these frames, "
            f"found {tuple(flow_BT2HW.shape)}"
        )


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
