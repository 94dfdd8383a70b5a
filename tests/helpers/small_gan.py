"""What tests of a GAN's training in their own process share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from vsr_dist.cli import main


def clips(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 low (2, 3, 3, 8, 8) and real (2, 3, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 256, (2, 3, 3, 8, 8), generator=generator, dtype=torch.uint8)
    real = torch.randint(0, 256, (2, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return low, real


def snapshot(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def forget_accelerate_state() -> None:
    """Accelerate keeps its state per process; the next training in it begins without."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def fresh_accelerate_state() -> Iterator[None]:
    yield
    forget_accelerate_state()


def train_here(config: Path, *overrides: str) -> int:
    """`vsr-dist train --resume auto` in the test's own process; returns the exit status."""
    argv = ["train", "--config", str(config), "--resume", "auto"]
    status = main([*argv, *(word for override in overrides for word in ("--set", override))])
    forget_accelerate_state()
    return status
