"""Drivers whose storage fails for a moment, as a database that is restarted does, or for good."""

from __future__ import annotations

from collections import Counter

import psutil
import pytest
from optuna.exceptions import StorageInternalError
from sweeps_stub import make_study

from sweeps import driver
from sweeps.driver import run_study
from sweeps.storage import Store, load_trials
from vsr_dist.core.errors import UserError

BOUND = {"name": "sharp", "metric": "val/psnr_y", "relative_to": "val_bicubic/psnr_y", "at_least": -9.0}


# (Method, number of the call): whether it fails after it has done what it was asked for, which no driver can know.
FAULTS = {
    ("create", 2): True,
    ("create", 4): False,
    ("trials", 9): False,
    ("report", 1): False,
    ("note", 2): False,
    ("constrain", 3): True,
    ("complete", 1): True,
    ("complete", 3): False,
}


def test_a_storage_that_fails_now_and_then_costs_nothing(tmp_path, monkeypatch, capsys):
    calls = Counter()

    def flaky(method):
        real = getattr(Store, method)

        def call(self, *arguments, **options):
            calls[method] += 1
            after = FAULTS.get((method, calls[method]))
            found = None if after is False else real(self, *arguments, **options)
            if after is not None:
                raise StorageInternalError("server closed the connection\nunexpectedly")
            return found

        return call

    for method in {method for method, _ in FAULTS}:
        monkeypatch.setattr(Store, method, flaky(method))
    monkeypatch.setattr(driver, "_STORAGE_PAUSE_S", 0.0)
    study = make_study(tmp_path, num_trials=4, constraints=[BOUND])
    run_study(study)
    output = capsys.readouterr().out
    assert "asking again, trainings go on: server closed the connection unexpectedly" in output
    assert "the storage answers again" in output
    assert all(calls[method] >= number for method, number in FAULTS)
    assert [trial.state.name for trial in load_trials(study)] == ["COMPLETE"] * 4


def test_a_storage_that_stays_away_ends_the_driver_with_one_line(tmp_path, monkeypatch):
    def gone(self):
        if (tmp_path / "worker.pid").exists():
            raise StorageInternalError("gone")
        return trials(self)

    trial, trials = Store.trial, Store.trials
    monkeypatch.setattr(Store, "trial", lambda self, number: gone(self) and trial(self, number))
    monkeypatch.setattr(Store, "trials", gone)
    monkeypatch.setattr(driver, "_STORAGE_PAUSE_S", 0.01)
    monkeypatch.setattr(driver, "_STORAGE_PATIENCE_S", 0.1)
    study = make_study(tmp_path, "hang", num_trials=2, lease_s=0.2)
    with pytest.raises(UserError, match=r"has failed for .* mend it and start the study again"):
        run_study(study)
    worker = int((tmp_path / "worker.pid").read_text())
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE
    monkeypatch.setattr(Store, "trial", trial)
    monkeypatch.setattr(Store, "trials", trials)
    # Left to the next driver, as if this one had been killed.
    assert [trial.state.name for trial in load_trials(study)] == ["RUNNING"]
