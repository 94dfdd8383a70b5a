"""Gradient penalties that keep a discriminator from growing steep around its inputs.

Axes: B batch; inputs and logits have any further axes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """Half precision (bfloat16 or float16) as float32; any other tensor as it is."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


PenaltyName = Literal["exact", "finite_difference"]


def gradient_penalty(logits: Tensor, inputs: Tensor, gamma: float | Tensor) -> Tensor:
    """`gamma / 2` times the batch mean of `|grad_x sum_p D_p(x)|^2 / num_patches`. Scalar, differentiable.

    With real inputs this is R1, with fake inputs R2 (Mescheder et al. 2018, arXiv:1801.04406; both together:
    Huang et al. 2024, arXiv:2501.05441). The squared gradient is summed over one sample's elements and
    divided by the logits that one sample has, so that the penalty does not grow with the number of patches.

    logits: (B, ...), computed from `inputs`. inputs: (B, ...), a leaf or not, but with `requires_grad` set
    before the discriminator ran; raises ValueError otherwise. The backward pass runs twice through the
    discriminator, which compiled networks refuse; under autocast it is only as exact as half precision (about 1 % in
    the gradient with bfloat16), so compute the logits in float32 where that matters.
    """
    if not inputs.requires_grad:
        raise ValueError("gradient penalty: set requires_grad on the inputs before the discriminator runs")
    (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    num_patches = logits[0].numel()
    squared_B = full_precision(gradient).pow(2).flatten(1).sum(dim=1)
    return 0.5 * gamma * squared_B.mean() / num_patches


def finite_difference_penalty(plus: Tensor, minus: Tensor, sigma: float, gamma: float | Tensor) -> Tensor:
    """`gamma / 2` times the batch mean of `(sum_p D_p(x + sigma u) - D_p(x - sigma u))^2 / (4 sigma^2 num_patches)`.

    Scalar. plus, minus: the two kinds of logits, (B, ...), u standard normal, of the same network in the same state: no
    dropout between them and the same spectral norm, which one forward of both guarantees. As sigma falls, the mean over
    u is `gradient_penalty`: one random direction in place of the gradient, and no second derivative, so that it runs
    compiled and in half precision. One draw scatters as much as it is large (it is the square of one normal number).

    After the approximated R1 of Seaweed-APT (Lin et al. 2025, arXiv:2501.08316), `lambda |D(x) - D(N(x, sigma))|^2`,
    lambda = gamma / (2 sigma^2), but with a step to both sides. A step to one side also punishes what the discriminator
    makes of noise as such, the same in every direction, and over many patches that is the larger part: with the default
    `spatiotemporal` discriminator, sigma 0.01 and 48 x 48 pixels it came to 8 times R1, two sides to 0.94 times.
    """
    num_patches = plus[0].numel()
    slope_B = (full_precision(plus) - full_precision(minus)).reshape(len(plus), -1).sum(dim=1) / (2.0 * sigma)
    return 0.5 * gamma * slope_B.pow(2).mean() / num_patches
