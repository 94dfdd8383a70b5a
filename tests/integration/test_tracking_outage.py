"""A real MLflow server that is away, dies, or answers 500: nothing is lost, nothing is doubled, no step waits."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from forked import Forked, forks, start_ranks
from mlflow_server import Gate, free_port
from train_launcher import Launcher

from vsr_dist.cli import main
from vsr_dist.core.errors import BadConfigError
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.models import build_generator
from vsr_dist.models.espcn import EspcnConfig
from vsr_dist.training import checkpoint, tracking
from vsr_dist.training.tracking import Tracker, TrackingConfig, read_metrics
from vsr_dist.upscaler import find_generator

pytestmark = pytest.mark.slow
PICTURE = np.full((8, 8, 3), 77, np.uint8)


def open_tracker(run_dir: Path, uri: str, resume_step: int = 0, **options) -> Tracker:
    run_dir.mkdir(exist_ok=True)
    config = TrackingConfig(uri=uri, experiment=f"it's {run_dir.parent.name}", **options)
    tracker = tracking.open_tracker(config, "name", run_dir, resume_step=resume_step)
    tracker.start()
    return tracker


def wait_until_sent(tracker: Tracker) -> None:
    end_s = time.monotonic() + 120
    while tracker.run.num_waiting() != (0, 0):
        assert time.monotonic() < end_s
        time.sleep(0.02)


def train(tracker: Tracker, first: int, last: int) -> list[float]:
    """Steps `first` to `last`; returns the seconds that each log call took."""
    seconds = []
    for step in range(first, last + 1):
        begin_s = time.perf_counter()
        tracker.metrics(step, {"loss_g/total": step / 7, "d/real": -float(step)})
        seconds.append(time.perf_counter() - begin_s)
        if step % 10 == 0:
            tracker.metrics(step, {"val/psnr_y": 20 + step / 100})
            tracker.picture("samples/a", step, PICTURE)
    return seconds


def only_run(uri: str, tmp_path: Path) -> mlflow.entities.Run:
    mlflow.set_tracking_uri(uri)
    (run,) = mlflow.search_runs(experiment_names=[f"it's {tmp_path.name}"], output_format="list")
    return run


def assert_complete(run: mlflow.entities.Run, run_dir: Path) -> None:
    """MLflow holds each scalar of `metrics.jsonl` once, and each picture once."""
    client = mlflow.MlflowClient()
    lines = read_metrics(run_dir / "metrics.jsonl")
    for name in {key for line in lines for key in line} - {"step", "time_s"}:
        written = [(line["step"], line[name]) for line in lines if name in line]
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] == written, name
    pictures = Counter(
        file.path.split("+step+")[1].split("+")[0]
        for file in client.list_artifacts(run.info.run_id, "images")
        if file.path.endswith(".png")
    )
    assert pictures == Counter(str(step) for step in {line["step"] for line in lines} if step % 10 == 0)


def test_a_server_killed_in_the_middle_loses_nothing_and_doubles_nothing(server, tmp_path, capsys):
    run_dir = tmp_path / "run"
    tracker = open_tracker(run_dir, server.uri)
    tracker.parameters({"a": {"b": 1}})
    train(tracker, 1, 40)
    wait_until_sent(tracker)
    server.kill()
    seconds = train(tracker, 41, 200)
    assert np.median(seconds) < 0.002
    tracker.end("FINISHED")
    out = capsys.readouterr().out
    assert "MLflow has not received everything" in out
    assert f"vsr-dist track replay {run_dir}" in out
    assert main(["track", "replay", str(run_dir)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    server.start()
    for _ in range(2):  # a second replay changes nothing
        assert main(["track", "replay", str(run_dir)]) == 0
        run = only_run(server.uri, tmp_path)
        assert run.info.status == "FINISHED"
        assert run.data.params == {"a.b": "1"}
        assert_complete(run, run_dir)
    assert "uploaded 0 scalars and 0 other events" in capsys.readouterr().out


def test_a_server_absent_at_the_start_gets_the_whole_run_later(server, tmp_path, capsys, launcher):
    run_dir = tmp_path / "run"
    server.kill()
    trained = _train_without_server(launcher, server.uri)
    tracker = open_tracker(run_dir, server.uri, tags={"team": "blue"})
    assert "training starts without it" in capsys.readouterr().out
    assert tracker.run_id is None
    tracker.parameters({"long": "x" * 7000, "a[0].lr": 1e-3})
    tracker.dataset("clips", "0123456789abcdef" * 2, "data/clips", {"clips": 3})
    train(tracker, 1, 30)
    tracker.end("KILLED")
    server.start()
    for folder in (run_dir, trained):
        assert main(["track", "replay", str(folder)]) == 0
    _check_trained(server.uri, trained)
    run = only_run(server.uri, tmp_path)
    assert_complete(run, run_dir)
    assert run.info.status == "KILLED"
    assert run.data.tags["team"] == "blue"
    assert (run.data.params["a_0_.lr"], len(run.data.params["long"])) == ("0.001", 6000)
    assert run.info.start_time == tracker.run.state.begin_ms
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("clips", "0123456789abcdef" * 2)


def _train_without_server(launcher: Launcher, uri: str) -> Path:
    """A whole training of two processes, while nothing answers."""
    overrides = ("train.steps=6", "train.warmup_steps=2", "train.log_every=2", "train.validate_every=3")
    overrides += ("tracking.mlflow=true", f"tracking.uri={uri}", "tracking.experiment=away")
    done = launcher.attempt("trained", *overrides, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("training starts without it") == 1
    assert f"vsr-dist track replay {launcher.folder / 'trained'}" in done.stdout
    assert json.loads((launcher.folder / "trained" / "summary.json").read_text())["mlflow_run_id"] is None
    return launcher.folder / "trained"


def _check_trained(uri: str, run_dir: Path) -> None:
    """The one run of two processes, with its parameters, its pictures and its model."""
    mlflow.set_tracking_uri(uri)
    (run,) = mlflow.search_runs(experiment_names=["away"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params["run.processes"] == "2"
    lines = read_metrics(run_dir / "metrics.jsonl")
    client = mlflow.MlflowClient()
    for name in {key for line in lines for key in line} - {"step", "time_s"}:
        written = [(line["step"], line[name]) for line in lines if name in line]
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] == written, name
    pictures = [file for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    assert len(pictures) == 3 * 3
    models = mlflow.search_logged_models([run.info.experiment_id], output_format="list")
    model = next(model for model in models if model.name == "generator")
    served = mlflow.pyfunc.load_model(model.model_uri)
    assert served.predict(np.zeros((1, 2, 3, 8, 8), np.float32)).shape == (1, 2, 3, 32, 32)


def test_answers_of_500_and_lost_answers_double_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_INTERVAL_S", 0.02)
    run_dir, draw = tmp_path / "run", random.Random(0)
    gate = Gate(server.port)
    gate.lose_answers = True
    gate.closed = lambda number: draw.random() < 0.25
    tracker = open_tracker(run_dir, gate.uri)
    num_steps = 0
    while gate.num_refused < 10:
        train(tracker, num_steps + 1, num_steps + 10)
        num_steps += 10
        assert num_steps < 2000
        time.sleep(0.1)
    gate.closed = lambda number: False
    tracker.end("FINISHED")
    gate.close()
    run = only_run(server.uri, tmp_path)
    assert run.info.status == "FINISHED"
    assert_complete(run, run_dir)


def test_a_crashed_and_resumed_run_is_one_run_without_double_points(server, tmp_path):
    run_dir = tmp_path / "run"
    first = open_tracker(run_dir, server.uri)
    first.parameters({"a": 1})
    train(first, 1, 27)
    wait_until_sent(first)
    # The process dies here; its checkpoint is of step 20.
    second = open_tracker(run_dir, server.uri, resume_step=20)
    assert second.is_described
    assert second.run_id == first.run_id
    train(second, 21, 40)
    second.end("FAILED")
    run = only_run(server.uri, tmp_path)
    assert run.info.status == "FAILED"
    assert_complete(run, run_dir)


KILLED = ("train.steps=30", "train.warmup_steps=2", "train.log_every=1", "train.validate_every=10")
KILLED += ("train.checkpoint_every=10", "train.pictures=1", "tracking.log_model=false")


def test_a_training_that_was_killed_and_resumed_is_one_complete_run(server, launcher):
    """SIGKILL, once the server holds points after the last checkpoint, while more of them are on their way."""
    sets = (*KILLED, "tracking.mlflow=true", f"tracking.uri={server.uri}", "tracking.experiment=killed")
    words = [word for text in (f"run_dir={launcher.folder / 'run'}", *sets) for word in ("--set", text)]
    process = Forked("vsr_dist.train", ["--config", str(launcher.config), *words], launcher.folder)
    state = launcher.folder / "run" / "tracking" / "state.json"
    client = mlflow.MlflowClient(server.uri, server.uri)
    sent: list[int] = []
    while max(sent, default=0) < 12 or not checkpoint.newest(launcher.folder / "run" / "checkpoints"):
        assert process.poll() is None, process.output()
        time.sleep(0.02)
        run_id = json.loads(state.read_text())["run_id"] if state.is_file() else None
        sent = [point.step for point in client.get_metric_history(run_id, "loss_g/total")] if run_id else []
    process.kill()
    process.wait(60)
    launcher.run("run", *sets, options=("--resume", "auto"))
    mlflow.set_tracking_uri(server.uri)
    (run,) = mlflow.search_runs(experiment_names=["killed"], output_format="list")
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert int(run.data.tags["resumed_from_step"]) in {10, 20}
    lines = read_metrics(launcher.folder / "run" / "metrics.jsonl")
    for name in {key for line in lines for key in line} - {"step", "time_s"}:
        points = client.get_metric_history(run_id, name)
        assert [point.step for point in points] == [line["step"] for line in lines if name in line], name
        if not name.startswith(("perf/", "system/")):  # Which are other ones each time.
            assert [point.value for point in points] == [line[name] for line in lines if name in line], name


def test_other_ranks_do_not_wait_for_the_last_upload(server, launcher):
    gate, weights, release = Gate(server.port), launcher.folder / "run" / "generator.safetensors", threading.Event()
    gate.closed = lambda number: weights.exists() and not release.wait(240)
    sets = ("train.steps=4", "train.warmup_steps=2", "train.log_every=2", "train.validate_every=4")
    sets += (f"run_dir={launcher.folder / 'run'}", "tracking.mlflow=true", f"tracking.uri={gate.uri}")
    words = [word for text in (*sets, "tracking.experiment=ranks") for word in ("--set", text)]
    first, second = start_ranks(2, "vsr_dist.train", ["--config", str(launcher.config), *words], launcher.folder)
    try:
        assert second.wait(240) == 0, first.output()
        assert first.poll() is None  # It waits for the server, which does not answer.
        assert (launcher.folder / "run" / "summary.json").exists()
    finally:
        release.set()
    assert first.wait(240) == 0
    gate.close()
    mlflow.set_tracking_uri(server.uri)
    (run,) = mlflow.search_runs(experiment_names=["ranks"], output_format="list")
    assert run.info.status == "FINISHED"


def test_a_run_that_died_without_a_word_is_failed_after_replay(server, tmp_path):
    run_dir = tmp_path / "run"
    tracker = open_tracker(run_dir, server.uri)
    train(tracker, 1, 3)
    wait_until_sent(tracker)  # Here the process dies, without a status.
    assert main(["track", "replay", str(run_dir)]) == 0
    assert only_run(server.uri, tmp_path).info.status == "FAILED"


def test_the_generator_becomes_a_registered_model(server, tmp_path):
    run_dir = tmp_path / "run"
    tracker = open_tracker(run_dir, server.uri)
    config = EspcnConfig()
    generator = build_generator(config, 4).eval()
    save_generator(run_dir, generator, config, {})
    tracker.metrics(5, {"val/psnr_y": 30.0})
    tracker.model("generator", 5, ".", ["torch"])
    tracker.model("generator", 5, ".", ["torch"])  # as after an interrupted publication
    tracker.end("FINISHED")
    run = only_run(server.uri, tmp_path)
    (logged,) = mlflow.search_logged_models([run.info.experiment_id], output_format="list")
    assert logged.source_run_id == run.info.run_id
    name = f"generator-{tmp_path.name}"
    version = mlflow.register_model(logged.model_uri, name)
    low_BTCHW = torch.rand(1, 2, 3, 10, 14)
    upscaler, description = find_generator(f"models:/{name}/{version.version}", server.uri)
    assert torch.equal(upscaler(low_BTCHW), generator(low_BTCHW))
    assert description["tracking_uri"] == server.uri
    mlflow.MlflowClient().set_registered_model_alias(name, "best", version.version)
    served = mlflow.pyfunc.load_model(f"models:/{name}@best")
    assert served.metadata.signature.inputs.inputs[0].shape == (-1, -1, 3, -1, -1)
    assert np.array_equal(served.predict(low_BTCHW.numpy()), generator(low_BTCHW).detach().numpy())


def test_a_server_called_by_a_name_it_does_not_know_is_an_error_that_says_what_to_do(server, tmp_path):
    gate = Gate(server.port)
    gate.host = "mlflow:5000"
    with pytest.raises(BadConfigError, match="--allowed-hosts"):
        open_tracker(tmp_path / "run", gate.uri)
    gate.close()


def test_trainings_that_start_together_share_a_new_database(tmp_path):
    """MLflow's own set-up of a SQLite file breaks when two processes do it at once."""
    uri = f"sqlite:///{tmp_path}/new.db"
    context = forks()
    processes = [context.Process(target=open_and_end, args=(tmp_path / f"run{n}", uri)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    mlflow.set_tracking_uri(uri)
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 3


def open_and_end(run_dir, uri):
    tracker = open_tracker(run_dir, uri)
    train(tracker, 1, 3)
    tracker.end("FINISHED")


def test_a_deleted_run_is_refused(server, tmp_path):
    tracker = open_tracker(tmp_path / "run", server.uri)
    tracker.end("KILLED")
    mlflow.MlflowClient(server.uri).delete_run(tracker.run_id)
    with pytest.raises(BadConfigError, match="was deleted"):
        open_tracker(tmp_path / "run", server.uri)


def test_replay_of_what_was_never_tracked_or_trains_now(tmp_path, capsys):
    assert main(["track", "replay", str(tmp_path)]) == 2
    assert "contains nothing that is tracked" in capsys.readouterr().err
    open_tracker(tmp_path / "run", f"http://127.0.0.1:{free_port()}").end("KILLED")
    assert main(["track", "replay", str(tmp_path / "run")]) == 2
    assert "did not accept everything" in capsys.readouterr().err
