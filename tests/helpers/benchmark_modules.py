"""The scripts of benchmarks/ and experiments/ as modules, for tests of what they make of their numbers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def import_benchmark(name: str) -> ModuleType:
    """`benchmarks/NAME.py`, whose imports of its neighbours work as when it is run."""
    return _import_script(ROOT / "benchmarks", name)


def import_experiment(name: str) -> ModuleType:
    """The same for `experiments/NAME.py`."""
    return _import_script(ROOT / "experiments", name)


def _import_script(folder: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
