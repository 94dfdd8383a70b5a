"""Drivers that die, and drivers that share a study: nothing is lost, and nothing is counted twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from forked import Forked
from sweeps_stub import make_study, study_tree

from sweeps.claims import claim, next_place
from sweeps.driver import run_study
from sweeps.lease import LEASE, Watch, this_driver
from sweeps.preflight import check_study
from sweeps.storage import load_trials, open_store
from vsr_dist.core.errors import UserError


def states(study):
    return [trial.state.name for trial in load_trials(study)]


def starts(study, number):
    return (study.trial_dir(number) / "starts").read_text().splitlines()


def wait_until(condition, limit_s=60.0):
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def driver(folder: Path, *options: str, **changes: object):
    """`python -m sweeps run` in a process of its own."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study_tree(folder, **changes)))
    process = Forked("sweeps", ["run", "--config", str(file), *options], folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def kill_once_started(process, study, number):
    """Kill a driver as soon as the training of a trial runs."""
    wait_until((study.trial_dir(number) / "starts").exists)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_killed_drivers_training_is_adopted(tmp_path, capsys):
    study = make_study(tmp_path, "slow", num_trials=2)
    with driver(tmp_path, num_trials=2) as process:
        kill_once_started(process, study, 0)
    training = int(starts(study, 0)[0].split()[0])
    assert states(study) == ["RUNNING"] and psutil.pid_exists(training)
    before = load_trials(study)[0].user_attrs[LEASE]["id"]

    def go_on_once_adopted():
        wait_until(lambda: load_trials(study)[0].user_attrs[LEASE]["id"] != before)
        (tmp_path / "go_on").touch()

    helper = threading.Thread(target=go_on_once_adopted)
    helper.start()
    run_study(study)
    helper.join()
    assert "trial 0: its driver is gone, its training is not; adopted" in capsys.readouterr().out
    trials = load_trials(study)
    assert states(study) == ["COMPLETE"] * 2
    assert len(starts(study, 0)) == 1
    assert trials[0].value == trials[0].intermediate_values[10]
    assert "retries" not in trials[0].user_attrs


@pytest.mark.slow
def test_a_result_that_came_while_no_driver_ran_is_taken(tmp_path, capsys):
    study = make_study(tmp_path, "slow", num_trials=1)
    with driver(tmp_path, num_trials=1) as process:
        kill_once_started(process, study, 0)
    (tmp_path / "go_on").touch()
    wait_until((study.trial_dir(0) / "ended.json").exists)
    run_study(study)
    assert states(study) == ["COMPLETE"]
    assert len(starts(study, 0)) == 1
    assert load_trials(study)[0].intermediate_values.keys() == {5, 10}
    assert "its training has ended meanwhile" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trial_that_died_with_its_driver_goes_on_under_its_number(tmp_path, capsys):
    study = make_study(tmp_path, "dies_once", num_trials=2)
    with driver(tmp_path, num_trials=2) as process:
        assert process.wait(60) == -signal.SIGKILL
    run_study(study)
    trials = load_trials(study)
    assert states(study) == ["COMPLETE"] * 2
    assert len(starts(study, 0)) == 2
    assert trials[0].user_attrs["retries"] == 1
    options = json.loads((study.trial_dir(0) / "options.json").read_text())
    assert options[-2:] == ["--resume", "auto"]
    assert f"adversarial.weight={trials[0].params['adversarial.weight']!r}" in options
    assert "goes on from its last checkpoint (retry 1)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trial_that_kills_its_drivers_is_given_up_and_made_up_for(tmp_path, capsys):
    study = make_study(tmp_path, "dies_once", num_trials=1, max_retries=0)
    with driver(tmp_path, num_trials=1) as process:
        assert process.wait(60) == -signal.SIGKILL
    run_study(study)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert load_trials(study)[0].user_attrs["interrupted"] is True
    assert "died 1 times; max_retries is 0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_drivers_stuck_worker_is_cleared(tmp_path):
    study = make_study(tmp_path, "SIGKILL", num_trials=1, stall_timeout_s=2.0)
    with driver(tmp_path, num_trials=1) as process:
        assert process.wait(60) == -signal.SIGKILL
    with pytest.raises(UserError, match="stall_timeout_s"):  # Adopted, and then found hanging.
        run_study(study)
    assert states(study) == ["FAIL"]
    pid = int((tmp_path / "worker.pid").read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.slow
def test_a_decision_to_prune_outlives_its_driver(tmp_path):
    study = make_study(tmp_path, "finish", "slow", num_trials=2)
    with driver(tmp_path, num_trials=2) as process:
        kill_once_started(process, study, 1)
    checked = check_study(study)
    store = open_store(study, checked.settings, train_steps=10, warmup_steps=5)
    store.note(1, {"pruning": "hopeless"})
    run_study(study)
    assert states(study) == ["COMPLETE", "PRUNED"]
    assert load_trials(study)[1].user_attrs["reason"].startswith("hopeless")


@pytest.mark.slow
def test_two_drivers_share_a_journal(tmp_path):
    study = make_study(tmp_path, *["sleep 0.3"] * 8, num_trials=8)
    with driver(tmp_path, num_trials=8) as first, driver(tmp_path, num_trials=8) as second:
        assert (first.wait(120), second.wait(120)) == (0, 0)
    assert states(study) == ["COMPLETE"] * 8
    assert all(len(starts(study, number)) == 1 for number in range(8))
    drivers = {trial.user_attrs[LEASE]["id"] for trial in load_trials(study)}
    assert len(drivers) == 2


@pytest.mark.slow
def test_one_of_two_drivers_dies_and_the_other_ends_the_study(tmp_path):
    study = make_study(tmp_path, *["sleep 0.5"] * 6, num_trials=6)
    with driver(tmp_path, num_trials=6) as first, driver(tmp_path, num_trials=6) as second:
        wait_until((study.trial_dir(2) / "starts").exists)
        first.kill()
        assert second.wait(120) == 0
    assert states(study) == ["COMPLETE"] * 6
    assert all(len(starts(study, number)) == 1 for number in range(6))


def test_drivers_that_meet_at_one_place_agree_who_has_it(tmp_path, monkeypatch):
    """As with a database and no common folder: both look before either has claimed."""
    study = make_study(tmp_path, num_trials=2)
    checked = check_study(study)
    store = open_store(study, checked.settings, train_steps=10, warmup_steps=5)
    mine = claim(store, (), 0, this_driver())
    stale = [None, store.trials()]
    monkeypatch.setattr(
        "sweeps.claims.next_place",
        lambda config, trials, starts, seed: next_place(config, [] if stale.pop(0) is None else trials, starts, seed),
    )
    other = claim(store, (), 0, this_driver())
    assert mine == 0
    assert [trial.user_attrs["slot"] for trial in store.trials()] == ["search:0", "search:0", "search:1"]
    assert states(study) == ["RUNNING", "FAIL", "RUNNING"] and other == 2
    assert claim_after(monkeypatch, store) is None


def claim_after(monkeypatch, store):
    monkeypatch.undo()
    return claim(store, (), 0, this_driver())


def test_a_lease_of_another_machine_is_dead_when_nothing_moves(tmp_path, monkeypatch):
    study = make_study(tmp_path, num_trials=1)
    store = open_store(study, check_study(study).settings, train_steps=10, warmup_steps=5)
    there = replace(this_driver(), place="another machine", pid=1)
    claim(store, (), 0, there)
    watch = Watch(this_driver(), lease_s=10.0)
    clock = [100.0]
    monkeypatch.setattr("sweeps.lease.time.monotonic", lambda: clock[0])
    still = [(1.0, 1)]
    assert not watch.is_dead(store.trial(0), still)
    clock[0] += 9
    assert not watch.is_dead(store.trial(0), still)
    store.note(0, {LEASE: {**there.lease(), "renewed_s": 5.0}})  # Its clock may be wrong: only the change counts.
    clock[0] += 9
    assert not watch.is_dead(store.trial(0), still)
    clock[0] += 9
    assert not watch.is_dead(store.trial(0), [(2.0, 5)])  # The driver is silent, but the training goes on.
    clock[0] += 11
    assert watch.is_dead(store.trial(0), [(2.0, 5)])


def test_an_error_of_the_driver_leaves_no_trial_running(tmp_path, monkeypatch):
    study = make_study(tmp_path, "slow", num_trials=1)
    monkeypatch.setattr("sweeps.driver._Loop._poll", lambda self: os.stat("/no/such/file"))
    with pytest.raises(FileNotFoundError):
        run_study(study)
    assert states(study) == ["FAIL"]
    assert load_trials(study)[0].user_attrs["reason"].startswith("its driver ended: FileNotFoundError")
    monkeypatch.undo()
    (tmp_path / "go_on").touch()
    run_study(study)
    assert states(study) == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_the_command_line_sets_workers(tmp_path):
    study = make_study(tmp_path, *["sleep 2"] * 2, num_trials=2)
    with driver(tmp_path, "--workers", "2", num_trials=2) as process:
        assert process.wait(60) == 0
    first, second = (float(starts(study, number)[0].split()[1]) for number in range(2))
    assert second - first < 2
