"""How the processes of a training are set up: what the launcher may ask for, and how the networks are laid out."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vsr_dist.core.collectives import current_world, meet_again
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.world import World
from vsr_dist.training.train_config import TrainConfig

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
        f"accelerate was told to use {engine}; these networks are trained with DDP: use a configuration such as "
        "configs/accelerate/node-8.yaml"
        for variable, engine in _ENGINES.items()
        if environment.get(variable, "false").lower() == "true"
    ]
    mixed = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    ours = "bf16" if config.precision == "bf16" else "no"
    if mixed in _UNSAFE:
        faults.append(
            f"accelerate's mixed_precision is {mixed}, in which these networks are not safe: losses and gradient "
            "penalties leave its range, and one loss scaler cannot serve two players; set mixed_precision: 'no' there, "
            "and train.precision=bf16 here"
        )
    elif mixed not in ("no", ours):
        faults.append(
            f"accelerate's mixed_precision is {mixed}, but train.precision is {config.precision}; set "
            f"mixed_precision: 'no' there, or train.precision={mixed} here"
        )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        faults.append("accelerate was told to compile (dynamo_backend); use train.compile=true instead")
    micro_batches = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if micro_batches not in ("1", str(config.accumulation_steps)):
        faults.append(
            f"accelerate's gradient_accumulation_steps is {micro_batches}, but train.accumulation_steps is "
            f"{config.accumulation_steps}; leave it to the latter"
        )
    return faults


def refuse_launch(config: TrainConfig) -> None:
    """Refuse a launch that asks for what this training must not be given; before any process group exists."""
    faults = launch_faults(config, os.environ)
    if faults:
        raise BadConfigError(f"launch: {'; '.join(faults)}")


def make_accelerator(config: TrainConfig) -> tuple[Accelerator, World]:
    """The accelerator of this process and its place; with several processes this makes the process group."""
    meet_again("nccl" if torch.cuda.is_available() else "gloo")
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
        raise BadConfigError("train.compile=true on a GPU needs the package triton; install it or switch it off")


def has_batch_norm(network: nn.Module) -> bool:
    """True if a layer of `network` normalises by statistics of the batch."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def lay_out(config: TrainConfig, *networks: nn.Module) -> None:
    """Bring the weights into the configured memory format, in place; before optimisers and averages see them."""
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
