"""Drivers whose storage fails for a moment, as a database that is restarted does, or for good."""

from __future__ import annotations

from collections import Counter

import psutil
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sweeps_stub import make_study

from sweeps import driver
from sweeps.driver import run_study
from sweeps.storage import counted, load_trials
from vsr_dist.core.errors import UserError

BOUND = {"name": "sharp", "metric": "val/psnr_y", "relative_to": "val_bicubic/psnr_y", "at_least": -9.0}
# (Method, number of the call): whether it fails after it has done what it was asked for, which no driver can know.
FAULTS = {
    ("_create_new_trial", 3): False,
    ("_get_trials", 9): False,
    ("set_trial_intermediate_value", 1): False,
    ("set_trial_user_attr", 2): False,
    ("set_trial_user_attr", 9): True,
    ("set_trial_system_attr", 3): True,
    ("set_trial_state_values", 1): False,
    ("record_heartbeat", 2): False,
}


def test_a_storage_that_fails_now_and_then_costs_nothing(tmp_path, monkeypatch, capsys):
    calls = Counter()

    def flaky(method):
        real = getattr(RDBStorage, method)

        def call(self, *arguments, **options):
            calls[method] += 1
            after = FAULTS.get((method, calls[method]))
            found = None if after is False else real(self, *arguments, **options)
            if after is not None:
                raise StorageInternalError("server closed the connection\nunexpectedly")
            return found

        return call

    for method in {method for method, _ in FAULTS}:
        monkeypatch.setattr(RDBStorage, method, flaky(method))
    monkeypatch.setattr(driver, "_STORAGE_PAUSE_S", 0.0)
    study = make_study(tmp_path, num_trials=4, constraints=[BOUND], heartbeat_s=1, max_retries=9)
    run_study(study)
    output = capsys.readouterr().out
    assert "fails, retrying; training runs continue: server closed the connection" in output
    assert "warning: no heartbeat recorded: server closed the connection" in output
    assert "the storage is available again" in output
    assert all(calls[method] >= number for method, number in FAULTS)
    trials = load_trials(study)
    assert [trial.state.name for trial in counted(trials)] == ["COMPLETE"] * 4
    assert not [trial for trial in trials if not trial.state.is_finished()]


def test_a_storage_that_stays_away_ends_the_driver_with_one_line(tmp_path, monkeypatch):
    def gone(method):
        real = getattr(RDBStorage, method)

        def call(self, *arguments, **options):
            if (tmp_path / "worker.pid").exists():
                raise StorageInternalError("gone")
            return real(self, *arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for method in ("record_heartbeat", "set_trial_state_values", "set_trial_user_attr", "_get_trials"):
            patched.setattr(RDBStorage, method, gone(method))
        patched.setattr(driver, "_STORAGE_PAUSE_S", 0.01)
        patched.setattr(driver, "_STORAGE_PATIENCE_S", 0.1)
        study = make_study(tmp_path, "hang", num_trials=2, trial_timeout_s=1.0)
        with pytest.raises(UserError, match=r"has failed for .* repair it and run the study again"):
            run_study(study)
    worker = int((tmp_path / "worker.pid").read_text())
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE
    # Left to the next driver, as if this one had been killed.
    assert [trial.state.name for trial in load_trials(study)] == ["RUNNING"]
