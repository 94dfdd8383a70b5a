"""Files that an installed distribution brings along, found without importing its code."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from vsr_dist.core.errors import MissingExtraError

STLPIPS = "stlpips_pytorch"


def distribution_file(distribution: str, name: str, what: str, fix: str) -> Path:
    """Where `name` of an installed distribution lies.

    `what` opens the MissingExtraError that is raised where there is none, and `fix` says what to do about it.
    """
    shown = distribution.replace("_", "-")
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(f"{what}: {shown}, which brings its weights, is missing; {fix}") from error
    found = [Path(str(file.locate())) for file in files if file.name == name]
    if not found or not found[0].is_file():
        raise MissingExtraError(f"{what}: {shown} is installed without {name}; {fix}")
    return found[0]
