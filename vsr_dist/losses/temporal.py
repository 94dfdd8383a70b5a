"""Temporal consistency loss.

Axes: B batch, T time, C channels, Y X image rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def temporal_difference(fake_BTCYX: Tensor, real_BTCYX: Tensor) -> Tensor:
    """MSE between the frame-to-frame changes of two clips: the temporal loss of listing 3. Scalar.

    The mean runs over all T-1 neighbouring pairs. It is not motion compensated: an error that stands still
    costs nothing. Raises ValueError for clips of fewer than 2 frames, which have no change.
    """
    if fake_BTCYX.shape[1] < 2:
        raise ValueError("temporal loss: expected clips of at least 2 frames, found 1; set its weight to 0")
    return torch.mean((fake_BTCYX.diff(dim=1) - real_BTCYX.diff(dim=1)) ** 2)
