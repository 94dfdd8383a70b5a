"""A report of a real, short run, on disk and on a real MLflow server."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
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


def artifacts(uri: str, run_id: str, folder: str) -> set[str]:
    return {Path(file.path).name for file in mlflow.MlflowClient(uri, uri).list_artifacts(run_id, folder)}


def test_a_report_is_added_to_the_runs_that_it_compares(server, run_dir, tmp_path, capsys):
    out = tmp_path / "comparison"
    for _ in range(2):  # The second time replaces the files.
        assert main(["report", str(out), "--runs", str(run_dir)]) == 0
    (training,) = open_compared([run_dir]).runs
    assert f"MLflow: reports/comparison in the artifacts of run {training.mlflow_run_id}" in capsys.readouterr().out
    names = artifacts(server.uri, training.mlflow_run_id, "reports/comparison")
    assert {"report.html", "report.md", "report.csv", "report.png"} <= names
    mlflow.set_tracking_uri(server.uri)
    path = "reports/comparison/report.html"
    page = Path(mlflow.artifacts.download_artifacts(run_id=training.mlflow_run_id, artifact_path=path))
    assert page.read_bytes() == (out / "report.html").read_bytes()
    # It is no run of its own.
    (run,) = mlflow.search_runs(experiment_names=["reports"], output_format="list")
    assert (run.info.run_name, run.data.tags["kind"], run.info.status) == ("tiny", "training", "FINISHED")
    # What training itself leaves for a report: two windows of the last validation.
    assert training.samples.step == 4 and len(training.samples.pictures) == 2
    assert len(list((out / "assets").glob("window-*.png"))) == 2
    assert main(["report", str(tmp_path / "files"), "--runs", str(run_dir), "--no-mlflow"]) == 0
    assert artifacts(server.uri, training.mlflow_run_id, "reports") == {"comparison"}


def test_what_a_server_does_not_take_is_sent_later(server, run_dir, tmp_path, capsys):
    (training,) = open_compared([run_dir]).runs
    out = tmp_path / "late"
    server.kill()
    try:
        assert main(["report", str(out), "--runs", str(run_dir)]) == 0
        assert f"vsr-dist track replay {out}" in capsys.readouterr().out
        assert (out / "report.html").is_file()
        assert main(["track", "replay", str(out)]) == 2
    finally:
        server.start()
    assert main(["track", "replay", str(out)]) == 0
    assert "report.html" in artifacts(server.uri, training.mlflow_run_id, "reports/late")
