"""Smoothing of motion over time along its trajectories, frame by frame.

The paper smooths the motion vectors over time: its text by a Gaussian-weighted sum, its listing 1 by an exponential
average. Both average at fixed pixels there, and so mix the motion of an object with that of the background it has
just left. Here each past flow is first brought onto the grid of the current frame by the current flow, so that the
average follows the object. Only the past enters, so that a stream can be smoothed as it comes.

Axes: B batch, K past flows, H W rows and columns, 2 the flow components (dx, dy) in pixels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vsr_dist.ops.warp import backward_warp

Smoothing = Literal["none", "ema", "gaussian"]
# Listing 1: y_t = 0.9 x_t + 0.1 y_(t-1).
EMA_ALPHA = 0.9
# The text names no width: one frame, cut off after three.
GAUSSIAN_SIGMA_FRAMES = 1.0
GAUSSIAN_PAST_FRAMES = 3
NUM_PAST: dict[Smoothing, int] = {"ema": 1, "gaussian": GAUSSIAN_PAST_FRAMES}
# Empty without smoothing; otherwise the past flows (B, K, 2, H, W), newest first, and (B, K) with 1.0 where there is
# one and 0.0 where not yet.
History = tuple[Tensor, ...]


def gaussian_weights(num_past: int = GAUSSIAN_PAST_FRAMES, sigma_frames: float = GAUSSIAN_SIGMA_FRAMES) -> list[float]:
    """`exp(-k^2 / 2 sigma^2)` for the flow `k` frames ago, k = 0 to `num_past`; not normalised."""
    return [math.exp(-(k**2) / (2.0 * sigma_frames**2)) for k in range(num_past + 1)]


def empty_history(like_BCHW: Tensor, smoothing: Smoothing) -> History:
    """The history before the first flow, for frames of this batch, size and device."""
    if smoothing == "none":
        return ()
    batch, _, height, width = like_BCHW.shape
    num_past, device = NUM_PAST[smoothing], like_BCHW.device
    return torch.zeros(batch, num_past, 2, height, width, device=device), torch.zeros(batch, num_past, device=device)


def smooth_step(flow_B2HW: Tensor, history: History, smoothing: Smoothing) -> tuple[Tensor, History]:
    """The smoothed flow of the current frame, and the history with it.

    flow_B2HW leads from the current frame to the one before; so do the past flows on their own frames' grids.
    `ema`: y_t(p) = 0.9 x_t(p) + 0.1 y_(t-1)(p + x_t(p)), y_0 = x_0. `gaussian`: the sum of `gaussian_weights` times
    the flows that lie on the trajectory of p, over the sum of the weights of those that exist. `none`: the flow.
    """
    if smoothing == "none":
        return flow_B2HW, history
    past_BK2HW, known_BK = history
    num_past = past_BK2HW.shape[1]
    past_N2HW = backward_warp(past_BK2HW.flatten(0, 1), flow_B2HW.repeat_interleave(num_past, dim=0))
    past_BK2HW = torch.unflatten(past_N2HW, 0, (-1, num_past))
    known = known_BK[:, :, None, None, None]
    if smoothing == "ema":
        smoothed = flow_B2HW + (1.0 - EMA_ALPHA) * (known * (past_BK2HW - flow_B2HW[:, None])).sum(dim=1)
        return smoothed, (smoothed[:, None], torch.ones_like(known_BK))
    weights = gaussian_weights()
    past_weights = flow_B2HW.new_tensor(weights[1:]).view(1, -1, 1, 1, 1) * known
    weighted = weights[0] * flow_B2HW + (past_weights * past_BK2HW).sum(dim=1)
    smoothed = weighted / (weights[0] + past_weights.sum(dim=1))
    flows = torch.cat((flow_B2HW[:, None], past_BK2HW[:, :-1]), dim=1)
    known_BK = torch.cat((torch.ones_like(known_BK[:, :1]), known_BK[:, :-1]), dim=1)
    return smoothed, (flows, known_BK)
