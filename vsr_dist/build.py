"""Composition: from a `Config` to the live parts of one rank, in one place, in the order in which they are needed."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vsr_dist.config import Config, check_config
from vsr_dist.core.collectives import World, current_world, reinit_process_group
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.rng import mix, purpose
from vsr_dist.data.loader import ClipBatch, TrainLoader, reference_batch, validation_batch
from vsr_dist.data.shards import open_shard_set
from vsr_dist.inference.generator_io import InitialWeights, initial_weights
from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.models import build_discriminator, build_generator
from vsr_dist.models.base import Discriminator, Generator
from vsr_dist.models.features import PerceptualTrunk
from vsr_dist.training.checkpoint import Restorable
from vsr_dist.training.config import TrainConfig, make_optimizer
from vsr_dist.training.control import Controllers
from vsr_dist.training.drift import DriftMonitor
from vsr_dist.training.ema import make_ema
from vsr_dist.training.gan_step import CarriedState, GanStep, Player
from vsr_dist.training.tracking import Tracker
from vsr_dist.training.trainer import Parts
from vsr_dist.training.validation import Validator, WindowStLpips

# What `accelerate launch` sets for engines that take the place of DDP.
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_UNSAFE = ("fp16", "fp8")


def launch_faults(config: TrainConfig, environment: Mapping[str, str]) -> list[str]:
    """What the launcher asks for, in environment variables, that this training must not be given."""
    faults = [
        f"accelerate is configured for {engine}; these networks are trained with DDP: use a configuration such as "
        "configs/accelerate/node-8.yaml"
        for variable, engine in _ENGINES.items()
        if environment.get(variable, "false").lower() == "true"
    ]
    mixed = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    ours = "bf16" if config.precision == "bf16" else "no"
    if mixed in _UNSAFE:
        faults.append(
            f"accelerate's mixed_precision is {mixed}, which these networks do not support: losses and gradient "
            "penalties overflow, and one loss scaler cannot serve two optimisers; set mixed_precision: 'no' there, "
            "and train.precision=bf16 here"
        )
    elif mixed not in ("no", ours):
        faults.append(
            f"accelerate's mixed_precision is {mixed}, but train.precision is {config.precision}; set "
            f"mixed_precision: 'no' there, or train.precision={mixed} here"
        )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        faults.append("accelerate is configured to compile (dynamo_backend); use train.compile=true instead")
    micro_batches = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if micro_batches not in ("1", str(config.accumulation_steps)):
        faults.append(
            f"accelerate's gradient_accumulation_steps is {micro_batches}, but train.accumulation_steps is "
            f"{config.accumulation_steps}; remove it from accelerate's configuration"
        )
    return faults


def refuse_launch(config: TrainConfig) -> None:
    """Refuse a launch that asks for what this training must not be given; before any process group exists."""
    faults = launch_faults(config, os.environ)
    if faults:
        raise BadConfigError(f"launch: {'; '.join(faults)}")


def make_accelerator(config: TrainConfig) -> tuple[Accelerator, World]:
    """The accelerator of this process and its place; with several processes this makes the process group."""
    reinit_process_group("nccl" if torch.cuda.is_available() else "gloo")
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulation_steps),
        step_scheduler_with_optimizer=False,
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    return accelerator, current_world()


def refuse_compile(device: torch.device) -> None:
    """Refuse `train.compile` where the compiler that torch calls for `device` is missing."""
    if device.type == "cpu":
        named = os.environ.get("CXX")
        if not any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"])):
            raise BadConfigError(
                f"train.compile=true on a CPU needs a C++ compiler, and {named or 'g++'} is not on the PATH; install "
                "one (apt-get install g++), set CXX, or set train.compile=false"
            )
    elif importlib.util.find_spec("triton") is None:
        raise BadConfigError(
            "train.compile=true on a GPU needs the package triton; install it, or set train.compile=false"
        )


def has_batch_norm(network: nn.Module) -> bool:
    """True if a layer of `network` normalises by statistics of the batch."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def set_memory_format(config: TrainConfig, *networks: nn.Module) -> None:
    """Set the configured memory format of the weights, in place; before optimisers and averages see them."""
    if config.channels_last:
        for network in networks:
            network.to(memory_format=torch.channels_last)


def compile_in_place(config: TrainConfig, *networks: nn.Module) -> None:
    """Compile the unwrapped networks if configured, after they were prepared.

    In place: names of weights keep no prefix, and DDP and autocast wrap what is compiled. Each network meets several
    sizes and modes (training, validation, frozen or not), which is more than torch's limit of 8 recompilations.
    """
    if config.compile:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        for network in networks:
            network.compile()


def check_world(config: Config, world: World) -> None:
    """Refuse a number of processes that the configuration is not meant for. Holds no collective call."""
    processes = config.train.processes
    if processes is not None and world.size != processes:
        raise BadConfigError(
            f"train.processes is {processes}, but {world.size} process(es) were started; launch with "
            f"'accelerate launch --config_file configs/accelerate/cpu-2.yaml -m vsr_dist.train ...' (on CPUs "
            f"'accelerate launch --cpu --num_processes N' starts only one), or set train.processes={world.size}"
        )
    if world.size > 1 and config.adversarial.is_on and not config.train.allow_batch_norm:
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
    st_lpips: WindowStLpips | None = None


def open_inputs(config: Config, world: World, *, fresh: bool = True) -> Inputs:
    """Open everything that can be missing or damaged. Holds no collective call: see `raise_on_all_ranks`.

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
    reference = reference_batch(loader) if config.adversarial.is_on else None
    features = None
    if config.loss.perceptual > 0:
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
    st_lpips = WindowStLpips() if config.train.perceptual_metric == "stlpips" else None
    return Inputs(loader, validation, reference, features, initial, st_lpips)


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
    set_memory_format(config.train, generator, discriminator)
    ema = make_ema(generator, config.train.ema_decay).to(accelerator.device)
    optimizers = {
        "generator": make_optimizer(generator, config.generator_optimizer),
        "discriminator": make_optimizer(discriminator, config.discriminator_optimizer),
    }
    prepared = accelerator.prepare(generator, discriminator, *optimizers.values())
    compile_in_place(config.train, generator, discriminator)
    features = None if inputs.features is None else inputs.features.to(accelerator.device)
    modules: dict[str, nn.Module] = {"generator": generator, "discriminator": discriminator, "ema": ema}
    carried = None
    if config.train.carry_state:
        carried = modules["carried_state"] = CarriedState(world, config.train.accumulation_steps)
    live = Restorable(modules, optimizers)
    validator = Validator(inputs.validation, world, config.scale, accelerator.device, inputs.st_lpips)
    monitor = None
    if inputs.reference is not None:
        reference = Validator(inputs.reference, world, config.scale, accelerator.device)
        monitor = DriftMonitor(validator, reference, ADVERSARIAL[config.adversarial.loss], config.loss)
    return Parts(
        accelerator=accelerator,
        world=world,
        step=make_step(config, accelerator, prepared, features, carried),
        live=live,
        ema=ema,
        loader=inputs.loader,
        validator=validator,
        controllers=Controllers(config.adversarial, config.loss, accelerator.device),
        monitor=monitor,
        tracker=Tracker(),
        run_dir=Path(config.run_dir),
    )


@dataclass(frozen=True)
class MeasuredTerm:
    """A term of the generator's loss at the start of training: its weight in force, and its gradient at the generator's
    output as a share of the image term's, each with its weight."""

    name: str
    weight: float
    share: float


def measure_terms(config: Config) -> list[MeasuredTerm]:
    """Shares of every term but the image term, on one process and the first batch, as if the warm-up were over.

    The networks are those with which training starts. Under `loss.balance: shares` the weights are those that this one
    batch gives.
    """
    alone = replace(config, train=replace(config.train, processes=None, accumulation_steps=1, compile=False))
    accelerator, world = make_accelerator(alone.train)
    parts = build_parts(alone, accelerator, world, open_inputs(alone, world))
    batches = parts.loader.batches(0, accelerator.device)
    with closing(batches):
        batch = next(batches)
        initial = {name: copy.deepcopy(network.state_dict()) for name, network in parts.live.modules.items()}
        parts.controllers.learn(parts.step.run(iter([batch]), parts.controllers.plan(1.0, measure=True), 0))
        for name, network in parts.live.modules.items():
            network.load_state_dict(initial[name])
        plan = parts.controllers.plan(1.0, measure=True)
        scalars = parts.step.run(iter([batch]), plan, 1)[0].scalars
    shares = {name.removeprefix("share_g/"): value for name, value in scalars.items() if name.startswith("share_g/")}
    return [MeasuredTerm(name, float(plan.weights[name]), float(share)) for name, share in shares.items()]


def make_step(
    config: Config,
    accelerator: Accelerator,
    prepared: Sequence[Any],
    features: PerceptualTrunk | None,
    carried: CarriedState | None = None,
) -> GanStep:
    """What runs the training steps; `prepared`: generator, discriminator and their optimisers, as prepared."""
    generator, discriminator, generator_optimizer, discriminator_optimizer = prepared
    return GanStep(
        accelerator,
        Player("generator", generator, generator_optimizer),
        Player("discriminator", discriminator, discriminator_optimizer),
        features,
        config.loss,
        config.adversarial,
        scale=config.scale,
        max_grad_norm=config.train.max_grad_norm,
        perceptual_frames=config.train.perceptual_frames,
        carried=carried,
    )


def build_networks(config: Config) -> tuple[Generator, Discriminator]:
    """Generator and discriminator with weights that depend on the seed only, on the CPU.

    Each is built under its own seed, so that a change to one network leaves the other's initial weights alone.
    """
    torch.manual_seed(mix(purpose("generator"), config.seed))
    generator = build_generator(config.generator, config.scale)
    generator.checkpoint_activations = config.train.checkpoint_activations
    torch.manual_seed(mix(purpose("discriminator"), config.seed))
    return generator, build_discriminator(config.discriminator, config.scale)
