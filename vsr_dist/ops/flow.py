"""Dense optical flow without weights (OpenCV), as `vsr-dist pack --flow` stores it.

The same frames give the same numbers here and in the shards: 8-bit grey, the same methods and parameters, rounded to
1/32 px. A network trained with packed flow therefore meets nothing new where the flow is estimated on the spot.

Smoothing over time: the paper smooths the motion vectors, its text by a Gaussian-weighted sum, its listing 1 by an
exponential average. Both average at fixed pixels there, and so mix the motion of an object with that of the background
it has just left. Here each past flow is first brought onto the grid of the current frame by the current flow, so that
the average follows the object. Only the past enters, so that a stream can be smoothed as it comes.

Axes: N images, B batch, K past flows, C channels, H W rows and columns, 2 the flow components (dx, dy) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from vsr_dist.core.errors import BadInputError
from vsr_dist.ops.color import ByteArray, to_uint8
from vsr_dist.ops.motion import EMA_ALPHA, GAUSSIAN_PAST_FRAMES, FlowArray, farneback, gaussian_weights, outside_graphs
from vsr_dist.ops.warp import backward_warp

FlowMethod = Literal["dis", "farneback"]
# OpenCV 5.0's DIS crashes the process for sides of 8 to 15 px; packing keeps the same margin.
MIN_SIDE_PX = 24
UNITS_PER_PX = 32


def dis(from_gray_HW: ByteArray, to_gray_HW: ByteArray) -> FlowArray:
    """Dense flow (H, W, 2) in pixels with `to(p + flow(p)) ~ from(p)`, on uint8 images of at least 24 px a side.

    Dense inverse search (Kroeger et al. 2016, arXiv:1603.03590) with OpenCV's preset "medium".
    """
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    start = np.zeros((*from_gray_HW.shape, 2), np.float32)
    # DIS cuts the picture into as many stripes as OpenCV has threads, and its result depends on the cuts.
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return np.asarray(engine.calc(from_gray_HW, to_gray_HW, start), np.float32)
    finally:
        cv2.setNumThreads(num_threads)


METHODS: dict[FlowMethod, Callable[[ByteArray, ByteArray], FlowArray]] = {"dis": dis, "farneback": farneback}


def estimate_flow(from_NCHW: Tensor, to_NCHW: Tensor, method: FlowMethod) -> Tensor:
    """Flow of each pair of float RGB images in [0, 1]: (N, 2, H, W) float32 with `to(p + flow(p)) ~ from(p)`.

    Runs on the CPU on 8-bit copies, so it waits for the device and passes no gradient; `torch.compile` leaves it
    outside the graph. Raises BadInputError for a side below 24 px.
    """
    height, width = from_NCHW.shape[-2:]
    if min(height, width) < MIN_SIDE_PX:
        raise BadInputError(
            f"optical flow needs frames of at least {MIN_SIDE_PX} px a side, found {height} x {width}; enlarge the "
            "crop, or choose a generator without packed flow"
        )
    flow: Tensor = _estimate(from_NCHW, to_NCHW, method)
    return flow


@outside_graphs
@torch.no_grad()
def _estimate(from_NCHW: Tensor, to_NCHW: Tensor, method: FlowMethod) -> Tensor:
    pairs = zip(_gray_images(from_NCHW), _gray_images(to_NCHW), strict=True)
    flow_NHW2 = np.stack([METHODS[method](before, after) for before, after in pairs])
    limits = np.iinfo(np.int16)
    units = np.clip(np.rint(flow_NHW2 * UNITS_PER_PX), limits.min, limits.max) / np.float32(UNITS_PER_PX)
    flow_N2HW = torch.from_numpy(units.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    return flow_N2HW.to(from_NCHW.device)


def _gray_images(images_NCHW: Tensor) -> list[ByteArray]:
    images_NHWC = to_uint8(images_NCHW).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in images_NHWC]


Smoothing = Literal["none", "ema", "gaussian"]
NUM_PAST: dict[Smoothing, int] = {"ema": 1, "gaussian": GAUSSIAN_PAST_FRAMES}
# Empty without smoothing; otherwise the past flows (B, K, 2, H, W), newest first, and (B, K) with 1.0 where there is
# one and 0.0 where not yet.
History = tuple[Tensor, ...]


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
