"""Versions of what decides a result, for summaries and reports."""

from __future__ import annotations

import platform
from importlib.metadata import version

_PACKAGES = (
    "vsr-dist",
    "torch",
    "accelerate",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "webdataset",
)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is computed."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
