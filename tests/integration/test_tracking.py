"""What MLflow holds after a run, read back through MLflow's own client from a SQLite store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from train_launcher import Launcher

from vsr_dist.training.metrics_file import read_metrics

pytestmark = pytest.mark.slow
SHORT = (
    "train.steps=6",
    "train.warmup_steps=2",
    "train.log_every=2",
    "train.validate_every=3",
    "train.checkpoint_every=3",
)


@pytest.fixture
def tracked(launcher: Launcher, empty_mlflow_database: Path) -> tuple[Launcher, tuple[str, ...], str]:
    shutil.copy(empty_mlflow_database, launcher.folder / "mlflow.db")
    uri = f"sqlite:///{launcher.folder}/mlflow.db"
    return launcher, (*SHORT, "tracking.mlflow=true", f"tracking.uri={uri}", "tracking.experiment=it's a test"), uri


def runs(uri: str) -> list[mlflow.entities.Run]:
    mlflow.set_tracking_uri(uri)
    return mlflow.search_runs(experiment_names=["it's a test"], output_format="list")


def test_two_processes_make_one_complete_run(tracked):
    launcher, overrides, uri = tracked
    overrides += ("tracking.tags.team=blue", "tracking.system_metrics=true")
    run_dir = launcher.run("run", *overrides, processes=2)
    (run,) = runs(uri)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny"
    assert run.data.tags["team"] == "blue"
    assert run.data.params["generator.channels"] == "8"
    assert run.data.params["run.processes"] == "2"
    client = mlflow.MlflowClient()
    written = read_metrics(run_dir / "metrics.jsonl")
    for name in {key for line in written for key in line} - {"step", "time_s"}:
        points = [(line["step"], line[name]) for line in written if name in line]
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] == points
    assert {"loss_g/adversarial", "loss_d/total", "val/psnr_y", "drift/normalized_loss"} <= run.data.metrics.keys()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= run.data.metrics.keys()
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert len([path for path in pictures if path.endswith(".png")]) == 3 * 3  # three windows at steps 0, 3 and 6
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "summary.json", "generator.safetensors", "generator.json", "environment.json"} <= files
    assert "drift.png" in files
    words = json.loads((run_dir / "summary.json").read_text())["drift"]
    assert run.data.tags["drift/verdict"] in words
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == json.loads((run_dir / "summary.json").read_text())["data_digest"]
    assert "vsr_dist/train.py --config" in run.data.tags["command"]
    surroundings = json.loads((run_dir / "environment.json").read_text())
    assert surroundings["packages"]["torch"] == surroundings["versions"]["torch"]
    assert surroundings["launch"]["WORLD_SIZE"] == "2"
    assert surroundings["git"] == {}  # the training ran outside any checkout


def test_the_logged_model_loads_and_enlarges_other_sizes(tracked):
    launcher, overrides, uri = tracked
    launcher.run("run", *overrides)
    (run,) = runs(uri)
    (model,) = mlflow.search_logged_models(experiment_ids=[run.info.experiment_id], output_format="list")
    generator = mlflow.pytorch.load_model(model.model_uri)
    assert generator(torch.rand(1, 2, 3, 10, 14)).shape == (1, 2, 3, 40, 56)
    served = mlflow.pyfunc.load_model(model.model_uri)
    assert (Path(mlflow.artifacts.download_artifacts(model.model_uri)) / "code" / "vsr_dist").is_dir()
    assert served.predict(np.zeros((1, 2, 3, 8, 8), np.float32)).shape == (1, 2, 3, 32, 32)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tracked):
    launcher, overrides, uri = tracked
    run_dir = launcher.run("run", *overrides, "train.keep_checkpoints=5")
    shutil.rmtree(run_dir / "checkpoints" / "step_00000006")
    (run_dir / "summary.json").unlink()
    # Other io and speed settings are allowed, although MLflow's parameters cannot change.
    launcher.run("run", *overrides, "train.log_every=1", "data.reader_threads=2", options=("--resume", "auto"))
    (run,) = runs(uri)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.log_every"] == "2"
    assert run.data.tags["resumed_from_step"] == "3"
    for name in ("loss_g/total", "val/psnr_y"):
        steps = [metric.step for metric in mlflow.MlflowClient().get_metric_history(run.info.run_id, name)]
        assert len(steps) == len(set(steps)), name
    pictures = mlflow.MlflowClient().list_artifacts(run.info.run_id, "images")
    assert len([file for file in pictures if file.path.endswith(".png")]) == 3 * 3
    resumes = mlflow.MlflowClient().list_artifacts(run.info.run_id, "resumes")
    assert [file.path for file in resumes] == ["resumes/step_00000003.json"]


def test_a_run_that_diverges_ends_as_failed_and_names_the_term(tracked):
    launcher, overrides, uri = tracked
    done = launcher.attempt("run", *overrides, "generator_optimizer.learning_rate=1e30")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "not finite: the term(s) loss_g/" in done.stderr
    (run,) = runs(uri)
    assert run.info.status == "FAILED"
    assert not (Path(launcher.folder) / "run" / "summary.json").exists()


def test_a_uri_that_can_never_work_is_an_error_before_training(launcher):
    done = launcher.attempt("run", *SHORT, "tracking.mlflow=true", "tracking.uri=ftp://nowhere")
    assert done.returncode == 2
    assert "tracking.uri=ftp://nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (launcher.folder / "run" / "metrics.jsonl").exists()
