"""A trained generator by name, and the class that enlarges frames with it: `vsr_dist.Upscaler`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vsr_dist.inference
from vsr_dist.core.errors import BadCheckpointError, BadConfigError
from vsr_dist.inference.engine import Precision, StreamOptions, VideoStream
from vsr_dist.inference.frames import Frame
from vsr_dist.inference.generator_io import DESCRIPTION_NAME, WEIGHTS_NAME, load_generator
from vsr_dist.models.base import Generator
from vsr_dist.training.tracked_runs import SCHEMES, download_generator

# The generator that comes with the package.
DEFAULT_FOLDER = Path(vsr_dist.inference.__file__).parent / "default"


def find_generator(
    checkpoint: str | Path | None = None, tracking_uri: str | None = None
) -> tuple[Generator, dict[str, Any]]:
    """(The generator in eval mode on the CPU, its description) by any of the names that it may have.

    checkpoint: None for the one that comes with the package; a run directory, or its generator.safetensors with
    generator.json beside it; `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `runs:/RUN_ID` for one in MLflow, at
    `tracking_uri` or MLFLOW_TRACKING_URI. No configuration, no training code and no pickle is needed or read. The
    description has the file's `scale`, `generator` and `provenance`, and `checkpoint`, where it was found.
    Raises BadCheckpointError or BadInputError, which say what is missing.
    """
    is_remote = str(checkpoint).startswith(SCHEMES)
    if tracking_uri is not None and not is_remote:
        raise BadConfigError(
            "a tracking URI needs an MLflow checkpoint, such as models:/NAME/VERSION or runs:/RUN_ID, found "
            f"{checkpoint or 'none'}"
        )
    if checkpoint is None:
        if not (DEFAULT_FOLDER / WEIGHTS_NAME).is_file():
            raise BadCheckpointError(
                f"the packaged generator is missing ({DEFAULT_FOLDER / WEIGHTS_NAME}); reinstall vsr-dist, or give "
                "a checkpoint"
            )
        generator, description = load_generator(DEFAULT_FOLDER)
        return generator, {**description, "checkpoint": "the one that comes with vsr-dist"}
    found = {}
    if is_remote:
        with tempfile.TemporaryDirectory(prefix="vsr-dist-") as folder:
            found = download_generator(str(checkpoint), tracking_uri, (WEIGHTS_NAME, DESCRIPTION_NAME), Path(folder))
            generator, description = load_generator(Path(folder))
    else:
        generator, description = load_generator(Path(checkpoint))
    return generator, {**description, "checkpoint": str(checkpoint), **found}


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of this name; None takes a GPU if there is one. BadConfigError if it cannot be used."""
    try:
        return torch.empty(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BadConfigError(f"device {name} cannot be used ({reason}); expected cpu, or cuda on a GPU") from error


class Upscaler:
    """Enlarges the frames of videos with a trained generator.

    Example:
        >>> import numpy as np
        >>> from vsr_dist import Upscaler
        >>> upscaler = Upscaler.from_checkpoint("demo/run", device="cpu")
        >>> frames = (np.full((36, 64, 3), value, np.uint8) for value in (10, 20, 30))
        >>> for image in upscaler.upscale(frames):
        ...     print(image.shape, image.dtype)
        (144, 256, 3) uint8
        (144, 256, 3) uint8
        (144, 256, 3) uint8

    scale: enlargement in both directions. description: what is known of the generator.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        device: str | torch.device | None = None,
        description: dict[str, Any] | None = None,
        options: StreamOptions | None = None,
    ) -> None:
        """The generator is moved to the device (None: a GPU if there is one) and put into evaluation mode."""
        self._device = find_device(device)
        self._generator = generator.eval().requires_grad_(False).to(self._device)
        self._options = options or StreamOptions()
        self.scale = generator.scale
        self.description = description or {}

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        tile_px: int | None = None,
        overlap_px: int | None = None,
        precision: Precision = "fp32",
        compile: bool = False,
        cuts: bool = True,
        tracking_uri: str | None = None,
    ) -> Upscaler:
        """From whatever `find_generator` knows: a run directory, a file, a name in MLflow; None for the default.

        For the options see `vsr_dist.inference.engine.StreamOptions`.
        """
        options = StreamOptions(tile_px=tile_px, overlap_px=overlap_px, precision=precision, compile=compile, cuts=cuts)
        generator, description = find_generator(path, tracking_uri)
        return cls(generator, device=device, description=description, options=options)

    @classmethod
    def from_registry(
        cls,
        uri: str,
        **options: Any,  # noqa: ANN401 - those of from_checkpoint
    ) -> Upscaler:
        """From MLflow: `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `runs:/RUN_ID`; options of `from_checkpoint`."""
        if not uri.startswith(SCHEMES):
            raise BadConfigError(f"expected models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID, found {uri!r}")
        return cls.from_checkpoint(uri, **options)

    def open(self) -> VideoStream:
        """A stream for one video, to which frames are pushed one by one."""
        return VideoStream(self._generator, self._options, self._device)

    def upscale(self, frames: Iterable[Any]) -> Iterator[Frame]:
        """The enlarged frames of one video, in order, as they are finished; nothing runs before the first is taken.

        frames: uint8 or uint16 RGB (H, W, 3) of one size, as NumPy arrays or what `np.asarray` takes without a copy
        of ours, such as tensors on the CPU. The results are arrays of the same dtype, (H * scale, W * scale, 3). A few
        frames are held back where a scene may cut. Memory does not grow with the length of the video.
        """
        stream = self.open()
        for frame_HWC in frames:
            yield from stream.push(np.asarray(frame_HWC))
        yield from stream.finish()
