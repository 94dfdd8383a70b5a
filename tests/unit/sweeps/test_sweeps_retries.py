"""Drivers that die, and drivers that share a study: nothing is lost, and nothing is counted twice.

Tests wait for files and states, never for an amount of time. A heartbeat that is late on a loaded machine makes another
driver retry a trial; then the first one gives it up. So they look at the trials that count.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from forked import Forked
from optuna.trial import TrialState
from sweeps_stub import make_study, study_tree

from sweeps import driver as driver_module
from sweeps.driver import is_surplus, run_study
from sweeps.storage import counted, create_study, first_number, load_trials, open_storage, retry
from vsr_dist.core.errors import BadConfigError

FAST = {"heartbeat_s": 1, "max_retries": 9, "grace_s": 5}


def states(study):
    return [trial.state.name for trial in load_trials(study)]


def counted_states(study):
    trials = load_trials(study)
    assert not [trial.number for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    return [trial.state.name for trial in counted(trials)]


def starts(study, number):
    return (study.trial_dir(number) / "starts").read_text().splitlines()


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition, limit_s=120.0):
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


def has_begun(study, number):
    """True once the storage knows that the training of a trial has started."""
    return (study.trial_dir(number) / "starts").exists() and "driver" in load_trials(study)[number].user_attrs


def busy_drivers(study):
    """The drivers whose trainings have started."""
    if not list(study.directory.glob("trial_*/starts")):
        return set()
    running = [trial for trial in load_trials(study) if trial.state == TrialState.RUNNING]
    return {trial.user_attrs["driver"] for trial in running if "driver" in trial.user_attrs}


@pytest.mark.slow
def test_a_training_ends_with_its_driver_and_a_second_driver_resumes_it(tmp_path, capsys):
    study = make_study(tmp_path, "hold", num_trials=2, **FAST)
    with driver(tmp_path, num_trials=2, **FAST) as process:
        wait_until(lambda: has_begun(study, 0))
        process.kill()
        process.wait()
        training = int(starts(study, 0)[0].split()[0])
        wait_until(lambda: is_gone(training))
    assert (study.trial_dir(0) / "checkpoint").read_text() == "saved"
    assert states(study) == ["RUNNING"]
    (tmp_path / "go_on").touch()
    run_study(study)
    assert counted_states(study) == ["COMPLETE"] * 2
    assert "trial 0: interrupted; queued again to resume from its last checkpoint" in capsys.readouterr().out
    resumed = next(trial for trial in counted(load_trials(study)) if first_number(trial) == 0)
    assert resumed.number > 0 and resumed.params == load_trials(study)[0].params
    assert resumed.user_attrs["run_dirs"] == [str(study.trial_dir(0))] and len(starts(study, 0)) == 2
    assert resumed.intermediate_values.keys() == {5, 10}
    options = json.loads((study.trial_dir(0) / "options.json").read_text())
    assert options[-2:] == ["--resume", "auto"] and "name=stub-trial-0000" in options
    assert not study.trial_dir(resumed.number).exists() or resumed.number == 1


@pytest.mark.slow
def test_a_rank_that_ignores_sigterm_dies_with_its_driver(tmp_path):
    study = make_study(tmp_path, "SIGKILL", num_trials=1, **FAST)
    with driver(tmp_path, num_trials=1, **FAST) as process:
        assert process.wait(120) == -signal.SIGKILL
        wait_until(lambda: is_gone(int((tmp_path / "worker.pid").read_text())))
    run_study(study)
    assert counted_states(study) == ["COMPLETE"]


@pytest.mark.slow
def test_a_trial_that_kills_its_drivers_is_not_retried_for_ever(tmp_path, capsys):
    limits = {**FAST, "max_retries": 0}
    study = make_study(tmp_path, "kills its driver", num_trials=2, **limits)
    with driver(tmp_path, num_trials=2, **limits) as process:
        assert process.wait(120) == -signal.SIGKILL
    run_study(study)
    assert counted_states(study) == ["FAIL", "COMPLETE"]
    assert "not retried" in capsys.readouterr().out


@pytest.mark.slow
def test_a_result_that_came_before_its_driver_died_is_taken(tmp_path):
    study = make_study(tmp_path, "hold", num_trials=1, **FAST)
    with driver(tmp_path, num_trials=1, **FAST) as process:
        wait_until(lambda: has_begun(study, 0))
        process.send_signal(signal.SIGSTOP)
        (tmp_path / "go_on").touch()
        wait_until((study.trial_dir(0) / "end_s").exists)
    run_study(study)
    assert counted_states(study) == ["COMPLETE"]
    assert len(starts(study, 0)) == 1


@pytest.mark.slow
def test_one_of_two_drivers_dies_and_the_other_ends_the_study(tmp_path):
    # Longer than elsewhere: here another driver looks at heartbeats that may be late.
    limits = {**FAST, "heartbeat_s": 4}
    study = make_study(tmp_path, "hold", "hold", num_trials=4, **limits)
    with driver(tmp_path, num_trials=4, **limits) as first, driver(tmp_path, num_trials=4, **limits) as second:
        wait_until(lambda: len(busy_drivers(study)) == 2)
        first.kill()
        (tmp_path / "go_on").touch()
        assert second.wait(240) == 0
    assert counted_states(study) == ["COMPLETE"] * 4
    assert 0 in [first_number(trial) for trial in counted(load_trials(study))]


@pytest.mark.slow
def test_sigterm_to_the_driver_ends_it_with_status_143_and_the_next_run_resumes(tmp_path):
    study = make_study(tmp_path, "hold", num_trials=1, grace_s=60)
    with driver(tmp_path, num_trials=1, grace_s=60) as process:
        wait_until(lambda: has_begun(study, 0))
        process.terminate()
        assert process.wait(120) == 143
    assert states(study) == ["FAIL", "WAITING"] and (study.trial_dir(0) / "checkpoint").exists()
    (tmp_path / "go_on").touch()
    run_study(study)
    assert counted_states(study) == ["COMPLETE"]


@pytest.mark.slow
def test_two_workers_of_the_command_line_run_two_trials_at_a_time(tmp_path):
    study = make_study(tmp_path, "meet", "meet", num_trials=2, trial_timeout_s=120)
    with driver(tmp_path, "--workers", "2", num_trials=2, trial_timeout_s=120) as process:
        assert process.wait(240) == 0
    assert counted_states(study) == ["COMPLETE"] * 2


def test_a_trial_that_another_driver_has_taken_over_is_given_up(tmp_path, capsys):
    study = make_study(tmp_path, "hold", num_trials=2, heartbeat_s=1)

    def take_over():
        wait_until(lambda: study.directory.exists() and has_begun(study, 0))
        other = optuna.load_study(study_name="stub", storage=open_storage(study))
        other.tell(0, state=TrialState.FAIL)

    helper = threading.Thread(target=take_over)
    helper.start()
    run_study(study)
    helper.join()
    assert counted_states(study) == ["FAIL", "COMPLETE"]
    assert "trial 0: another driver has taken over this trial; its training is stopped here" in capsys.readouterr().out
    assert (study.trial_dir(0) / "checkpoint").exists()


def test_an_error_of_the_driver_leaves_no_trial_running(tmp_path, monkeypatch):
    study = make_study(tmp_path, "hold", num_trials=1, grace_s=5)

    def broken(self, place, rows):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(driver_module._Watch, "look", broken)
    with pytest.raises(ZeroDivisionError):
        run_study(study)
    assert states(study) == ["FAIL", "WAITING"]
    assert load_trials(study)[0].user_attrs["reason"] == "its driver failed: ZeroDivisionError('a bug')"
    monkeypatch.undo()
    (tmp_path / "go_on").touch()
    run_study(study)
    assert states(study) == ["FAIL", "COMPLETE"] and counted_states(study) == ["COMPLETE"]


def new_study(config):
    return create_study(config, open_storage(config), optuna.pruners.NopPruner(), {})


def test_a_trial_whose_driver_died_before_the_first_heartbeat_is_retried(tmp_path, monkeypatch):
    config = make_study(tmp_path, num_trials=2)
    run_study(make_study(tmp_path, num_trials=1))
    optuna.load_study(study_name="stub", storage=open_storage(config)).ask()
    monkeypatch.setattr(driver_module, "_UNCLAIMED_S", 0.0)
    run_study(config)
    assert states(config) == ["COMPLETE", "FAIL", "COMPLETE"] and counted_states(config) == ["COMPLETE"] * 2


def test_drivers_that_start_the_last_trial_together_agree_whose_counts(tmp_path):
    config = make_study(tmp_path, num_trials=2)
    study = new_study(config)
    study.enqueue_trial({}, user_attrs={"role": "start", "start": 0})
    study.enqueue_trial({}, user_attrs={"role": "start", "start": 0})
    for _ in range(2):
        study.enqueue_trial({})
    for seed in (5, 5, 6):
        study.enqueue_trial({}, user_attrs={"role": "repeat", "repeat_of": 0, "seeds": [seed]})
    trials = study.trials
    assert [is_surplus(config, trials, trial) for trial in trials] == [False, True, True, True, False, True, False]
    trials = [trial for trial in trials if trial.number != 1]
    assert [is_surplus(config, trials, trial) for trial in trials] == [False, False, True, False, True, False]


def test_a_storage_without_heartbeats_replaces_what_a_dead_driver_left(tmp_path, capsys):
    config = make_study(tmp_path, num_trials=2, storage=f"journal:{tmp_path}/journal.log")
    run_study(make_study(tmp_path, num_trials=1, storage=config.storage))
    optuna.load_study(study_name="stub", storage=open_storage(config)).ask()
    run_study(config)
    assert states(config) == ["COMPLETE", "RUNNING", "COMPLETE"]
    assert "warning: trials 1 are in state RUNNING; this storage has no heartbeats" in capsys.readouterr().out


def test_only_deaths_of_drivers_use_up_the_retries(tmp_path, capsys):
    config = make_study(tmp_path, max_retries=1)
    study = new_study(config)
    study.enqueue_trial({})
    # Stopped twice, then its driver dies twice.
    for max_deaths in (None, None, 1, 1):
        trial = study.ask()
        study.tell(trial.number, state=TrialState.FAIL)
        retry(study, study.get_trials()[trial.number], max_deaths=max_deaths)
    assert states(config) == ["FAIL"] * 4
    assert "trial 3: its driver died again after 1 retries; not retried" in capsys.readouterr().out


def test_a_slow_driver_that_ends_its_trial_is_not_taken_for_a_dead_one(tmp_path, monkeypatch):
    config = make_study(tmp_path, num_trials=2)
    run_study(make_study(tmp_path, num_trials=1))
    owner = optuna.load_study(study_name="stub", storage=open_storage(config))
    trial = owner.ask()
    real = optuna.Study.tell

    def ended_meanwhile(study, number, *arguments, **options):
        trial.set_user_attr("reason", "RuntimeError")
        real(owner, number, state=TrialState.FAIL)
        return real(study, number, *arguments, **options)

    monkeypatch.setattr(optuna.Study, "tell", ended_meanwhile)
    monkeypatch.setattr(driver_module, "_UNCLAIMED_S", 0.0)
    run_study(config)
    assert states(config) == ["COMPLETE", "FAIL"]


@pytest.mark.parametrize("ignored", [False, True])
def test_signals_are_noted_and_raise_nothing(ignored):
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)
    try:
        with driver_module._noted_signals() as received:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == handler
        assert received == [signal.SIGTERM] + [signal.SIGINT] * (not ignored)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_journal_whose_last_line_was_cut_off_is_repaired(tmp_path, capsys):
    journal = tmp_path / "journal.log"
    run_study(make_study(tmp_path, num_trials=1, storage=f"journal:{journal}"))
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"')
    config = make_study(tmp_path, num_trials=2, storage=f"journal:{journal}")
    run_study(config)
    assert states(config) == ["COMPLETE"] * 2 and journal.read_bytes().startswith(whole)
    assert f"warning: the last line of {journal} was cut off" in capsys.readouterr().out
    journal.write_text("no journal\nat all\n")
    with pytest.raises(BadConfigError, match="is not a journal of Optuna, or it is damaged"):
        run_study(config)
