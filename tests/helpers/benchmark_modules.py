"""The scripts of benchmarks/ and experiments/ as modules, for tests of what they make of their numbers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS, EXPERIMENTS = (str(ROOT / name) for name in ("benchmarks", "experiments"))


def import_benchmark(name: str) -> ModuleType:
    """`benchmarks/NAME.py`, whose imports of its neighbours work as when it is run."""
    return _import_script([BENCHMARKS, EXPERIMENTS], name)


def import_experiment(name: str) -> ModuleType:
    """The same for `experiments/NAME.py`."""
    return _import_script([EXPERIMENTS, BENCHMARKS], name)


def _import_script(folders: list[str], name: str) -> ModuleType:
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = before
