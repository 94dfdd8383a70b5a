"""Loss on image gradients.

Axes: any leading ones, then Y X image rows and columns; both tensors have the same shape.
"""

from __future__ import annotations

from torch import Tensor


def edge(fake: Tensor, real: Tensor) -> Tensor:
    """Mean absolute error of the horizontal plus that of the vertical differences of neighbouring pixels. Scalar."""
    error = fake - real
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
