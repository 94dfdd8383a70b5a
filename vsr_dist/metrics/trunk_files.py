"""What perceptual metrics are fed: where weight files lie, that they hold what is expected, and images large enough."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vsr_dist.core.errors import BadConfigError, BadInputError


def torchvision_file(name: str, model: str, what: str) -> Path:
    """A file of torchvision's download cache. BadConfigError says how to get it: nothing is downloaded here."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise BadConfigError(
            f"{what}: no file {path}; nothing is downloaded here: run "
            f"`python -c \"import torchvision as t; t.models.{model}(weights='DEFAULT')\"` where there is a network, "
            "or copy the file there"
        )
    return path


def read_tensors(path: Path, what: str, fix: str = "fetch it again") -> Mapping[str, Tensor]:
    """Tensors by name. BadConfigError if the file holds anything else; `fix` says what to do about it."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadConfigError(f"{what}: {path} is not a file of tensors that torch can load; {fix}") from error
    if not isinstance(state, Mapping):
        raise BadConfigError(f"{what}: {path} holds a {type(state).__name__}, expected tensors by name; {fix}")
    return state


def copy_tensor(target: Tensor, state: Mapping[str, Tensor], key: str, what: str, fix: str = "fetch it again") -> None:
    """Take over one tensor; a missing one, or one of another shape, is a BadConfigError."""
    if key not in state or state[key].shape != target.shape:
        found = tuple(state[key].shape) if key in state else "none"
        raise BadConfigError(f"{what}: expected {key} of shape {tuple(target.shape)}, found {found}; {fix}")
    with torch.no_grad():
        target.copy_(state[key])


def check_size(images_NCYX: Tensor, min_px: int, what: str) -> None:
    """BadInputError unless images (N, C, Y, X) are at least `min_px` in both directions."""
    if min(images_NCYX.shape[-2:]) < min_px:
        found = " x ".join(str(side) for side in images_NCYX.shape[-2:])
        raise BadInputError(f"{what}: expected images of at least {min_px} x {min_px} pixels, found {found}")
