"""What is evaluated: a trained generator, a method that needs no training, or a finished result.

Axis letters: H W low-resolution, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadConfigError
from vsr_dist.evaluation.sources import EvaluationSource
from vsr_dist.inference.engine import StreamOptions, VideoStream
from vsr_dist.inference.frames import Frame, FrameStream, from_network, to_network
from vsr_dist.inference.generator_io import load_generator
from vsr_dist.ops.resample import bicubic_upsample

OURS, OTHER, RESULT = "ours", "other", "result"
# OpenCV's filters, on 8-bit frames with pixel centres at half-integers. `bicubic` is ours (`ops/resample.py`).
_OPENCV = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "lanczos": cv2.INTER_LANCZOS4}
NAMED_METHODS = ("bicubic", "nearest", "bilinear", "lanczos", "identity")


@dataclass(frozen=True)
class Subject:
    """One column of the tables. The stream is None for a finished result, which the source itself provides."""

    name: str
    stream: FrameStream | None
    description: dict[str, Any]


class NamedMethod:
    """A `FrameStream` of one of `NAMED_METHODS`: every frame by itself. `identity` is for scale 1."""

    def __init__(self, name: str, scale: int, device: torch.device) -> None:
        self.name, self.scale, self._device = name, scale, device

    def push(self, frame_HWC: Frame) -> list[Frame]:
        """See `FrameStream`."""
        if self.name == "identity":
            return [frame_HWC]
        if self.name in _OPENCV:
            size = (frame_HWC.shape[1] * self.scale, frame_HWC.shape[0] * self.scale)
            fake_YXC: Frame = cv2.resize(frame_HWC, size, interpolation=_OPENCV[self.name])
            return [fake_YXC]
        fake_BCYX = bicubic_upsample(to_network(frame_HWC, self._device), self.scale)
        return [from_network(fake_BCYX[0], frame_HWC.dtype)]

    def finish(self) -> list[Frame]:
        """See `FrameStream`: nothing waits."""
        return []


def open_device(name: str, world: World) -> torch.device:
    """The device of that name; with several processes on a machine with GPUs, each uses its own."""
    if name == "cuda" and world.size > 1 and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BadConfigError(f"--device {name} cannot be used ({reason}); expected cpu, or cuda on a GPU") from error


def baseline(source: EvaluationSource, device: torch.device) -> list[Subject]:
    """The baseline of every table: bicubic, or the input itself where it is as large as the truth."""
    if not source.has_low:
        return []
    return [open_method("identity" if source.scale == 1 else "bicubic", source, device)]


def open_method(name: str, source: EvaluationSource, device: torch.device) -> Subject:
    """A method that needs no training. BadConfigError if it does not fit the source."""
    if name == "identity" and source.scale != 1:
        raise BadConfigError(
            f"--method identity does not change the size, but the truth is x{source.scale} as large as the input; "
            f"choose another of {', '.join(NAMED_METHODS)}"
        )
    return Subject(name, NamedMethod(name, source.scale, device), {"method": name})


def open_checkpoint(
    path: Path, source: EvaluationSource, device: torch.device, options: StreamOptions, name: str = OURS
) -> Subject:
    """A trained generator, run as `vsr-dist upscale` runs it. BadConfigError if its scale is not the source's."""
    generator, description = load_generator(path)
    if generator.scale != source.scale:
        raise BadConfigError(
            f"the generator in {path} has scale {generator.scale}, but {source.title} has scale {source.scale}; "
            f"evaluate on a set of scale {generator.scale}"
        )
    return Subject(name, VideoStream(generator, options, device), {**description, "inference": asdict(options)})
