"""Differentiable warping by optical flow.

Axes: B batch, C channels, Y X image rows and columns, 2 the flow components (dx, dy).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


def backward_warp(image_BCYX: Tensor, flow_B2YX: Tensor, outside: Literal["border", "zeros"] = "border") -> Tensor:
    """Sample an image where the flow points: `out(p) = image(p + flow(p))`.

    image_BCYX: float, any range. flow_B2YX: float, pixels; channel 0 is to the right, channel 1 down.
    Bilinear; samples outside the image take the nearest edge pixel, or with `zeros` the value 0. Returns the shape and
    dtype of the image. Half precision is computed in float32: in bfloat16 a coordinate beyond 256 px would be off by
    whole pixels. The same as `cv2.remap` with `map_x = X + flow[0]`, `map_y = Y + flow[1]`, INTER_LINEAR, and
    BORDER_REPLICATE or BORDER_CONSTANT.
    """
    image = image_BCYX.float() if image_BCYX.dtype in _HALF else image_BCYX
    flow = flow_B2YX.float() if flow_B2YX.dtype in _HALF else flow_B2YX
    height, width = image.shape[-2:]
    grid_y, grid_x = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=flow.dtype),
        torch.arange(width, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    # grid_sample with align_corners=True: -1 and 1 are the centres of the first and the last pixel.
    unit_x = (grid_x + flow[:, 0]) * (2.0 / max(width - 1, 1)) - 1.0
    unit_y = (grid_y + flow[:, 1]) * (2.0 / max(height - 1, 1)) - 1.0
    grid_BYX2 = torch.stack((unit_x, unit_y), dim=-1).to(image.dtype)
    warped = F.grid_sample(image, grid_BYX2, mode="bilinear", padding_mode=outside, align_corners=True)
    return warped.to(image_BCYX.dtype)
