"""A report of a real, short run, on disk and on a real MLflow server."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow_server import Gate
from train_launcher import Launcher

from vsr_dist.cli import main
from vsr_dist.reporting.runs import open_compared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run_dir(server, shards, tmp_path_factory) -> Path:
    """A run of four steps that the server tracked."""
    launcher = Launcher(tmp_path_factory.mktemp("trained"), shards)
    short = ("steps=4", "warmup_steps=2", "log_every=2", "validate_every=2", "checkpoint_every=4", "pictures=2")
    tracking = (f"uri={server.uri}", "experiment=reports", "mlflow=true", "log_model=false", "tags.team=blue")
    return launcher.run("run", *(f"train.{item}" for item in short), *(f"tracking.{item}" for item in tracking))


def reports(uri: str, experiment: str = "reports") -> list[mlflow.entities.Run]:
    mlflow.set_tracking_uri(uri)
    return mlflow.search_runs(experiment_names=[experiment], filter_string="tags.kind = 'report'", output_format="list")


def test_a_report_is_a_run_beside_those_that_it_compares(server, run_dir, tmp_path, capsys):
    out = tmp_path / "comparison"
    for _ in range(2):  # The second time replaces the files of the same run.
        assert main(["report", str(out), "--runs", str(run_dir)]) == 0
    (run,) = reports(server.uri)
    assert f"MLflow: run {run.info.run_id} at {server.uri}, experiment reports" in capsys.readouterr().out
    (training,) = open_compared([run_dir]).runs
    tags = run.data.tags
    assert (tags["compared"], tags["run_1/name"], tags["run_1/state"]) == ("tiny", "tiny", "finished")
    assert tags["run_1/mlflow_run_id"] == training.mlflow_run_id
    assert mlflow.MlflowClient().get_run(training.mlflow_run_id).info.run_name == "tiny"
    assert tags["mlflow.source.name"] == "vsr-dist report" and "team" not in tags
    assert (run.info.run_name, run.info.status) == ("comparison", "FINISHED")
    names = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"report.html", "report.md", "report.csv", "report.png"} <= names
    page = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="report.html"))
    assert page.read_bytes() == (out / "report.html").read_bytes()
    # What training itself leaves for a report: two windows of the last validation.
    assert training.samples.step == 4 and len(training.samples.pictures) == 2
    assert len(list((out / "assets").glob("window-*.png"))) == 2
    assert main(["report", str(out), "--runs", str(run_dir), "--experiment", "elsewhere"]) == 0
    assert len(reports(server.uri, "elsewhere")) == len(reports(server.uri)) == 1


def test_what_a_server_does_not_take_is_sent_later(server, run_dir, tmp_path, capsys):
    gate = Gate(server.port)
    gate.closed = lambda number: True
    out = tmp_path / "late"
    command = ["report", str(out), "--runs", str(run_dir), "--tracking-uri", gate.uri, "--experiment", "late"]
    assert main(command) == 0
    assert f"vsr-dist track replay {out}" in capsys.readouterr().out
    assert (out / "report.html").is_file()
    gate.closed = lambda number: False
    assert main(["track", "replay", str(out)]) == 0
    gate.close()
    (run,) = reports(server.uri, "late")
    assert "report.html" in {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}


def test_where_to_is_checked_before_anything_is_written(run_dir, tmp_path, capsys):
    assert main(["report", str(tmp_path / "out"), "--runs", str(run_dir), "--tracking-uri", "ftp://x"]) == 2
    assert "cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
