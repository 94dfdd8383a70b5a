"""Gradient penalties that keep a discriminator from growing steep around its inputs.

Axes: B batch; inputs and logits have any further axes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_penalty(logits: Tensor, inputs: Tensor, gamma: float | Tensor) -> Tensor:
    """`gamma / 2` times the batch mean of `|grad_x sum_p D_p(x)|^2 / num_patches`. Scalar, differentiable.

    With real inputs this is R1, with fake inputs R2 (Mescheder et al. 2018, arXiv:1801.04406; both together:
    Huang et al. 2024, arXiv:2501.05441). The squared gradient is summed over one sample's elements and
    divided by the logits that one sample has, so that the penalty does not grow with the number of patches.

    logits: (B, ...), computed from `inputs`. inputs: (B, ...), a leaf or not, but with `requires_grad` set
    before the discriminator ran; raises ValueError otherwise. The backward pass runs twice through the
    discriminator: under autocast it is only as exact as half precision (about 1 % in the gradient with
    bfloat16), so compute the logits in float32 where that matters.
    """
    if not inputs.requires_grad:
        raise ValueError("gradient penalty: set requires_grad on the inputs before the discriminator runs")
    (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    num_patches = logits[0].numel()
    if gradient.dtype in (torch.bfloat16, torch.float16):
        gradient = gradient.float()
    squared_B = gradient.pow(2).flatten(1).sum(dim=1)
    return 0.5 * gamma * squared_B.mean() / num_patches
