"""A study of real trainings, two processes each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from sweeps.cli import main
from sweeps.config import load_study
from sweeps.storage import load_trials
from vsr_dist.config import load_config
from vsr_dist.core.errors import run_cli

CPU_2 = Path(__file__).parents[2] / "configs" / "accelerate" / "cpu-2.yaml"
BASE = """
name: tiny
data: {root: DATA, clip_frames: 3, crop_px: 16, batch_clips: 2, val_clips: 2, val_crop_px: 24}
generator: {kind: recurrent, channels: 4, num_blocks: 1}
discriminator: {kind: spatiotemporal, filters: 4, levels: 2}
loss: {perceptual: 0.0}
adversarial: {weight: 0.001}
train: {steps: 4, warmup_steps: 2, validate_every: 4, checkpoint_every: 4, processes: 2, threads: 1, pictures: 0}
tracking: {uri: "sqlite:///DIR/mlflow.db", log_model: false}
"""


@pytest.fixture
def study_file(tmp_path, shards, empty_mlflow_database):
    """A tiny base configuration, and a study of two trials."""
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    (tmp_path / "base.yaml").write_text(BASE.replace("DATA", str(shards)).replace("DIR", str(tmp_path)))
    study = {
        "name": "real",
        "base": str(tmp_path / "base.yaml"),
        "study_dir": str(tmp_path / "study"),
        "num_trials": 2,
        "set": ["train.log_every=2"],
        "trial_timeout_s": 240,
        "launch": {"config_file": str(CPU_2)},
        "space": {
            "adversarial.weight": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "discriminator.filters": {"type": "categorical", "choices": [4, 8]},
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path / "study.yaml"


@pytest.mark.slow
def test_two_trials_with_two_processes_each(study_file, tmp_path):
    assert run_cli(main, ["run", "--config", str(study_file)]) == 0
    study = load_study(study_file)
    trials = load_trials(study)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    for trial in trials:
        summary = json.loads((study.trial_dir(trial.number) / "summary.json").read_text())
        assert summary["processes"] == 2
        assert trial.value == summary["metrics"]["val/psnr_y"]
        assert trial.user_attrs["drift/auc"] == summary["metrics"]["drift/auc"]
        config = load_config(study.trial_dir(trial.number) / "config.yaml")
        assert config.adversarial.weight == trial.params["adversarial.weight"]
        assert config.discriminator.filters == trial.params["discriminator.filters"]
    assert _tracked_trials(tmp_path) == {
        "0": trials[0].user_attrs["mlflow_run_ids"][0],
        "1": trials[1].user_attrs["mlflow_run_ids"][0],
    }
    assert run_cli(main, ["promote", "--config", str(study_file)]) == 0
    best = load_config(study.directory / "best.yaml")
    assert (best.name, best.tracking.tags) == ("real-best", {})


def _tracked_trials(folder: Path) -> dict[str, str]:
    """Trial number -> id of the MLflow run with the study's tag."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.study = 'real' and tags.kind = 'trial'")
    assert all(run.info.status == "FINISHED" for run in runs)
    return {run.data.tags["trial"]: run.info.run_id for run in runs}
