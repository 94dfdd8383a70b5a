"""A small packed set of real video, and trainings small enough to compare bit for bit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from forked import run_forked, run_ranks

from sharding.pack import PackJob, pack
from sharding.plan import PackOptions

ROOT = Path(__file__).resolve().parents[2]

TINY = {
    "name": "tiny",
    "seed": 3,
    "data": {"clip_frames": 4, "crop_px": 12, "val_crop_px": 16, "batch_clips": 4, "val_clips": 3},
    "generator": {"kind": "recurrent", "channels": 8, "num_blocks": 2},
    "discriminator": {"kind": "spatiotemporal", "filters": 8, "levels": 2, "dropout": 0.0},
    "perceptual": {"layer": 4},
    "loss": {"perceptual": 0.01, "tv": 1e-3, "temporal": 0.1},
    "adversarial": {"weight": 0.01, "r1_gamma": 0.1, "r2_gamma": 0.1},
    "train": {
        "steps": 20,
        "warmup_steps": 4,
        "ramp_steps": 4,
        "threads": 1,
        "log_every": 5,
        "validate_every": 10,
        "checkpoint_every": 10,
        "keep_checkpoints": 5,
    },
    "tracking": {"mlflow": False},
}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, sample_clips: dict[str, Path]) -> Path:
    """carphone, its last fifth held out."""
    out = tmp_path_factory.mktemp("shards") / "data"
    pack(PackJob(out, (sample_clips["carphone_pristine"],), options=PackOptions(holdout_tail=0.2)))
    return out


class Launcher:
    """Writes the tiny configuration once and runs it in processes of its own (`forked.py`), without a launcher."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder = folder
        self.config = folder / "tiny.yaml"
        self.config.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "root": str(shards)}}))

    def run(self, name: str, *overrides: str, processes: int = 1, options: tuple[str, ...] = ()) -> Path:
        """Train into `folder/name`; returns the run directory. A failing run fails the test with its output."""
        done = self.attempt(name, *overrides, processes=processes, options=options)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.folder / name

    def attempt(
        self, name: str, *overrides: str, processes: int = 1, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        arguments = ["--config", str(self.config), *options]
        for override in (f"run_dir={self.folder / name}", *overrides):
            arguments += ["--set", override]
        if processes == 1:
            return run_forked("vsr_dist.train", arguments, self.folder)
        return run_ranks(processes, "vsr_dist.train", arguments, self.folder)


@pytest.fixture
def launcher(tmp_path: Path, shards: Path) -> Launcher:
    return Launcher(tmp_path, shards)
