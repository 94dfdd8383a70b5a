"""Dense optical flow between consecutive LR frames, computed by `pack` and stored as integers.

The flow of a clip has shape (T-1, 2, H, W, 2), int16 in units of 1/32 px, last axis (dx, dy). `flow[t, 0]` is
forward: pixel (y, x) of frame t moves to (y + dy, x + dx) in frame t+1. `flow[t, 1]` is backward, from frame
t+1 to t. There is no flow between the last frame of a clip and the next clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.codec import Frame

UNITS_PER_PX = 32
Flow = NDArray[np.int16]
_PairFlow = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]


def _farneback(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    # The parameters of OpenCV's tutorial: pyramid 0.5, 3 levels, window 15, 3 iterations, polynomials 5 / 1.2.
    start: Any = None
    return np.asarray(cv2.calcOpticalFlowFarneback(first, second, start, 0.5, 3, 15, 3, 5, 1.2, 0), np.float32)


def _dis(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    start: Any = None
    return np.asarray(engine.calc(first, second, start), np.float32)


METHODS: Mapping[str, _PairFlow] = {"farneback": _farneback, "dis": _dis}
# OpenCV 5.0's DIS crashes the process for sides of 8 to 15 px; this leaves a margin.
MIN_SIDE_PX = 24


def clip_flow(frames: Sequence[Frame], method: str) -> Flow:
    """Quantised flow (T-1, 2, H, W, 2) of T LR frames (H, W, 3); empty for T = 1.

    Raises ValueError for a side below `MIN_SIDE_PX`.
    """
    height, width = frames[0].shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise ValueError(f"expected frames of at least {MIN_SIDE_PX} px a side, got {height} x {width}")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    result = np.zeros((len(frames) - 1, 2, height, width, 2), dtype=np.int16)
    # OpenCV's DIS splits the image into one stripe per thread and searches each one independently: only a
    # fixed number of threads gives the same bytes on every machine.
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for step, (first, second) in enumerate(pairwise(grey)):
            result[step, 0] = quantise(METHODS[method](first, second))
            result[step, 1] = quantise(METHODS[method](second, first))
    finally:
        cv2.setNumThreads(num_threads)
    return result


def quantise(flow_px: NDArray[np.float32]) -> Flow:
    """float flow in px to int16 in 1/32 px, rounded and clipped to the range of int16."""
    return np.clip(np.rint(flow_px * UNITS_PER_PX), -32768, 32767).astype(np.int16)


def dequantise(flow: Flow) -> NDArray[np.float32]:
    """int16 in 1/32 px to float32 in px."""
    return flow.astype(np.float32) / np.float32(UNITS_PER_PX)
