"""The driver against trials that finish, crash, hang, or hurt it. Trials are a script, see `sweeps_stub`."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState
from sweeps_stub import SPACE, make_study

from sweeps.driver import run_study
from sweeps.storage import counted, load_trials, open_storage
from vsr_dist.config import load_config
from vsr_dist.core.errors import BadConfigError, UserError


def states(study):
    return [trial.state.name for trial in load_trials(study)]


def reason(study, number):
    return load_trials(study)[number].user_attrs["reason"]


def worker_is_gone(folder: Path) -> bool:
    pid = int((folder / "worker.pid").read_text())
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_study_runs_all_its_trials_and_finds_the_best(tmp_path, capsys):
    study = make_study(tmp_path, num_trials=4)
    best = run_study(study)
    trials = load_trials(study)
    assert states(study) == ["COMPLETE"] * 4
    values = [30 - (math.log10(trial.params["adversarial.weight"]) + 3) ** 2 for trial in trials]
    assert [trial.value for trial in trials] == pytest.approx(values)
    assert best.number == values.index(max(values))
    facts = trials[2].user_attrs
    assert {"drift/auc": 0.75, "drift/normalized_loss": 0.9, "mlflow_run_ids": ["run2"]}.items() <= facts.items()
    assert (facts["clips_per_s"], facts["role"], facts["seeds"]) == (4.0, "search", [0])
    assert facts["run_dirs"] == [str(study.trial_dir(2))]
    assert trials[2].intermediate_values == {5: trials[2].value, 10: trials[2].value}
    (picture,) = get_all_artifact_meta(trials[2], storage=open_storage(study))
    assert picture.filename == "clip.png" and picture.mimetype == "image/png"
    assert (study.directory / "artifacts" / picture.artifact_id).read_bytes() == b"a picture"
    printed = capsys.readouterr().out
    assert "trial 3: val/psnr_y" in printed
    assert f"best: trial {best.number}, val/psnr_y" in printed


def test_what_a_trial_is_given_is_a_valid_configuration_of_its_own(tmp_path):
    study = make_study(tmp_path, num_trials=1, set=["train.steps=20", "loss.tv=1e-3"])
    run_study(study)
    folder = study.trial_dir(0)
    options = json.loads((folder / "options.json").read_text())
    assert options[:2] == ["--config", study.base]
    assert options[-2:] == ["--resume", "auto"]
    assert options[2:-2:2] == ["--set"] * len(options[2:-2:2])
    config = load_config(Path(options[1]), options[3:-2:2])
    parameters = load_trials(study)[0].params
    assert (config.name, config.run_dir) == ("stub-trial-0000", str(folder))
    assert config.tracking.tags == {
        "team": "pixels",
        "study": "stub",
        "trial": "0",
        "kind": "trial",
        "role": "search",
        "seed": "0",
    }
    logarithm = math.log10(load_trials(study)[0].params["adversarial.weight"])
    assert {k: float(v) for k, v in config.tracking.extra_params.items()} == pytest.approx(
        {"log10.adversarial.weight": logarithm}, abs=1e-5
    )
    assert (config.train.steps, config.loss.tv) == (20, 1e-3)
    assert config.adversarial.weight == parameters["adversarial.weight"]
    assert config.discriminator.filters == parameters["discriminator.filters"]


def test_failures_are_told_with_their_reason_and_the_study_goes_on(tmp_path):
    study = make_study(tmp_path, "crash", "user_error", "nan", "renamed", "finish", num_trials=5)
    assert run_study(study).number == 4
    assert states(study) == ["FAIL", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert reason(study, 0) == "RuntimeError: wrong shape on rank 1 (exit status 17)"
    assert reason(study, 1) == "error: data.root holds no index.json (exit status 1)"
    assert reason(study, 2) == "last is nan; expected a finite number"
    assert reason(study, 3).startswith("the run has no metric val/psnr_y (did you mean 'val/psnr'?)")


def test_a_hanging_trial_is_stopped_with_all_its_processes(tmp_path):
    study = make_study(tmp_path, "hang", num_trials=1, trial_timeout_s=1.0)
    with pytest.raises(UserError, match="stopped after 1 s by the study's trial_timeout_s"):
        run_study(study)
    assert worker_is_gone(tmp_path)
    # Without the limit: one second is not enough for a trial on a busy machine.
    run_study(make_study(tmp_path, "hang", num_trials=2))
    assert states(study) == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_fails_the_trial_and_a_rerun_goes_on(tmp_path, name):
    study = make_study(tmp_path, "finish", name, num_trials=2)
    before = signal.getsignal(signal.SIGTERM)
    # A shell that starts the tests in the background has SIGINT ignored.
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_study(study)
    finally:
        signal.signal(signal.SIGINT, found)
    assert signal.getsignal(signal.SIGTERM) == before
    assert states(study) == ["COMPLETE", "FAIL", "WAITING"]
    assert reason(study, 1) == "interrupted by Ctrl-C or SIGTERM"
    assert worker_is_gone(tmp_path)
    run_study(study)  # The interrupted trial resumes under another number, and counts once.
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    trials = load_trials(study)
    assert [trial.number for trial in counted(trials)] == [0, 2] and trials[2].params == trials[1].params
    assert trials[2].user_attrs["run_dirs"] == [str(study.trial_dir(1))]


def test_a_complete_study_says_so_and_starts_nothing(tmp_path, capsys):
    study = make_study(tmp_path, num_trials=2)
    run_study(study)
    capsys.readouterr()
    run_study(study)
    assert "study stub is complete: 2 of 2 trials" in capsys.readouterr().out
    assert states(study) == ["COMPLETE"] * 2


def test_a_study_in_two_runs_tries_what_one_run_would(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = make_study(tmp_path / "whole", num_trials=4, seed=3)
    parts = make_study(tmp_path / "parts", num_trials=2, seed=3)
    run_study(whole)
    run_study(parts)
    run_study(replace(parts, num_trials=4))
    parameters = [trial.params for trial in load_trials(whole)]
    assert [trial.params for trial in load_trials(parts)] == parameters
    assert len({trial["adversarial.weight"] for trial in parameters}) == 4


def test_a_failed_trial_counts(tmp_path):
    study = make_study(tmp_path, "crash", num_trials=2)
    run_study(study)
    run_study(study)
    assert states(study) == ["FAIL", "COMPLETE"]


def test_a_study_without_any_result_is_an_error_with_the_last_reason(tmp_path):
    study = make_study(tmp_path, "crash", "user_error", num_trials=2)
    for _ in range(2):  # A rerun finds nothing to do, and says the same.
        with pytest.raises(UserError, match=r"gave a result \(2 failed\); the last one: error: data\.root"):
            run_study(study)
    assert states(study) == ["FAIL", "FAIL"]


def test_sqlite_storage_is_accepted(tmp_path):
    study = make_study(tmp_path, num_trials=1, storage=f"sqlite:///{tmp_path}/db/study.db")
    run_study(study)
    loaded = optuna.load_study(study_name="stub", storage=study.storage)
    assert [trial.state for trial in loaded.trials] == [TrialState.COMPLETE]
    assert not (study.directory / "journal.log").exists()


def test_a_changed_study_is_not_mixed_with_the_old_one(tmp_path):
    study = make_study(tmp_path, num_trials=1)
    run_study(study)
    other = {**SPACE, "adversarial.weight": {**SPACE["adversarial.weight"], "high": 1.0}}
    with pytest.raises(
        BadConfigError, match=r"started with other settings \(study.space.adversarial.weight .*'high': 1.0"
    ):
        run_study(make_study(tmp_path, num_trials=2, space=other))
    with pytest.raises(BadConfigError, match=r"\(train.steps 10 -> 20\)"):
        run_study(make_study(tmp_path, num_trials=2, set=["train.steps=20"]))
    # What does not change a result, and the base's value of what is sampled anyway, may change.
    unchanged = make_study(tmp_path, num_trials=2, set=["train.log_every=7"])
    base = Path(study.base)
    base.write_text(base.read_text().replace("0.001", "0.002"))
    run_study(unchanged)
    assert states(study) == ["COMPLETE"] * 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"space": {"adversarial.wieght": SPACE["adversarial.weight"]}}, "did you mean 'adversarial.weight'"),
        ({"objective": {"metric": "val/psnr"}}, "no training logs val/psnr "),
        (
            {"constraints": [{"name": "c", "metric": "drift/normalised_loss", "at_most": 0.9}]},
            "no training logs drift/normalised_loss.*drift/normalized_loss",
        ),
        (
            {"stop_when": [{"metric": "perf/clip_per_s", "below": 1.0}]},
            "stop_when: no training logs perf/clip_per_s.*perf/clips_per_s",
        ),
        (
            {
                "constraints": [{"name": "c", "metric": "drift/auc", "at_least": 0.5}],
                "set": ["adversarial.weight=0"],
                "space": {"discriminator.filters": SPACE["discriminator.filters"]},
            },
            "constraint c: drift/auc needs adversarial training",
        ),
        (
            {
                "constraints": [
                    {"name": "c", "metric": "drift/auc", "reduce": "tail_slope_high", "at_most": 0.1},
                ],
                "set": ["train.validate_every=5"],
            },
            "constraint c: tail_slope_high: expected at least 3 evaluations in the later half",
        ),
        ({"launch": {"config_file": "no/such.yaml"}}, "there is no file no/such.yaml"),
        ({"launch": {"command": ["no-such-program"]}}, "there is no program no-such-program"),
        ({"base": "no/such.yaml"}, "no configuration file no/such.yaml"),
        ({"set": ["train.warmup_steps=10"]}, "leaves no step of train.steps"),
        ({"set": ["train.stepz=10"]}, "did you mean 'steps'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, changes, expected):
    study = make_study(tmp_path, **changes)
    with pytest.raises(BadConfigError, match=expected):
        run_study(study)
    assert not study.directory.exists()


def test_a_folder_that_the_storage_does_not_know_is_not_taken_for_a_result(tmp_path):
    study = make_study(tmp_path, num_trials=1)
    run_study(study)
    (study.directory / "study.db").unlink()
    with pytest.raises(UserError, match="trial_0000 exists, but the storage does not know its trial; move it away"):
        run_study(study)
    assert not counted(load_trials(study))
