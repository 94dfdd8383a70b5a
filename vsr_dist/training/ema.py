"""The exponential moving average of the generator, which is what a run is judged by and what inference gets."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def decay_at(num_updates: int, decay: float) -> float:
    """min(decay, (1 + n) / (10 + n)): a short memory while the weights still move fast.

    The ramp is that of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


def make_ema(generator: nn.Module, decay: float) -> AveragedModel:
    """A copy of `generator` whose `update_parameters` averages parameters and copies buffers.

    Buffers are copied and not averaged because batch-norm statistics are running averages already. Build it from
    the unwrapped generator, before it is prepared; update it on every rank, so that all ranks hold the same.
    """

    @torch.no_grad()
    def average(averaged: Tensors, current: Tensors, num_averaged: torch.Tensor | int) -> None:
        weight = 1.0 - decay_at(int(num_averaged), decay)
        torch._foreach_lerp_(list(averaged), list(current), weight)

    ema = AveragedModel(generator, multi_avg_fn=average)
    ema.requires_grad_(False)
    return ema
