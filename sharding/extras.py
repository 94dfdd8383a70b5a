"""What `pip install vsr-dist` leaves out: the extras of `pyproject.toml`, and the one error without them.

The module is here because `sharding` is the lowest package and imports no other; `vsr_dist.core.errors` is what
`vsr_dist` and `sweeps` import from.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from sharding.errors import MissingExtraError

Extra = Literal["studies", "postgres", "samples", "perceptual", "metrics", "s3", "onnx", "basicvsr"]


def import_extra(extra: Extra, module: str, what: str, instead: str = "") -> Any:  # noqa: ANN401 - a module
    """Import `module`, which `extra` brings.

    what: what needs it; instead: what else the user can do. Both are for the MissingExtraError that is raised where it
    cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(extra, str(error), what, instead) from error


def extra_files(extra: Extra, distribution: str, pattern: str, what: str, instead: str = "") -> list[Path]:
    """The files of `distribution`, which `extra` brings, whose names match `pattern`, sorted; never an empty list.

    The distribution is not imported. Raises MissingExtraError as `import_extra` does.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError as error:
        raise missing_extra(extra, f"{distribution} is not installed", what, instead) from error
    paths = [Path(str(file.locate())) for file in files if file.match(pattern)]
    found = sorted(path for path in paths if path.is_file())
    if not found:
        raise missing_extra(extra, f"{distribution} is installed without {pattern}", what, instead)
    return found


def missing_extra(extra: Extra, reason: str, what: str, instead: str = "") -> MissingExtraError:
    """The error of a missing extra, on one line: what needs it, the reason that was found, and what to do."""
    fix = f"run: pip install 'vsr-dist[{extra}]'{f'; or {instead}' if instead else ''}"
    return MissingExtraError(f"{what} needs the extra '{extra}' ({' '.join(reason.split())}); {fix}")
