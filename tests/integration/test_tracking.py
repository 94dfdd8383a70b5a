"""What MLflow holds after a run, read back through MLflow's own client from a SQLite store."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from train_launcher import Launcher

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
def tracked(launcher: Launcher) -> tuple[Launcher, tuple[str, ...], str]:
    uri = f"sqlite:///{launcher.folder}/mlflow.db"
    return launcher, (*SHORT, "tracking.mlflow=true", f"tracking.uri={uri}", "tracking.experiment=it's a test"), uri


def runs(uri: str) -> list[mlflow.entities.Run]:
    mlflow.set_tracking_uri(uri)
    return mlflow.search_runs(experiment_names=["it's a test"], output_format="list")


def test_two_processes_make_one_complete_run(tracked):
    launcher, overrides, uri = tracked
    run_dir = launcher.run("run", *overrides, "tracking.tags.team=blue", processes=2)
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
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert len([path for path in pictures if path.endswith(".png")]) == 3 * 3  # three windows at steps 0, 3 and 6
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "summary.json", "generator.safetensors", "generator.json"} <= files


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


def test_a_run_that_diverges_ends_as_failed_and_names_the_term(tracked):
    launcher, overrides, uri = tracked
    done = launcher.attempt("run", *overrides, "generator_optimizer.learning_rate=1e30")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "not finite: the term(s) loss_g/" in done.stderr
    (run,) = runs(uri)
    assert run.info.status == "FAILED"
    assert not (Path(launcher.folder) / "run" / "summary.json").exists()


@pytest.mark.parametrize("uri", ["ftp://nowhere", "http://127.0.0.1:9"], ids=["unknown-scheme", "closed-port"])
def test_an_unreachable_server_is_an_error_before_training(launcher, uri):
    done = launcher.attempt("run", *SHORT, "tracking.mlflow=true", f"tracking.uri={uri}")
    assert done.returncode == 2
    assert f"tracking.uri={uri}" in done.stderr
    assert "Traceback" not in done.stderr


def start_server(port: int, folder: Path) -> subprocess.Popen[bytes]:
    """A real MLflow server on loopback, answering when this returns."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/served"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < 120:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except OSError:
            time.sleep(0.3)
    stop_server(server)
    raise TimeoutError("the MLflow server did not start")


def stop_server(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(30)


def test_a_server_that_dies_costs_no_step_and_takes_the_model_later(launcher, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    overrides = ("train.steps=60", "train.log_every=20", "train.validate_every=60", "train.checkpoint_every=60")
    overrides += ("train.pictures=0", "tracking.mlflow=true", f"tracking.uri=http://127.0.0.1:{port}")
    server = start_server(port, launcher.folder)
    killer = threading.Thread(target=kill_after_first_line, args=(server, launcher.folder / "run" / "metrics.jsonl"))
    killer.start()
    done = launcher.attempt("run", *overrides)
    killer.join()
    assert "warning: MLflow took no metrics" in done.stdout
    assert done.returncode == 2
    assert "--resume auto" in done.stderr and "Traceback" not in done.stderr
    assert {line["step"] for line in read_metrics(launcher.folder / "run" / "metrics.jsonl")} == {0, 20, 40, 60}
    server = start_server(port, launcher.folder)
    try:
        launcher.run("run", *overrides, options=("--resume", "auto"))
        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
        (run,) = mlflow.search_runs(experiment_names=["vsr-dist"], output_format="list")
        assert run.info.status == "FINISHED"
        assert {"generator.safetensors", "summary.json"} <= {
            file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)
        }
    finally:
        stop_server(server)


def kill_after_first_line(server: subprocess.Popen[bytes], file: Path) -> None:
    begin_s = time.monotonic()
    while not (file.exists() and '"step": 0,' in file.read_text()) and time.monotonic() - begin_s < 120:
        time.sleep(0.02)
    stop_server(server)
