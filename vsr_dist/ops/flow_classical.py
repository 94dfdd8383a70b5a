"""Dense optical flow without weights (OpenCV), as `vsr-dist pack --flow` stores it.

The same frames give the same numbers here and in the shards: 8-bit grey, the same methods and parameters, rounded to
1/32 px. A network trained with packed flow therefore meets nothing new where the flow is estimated on the spot.

Axes: N images, C channels, H W rows and columns, 2 the flow components (dx, dy) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from vsr_dist.core.eager import outside_graphs
from vsr_dist.core.errors import BadInputError
from vsr_dist.ops.color import ByteArray, to_uint8
from vsr_dist.ops.motion import FlowArray, farneback

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
