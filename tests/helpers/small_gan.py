"""What tests of a GAN's training in their own process share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from vsr_dist.cli import main
from vsr_dist.data.loader import ClipBatch
from vsr_dist.losses.objective import LossConfig
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.training.config import AdversarialConfig
from vsr_dist.training.control import Controllers, MicroStep, StepPlan
from vsr_dist.training.gan_step import GanStep, Player


def clips(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 low (2, 3, 3, 8, 8) and real (2, 3, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 256, (2, 3, 3, 8, 8), generator=generator, dtype=torch.uint8)
    real = torch.randint(0, 256, (2, 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return low, real


def batch_of(low: torch.Tensor, real: torch.Tensor, flow: torch.Tensor | None = None) -> ClipBatch:
    """A micro-batch of these clips."""
    return ClipBatch(low, real, tuple(map(str, range(len(low)))), torch.ones(len(low), dtype=torch.bool), flow)


def make_step(
    loss: LossConfig | None = None,
    adversarial: AdversarialConfig | None = None,
    *,
    accelerator: Accelerator | None = None,
    networks: tuple[nn.Module, nn.Module] | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    learning_rate: float = 1e-3,
    max_grad_norm: float = 1.0,
    parts: int = 1,
    **options: Any,
) -> GanStep:
    """A small GAN's step; the generator's last layer, which starts at zero, is filled so that all layers learn."""
    torch.manual_seed(0)
    accelerator = accelerator or Accelerator(cpu=True, gradient_accumulation_steps=parts)
    if networks is None:
        networks = small_networks()
    optimizers = [optimizer(net.parameters(), lr=learning_rate) for net in networks]
    generator, discriminator, *prepared = accelerator.prepare(*networks, *optimizers)
    return GanStep(
        accelerator,
        Player("generator", generator, prepared[0]),
        Player("discriminator", discriminator, prepared[1]),
        None,
        loss or LossConfig(perceptual=0.0),
        adversarial or AdversarialConfig(),
        scale=4,
        max_grad_norm=max_grad_norm,
        perceptual_frames=0,
        **options,
    )


def small_networks(discriminator: Any = None, channels: int = 8, num_blocks: int = 2) -> tuple[nn.Module, nn.Module]:
    generator = build_generator(RecurrentConfig(channels=channels, num_blocks=num_blocks), 4)
    torch.nn.init.normal_(generator.tail[0].weight, std=0.02)
    return generator, build_discriminator(discriminator or SpatiotemporalConfig(filters=8, levels=2), 4)


def plan_of(step: GanStep, factor: float = 1.0, *, measure: bool = False) -> StepPlan:
    """The plan of the first step of a run; factor 0 is the warm-up."""
    return Controllers(step.adversarial, step.loss, torch.device("cpu")).plan(factor, measure=measure)


def play(step: GanStep, *batches: ClipBatch, plan: StepPlan | None = None, number: int = 0) -> list[MicroStep]:
    """One optimiser step on the given micro-batches, by default those of `clips()`."""
    return step.run(iter(batches or (batch_of(*clips()),)), plan or plan_of(step), number)


def scalars_of(step: GanStep, factor: float = 1.0, *batches: ClipBatch) -> dict[str, torch.Tensor]:
    """The scalars of the first micro-batch of one step."""
    return play(step, *batches, plan=plan_of(step, factor))[0].scalars


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
