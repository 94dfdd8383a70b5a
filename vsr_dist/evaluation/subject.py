"""What is evaluated: a trained generator, or a method that needs no training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.world import World
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.inference.sequence import BicubicUpscaler, GeneratorUpscaler, SequenceUpscaler


@dataclass(frozen=True)
class Subject:
    """What is measured: a name for the tables, the upscaler, and where it comes from."""

    name: str
    upscaler: SequenceUpscaler
    description: dict[str, Any]


def open_device(name: str, world: World) -> torch.device:
    """The device that was asked for; with several processes on a machine with GPUs, each takes its own."""
    if name == "cuda" and world.size > 1 and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BadConfigError(f"--device {name} cannot be used ({reason}); expected cpu, or cuda on a GPU") from error


def open_subject(method: str | None, checkpoint: Path, scale: int, data: Path, device: torch.device) -> Subject:
    """The network or method to be measured on a set of that scale. BadConfigError if they do not fit."""
    if method == "bicubic":
        return Subject("bicubic", BicubicUpscaler(scale), {"method": "bicubic"})
    generator, description = load_generator(checkpoint)
    if generator.scale != scale:
        raise BadConfigError(
            f"the generator in {checkpoint} enlarges x{generator.scale}, but {data} is packed at "
            f"scale {scale}; evaluate on a set of scale {generator.scale}"
        )
    return Subject("ours", GeneratorUpscaler(generator.to(device)), description)
