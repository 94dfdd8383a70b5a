"""Composition: from a `Config` to the live parts of one rank, in one place, in the order in which they are needed."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from vsr_dist.config import Config, check_config
from vsr_dist.core.collectives import current_world
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.rng import mix, purpose
from vsr_dist.core.world import World
from vsr_dist.data.loader import TrainLoader, validation_batch
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.base import Discriminator, Generator
from vsr_dist.models.features import PerceptualTrunk
from vsr_dist.training.checkpoint import Restorable
from vsr_dist.training.ema import make_ema
from vsr_dist.training.gan_step import GanStep, Players
from vsr_dist.training.schedule import OptimizerConfig
from vsr_dist.training.tracking import MetricsFile, MlflowRun, Tracker
from vsr_dist.training.trainer import Parts, TrainConfig
from vsr_dist.training.validation import Validator


def make_accelerator(config: TrainConfig) -> tuple[Accelerator, World]:
    """The accelerator and this process's place; a launch that is not what the configuration expects is refused."""
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulation_steps),
        step_scheduler_with_optimizer=False,
    )
    world = current_world()
    if config.processes is not None and world.size != config.processes:
        raise BadConfigError(
            f"train.processes is {config.processes}, but {world.size} process(es) were started; launch with "
            f"'accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.train ...' (on CPUs "
            f"'accelerate launch --cpu --num_processes N' starts only one), or set train.processes={world.size}"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    return accelerator, world


def build_parts(
    config: Config, accelerator: Accelerator, world: World, *, resume_step: int, run_id: str | None
) -> Parts:
    """Everything that the trainer needs; weights are fresh and the same on every rank."""
    check_config(config)
    loader = TrainLoader(config.data, config.seed, world, config.train.accumulation_steps)
    validation = validation_batch(config.data, config.data.clip_frames)
    if loader.windows_of.scale != config.scale:
        raise BadConfigError(
            f"scale is {config.scale}, but {config.data.root} was packed at scale {loader.windows_of.scale}; "
            f"set scale={loader.windows_of.scale} or pack the data at scale {config.scale}"
        )
    generator, discriminator = build_networks(config)
    ema = make_ema(generator, config.train.ema_decay).to(accelerator.device)
    optimizers = {
        "generator": make_optimizer(generator, config.generator_optimizer),
        "discriminator": make_optimizer(discriminator, config.discriminator_optimizer),
    }
    players = Players(*accelerator.prepare(generator, discriminator, *optimizers.values()))
    if "perceptual" in config.loss.active_terms():
        players.features = PerceptualTrunk(config.perceptual).to(accelerator.device)
    step = GanStep(
        accelerator,
        players,
        config.loss,
        ADVERSARIAL[config.objective],
        config.adversary,
        scale=config.scale,
        max_grad_norm=config.train.max_grad_norm,
        perceptual_frames=config.train.perceptual_frames,
    )
    live = Restorable({"generator": generator, "discriminator": discriminator, "ema": ema}, optimizers)
    run_dir = Path(config.run_dir)
    return Parts(
        accelerator=accelerator,
        world=world,
        step=step,
        live=live,
        ema=ema,
        loader=loader,
        validator=Validator(validation, world, config.scale, accelerator.device),
        tracker=make_tracker(config, world, resume_step=resume_step, run_id=run_id),
        run_dir=run_dir,
    )


def build_networks(config: Config) -> tuple[Generator, Discriminator]:
    """Generator and discriminator with weights that depend on the seed only, on the CPU.

    Each is built under its own seed, so that a change to one network leaves the other's initial weights alone.
    """
    torch.manual_seed(mix(purpose("generator"), config.seed))
    generator = build_generator(config.generator, config.scale)
    torch.manual_seed(mix(purpose("discriminator"), config.seed))
    discriminator = build_discriminator(config.discriminator, config.scale)
    if config.loss.adversarial > 0 and config.data.clip_frames < discriminator.min_frames:
        raise BadConfigError(
            f"data.clip_frames is {config.data.clip_frames}; discriminator {config.discriminator.kind} needs at "
            f"least {discriminator.min_frames} frames per clip"
        )
    return generator, discriminator


def make_optimizer(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam over all parameters of a network."""
    return torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=config.betas)


def make_tracker(config: Config, world: World, *, resume_step: int, run_id: str | None) -> Tracker:
    """Metrics file and MLflow run on rank 0, nothing on the others."""
    if not world.is_main:
        return Tracker(None, None)
    file = MetricsFile(Path(config.run_dir) / "metrics.jsonl", resume_step)
    return Tracker(file, MlflowRun(config.tracking, config.name, run_id) if config.tracking.mlflow else None)
