"""VSRnet of Kappeler et al. 2016 (doi:10.1109/TCI.2016.2532323): motion-compensated neighbours into SRCNN's layers.

Each frame and its neighbours in time are enlarged with bicubic; the neighbours are warped onto the frame, and all go
into the first layer together (the paper's early fusion) of SRCNN's 9-1-5 network (Dong et al. 2014, arXiv:1501.00092).
What differs from the paper: RGB instead of luma; flow by Farneback's method at low resolution, or the flow that is
given, in place of Druleanu's; no adaptive weight of badly compensated pixels; no pre-training on single images.

Beyond the ends of a clip its first and last frame are repeated.

Axes: B batch, T time, K direction of flow, C channels, H W low-resolution, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError
from vsr_dist.models.base import Generator, check_clip, check_positive, check_scale
from vsr_dist.ops.flow import MIN_SIDE_PX, FlowMethod, estimate_flow
from vsr_dist.ops.resample import bicubic_upsample
from vsr_dist.ops.warp import backward_warp

SCALES = (1, 2, 3, 4)


@dataclass(frozen=True)
class VsrnetConfig:
    """Widths of the hidden layers, how many frames one output sees (3 or 5), and the method of the optical flow.

    flow_method: must be the one that the shards were packed with, if training is given their flow (`data.flow`).
    """

    kind: Literal["vsrnet"] = "vsrnet"
    channels: int = 64
    inner_channels: int = 32
    num_frames: int = 5
    flow_method: FlowMethod = "farneback"

    def __post_init__(self) -> None:
        check_positive(self.kind, channels=self.channels, inner_channels=self.inner_channels)
        if self.num_frames not in (3, 5):
            raise BadConfigError(f"model 'vsrnet': expected num_frames of 3 or 5, found {self.num_frames}")


class Vsrnet(Generator):
    """Early fusion of motion-compensated frames. 82,307 parameters at the default sizes, at every scale."""

    min_px = MIN_SIDE_PX

    def __init__(self, config: VsrnetConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale = scale
        self.flow_method: FlowMethod = config.flow_method
        self.radius = config.num_frames // 2
        self.net = nn.Sequential(
            nn.Conv2d(3 * config.num_frames, config.channels, 9, padding=4),
            nn.ReLU(),
            nn.Conv2d(config.channels, config.inner_channels, 1),
            nn.ReLU(),
            nn.Conv2d(config.inner_channels, 3, 5, padding=2),
        )

    def forward(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor | None = None) -> Tensor:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale), not clamped.

        flow_BTKCHW: float (B, T - 1, 2, 2, H, W) in low-resolution pixels, components (dx, dy); `[:, t, 0]` leads
        from frame t to t + 1 and `[:, t, 1]` back. None estimates it here, on the CPU.
        In evaluation mode the layers run frame by frame, so that their memory does not grow with T.
        """
        check_clip(low_BTCHW)
        if flow_BTKCHW is None:
            flow_BTKCHW = neighbour_flow(low_BTCHW, self.flow_method)
        stack_NCYX = self._compensated(low_BTCHW, flow_BTKCHW)
        parts = (stack_NCYX,) if self.training else torch.split(stack_NCYX, 1)
        return torch.unflatten(torch.cat([self.net(part) for part in parts]), 0, low_BTCHW.shape[:2])

    def _compensated(self, low_BTCHW: Tensor, flow_BTKCHW: Tensor) -> Tensor:
        """Frames t - radius to t + radius, enlarged and warped onto frame t: (N, 3 * num_frames, Y, X)."""
        num_frames = low_BTCHW.shape[1]
        high_BTCYX = bicubic_upsample(low_BTCHW, self.scale)
        frames = []
        for offset in range(-self.radius, self.radius + 1):
            if offset == 0:
                frames.append(high_BTCYX.flatten(0, 1))
                continue
            path_NCHW = flow_over(flow_BTKCHW, offset).flatten(0, 1)
            # Bilinear enlargement keeps pixel centres at half-integers, as bicubic_upsample does.
            path_NCYX = self.scale * F.interpolate(path_NCHW, size=high_BTCYX.shape[-2:], mode="bilinear")
            there = torch.arange(num_frames, device=low_BTCHW.device).add(offset).clamp(0, num_frames - 1)
            frames.append(backward_warp(high_BTCYX[:, there].flatten(0, 1), path_NCYX))
        return torch.cat(frames, dim=1)


def neighbour_flow(low_BTCHW: Tensor, method: FlowMethod) -> Tensor:
    """Flow between neighbouring frames in both directions, in the form that `Vsrnet.forward` takes."""
    num_clips, num_frames, _, *shape = low_BTCHW.shape
    if num_frames == 1:
        return low_BTCHW.new_zeros(num_clips, 0, 2, 2, *shape)
    ahead, behind = low_BTCHW[:, :-1].flatten(0, 1), low_BTCHW[:, 1:].flatten(0, 1)
    ways_NKCHW = torch.stack([estimate_flow(ahead, behind, method), estimate_flow(behind, ahead, method)], dim=1)
    return torch.unflatten(ways_NKCHW, 0, (num_clips, num_frames - 1))


def flow_over(flow_BTKCHW: Tensor, offset: int) -> Tensor:
    """Flow from each of T frames to the one `offset` away, or to the clip's end: (B, T, 2, H, W), low-res. pixels.

    Steps of one frame are chained: `f(t -> t+2)(p) = f(t -> t+1)(p) + f(t+1 -> t+2)(p + f(t -> t+1)(p))`. At the
    clip's end, and in clips of one frame, there is nowhere to go, and the flow is zero.
    """
    num_clips, num_pairs, _, *shape = flow_BTKCHW.shape
    still_B1CHW = flow_BTKCHW.new_zeros(num_clips, 1, *shape)
    steps_BTCHW = flow_BTKCHW[:, :, 0 if offset > 0 else 1]
    steps_BTCHW = torch.cat([steps_BTCHW, still_B1CHW] if offset > 0 else [still_B1CHW, steps_BTCHW], dim=1)
    path_NCHW = steps_BTCHW.flatten(0, 1)
    for taken in range(1, abs(offset)):
        here = torch.arange(num_pairs + 1, device=flow_BTKCHW.device) + (taken if offset > 0 else -taken)
        step_NCHW = steps_BTCHW[:, here.clamp(0, num_pairs)].flatten(0, 1)
        path_NCHW = path_NCHW + backward_warp(step_NCHW, path_NCHW)
    return torch.unflatten(path_NCHW, 0, (num_clips, num_pairs + 1))
