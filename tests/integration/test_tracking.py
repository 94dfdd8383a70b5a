"""What MLflow holds after a run, read back through MLflow's own client from a SQLite store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from train_launcher import Launcher

from vsr_dist.inference.generator_io import load_generator
from vsr_dist.training.tracking import read_metrics

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
    run_dir = launcher.run("run #1? 50%41", *overrides)  # What MLflow would take for parts of a URI.
    (run,) = runs(uri)
    models = mlflow.search_logged_models(experiment_ids=[run.info.experiment_id], output_format="list")
    assert {model.name for model in models} <= {"generator", "best"}
    model = next(model for model in models if model.name == "generator")
    files = [p for p in Path(mlflow.artifacts.download_artifacts(model.model_uri)).rglob("*") if p.is_file()]
    assert {"generator.safetensors", "generator.json", "source.zip", "MLmodel"} <= {path.name for path in files}
    assert len(files) < 12
    served = mlflow.pyfunc.load_model(model.model_uri)
    low_BTCHW = np.random.default_rng(0).random((1, 2, 3, 10, 14), np.float32)
    expected = load_generator(run_dir)[0](torch.from_numpy(low_BTCHW)).numpy()
    assert np.array_equal(served.predict(low_BTCHW), expected)
    # The packed source is enough: vsr_dist need not be installed where the model is served.
    code = (
        "import os, sys; sys.path = [p for p in sys.path if not os.path.isdir(f'{p}/vsr_dist')]; sys.argv = ['x']\n"
        "import mlflow, numpy; model = mlflow.pyfunc.load_model(os.environ['MODEL'])\n"
        "shape = model.predict(numpy.zeros((1, 2, 3, 8, 8), 'float32')).shape\n"
        "import vsr_dist; print(shape, vsr_dist.__file__)"
    )
    folder = next(path.parent for path in files if path.name == "MLmodel")
    variables = {**os.environ, "MODEL": str(folder), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=run_dir, env=variables
    )
    assert "(1, 2, 3, 32, 32)" in done.stdout and "source.zip" in done.stdout, done.stdout + done.stderr


def test_the_best_checkpoint_is_a_model_with_its_metrics_and_data(tracked):
    launcher, overrides, uri = tracked
    options = ("train.best_metric=val/tdiff",)
    run_dir = launcher.run("run", *overrides, *options)
    best = json.loads((run_dir / "checkpoints" / "best" / "state.json").read_text())
    (run,) = runs(uri)
    client = mlflow.MlflowClient()
    models = {m.name: m for m in client.search_logged_models([run.info.experiment_id])}
    steps = {"generator": 6} if best["step"] == 6 else {"generator": 6, "best": best["step"]}
    assert models.keys() == steps.keys()
    for name, step in steps.items():
        model = client.get_logged_model(models[name].model_id)
        assert (model.params["step"], model.source_run_id, str(model.status)) == (str(step), run.info.run_id, "READY")
        written = next(line for line in read_metrics(run_dir / "metrics.jsonl", '"val/') if line["step"] == step)
        assert {m.key: m.value for m in model.metrics} == {
            k: v for k, v in written.items() if k not in ("step", "time_s")
        }
        digest = json.loads((run_dir / "summary.json").read_text())["data_digest"]
        assert {(m.dataset_digest, m.step) for m in model.metrics} == {(digest, step)}
    assert load_generator(run_dir / "best")[1]["provenance"]["steps"] == best["step"]
    assert load_generator(run_dir)[1]["provenance"]["mlflow"] == {"uri": uri, "run_id": run.info.run_id}
    # Linking does not double the run's own points.
    for name in ("val/psnr_y", "val/tdiff"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == [0, 3, 6]


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
