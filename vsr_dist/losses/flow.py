"""Flow between high-resolution frames for the warped temporal loss: the packed one enlarged, or estimated.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns, K the two directions,
2 the flow components (dx, dy).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vsr_dist.ops import flow as flow_ops

FlowSource = Literal["dis", "packed"]


def unpack_flow(packed: Tensor) -> Tensor:
    """Packed flow (int16 in 1/32 px, any shape) as float32 pixels."""
    return packed.to(torch.float32).div(flow_ops.UNITS_PER_PX)


def flow_back(source: FlowSource, real_BTCYX: Tensor, low_flow_BTKCHW: Tensor | None, scale: int) -> Tensor:
    """`enlarge_flow` of the packed flow or `estimate_flow` of the real frames.

    Raises ValueError if the packed flow is asked for and not there.
    """
    if source == "dis":
        return estimate_flow(real_BTCYX)
    if low_flow_BTKCHW is None:
        raise ValueError("loss.temporal_flow=packed: expected a batch with flow, found none; set data.flow=true")
    return enlarge_flow(low_flow_BTKCHW, scale)


def enlarge_flow(low_flow_BTKCHW: Tensor, scale: int) -> Tensor:
    """Low-resolution flow in both directions to high-resolution flow that leads *back*: (B, T-1, 2, Y, X).

    Float, pixels. low_flow_BTKCHW: (B, T-1, 2, 2, H, W), float, low-resolution pixels; direction 1 leads from frame
    t + 1 to frame t. Enlarged bilinearly (pixel centres at half-integers) and multiplied by `scale`, because the same
    motion covers `scale` times as many pixels.
    """
    back_BTCHW = low_flow_BTKCHW[:, :, 1] * float(scale)
    back_NCYX = F.interpolate(back_BTCHW.flatten(0, 1), scale_factor=float(scale), mode="bilinear", align_corners=False)
    return torch.unflatten(back_NCYX, 0, back_BTCHW.shape[:2])


def estimate_flow(real_BTCYX: Tensor) -> Tensor:
    """DIS flow of real frames from t + 1 back to t: (B, T-1, 2, Y, X), float32, pixels, on the images' device.

    Images: float RGB in [0, 1], at least 24 px a side. It runs on the CPU and waits for the device: about 1 ms per
    pair of 96 x 96 pixels. See `vsr_dist.ops.flow`.
    """
    after, before = real_BTCYX[:, 1:], real_BTCYX[:, :-1]
    flow_N2YX = flow_ops.estimate_flow(after.flatten(0, 1), before.flatten(0, 1), "dis")
    return torch.unflatten(flow_N2YX, 0, after.shape[:2])
