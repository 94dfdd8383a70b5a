"""What is evaluated: a trained generator, a method that needs no training, or a finished result."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.world import World
from vsr_dist.evaluation.sources import EvaluationSource
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.inference.named_methods import NAMED_METHODS, make_method
from vsr_dist.inference.sequence import GeneratorUpscaler, SequenceUpscaler

OURS, OTHER, RESULT = "ours", "other", "result"


@dataclass(frozen=True)
class Subject:
    """One column of the tables. The upscaler is None for a finished result, which the source itself brings."""

    name: str
    upscaler: SequenceUpscaler | None
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


def baseline(source: EvaluationSource) -> list[Subject]:
    """What everything is measured beside: bicubic, or the input as it is where it is as large as the truth."""
    if not source.has_low:
        return []
    return [open_method("identity" if source.scale == 1 else "bicubic", source)]


def open_method(name: str, source: EvaluationSource) -> Subject:
    """A method that needs no training. BadConfigError if it does not fit the source."""
    if name == "identity" and source.scale != 1:
        raise BadConfigError(
            f"--method identity leaves the input as it is, but the truth is x{source.scale} as large; choose another "
            f"of {', '.join(NAMED_METHODS)}"
        )
    return Subject(name, make_method(name, source.scale), {"method": name})


def open_checkpoint(path: Path, source: EvaluationSource, device: torch.device, name: str = OURS) -> Subject:
    """A trained generator. BadConfigError if its scale is not that of the source."""
    generator, description = load_generator(path)
    if generator.scale != source.scale:
        raise BadConfigError(
            f"the generator in {path} enlarges x{generator.scale}, but {source.title} has scale {source.scale}; "
            f"evaluate on a set of scale {generator.scale}"
        )
    return Subject(name, GeneratorUpscaler(generator.to(device)), description)
