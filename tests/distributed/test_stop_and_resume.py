"""What ends a run early, and what a resumed run accepts."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import mlflow
import pytest
from forked import Forked, start_ranks
from train_launcher import Launcher

from sharding.pack import PackJob, pack
from sharding.plan import PackOptions
from vsr_dist.training import checkpoint

pytestmark = pytest.mark.slow
LONG = ("train.steps=100000", "train.log_every=1", "train.validate_every=100000", "train.checkpoint_every=100000")


def start(launcher: Launcher, name: str, *overrides: str, processes: int) -> list[Forked]:
    arguments = ["--config", str(launcher.config)]
    for override in (f"run_dir={launcher.folder / name}", *overrides):
        arguments += ["--set", override]
    return start_ranks(processes, "vsr_dist.train", arguments, launcher.folder)


def wait_for_metrics(run_dir: Path, limit_s: float = 240.0) -> None:
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < limit_s:
        file = run_dir / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= 3:
            return
        time.sleep(0.2)
    raise TimeoutError(f"no log lines in {run_dir} within {limit_s:.0f} s")


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_a_checkpoint_and_ends_the_run_as_killed(launcher, empty_mlflow_database, processes):
    shutil.copy(empty_mlflow_database, launcher.folder / "mlflow.db")
    uri = f"sqlite:///{launcher.folder}/mlflow.db"
    tracking = ("tracking.mlflow=true", f"tracking.uri={uri}")
    ranks = start(launcher, "run", *LONG, *tracking, processes=processes)
    wait_for_metrics(launcher.folder / "run")
    for rank in ranks:
        rank.terminate()
    assert [rank.wait(120) for rank in ranks] == [143] * processes
    assert "stopped by SIGTERM; saved step" in ranks[0].output()[0]
    assert checkpoint.newest(launcher.folder / "run" / "checkpoints") is not None
    assert not (launcher.folder / "run" / "summary.json").exists()
    mlflow.set_tracking_uri(uri)
    (run,) = mlflow.search_runs(experiment_names=["vsr-dist"], output_format="list")
    assert run.info.status == "KILLED"


def test_a_second_training_in_the_same_folder_is_refused(launcher):
    (process,) = start(launcher, "run", *LONG, processes=1)
    try:
        wait_for_metrics(launcher.folder / "run")
        second = launcher.attempt("run", options=("--resume", "auto"))
        assert second.returncode == 2
        assert "is in use by another training" in second.stderr
    finally:
        process.terminate()
        process.wait(120)


def test_other_data_is_refused_on_resume(launcher, sample_clips, tmp_path):
    launcher.run("run", "train.steps=2", "train.warmup_steps=1")
    other = tmp_path / "other"
    pack(PackJob(other, (sample_clips["carphone_distorted"],), options=PackOptions(holdout_tail=0.2)))
    (launcher.folder / "run" / "summary.json").unlink()
    overrides = ("train.steps=2", "train.warmup_steps=1", f"data.root={other}")
    done = launcher.attempt("run", *overrides, options=("--resume", "auto"))
    assert done.returncode == 2
    assert "was trained on the shard set with digest" in done.stderr


def test_a_mistake_on_two_processes_is_said_once(launcher):
    launcher.run("run", "train.steps=2", "train.warmup_steps=1", processes=2)
    done = launcher.attempt("run", "train.steps=2", "train.warmup_steps=1", processes=2)
    assert done.stderr.count("error: ") == 1
    missing = launcher.attempt("other", f"data.root={launcher.folder}/absent", processes=2)
    assert missing.stderr.count("has no index.json") == 1
