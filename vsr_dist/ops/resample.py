"""Spatial resampling.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bicubic_upsample(low: Tensor, scale: int) -> Tensor:
    """Enlarge images (B, C, H, W) or clips (B, T, C, H, W), float, `scale` times in both directions.

    Cubic convolution (Keys 1981) with a = -0.5, pixel centres at half-integers, weights renormalised at the
    border: the bicubic of Pillow and of the data's own reduction. PyTorch uses this kernel when `antialias` is on
    (which changes nothing else when enlarging) and a = -0.75 when it is off. Half precision is computed in
    float32. The result is not clamped and may overshoot the input's range by a few percent. Scale 1 returns the
    input itself.
    """
    if scale == 1:
        return low
    if low.dim() == 5:
        return torch.unflatten(bicubic_upsample(low.flatten(0, 1), scale), 0, low.shape[:2])
    full = low.float() if low.dtype in (torch.bfloat16, torch.float16) else low
    high = F.interpolate(full, scale_factor=float(scale), mode="bicubic", align_corners=False, antialias=True)
    return high.to(low.dtype)
