"""A small packed set of real video, and trainings small enough to compare bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import yaml

from sharding.pack import PackJob, pack
from sharding.plan import PackOptions

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "name": "tiny",
    "seed": 3,
    "data": {"clip_frames": 4, "crop_px": 12, "val_crop_px": 16, "batch_clips": 4, "val_clips": 3},
    "generator": {"kind": "recurrent", "channels": 8, "num_blocks": 2},
    "discriminator": {"kind": "spatiotemporal", "filters": 8, "levels": 2, "dropout": 0.0},
    "perceptual": {"layer": 4},
    "loss": {"adversarial": 0.01, "perceptual": 0.01, "tv": 1e-3, "temporal": 0.1},
    "adversary": {"r1_gamma": 0.1, "r2_gamma": 0.1},
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
    """Writes the tiny configuration once and runs it in processes of its own."""

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
            return train_forked(arguments, self.folder)
        cpu = str(ROOT / "configs/accelerate/cpu-2.yaml")
        launch = ["accelerate.commands.launch", "--config_file", cpu, "--num_processes", str(processes), "-m"]
        command = [sys.executable, "-m", *launch, "vsr_dist.train", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment, check=False)


def train_forked(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m vsr_dist.train ARGUMENTS` in `folder`, in a process that is forked with all imports done.

    Starting Python and importing torch takes longer than most of these trainings.
    """
    outputs = folder / "stdout.txt", folder / "stderr.txt"
    for path in outputs:
        path.write_text("")
    process = _forks().Process(target=_train, args=(arguments, folder, *outputs, {"OMP_NUM_THREADS": "1"}))
    process.start()
    process.join()
    texts = [path.read_text() for path in outputs]
    return subprocess.CompletedProcess(["vsr_dist.train", *arguments], int(process.exitcode or 0), *texts)


def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vsr_dist.train"])
    return context


def _train(arguments: list[str], folder: Path, stdout: Path, stderr: Path, environment: dict[str, str]) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.update(environment)
    import vsr_dist.train

    sys.argv = [vsr_dist.train.__file__, *arguments]
    sys.exit(vsr_dist.train.main(arguments))


@pytest.fixture
def launcher(tmp_path: Path, shards: Path) -> Launcher:
    return Launcher(tmp_path, shards)
