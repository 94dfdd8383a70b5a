"""Composition: from a `Config` to the live parts of one rank, in one place, in the order in which they are needed."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from vsr_dist.config import Config, check_config
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.provenance import git_state
from vsr_dist.core.rng import mix, purpose
from vsr_dist.core.world import World
from vsr_dist.data.loader import TrainLoader, validation_batch
from vsr_dist.data.reference import reference_batch
from vsr_dist.data.ring import ClipBatch
from vsr_dist.data.source import open_shard_set
from vsr_dist.inference.generator_io import InitialWeights, initial_weights, load_generator
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.base import Discriminator, Generator
from vsr_dist.models.features import PerceptualTrunk
from vsr_dist.training.checkpoint import Restorable
from vsr_dist.training.controllers import Controllers
from vsr_dist.training.ema import make_ema
from vsr_dist.training.gan_step import GanStep, Players
from vsr_dist.training.launch import compile_in_place, has_batch_norm, lay_out, refuse_compile
from vsr_dist.training.metrics_file import METRICS_NAME, MetricsFile
from vsr_dist.training.monitor import DriftMonitor
from vsr_dist.training.outbox import Outbox
from vsr_dist.training.perceptual_judge import PerceptualJudge
from vsr_dist.training.revival import Revival
from vsr_dist.training.schedule import OptimizerConfig
from vsr_dist.training.shipping import Delivery, Shipper
from vsr_dist.training.tracker import MlflowSide, Tracker
from vsr_dist.training.tracking import MlflowDestination, SystemSampler, make_target
from vsr_dist.training.tracking_config import check_uri
from vsr_dist.training.trainer import Parts
from vsr_dist.training.validation import Validator


def check_world(config: Config, world: World) -> None:
    """Refuse a number of processes that the configuration is not meant for. Holds no collective call."""
    processes = config.train.processes
    if processes is not None and world.size != processes:
        raise BadConfigError(
            f"train.processes is {processes}, but {world.size} process(es) were started; launch with "
            f"'accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.train ...' (on CPUs "
            f"'accelerate launch --cpu --num_processes N' starts only one), or set train.processes={world.size}"
        )
    if world.size > 1 and config.loss.adversarial > 0 and not config.train.allow_batch_norm:
        with torch.device("meta"):
            discriminator = build_discriminator(config.discriminator, config.scale)
        if has_batch_norm(discriminator):
            raise BadConfigError(
                f"discriminator {config.discriminator.kind} has batch norm, and each of the {world.size} processes "
                "would normalise by its own part of the batch: set discriminator.norm to none, group or spectral, or "
                "train.allow_batch_norm=true if that is what you want"
            )


def resolve_epochs(config: Config) -> Config:
    """The configuration with `train.steps` that make up `train.epochs` of its data; unchanged where epochs is 0.

    An epoch is as many global batches as hold every training window once; the last batch of the run may run over.
    Reads the set's index. Holds no collective call.
    """
    if config.train.epochs == 0:
        return config
    data = config.data
    num_windows = len(TrainLoader(data, open_shard_set(data), config.seed, World(), 1).windows)
    steps = -(-config.train.epochs * num_windows // data.batch_clips)
    return replace(config, train=replace(config.train, steps=steps))


@dataclass(frozen=True)
class Inputs:
    """What a run reads from outside: data, feature networks, and the weights that the generator starts from."""

    loader: TrainLoader
    validation: ClipBatch
    reference: ClipBatch | None
    features: PerceptualTrunk | None
    initial: InitialWeights | None = None
    judge: PerceptualJudge | None = None


def open_inputs(config: Config, world: World, *, fresh: bool = True) -> Inputs:
    """Open everything that can be missing or damaged. Holds no collective call: see `together`.

    fresh: False for a run that goes on from a checkpoint, whose generator takes its weights from there.
    """
    check_config(config)
    if config.train.compile:
        refuse_compile(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    shards = open_shard_set(config.data)
    loader = TrainLoader(config.data, shards, config.seed, world, config.train.accumulation_steps)
    validation = validation_batch(config.data, shards, config.data.clip_frames)
    if loader.windows_of.scale != config.scale:
        raise BadConfigError(
            f"scale is {config.scale}, but {config.data.root} was packed at scale {loader.windows_of.scale}; "
            f"set scale={loader.windows_of.scale} or pack the data at scale {config.scale}"
        )
    _check_flow_method(config, shards.index.flow)
    reference = reference_batch(loader) if config.loss.adversarial > 0 else None
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
    initial = None
    if fresh and config.train.init_generator:
        initial = initial_weights(Path(config.train.init_generator), config.generator, config.scale)
        if world.is_main:
            say(f"generator: starts from {config.train.init_generator}, sha256 {initial.sha256}")
    judge = PerceptualJudge() if config.train.perceptual_metric == "stlpips" else None
    return Inputs(loader, validation, reference, features, initial, judge)


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
    """The networks and what trains them; weights are fresh, or those of `inputs.initial`, and the same on every rank.

    Nothing is tracked yet.
    """
    generator, discriminator = build_networks(config)
    if inputs.initial is not None:
        generator.load_state_dict(inputs.initial.tensors)
    lay_out(config.train, generator, discriminator)
    ema = make_ema(generator, config.train.ema_decay).to(accelerator.device)
    optimizers = {
        "generator": make_optimizer(generator, config.generator_optimizer),
        "discriminator": make_optimizer(discriminator, config.discriminator_optimizer),
    }
    players = Players(*accelerator.prepare(generator, discriminator, *optimizers.values()))
    compile_in_place(config.train, generator, discriminator)
    if inputs.features is not None:
        players.features = inputs.features.to(accelerator.device)
    live = Restorable({"generator": generator, "discriminator": discriminator, "ema": ema}, optimizers)
    validator = Validator(inputs.validation, world, config.scale, accelerator.device, inputs.judge)
    controllers = Controllers(config.control, config.loss, config.adversary, ADVERSARIAL[config.objective].chance)
    revival = None
    if inputs.reference is not None:
        reference = Validator(inputs.reference, world, config.scale, accelerator.device)
        metrics_path = Path(config.run_dir) / METRICS_NAME
        monitor = DriftMonitor(validator, reference, ADVERSARIAL[config.objective], config.loss, metrics_path)
        revival = Revival(controllers, monitor, live, partial(fresh_discriminator, config))
    return Parts(
        accelerator=accelerator,
        world=world,
        step=make_step(config, accelerator, players),
        live=live,
        ema=ema,
        loader=inputs.loader,
        validator=validator,
        controllers=controllers,
        revival=revival,
        tracker=Tracker(),
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


def fresh_discriminator(config: Config, number: int) -> Discriminator:
    """The discriminator with the `number`-th (from 1) other set of initial weights, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(purpose("discriminator"), config.seed, number))
        return build_discriminator(config.discriminator, config.scale)


def make_optimizer(network: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam over all parameters of a network; fused, one pass over memory per step, on the CPU as on GPUs."""
    return torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)


def make_tracker(config: Config, *, resume_step: int, run_id: str | None) -> Tracker:
    """Metrics file and MLflow run; call on rank 0 only. Nothing is sent before `Tracker.start`.

    `run_id` names a run to go on with if the run directory knows of none.
    """
    run_dir = Path(config.run_dir)
    if not config.tracking.mlflow:
        return Tracker(MetricsFile(run_dir / METRICS_NAME, resume_step))
    check_uri(config.tracking.uri)
    file = MetricsFile(run_dir / METRICS_NAME, resume_step)
    outbox = Outbox(run_dir)
    git = {f"mlflow.source.git.{name}": value for name, value in git_state(Path.cwd()).items()}
    outbox.aim(make_target(config.tracking, config.name, {**git, "command": shlex.join(sys.argv)[:5000]}))
    outbox.resume(run_id, file.num_bytes())
    destination = MlflowDestination(config.tracking.uri, generator_of)
    shipper = Shipper(Delivery(file, outbox, destination))
    sampler = SystemSampler() if config.tracking.system_metrics else None
    return Tracker(file, MlflowSide(outbox, shipper, destination, sampler))


def generator_of(run_dir: Path) -> torch.nn.Module:
    """The generator that a finished run left, on the CPU, for MLflow."""
    return load_generator(run_dir)[0]
