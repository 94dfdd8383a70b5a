"""A study in MLflow and in optuna-dashboard: what a person who opens either of them finds there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow_server import free_port
from optuna.trial import TrialState
from sweeps_results import Results, full_study, settling

from sweeps.config import StudyConfig
from sweeps.report import publish_report
from sweeps.trial import TrialPlan, training_options
from vsr_dist.config import Config, check_config, load_config, parse_config
from vsr_dist.core.config_io import apply_overrides
from vsr_dist.core.errors import BadConfigError, run_cli
from vsr_dist.train import run_parameters
from vsr_dist.training.tracking import open_tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def track_base(config: StudyConfig, uri: str, **more: object) -> None:
    """Switch tracking on in the base configuration."""
    path = Path(config.base)
    tree = yaml.safe_load(path.read_text())
    tree["tracking"] = {"mlflow": True, "uri": uri, "experiment": "studies", "tags": {"team": "pixels"}, **more}
    path.write_text(yaml.safe_dump(tree))


def track_trial(config: StudyConfig, number: int, parameters: dict[str, object]) -> Config:
    """A run as the trial's training would make it, with one value of the objective."""
    tree = yaml.safe_load(Path(config.base).read_text())
    plan = TrialPlan(number, parameters, "search", (0,), (config.directory / f"tracked_{number}",))
    tree = apply_overrides(tree, training_options(config, plan, 0)[3:-2:2])
    resolved = parse_config(tree, "trial")
    Path(resolved.run_dir).mkdir(parents=True)
    tracker = open_tracker(resolved.tracking, resolved.name, Path(resolved.run_dir), resume_step=0)
    tracker.start()
    tracker.parameters(run_parameters(resolved, {"processes": 1}))
    tracker.metrics(10, {"val/tof": 1.0 - 0.1 * number})
    tracker.end("FINISHED")
    return resolved


def test_trials_are_flat_runs_with_log10_and_the_report_is_a_run_of_its_own(server, tmp_path):
    results = Results(tmp_path)
    track_base(results.config, server.uri, extra_params={"site": "left"})
    trials = [results.add(settling(0.5 + 0.05 * number), tof=0.9 - 0.1 * number) for number in range(3)]
    for trial in trials:
        track_trial(results.config, trial.number, trial.params)
    files, run_id = publish_report(results.config)
    mlflow.set_tracking_uri(server.uri)

    def found(text: str) -> list[mlflow.entities.Run]:
        return mlflow.search_runs(experiment_names=["studies"], filter_string=text, output_format="list")

    runs = sorted(found("tags.study = 'stub' and tags.kind = 'trial'"), key=lambda run: int(run.data.tags["trial"]))
    assert [run.data.tags["trial"] for run in runs] == ["0", "1", "2"]
    for run, trial in zip(runs, trials, strict=True):
        assert "mlflow.parentRunId" not in run.data.tags
        assert float(run.data.params["adversarial.weight"]) == pytest.approx(trial.params["adversarial.weight"])
        expected = {"adversarial.weight": -4 + 3 * ((trial.number * 0.618034) % 1.0)}
        assert float(run.data.params["log10.adversarial.weight"]) == pytest.approx(
            expected["adversarial.weight"], abs=1e-5
        )
        assert [name for name in run.data.params if name.startswith("log10.")] == ["log10.adversarial.weight"]
        assert run.data.params["site"] == "left"
        assert not any("extra_params" in name for name in run.data.params)
        assert run.data.metrics["val/tof"] == pytest.approx(1.0 - 0.1 * trial.number)
    (study_run,) = found("tags.study = 'stub' and tags.kind = 'study'")
    assert study_run.info.run_id == run_id and study_run.info.status == "FINISHED"
    assert study_run.info.run_name == "study stub"
    assert study_run.data.tags["best_trial"] == "2" and study_run.data.tags["team"] == "pixels"
    client = mlflow.MlflowClient()
    names = {file.path for file in client.list_artifacts(run_id)}
    assert names == {path.name for path in files.all}
    page = Path(client.download_artifacts(run_id, "report.html", str(tmp_path)))
    assert page.read_bytes() == files.page.read_bytes()

    results.add(settling(0.5), tof=0.3)  # Reported again: the same run, with the new report.
    files, again = publish_report(results.config)
    assert again == run_id
    (study_run,) = found("tags.study = 'stub' and tags.kind = 'study'")
    assert study_run.data.tags["trials"] == "4" and study_run.data.tags["best_trial"] == "3"
    page = Path(client.download_artifacts(run_id, "report.html", str(tmp_path)))
    assert page.read_bytes() == files.page.read_bytes() and b"4 trials of" in page.read_bytes()


def test_a_server_that_is_down_does_not_fail_the_report(server, tmp_path, capsys):
    from vsr_dist.cli import main

    results = full_study(tmp_path)
    track_base(results.config, f"http://127.0.0.1:{free_port()}")
    files, run_id = publish_report(results.config)
    assert run_id is None and all(path.is_file() for path in files.all)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "did not accept everything" in warnings[0] and "track replay" in warnings[0]
    publish_report(results.config)
    capsys.readouterr()
    # What waits can be sent later, to where the server is by then: files, tags, status; not once per report.
    state = results.config.directory / "tracking" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "uri": server.uri, "experiment": "later"}))
    assert run_cli(main, ["track", "replay", str(results.config.directory)]) == 0
    assert f"uploaded 0 scalars and {len(files.all) + 2} other events" in capsys.readouterr().out
    mlflow.set_tracking_uri(server.uri)
    (run,) = mlflow.search_runs(experiment_names=["later"], output_format="list")
    assert run.data.tags["kind"] == "study"
    names = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert names == {path.name for path in files.all}


def test_a_further_parameter_may_not_take_the_name_of_a_setting(tmp_path):
    results = Results(tmp_path)
    overrides = ["tracking.extra_params={loss.tv: '1', mine: '2'}"]
    with pytest.raises(BadConfigError, match=r"tracking\.extra_params: loss\.tv is a parameter of every run already"):
        check_config(load_config(Path(results.config.base), overrides))


def test_optuna_dashboard_reads_the_study(tmp_path):
    results = full_study(tmp_path)
    port = free_port()
    database = f"sqlite:///{results.config.directory}/study.db"
    program = Path(sys.executable).parent / "optuna-dashboard"
    with (tmp_path / "dashboard.log").open("wb") as log:
        process = subprocess.Popen(
            [str(program), database, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        listing = wait_for_json(f"http://127.0.0.1:{port}/api/studies", process)
        (summary,) = listing["study_summaries"]
        assert summary["study_name"] == "stub" and summary["directions"] == ["minimize"]
        detail = wait_for_json(f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}?after=0", process)
        trials = sorted(detail["trials"], key=lambda trial: trial["number"])
        states = [trial["state"] for trial in trials]
        assert (len(trials), states[3], states[12], states[15]) == (16, "Complete", "Pruned", "Running")
        assert trials[3]["values"] == pytest.approx([results.study.trials[3].value])
        noted = {item["key"]: item["value"] for item in trials[12]["user_attrs"]}
        assert noted["reason"].strip(chr(34)).startswith("drift/dead_fraction 0.8, above 0.5")
    finally:
        process.kill()
        process.wait(30)
    assert results.study.trials[15].state == TrialState.RUNNING


def wait_for_json(url: str, process: subprocess.Popen[bytes]) -> dict:
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < 120:
        assert process.poll() is None, "the dashboard ended"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(url)
