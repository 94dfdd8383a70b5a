"""Run the commands of `sharding` in this process, and compare the folders that they write."""

from __future__ import annotations

from pathlib import Path

from sharding.cli import main
from sharding.errors import run_cli
from sharding.sources import find_samples

CLIPS = {path.stem: path for path in find_samples()}


def run(*argv: object) -> int:
    """Exit status of `python -m sharding ARGV`."""
    return run_cli(main, [str(word) for word in argv])


def contents(root: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all files in a folder, hidden ones included."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
