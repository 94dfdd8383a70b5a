"""Drivers whose storage fails for a moment, as a database that is restarted does, or for good."""

from __future__ import annotations

from collections import Counter

import psutil
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage, RDBStorage
from sweeps_stub import make_study

from sweeps import driver
from sweeps.driver import run_study
from sweeps.storage import load_trials
from vsr_dist.core.errors import UserError

BOUND = {"name": "sharp", "metric": "val/psnr_y", "relative_to": "val_bicubic/psnr_y", "at_least": -9.0}
# (Method, number of the call): whether it fails after it has done what it was asked for, which no driver can know.
FAULTS = {
    ("_create_new_trial", 3): False,
    ("_get_trials", 9): False,
    ("set_trial_intermediate_value", 1): False,
    ("_set_trial_param", 2): False,
    ("_set_trial_param", 4): True,
    **{("set_trial_user_attr", number): number % 3 == 0 for number in range(1, 30, 4)},
    ("set_trial_system_attr", 1): False,
    ("set_trial_system_attr", 3): True,
    ("set_trial_state_values", 1): False,
    ("set_trial_state_values", 3): True,
    ("record_heartbeat", 2): False,
}
JOURNAL_FAULTS = {
    ("set_trial_user_attr", 1): False,
    ("set_trial_state_values", 2): False,
    ("set_trial_state_values", 4): True,
}


def break_now_and_then(monkeypatch, storage, faults):
    """Make calls of a storage class fail; returns how often each method was called."""
    calls = Counter()

    def flaky(method):
        real = getattr(storage, method)

        def call(self, *arguments, **options):
            calls[method] += 1
            after = faults.get((method, calls[method]))
            found = None if after is False else real(self, *arguments, **options)
            if after is not None:
                raise StorageInternalError("server closed the connection\nunexpectedly")
            return found

        return call

    for method in {method for method, _ in faults}:
        monkeypatch.setattr(storage, method, flaky(method))
    monkeypatch.setattr(driver, "_STORAGE_PAUSE_S", 0.0)
    return calls


def test_a_storage_that_fails_now_and_then_costs_nothing(tmp_path, monkeypatch, capsys):
    calls = break_now_and_then(monkeypatch, RDBStorage, FAULTS)
    study = make_study(tmp_path, num_trials=4, constraints=[BOUND])
    run_study(study)
    output = capsys.readouterr().out
    assert "fails, retrying; training runs continue: server closed the connection" in output
    assert "Should not reach" not in output
    assert "warning: no heartbeat recorded: server closed the connection" in output
    assert "the storage is available again" in output
    assert [fault for fault in FAULTS if calls[fault[0]] < fault[1]] == []
    trials = load_trials(study)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    # Each was run once, with the values that the storage has.
    for trial in trials:
        folder = study.trial_dir(trial.number)
        assert len((folder / "starts").read_text().splitlines()) == 1
        assert f"adversarial.weight={trial.params['adversarial.weight']!r}" in (folder / "options.json").read_text()


def test_a_storage_without_heartbeats_that_fails_leaves_no_trial_running(tmp_path, monkeypatch):
    calls = break_now_and_then(monkeypatch, JournalStorage, JOURNAL_FAULTS)
    study = make_study(tmp_path, num_trials=4, storage=f"journal:{tmp_path}/journal.log")
    run_study(study)
    assert [fault for fault in JOURNAL_FAULTS if calls[fault[0]] < fault[1]] == []
    assert [trial.state.name for trial in load_trials(study)] == ["COMPLETE"] * 4


def test_a_storage_that_fails_from_the_start_is_one_line(tmp_path, monkeypatch):
    def gone(self, *arguments, **options):
        raise StorageInternalError("gone")

    monkeypatch.setattr(RDBStorage, "create_new_study", gone)
    with pytest.raises(UserError, match=r"^storage .*study\.db fails: gone$"):
        run_study(make_study(tmp_path))


def test_the_last_look_at_the_trials_waits_for_the_storage(tmp_path, monkeypatch):
    study = make_study(tmp_path, num_trials=1)
    real, num_faults = RDBStorage._get_trials, []

    def flaky(self, *arguments, **options):
        if (study.trial_dir(0) / "end_s").exists() and len(num_faults) < 5:
            num_faults.append(1)
            raise StorageInternalError("gone")
        return real(self, *arguments, **options)

    monkeypatch.setattr(RDBStorage, "_get_trials", flaky)
    monkeypatch.setattr(driver, "_STORAGE_PAUSE_S", 0.0)
    assert run_study(study).number == 0
    assert len(num_faults) == 5


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
