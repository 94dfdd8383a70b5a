"""`vsr-dist evaluate --track`: the results go to the MLflow run that trained the checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from engine_streams import GRU, make
from evaluate_films import evaluate, small, truth, write_frames

from vsr_dist.inference.generator_io import save_generator


@pytest.fixture
def tracked(tmp_path, empty_mlflow_database):
    """(Client, id of a run, a generator that this run trained for 400 steps, input, ground truth)."""
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri, uri)
    experiment = client.create_experiment("trainings", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    (tmp_path / "run").mkdir()
    provenance = {"run": "gru", "seed": 0, "steps": 400, "mlflow": {"uri": uri, "run_id": run_id}}
    save_generator(tmp_path / "run", make(GRU, 4), GRU, provenance)
    low = write_frames(tmp_path / "low", small(truth(0, 9)))
    return client, run_id, tmp_path / "run", low, write_frames(tmp_path / "real", truth(0, 9))


def test_table_intervals_and_pictures_are_in_the_run(tracked, tmp_path, capsys):
    client, run_id, checkpoint, low, real = tracked
    sides = ("--low", low, "--real", real, "--metrics", "psnr_y,tdiff")
    data = evaluate(tmp_path / "out", "--checkpoint", checkpoint, *sides, "--track")
    assert f"MLflow: evaluation/real in run {run_id}" in capsys.readouterr().out
    scores, ends = data["table"]["overall"]["ours"], data["intervals"]["ours"]
    expected = {f"evaluation/real/{name}": value for name, value in scores.items()}
    for name, found in ends.items():
        expected |= {f"evaluation/real/{name}_{end}": found[end] for end in ("low", "high")}
    assert client.get_run(run_id).data.metrics == pytest.approx(expected)
    assert len(expected) == 2 + 2 * len(ends) > 2
    (point,) = client.get_metric_history(run_id, "evaluation/real/psnr_y")
    assert point.step == 400
    files = {file.path for file in client.list_artifacts(run_id, "evaluation/real")}
    names = ("report.md", "table.txt", "metrics.json", "metrics.csv", "sequences.csv", "comparison.png")
    assert files == {f"evaluation/real/{name}" for name in names}
    logged = client.download_artifacts(run_id, "evaluation/real/metrics.json", str(tmp_path))
    assert json.loads(Path(logged).read_text()) == data
    assert len(client.list_artifacts(run_id, "images")) == 2


def test_without_a_run_to_add_to_it_is_refused_before_measuring(tracked, tmp_path, evaluation_fails):
    _, _, checkpoint, low, real = tracked
    (checkpoint / "generator.json").write_text(
        (checkpoint / "generator.json").read_text().replace('"mlflow"', '"elsewhere"')
    )
    options = ("--low", low, "--real", real, "--out", tmp_path / "out", "--track")
    assert "was not tracked in MLflow; remove --track" in evaluation_fails("--checkpoint", checkpoint, *options)
    assert "--track needs --checkpoint" in evaluation_fails("--method", "bicubic", *options)
    assert not (tmp_path / "out").exists()


def test_results_are_kept_when_the_server_does_not_take_them(tracked, tmp_path, capsys):
    client, run_id, checkpoint, low, real = tracked
    client.delete_run(run_id)
    sides = ("--low", low, "--real", real, "--metrics", "psnr_y", "--no-pictures")
    evaluate(tmp_path / "out", "--checkpoint", checkpoint, *sides, "--track")
    assert f"vsr-dist track replay {tmp_path / 'out'}" in capsys.readouterr().out
