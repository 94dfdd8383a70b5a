"""Scalars and events reach MLflow once each, whatever its server answers and whenever the process ends.

The store is MLflow's own, in a SQLite file: what it drops and what it doubles is what a server would.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest

from vsr_dist.core.errors import BadConfigError, UserError
from vsr_dist.training import tracking
from vsr_dist.training.tracked_runs import TrackedRun, log_evaluation, log_report, replay, tracked_run
from vsr_dist.training.tracking import (
    MlflowRun,
    State,
    Tracker,
    TrackingConfig,
    Unavailable,
    append_line,
    as_uint8,
    check_uri,
    open_tracker,
    read_metrics,
    rewind_metrics,
)


@pytest.fixture
def uri(tmp_path, empty_mlflow_database, monkeypatch) -> str:
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(tracking, "_INTERVAL_S", 0.001)
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


class Faulty:
    """A client whose requests fail as `fault` says: "before" the server took them, or "after", the answer lost."""

    def __init__(self, client: object) -> None:
        self.client = client
        self.fault: Callable[[], str | None] = lambda: None
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> object:
        method = getattr(self.client, name)

        def call(*arguments, **options):
            answer = self.fault()
            if answer == "before":
                raise ConnectionError("refused")
            result = method(*arguments, **options)
            if name == "log_batch":
                self.batches.append(len(arguments[1]) if len(arguments) > 1 else 0)
            if answer == "after":
                raise ConnectionError("reset")
            return result

        return call


def open_run(folder: Path, uri: str, resume_step: int = 0) -> tuple[MlflowRun, Faulty]:
    folder.mkdir(exist_ok=True)
    run = MlflowRun(folder, folder / "tracking", State(uri, "experiment", "name"))
    run.connect()
    run._client = Faulty(run._client)
    run.resume(resume_step)
    return run, run._client


def write(run: MlflowRun, step: int, **values: float) -> None:
    append_line(run.metrics, {"step": step, "time_s": round(time.time(), 3), **values})


def send(run: MlflowRun, tries: int = 1000) -> None:
    for _ in range(tries):
        try:
            run.send_all()
        except Unavailable:
            continue
        return
    raise AssertionError("never sent")


def history(uri: str, run_id: str | None, name: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in mlflow.MlflowClient(uri).get_metric_history(run_id, name)]


def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_each_point_arrives_once_though_answers_are_lost(tmp_path, uri):
    draw = random.Random(0)
    run, client = open_run(tmp_path / "run", uri)
    client.fault = lambda: draw.choice([None, "before", "after"])
    for step in range(1, 100):
        write(run, step, loss=step / 7, speed=float(step))
        if draw.random() < 0.2:
            send(run)
    send(run)
    assert history(uri, run.state.run_id) == [(step, step / 7) for step in range(1, 100)]
    assert history(uri, run.state.run_id, "speed") == [(step, float(step)) for step in range(1, 100)]
    assert run.num_waiting() == (0, 0)


@pytest.mark.parametrize(
    ("package", "advice"),
    [
        ("boto3", r"^its client needs the extra 's3' .*; run: pip install 'vsr-dist\[s3\]'$"),
        ("psycopg", r"^its client needs the extra 'postgres' .*; run: pip install 'vsr-dist\[postgres\]'$"),
        ("MySQLdb", r"^its client lacks a package \(No module named 'MySQLdb'\)"),
    ],
)
def test_a_package_that_mlflow_imports_at_its_first_use_is_named(tmp_path, uri, package, advice):
    run, client = open_run(tmp_path / "run", uri)

    def lacks():
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    client.fault = lacks
    write(run, 1, loss=0.5)
    with pytest.raises(Unavailable, match=advice) as error:
        run.send_all()
    assert error.value.refused
    assert run.num_waiting() == (1, 0)


@pytest.mark.parametrize("answer", ["before", "after"])
def test_a_kill_at_any_moment_doubles_and_loses_nothing(tmp_path, uri, answer):
    """A checkpoint every 10 steps; each process is killed 7 steps after one, while it sends."""
    for start in range(0, 60, 10):
        run, client = open_run(tmp_path / "run", uri, resume_step=start)
        for step in range(start + 1, start + 18):
            write(run, step, loss=step + start / 1000)
            if step == start + 14:
                client.fault = lambda: answer
                with pytest.raises(Unavailable):
                    run.send_all()
                client.fault = lambda: None
            elif step % 3 == 0 and start != 30:  # The attempt from 30 on reaches no server at all.
                run.send_all()
    run, _ = open_run(tmp_path / "run", uri, resume_step=60)
    run.send_all()
    points = history(uri, run.state.run_id)
    assert [step for step, _ in points] == list(range(1, 68))
    # The first attempt that reached a step is what MLflow shows.
    assert [value for _, value in points] == [step + max(0, (step - 8) // 10 * 10) / 1000 for step in range(1, 68)]


def test_the_newest_values_are_shown_after_a_rollback(tmp_path, uri):
    run, _ = open_run(tmp_path / "run", uri)
    for step in range(1, 9):
        write(run, step, loss=1.0)
    run.send_all()
    run.roll_back(4)
    assert [line["step"] for line in read_metrics(run.metrics)] == [1, 2, 3, 4]
    for step in range(5, 8):
        write(run, step, loss=2.0)
    write(run, 8, loss=0.5)
    run.send_all()
    assert Counter(step for step, _ in history(uri, run.state.run_id)) == {
        **dict.fromkeys(range(1, 5), 1),
        5: 2,
        6: 2,
        7: 2,
        8: 2,
    }
    assert mlflow.MlflowClient(uri).get_run(run.state.run_id).data.metrics["loss"] == 0.5


def test_lines_that_a_rollback_drops_while_they_are_sent_are_not_taken_as_sent(tmp_path, uri):
    run, client = open_run(tmp_path / "run", uri)
    for step in range(1, 5):
        write(run, step, loss=1.0)

    def roll_back_once():
        client.fault = lambda: None
        run.roll_back(2)
        write(run, 3, loss=3.0)

    client.fault = roll_back_once
    run.send_all()
    assert (3, 3.0) in history(uri, run.state.run_id)


def test_a_run_goes_on_from_a_checkpoint_alone(tmp_path, uri):
    """The run directory is new; the checkpoint knows the MLflow run."""
    first, _ = open_run(tmp_path / "run", uri)
    for step in range(1, 5):
        write(first, step, loss=0.0)
    first.send_all()
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run2", resume_step=3, run_id=first.state.run_id)
    tracker.start()
    for step in range(4, 8):
        tracker.metrics(step, {"loss": 1.0})
    tracker.end("FINISHED")
    assert tracker.run_id == first.state.run_id
    assert [step for step, _ in history(uri, tracker.run_id)] == list(range(1, 8))


def test_a_rejected_event_holds_nothing_up(tmp_path, uri, capsys):
    run, _ = open_run(tmp_path / "run", uri)
    write(run, 1, loss=1.0)
    run.put("parameters", values={"a": "1"})
    run.put("parameters", values={"a": "2"})
    run.put("file", path="absent.json", folder=None)
    run.put("model", name="best", folder="best", requirements=[], line={"step": 1}, dataset=[])
    run.put("tags", values={"good": "1"})
    run.put_status("FINISHED")
    run.send_all()
    found = mlflow.MlflowClient(uri).get_run(run.state.run_id)
    assert (found.data.params, found.data.tags["good"], found.info.status) == ({"a": "1"}, "1", "FINISHED")
    assert found.info.end_time >= found.info.start_time == run.state.begin_ms
    out = capsys.readouterr().out
    assert "MLflow rejects the parameters" in out
    assert "absent.json is no longer in" in out
    assert "best has no generator any more" in out


def test_a_damaged_event_holds_nothing_up(tmp_path, uri, capsys):
    run, _ = open_run(tmp_path / "run", uri)
    run.put_picture("samples/a", 1, np.zeros((8, 8, 3), np.uint8))
    next(run.folder.glob("*.png")).write_bytes(b"x")
    run.put("unheard", of=1)
    run.put("tags", other="arguments")
    run.put("tags", values={"good": "1"})
    run.put_status("FINISHED")
    run.send_all()
    found = mlflow.MlflowClient(uri).get_run(run.state.run_id)
    assert (found.data.tags["good"], found.info.status) == ("1", "FINISHED")
    out = capsys.readouterr().out
    assert out.count("which is skipped") == 3 and ".png is damaged" in out


def test_the_status_arrives_though_the_last_requests_fail_at_first(tmp_path, uri, capsys):
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run", resume_step=0)
    tracker.start()
    until(lambda: tracker.run.num_waiting() == (0, 0))
    client = tracker.run._client = Faulty(tracker.run._client)
    left = iter(["before"] * 5)
    client.fault = lambda: next(left, None) if tracker._closing.is_set() else "before"
    tracker.metrics(1, {"loss": 1.0})
    tracker.end("FINISHED")
    assert "track replay" not in capsys.readouterr().out
    assert history(uri, tracker.run_id) == [(1, 1.0)]
    assert mlflow.MlflowClient(uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_the_end_does_not_wait_for_a_server_that_refuses(tmp_path, uri, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "_LAST_TRIES_S", 0.05)
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run", resume_step=0)
    tracker.start()
    until(lambda: tracker.run.num_waiting() == (0, 0))
    tries: list[str] = []
    tracker.run._client = Faulty(tracker.run._client)
    tracker.run._client.fault = lambda: tries.append("x") or "before"
    tracker.end("FINISHED")
    assert not tracker._thread.is_alive() and tries
    assert "track replay" in capsys.readouterr().out


def test_a_run_that_is_adopted_late_gets_no_point_twice(tmp_path, uri, monkeypatch):
    """The first attempt never reached the server; the second one takes over a run that somebody else made."""
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run", resume_step=0)
    for step in range(1, 11):
        tracker.metrics(step, {"loss": 1.0})
    client = mlflow.MlflowClient(uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run("0").info.run_id)
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run", resume_step=5)
    tracker.start()
    for step in range(6, 13):
        tracker.metrics(step, {"loss": 1.0})
    tracker.end("FINISHED")
    assert [step for step, _ in history(uri, tracker.run_id)] == list(range(1, 13))


def test_an_experiment_that_another_process_creates_meanwhile_is_used(tmp_path, uri, monkeypatch):
    """Between the question for it and its creation, as when a study starts several trainings at once."""
    find, create = mlflow.MlflowClient.get_experiment_by_name, mlflow.MlflowClient.create_experiment
    other = mlflow.MlflowClient(uri)

    def find_and_lose_the_race(self: mlflow.MlflowClient, name: str) -> object:
        found = find(self, name)
        if found is None:
            create(other, name)
        return found

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", find_and_lose_the_race)
    run, _ = open_run(tmp_path / "run", uri)
    assert other.get_run(run.state.run_id).info.experiment_id == find(other, "experiment").experiment_id


def test_points_go_in_batches(tmp_path, uri):
    run, client = open_run(tmp_path / "run", uri)
    for step in range(1, 201):
        write(run, step, **{f"metric/{number}": 1.0 for number in range(18)})
    run.send_all()
    assert client.batches == [900, 900, 900, 900]  # 50 lines of 18 values, step and time each.


def test_unfinished_last_lines_are_dropped(tmp_path, uri):
    run, _ = open_run(tmp_path / "run", uri)
    write(run, 1, loss=1.0)
    run.put("tags", values={"a": "1"})
    for path in (run.metrics, run.events):
        with path.open("a") as half:
            half.write('{"step": 2, "time_s": 1.0, "lo')
    run.send_all()
    assert history(uri, run.state.run_id) == [(1, 1.0)]
    run, _ = open_run(tmp_path / "run", uri, resume_step=1)
    write(run, 2, loss=1.0)
    run.put("tags", values={"b": "2"})
    run.send_all()
    assert [step for step, _ in history(uri, run.state.run_id)] == [1, 2]
    assert mlflow.MlflowClient(uri).get_run(run.state.run_id).data.tags["b"] == "2"


def test_a_picture_that_is_computed_again_replaces_the_first(tmp_path, uri):
    run, _ = open_run(tmp_path / "run", uri)
    low, high = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 200, np.uint8)
    run.put_picture("samples/a", 10, low)
    run.send_all()
    run.put_picture("samples/a", 10, high)
    run, _ = open_run(tmp_path / "run", uri)  # The process ended before it was sent.
    run.put_picture("samples/a", 20, low)
    run.send_all()
    client = mlflow.MlflowClient(uri)
    pictures = sorted(f.path for f in client.list_artifacts(run.state.run_id, "images") if f.path.endswith(".png"))
    assert ["+step+10+" in pictures[0], "+step+20+" in pictures[1], len(pictures)] == [True, True, 2]
    found = client.download_artifacts(run.state.run_id, pictures[0], str(tmp_path))
    assert np.array_equal(cv2.imread(found), high)
    assert not list(run.folder.glob("*.png"))


def test_a_picture_out_of_range_is_clipped_and_not_stretched():
    picture = np.array([[[-0.5, 0.0, 0.25], [0.5, 1.0, 7.0]]], np.float32)
    assert as_uint8(picture).tolist() == [[[0, 0, 64], [128, 255, 255]]]
    assert as_uint8(np.full((1, 1, 3), 0.5)).max() == 128
    with pytest.raises(TypeError, match="uint16"):
        as_uint8(np.zeros((1, 1, 3), np.uint16))


def test_training_does_not_wait_for_a_server_that_hangs(tmp_path, uri, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "_FIRST_ANSWER_S", 0.05)
    release = threading.Event()
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run", resume_step=0)
    connect = tracker.run.connect
    tracker.run.connect = lambda: release.wait(60) and connect()
    tracker.start()
    begin_s = time.perf_counter()
    for step in range(1, 201):
        tracker.metrics(step, {"loss": 1.0})
    assert (time.perf_counter() - begin_s) / 200 < 0.02
    assert tracker.run_id is None
    release.set()
    tracker.end("FINISHED")
    assert [step for step, _ in history(uri, tracker.run_id)] == list(range(1, 201))
    out = capsys.readouterr().out
    assert "has not answered yet; training starts without it" in out
    assert "track replay" not in out


def test_an_outage_is_one_warning_and_its_end_another_line(tmp_path, uri, capsys):
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run", resume_step=0)
    tracker.start()
    until(lambda: tracker.run.num_waiting() == (0, 0))
    tries: list[str] = []
    client = tracker.run._client = Faulty(tracker.run._client)
    client.fault = lambda: tries.append("x") or "before"
    tracker.metrics(1, {"loss": 1.0})
    until(lambda: len(tries) > 3)
    client.fault = lambda: None
    tracker.end("FINISHED")
    out = capsys.readouterr().out
    assert out.count("MLflow has not received everything; training continues") == 1
    assert "MLflow is available again" in out
    assert history(uri, tracker.run_id) == [(1, 1.0)]


def test_what_is_left_at_the_end_is_reported_and_replayed(tmp_path, uri, monkeypatch, capsys):
    monkeypatch.setitem(tracking._CLOSE_S, "KILLED", 0.2)
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run", resume_step=0)
    tracker.run.connect = lambda: time.sleep(60)
    monkeypatch.setattr(tracking, "_FIRST_ANSWER_S", 0.01)
    tracker.start()
    tracker.metrics(1, {"loss": 1.0, "speed": 2.0})
    tracker.end("KILLED")
    out = capsys.readouterr().out
    assert "not received 2 scalars and 2 other events of this run; they are kept" in out
    assert f"upload them with: vsr-dist track replay {tmp_path}/run" in out
    for _ in range(2):
        replay(tmp_path / "run", finished=False)
    (run,) = mlflow.MlflowClient(uri).search_runs(
        [mlflow.MlflowClient(uri).get_experiment_by_name("vsr-dist").experiment_id]
    )
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 1.0, "speed": 2.0})
    assert "uploaded 0 scalars and 0 other events" in capsys.readouterr().out


def test_the_metrics_file_is_written_without_mlflow(tmp_path):
    tracker = open_tracker(TrackingConfig(mlflow=False), "name", tmp_path, resume_step=0)
    tracker.start()
    for step in range(1, 5):
        tracker.metrics(step, {"loss": 1.0})
    tracker.tags({"a": "b"})
    tracker.rewind(2)
    tracker.end("FINISHED")
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert (tracker.run_id, tracker.uri, tracker.is_described) == (None, None, False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    rewind_metrics(tmp_path / "metrics.jsonl", 0)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_other_ranks_do_nothing(tmp_path):
    tracker = Tracker()
    tracker.start()
    tracker.metrics(1, {"a": 1.0})
    tracker.picture("a", 1, np.zeros((2, 2, 3), np.uint8))
    tracker.parameters({"a": 1})
    tracker.files(tmp_path / "absent")
    tracker.model("generator", 1, ".", [])
    tracker.rewind(0)
    tracker.end("FINISHED")
    assert tracker.system() == {}


IMPOSSIBLE = (
    "ftp://nowhere file:mlruns file:///mlruns mlruns databricks http:// http://host:port http://host:0 sqlite://"
)


@pytest.mark.parametrize("uri", [*IMPOSSIBLE.split(), "sqlite:///", "127.0.0.1:5000"])
def test_a_uri_that_can_never_work_is_an_error(uri):
    with pytest.raises(BadConfigError, match=f"MLflow at tracking.uri={uri} cannot be used"):
        TrackingConfig(uri=uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9",
        "https://user@host/path",
        "sqlite:///a.db",
        "sqlite:////a/b.db",
        "postgresql+psycopg2://u@h/db",
    ],
)
def test_a_uri_that_may_work_is_taken(uri):
    check_uri(uri, "tracking.uri")


def test_a_sqlite_file_that_can_never_work_is_an_error(tmp_path):
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "text.db").write_text("no database at all")
    for name, fault in {
        "folder.db": "it is a folder",
        "text.db": "is not a SQLite database",
        "text.db/mlflow.db": "text.db: File exists",
        "what?.db": "cuts a path at",
        "100%41.db": "decodes '%41'",
    }.items():
        with pytest.raises(BadConfigError, match=f"MLflow at tracking.uri=sqlite:///.* cannot be used: .*{fault}"):
            TrackingConfig(uri=f"sqlite:///{tmp_path}/{name}").resolve()
    TrackingConfig(uri=f"sqlite:///{tmp_path}/new folder #1/100%.db").resolve()
    assert (tmp_path / "new folder #1").is_dir()


@pytest.mark.parametrize("version", ["bda7b8c39065", "ffffffffffff"])
def test_a_database_of_another_mlflow_is_an_error_before_training(tmp_path, uri, version):
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
    tracker = open_tracker(TrackingConfig(uri=uri), "name", tmp_path / "run", resume_step=0)
    with pytest.raises(BadConfigError, match=r"another version of MLflow wrote this database.*mlflow db upgrade"):
        tracker.start()
    tracker.end("FAILED")


def test_a_password_is_refused_wherever_it_stands(monkeypatch):
    secret = "https://user:secret@host"
    with pytest.raises(BadConfigError, match=r"tracking\.uri contains a password") as error:
        TrackingConfig(uri=secret)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@host/db")
    with pytest.raises(BadConfigError, match="MLFLOW_TRACKING_URI contains a password"):
        TrackingConfig().resolve()


def test_the_environment_counts_where_the_configuration_says_nothing(monkeypatch):
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    assert TrackingConfig().resolve()[2] == "sqlite:///mlflow.db (default), experiment vsr-dist (default)"
    before = State("http://before:1", "earlier")
    assert TrackingConfig().resolve(before)[2] == "http://before:1 (as before), experiment earlier (as before)"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    uri, experiment, text = TrackingConfig().resolve(before)
    assert (uri, experiment) == ("http://server:5000", "team")
    assert text == "http://server:5000 (MLFLOW_TRACKING_URI), experiment team (MLFLOW_EXPERIMENT_NAME)"
    text = TrackingConfig(uri="http://mine:1", experiment="own").resolve()[2]
    assert text == "http://mine:1 (tracking.uri), experiment own (tracking.experiment)"


def test_mlflow_run_id_names_the_run_of_one_training(tmp_path, uri, monkeypatch, capsys):
    client = mlflow.MlflowClient(uri)
    given = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    config = TrackingConfig(uri=uri, tags={"team": "blue"})
    for step in (0, 2):  # The second time the run is resumed.
        tracker = open_tracker(config, "name", tmp_path / "run", resume_step=step)
        tracker.start()
        tracker.metrics(step + 1, {"loss": 1.0})
        tracker.end("FINISHED")
    assert f"run {given} (MLFLOW_RUN_ID)" in capsys.readouterr().out
    found = client.get_run(given)
    assert (found.data.tags["team"], found.data.tags["kind"], found.info.status) == ("blue", "training", "FINISHED")
    assert [step for step, _ in history(uri, given)] == [1, 3]
    with pytest.raises(BadConfigError, match=f"MLFLOW_RUN_ID={given} belongs to another training run"):
        open_tracker(config, "name", tmp_path / "other", resume_step=0).start()
    monkeypatch.setenv("MLFLOW_RUN_ID", "elsewhere")
    open_tracker(config, "name", tmp_path / "run", resume_step=3).start()
    assert f"run {given} (as before; MLFLOW_RUN_ID=elsewhere is ignored)" in capsys.readouterr().out


def test_each_node_has_its_own_system_metrics(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    names = set(Tracker(system_metrics=True).system())
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("GROUP_RANK", "1")
    assert set(Tracker(system_metrics=True).system()) == {f"system/1/{name.removeprefix('system/')}" for name in names}
    # What the first ranks of all nodes measured is on every rank, rank 0 among them, which logs it.
    monkeypatch.setattr(tracking, "gather_lists", lambda readings: [{"system/0/x": 1.0}, *readings])
    assert {"system/0/x", "system/1/cpu_utilization_percentage"} <= set(Tracker(system_metrics=True).system())
    monkeypatch.undo()
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Tracker(system_metrics=True).system() == {}


def test_an_evaluation_and_a_report_go_to_the_run_that_trained(tmp_path, uri, capsys):
    run, _ = open_run(tmp_path / "run", uri)
    run.send_all()
    assert tracked_run(tmp_path / "run") == TrackedRun(uri, run.state.run_id)
    tracked = tracked_run(tmp_path, {"mlflow": {"uri": uri, "run_id": run.state.run_id}})
    assert tracked == TrackedRun(uri, run.state.run_id) and tracked_run(tmp_path) is None
    out = tmp_path / "evaluation"
    out.mkdir()
    (out / "metrics.csv").write_text("a,b\n1,2\n")

    def evaluate(to: TrackedRun) -> None:
        scores, intervals = {"psnr_y": 30.0, "lpips": 0.1}, {"psnr_y": (29.0, 31.0)}
        picture, dataset = np.zeros((4, 4, 3), np.uint8), ("set", "digest")
        log_evaluation(
            to, out, name="set/val", step=7, scores=scores, intervals=intervals, pictures={"a": picture},
            files=[out / "metrics.csv"], dataset=dataset,
        )  # fmt: skip

    evaluate(tracked)
    log_report([tracked], out, [out / "metrics.csv"])
    client = mlflow.MlflowClient(uri)
    found = client.get_run(tracked.run_id).data.metrics
    names = {"evaluation/set_val/psnr_y": 30.0, "evaluation/set_val/psnr_y_low": 29.0}
    assert found == {**names, "evaluation/set_val/psnr_y_high": 31.0, "evaluation/set_val/lpips": 0.1}
    assert history(uri, tracked.run_id, "evaluation/set_val/lpips") == [(7, 0.1)]
    for folder in ("evaluation/set_val", "reports/evaluation"):
        assert [f.path for f in client.list_artifacts(tracked.run_id, folder)] == [f"{folder}/metrics.csv"]
    assert len(client.list_artifacts(tracked.run_id, "images")) == 2
    client.delete_run(tracked.run_id)
    with pytest.raises(UserError, match=f"track replay {out}"):
        evaluate(tracked)
    client.restore_run(tracked.run_id)
    replay(out, finished=False)
    assert len(history(uri, tracked.run_id, "evaluation/set_val/lpips")) == 2
    with pytest.raises(UserError, match="contains nothing that is tracked in MLflow"):
        replay(tmp_path / "nothing", finished=False)
