"""What changes over a run: learning rates and the adversarial weight, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from vsr_dist.core.errors import BadConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam (Kingma and Ba 2015) with a cosine schedule.

    Attributes:
        learning_rate: at the start.
        final_ratio: learning rate at the last step as a share of the first; 1 keeps it constant.
        schedule_start: where the cosine begins: `run` at step 0, `adversarial` where the warm-up ends; until then the
            learning rate is constant.
        betas: decay rates of the first and second moment.
    """

    learning_rate: float = 1e-4
    final_ratio: float = 1.0
    schedule_start: Literal["run", "adversarial"] = "run"
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        """Refuse what Adam cannot run with."""
        if not 0 < self.learning_rate < math.inf or not 0 <= self.final_ratio < math.inf:
            raise BadConfigError("expected a learning_rate above 0 and a final_ratio of at least 0, both finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise BadConfigError(f"betas are {self.betas}; expected two numbers from 0 to below 1")


def learning_rate_at(config: OptimizerConfig, step: int, num_steps: int, warmup_steps: int = 0) -> float:
    """Half a cosine from `learning_rate` at its first step to `final_ratio` of it at step `num_steps` - 1.

    The first step is 0, or `warmup_steps` with `schedule_start: adversarial`. Loshchilov and Hutter 2017 (SGDR),
    equation 5, without restarts.
    """
    first = warmup_steps if config.schedule_start == "adversarial" else 0
    progress = max(step - first, 0) / max(num_steps - 1 - first, 1)
    low = config.learning_rate * config.final_ratio
    return low + 0.5 * (config.learning_rate - low) * (1.0 + math.cos(math.pi * progress))


def adversarial_factor_at(step: int, warmup_steps: int, ramp_steps: int) -> float:
    """Share of the adversarial weight in force: 0 in the warm-up, then a line up to 1 over `ramp_steps`."""
    if step < warmup_steps:
        return 0.0
    return min(1.0, (step - warmup_steps + 1) / max(ramp_steps, 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group the same learning rate."""
    groups: Iterable[dict[str, object]] = optimizer.param_groups
    for group in groups:
        group["lr"] = learning_rate
