"""Composition: from a `Config` to the live parts of one rank, in one place, in the order in which they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from vsr_dist.config import Config, check_config
from vsr_dist.core.collectives import current_world
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.rng import mix, purpose
from vsr_dist.core.world import World
from vsr_dist.data.loader import TrainLoader, validation_batch
from vsr_dist.data.ring import ClipBatch
from vsr_dist.data.source import open_shard_set
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


@dataclass(frozen=True)
class Inputs:
    """What a run reads from outside: data and the weights of the feature network."""

    loader: TrainLoader
    validation: ClipBatch
    features: PerceptualTrunk | None


def open_inputs(config: Config, world: World) -> Inputs:
    """Open everything that can be missing or damaged. Holds no collective call: see `together`."""
    check_config(config)
    shards = open_shard_set(config.data)
    loader = TrainLoader(config.data, shards, config.seed, world, config.train.accumulation_steps)
    validation = validation_batch(config.data, shards, config.data.clip_frames)
    if loader.windows_of.scale != config.scale:
        raise BadConfigError(
            f"scale is {config.scale}, but {config.data.root} was packed at scale {loader.windows_of.scale}; "
            f"set scale={loader.windows_of.scale} or pack the data at scale {config.scale}"
        )
    _check_flow_method(config, shards.index.flow)
    features = None
    if "perceptual" in config.loss.active_terms():
        features = PerceptualTrunk(config.perceptual)
        if world.is_main:
            say(f"perceptual loss: {features.source}")
        if config.data.crop_px * config.scale < features.min_px:
            raise BadConfigError(
                f"data.crop_px {config.data.crop_px} x scale {config.scale} is below the {features.min_px} px that "
                f"perceptual.layer {config.perceptual.layer} needs; enlarge the crop or lower the layer"
            )
    return Inputs(loader, validation, features)


def _check_flow_method(config: Config, packed: str) -> None:
    """Refuse a generator that expects another optical flow than the one in the shards."""
    with torch.device("meta"):
        expected = build_generator(config.generator, config.scale).flow_method
    if expected is not None and packed != expected:
        raise BadConfigError(
            f"generator.flow_method is {expected}, but {config.data.root} was packed with --flow {packed}; set "
            f"generator.flow_method={packed} or pack the data with --flow {expected}"
        )


def build_parts(config: Config, accelerator: Accelerator, world: World, inputs: Inputs) -> Parts:
    """The networks and what trains them; weights are fresh and the same on every rank. Nothing is tracked yet."""
    generator, discriminator = build_networks(config)
    ema = make_ema(generator, config.train.ema_decay).to(accelerator.device)
    optimizers = {
        "generator": make_optimizer(generator, config.generator_optimizer),
        "discriminator": make_optimizer(discriminator, config.discriminator_optimizer),
    }
    players = Players(*accelerator.prepare(generator, discriminator, *optimizers.values()))
    if inputs.features is not None:
        players.features = inputs.features.to(accelerator.device)
    live = Restorable({"generator": generator, "discriminator": discriminator, "ema": ema}, optimizers)
    return Parts(
        accelerator=accelerator,
        world=world,
        step=make_step(config, accelerator, players),
        live=live,
        ema=ema,
        loader=inputs.loader,
        validator=Validator(inputs.validation, world, config.scale, accelerator.device),
        tracker=Tracker(None, None),
        run_dir=Path(config.run_dir),
    )


def make_step(config: Config, accelerator: Accelerator, players: Players) -> GanStep:
    """What runs the training steps of these players."""
    return GanStep(
        accelerator,
        players,
        config.loss,
        ADVERSARIAL[config.objective],
        config.adversary,
        scale=config.scale,
        max_grad_norm=config.train.max_grad_norm,
        perceptual_frames=config.train.perceptual_frames,
    )


def build_networks(config: Config) -> tuple[Generator, Discriminator]:
    """Generator and discriminator with weights that depend on the seed only, on the CPU.

    Each is built under its own seed, so that a change to one network leaves the other's initial weights alone.
    """
    torch.manual_seed(mix(purpose("generator"), config.seed))
    generator = build_generator(config.generator, config.scale)
    torch.manual_seed(mix(purpose("discriminator"), config.seed))
    return generator, build_discriminator(config.discriminator, config.scale)


def make_optimizer(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam over all parameters of a network; fused, one pass over memory per step, on the CPU as on GPUs."""
    return torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)


def make_tracker(config: Config, *, resume_step: int, run_id: str | None) -> Tracker:
    """Metrics file and MLflow run; call on rank 0 only. `run_id` names a run to go on with."""
    file = MetricsFile(Path(config.run_dir) / "metrics.jsonl", resume_step)
    return Tracker(file, MlflowRun(config.tracking, config.name, run_id) if config.tracking.mlflow else None)
