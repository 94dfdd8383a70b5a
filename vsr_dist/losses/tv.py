"""Total variation, as the base code of the paper computes it.

Axes: B batch, T time, C channels, Y X image rows and columns.
"""

from __future__ import annotations

from torch import Tensor


def total_variation(fake_BTCYX: Tensor) -> Tensor:
    """`2 (V / (C (Y-1) X) + H / (C Y (X-1))) / (B T)`; V and H sum the squared vertical and horizontal steps.

    Source: `TVLoss` of github.com/leftthomas/SRGAN, loss.py, with weight 1; every frame counts as one image.
    Images are float; at least 2 x 2 pixels. Scalar.
    """
    images_BCYX = fake_BTCYX.flatten(0, 1)
    vertical = images_BCYX[:, :, 1:, :] - images_BCYX[:, :, :-1, :]
    horizontal = images_BCYX[:, :, :, 1:] - images_BCYX[:, :, :, :-1]
    return 2.0 * (vertical.pow(2).mean() + horizontal.pow(2).mean())
