"""Motion estimation, smoothing and alignment of frames: listing 1 of the paper, as printed and corrected.

As printed, the listing (a) builds its sampling map as (row, column) and hands it to `cv2.remap`, which
expects (x, y), so the image is sampled transposed, and (b) moves the current frame, while the ground truth
stays where it was. The corrected reading keeps the target grid: flow runs from the current frame to the
previous one, the map is (x, y), and the *previous* frame is warped onto the *current* frame's grid; the
temporal smoothing that the paper asks for is then the mean of the two. The motion estimator is the listing's;
the vectors are smoothed by the listing's exponential average or by the Gaussian of the paper's text.

Axes: B batch, T time, C channels (RGB), H W rows and columns, 2 the flow components (dx, dy) in pixels.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from vsr_dist.ops.color import ByteArray, from_uint8, to_uint8

# `torch.compiler.disable` imports torch._dynamo at once, three seconds of every start; this waits for the first call.
outside_graphs = _disable_dynamo


FlowArray = npt.NDArray[np.float32]
Direction = Literal["forward", "backward"]
AlignMode = Literal["as_printed", "corrected"]
MotionSmoothing = Literal["ema", "gaussian"]
# Listing 1: y_t = 0.9 x_t + 0.1 y_(t-1).
EMA_ALPHA = 0.9
# The text names no width: one frame, cut off after three.
GAUSSIAN_SIGMA_FRAMES = 1.0
GAUSSIAN_PAST_FRAMES = 3


def gaussian_weights(num_past: int = GAUSSIAN_PAST_FRAMES, sigma_frames: float = GAUSSIAN_SIGMA_FRAMES) -> list[float]:
    """`exp(-k^2 / 2 sigma^2)` for the flow `k` frames ago, k = 0 to `num_past`; not normalised."""
    return [math.exp(-(k**2) / (2.0 * sigma_frames**2)) for k in range(num_past + 1)]


def farneback(from_gray_HW: ByteArray, to_gray_HW: ByteArray) -> FlowArray:
    """Dense flow (H, W, 2) in pixels with `to(p + flow(p)) ~ from(p)`, on uint8 images.

    Farneback's method with the parameters of listing 1: pyramid scale 0.5, 3 levels, window 15 px,
    3 iterations, neighbourhood 5 px, sigma 1.2.
    """
    start = np.zeros((*from_gray_HW.shape, 2), np.float32)
    flow = cv2.calcOpticalFlowFarneback(from_gray_HW, to_gray_HW, start, 0.5, 3, 15, 3, 5, 1.2, 0)
    return np.asarray(flow, np.float32)


def estimate_motion(frames_THWC: ByteArray, direction: Direction = "forward") -> FlowArray:
    """Flow between neighbouring uint8 RGB frames: (T-1, H, W, 2) float32, pixels.

    `forward` is the listing's: entry t leads from frame t to frame t+1. `backward`: from frame t+1 to frame
    t, which is what warping frame t onto the grid of frame t+1 needs.
    """
    gray = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8) for frame in frames_THWC]
    flows = [
        farneback(before, after) if direction == "forward" else farneback(after, before)
        for before, after in itertools.pairwise(gray)
    ]
    return np.stack(flows) if flows else np.zeros((0, *frames_THWC.shape[1:3], 2), np.float32)


def smooth_motion(flow_THW2: FlowArray, smoothing: MotionSmoothing = "ema") -> FlowArray:
    """Average over time at fixed pixels; `vsr_dist.ops.flow` averages along trajectories.

    `ema`: y_t = 0.9 x_t + 0.1 y_(t-1), y_0 = x_0, as in listing 1; with 0.9 on the *new* vector it lags by 0.11
    frames. `gaussian`: the Gaussian-weighted sum of the paper's text, sum_k w_k x_(t+k) / sum_k w_k with
    w_k = exp(-k^2 / 2 sigma^2) over the k from -3 to 3 that exist. The text names no width; sigma is one frame.
    """
    if smoothing == "gaussian":
        return _gaussian_over_time(flow_THW2)
    smoothed = flow_THW2.copy()
    for t in range(1, len(smoothed)):
        smoothed[t] = EMA_ALPHA * flow_THW2[t] + (1.0 - EMA_ALPHA) * smoothed[t - 1]
    return smoothed


def _gaussian_over_time(flow_THW2: FlowArray) -> FlowArray:
    weights, num_flows = gaussian_weights(), len(flow_THW2)
    smoothed = np.zeros_like(flow_THW2)
    for t in range(num_flows):
        near = range(max(0, t - GAUSSIAN_PAST_FRAMES), min(num_flows, t + GAUSSIAN_PAST_FRAMES + 1))
        total = sum(weights[abs(other - t)] for other in near)
        for other in near:
            smoothed[t] += (weights[abs(other - t)] / total) * flow_THW2[other]
    return smoothed


def align_frames(frames_THWC: ByteArray, flow_THW2: FlowArray, mode: AlignMode) -> ByteArray:
    """Warp uint8 frames by the flow of their pairs; frame 0 stays, the shape stays.

    `as_printed`: frame t sampled at (x = row + dx, y = column + dy), exactly as listing 1, outside black;
    give it the forward flow. `corrected`: result t is frame t-1 sampled at (x + dx, y + dy), which lies on
    the grid of frame t, outside the nearest edge pixel; give it the backward flow.
    """
    height, width = frames_THWC.shape[1:3]
    row, column = np.mgrid[0:height, 0:width].astype(np.float32)
    aligned = [frames_THWC[0]]
    for t, flow in enumerate(flow_THW2, start=1):
        if mode == "as_printed":
            moved = cv2.remap(frames_THWC[t], row + flow[..., 0], column + flow[..., 1], cv2.INTER_LINEAR)
        else:
            map_x, map_y = column + flow[..., 0], row + flow[..., 1]
            border = cv2.BORDER_REPLICATE
            moved = cv2.remap(frames_THWC[t - 1], map_x, map_y, cv2.INTER_LINEAR, borderMode=border)
        aligned.append(np.asarray(moved, np.uint8))
    return np.stack(aligned)


def align_clip(frames_THWC: ByteArray, mode: AlignMode, smoothing: MotionSmoothing = "ema") -> ByteArray:
    """Estimate, smooth and apply motion on one clip of uint8 RGB frames; returns (T, H, W, C) uint8.

    `as_printed`: the aligned frames of listing 1. `corrected`: the mean of each frame and its predecessor
    warped onto it (motion-compensated temporal smoothing); frame 0 is unchanged in both.
    """
    if mode == "as_printed":
        return align_frames(frames_THWC, smooth_motion(estimate_motion(frames_THWC), smoothing), mode)
    flow_THW2 = smooth_motion(estimate_motion(frames_THWC, "backward"), smoothing)
    history_THWC = align_frames(frames_THWC, flow_THW2, mode)
    mean = (frames_THWC.astype(np.uint16) + history_THWC + 1) // 2
    return mean.astype(np.uint8)


@outside_graphs
@torch.no_grad()
def align_low_clip(low_BTCHW: Tensor, mode: AlignMode, smoothing: MotionSmoothing = "ema") -> Tensor:
    """`align_clip` on each clip of a batch: float RGB in [0, 1], same shape, dtype and device out.

    Runs on the CPU on 8-bit copies, so it waits for the device and passes no gradient; `torch.compile` leaves it
    outside the graph.
    """
    frames_BTHWC = to_uint8(low_BTCHW).permute(0, 1, 3, 4, 2).cpu().numpy()
    aligned = np.stack([align_clip(np.ascontiguousarray(clip), mode, smoothing) for clip in frames_BTHWC])
    aligned_BTCHW = from_uint8(torch.from_numpy(aligned)).permute(0, 1, 4, 2, 3)
    return aligned_BTCHW.contiguous().to(device=low_BTCHW.device, dtype=low_BTCHW.dtype)
