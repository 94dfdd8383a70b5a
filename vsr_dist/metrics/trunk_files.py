"""Weight files of perceptual metrics: where they lie, and that they hold what is expected."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vsr_dist.core.errors import BadConfigError


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


def read_tensors(path: Path, what: str) -> Mapping[str, Tensor]:
    """Tensors by name. BadConfigError if the file holds anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadConfigError(f"{what}: {path} is not a file of tensors that torch can load; fetch it again") from error
    if not isinstance(state, Mapping):
        raise BadConfigError(f"{what}: {path} holds a {type(state).__name__}, expected tensors by name")
    return state


def copy_tensor(target: Tensor, state: Mapping[str, Tensor], key: str, what: str) -> None:
    """Take over one tensor; a missing one, or one of another shape, is a BadConfigError."""
    if key not in state or state[key].shape != target.shape:
        found = tuple(state[key].shape) if key in state else "none"
        raise BadConfigError(f"{what}: expected {key} of shape {tuple(target.shape)}, found {found}; fetch it again")
    with torch.no_grad():
        target.copy_(state[key])
