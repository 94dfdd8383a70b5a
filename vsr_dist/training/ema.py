"""The exponential moving average of the generator, which is what a run is judged by and what inference gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def decay_at(num_updates: int, decay: float) -> float:
    """min(decay, (1 + n) / (10 + n)): a short memory while the weights still move fast.

    The ramp is that of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class Ema(AveragedModel):
    """A copy of a generator whose `update_parameters` averages parameters and copies buffers.

    Buffers are copied and not averaged because batch-norm statistics are running averages already.

    The number of updates is counted on the host beside the buffer `n_averaged`, which checkpoints hold: torch's own
    class reads that buffer twice per update, and each reading makes the host wait for the GPU.
    """

    def __init__(self, generator: nn.Module, decay: float) -> None:
        super().__init__(generator)
        self.decay = decay
        self._num_updates: int | None = 0
        self.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of `model`; the first update copies them."""
        if self._num_updates is None:
            self._num_updates = int(self.n_averaged)
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        if self._num_updates == 0:
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, 1.0 - decay_at(self._num_updates, self.decay))
        for kept, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
        self.n_averaged += 1
        self._num_updates += 1

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401 - what torch returns has no public name
        """As `Module.load_state_dict`; the buffer then knows the count, and is read once, at the next update."""
        self._num_updates = None
        return super().load_state_dict(state_dict, strict, assign)


def make_ema(generator: nn.Module, decay: float) -> Ema:
    """The average of `generator`'s weights.

    Build it from the unwrapped generator, before it is prepared; update it on every rank, so that all ranks hold the
    same.
    """
    return Ema(generator, decay)
