"""Trials that another driver left running: adopt, go on, or give up; and stay away from those that are run."""

from __future__ import annotations

import time
from collections.abc import Collection

from optuna.trial import FrozenTrial, TrialState

from sweeps.backends import storage_file, study_lock
from sweeps.launch import mark_of, marked
from sweeps.lease import LEASE, Driver, Watch, is_held_by
from sweeps.storage import SEEDS, Store
from sweeps.training_process import pulse_of
from sweeps.verdict import has_result
from vsr_dist.core.console import say

RETRIES = "retries"
# Drivers that share a server and no folder may take over at the same moment: the last one to write has it.
_SETTLE_S = 1.0


def take_over(store: Store, watch: Watch, own: Collection[int]) -> int | None:
    """Claim one trial that its driver has left; its number, or None if there is none. `own`: those that are run here.

    A trial whose processes still run on this machine is adopted. Others go on from their last checkpoint, at most
    `max_retries` times; then they count as interrupted, and their place in the study is free again.
    """
    for trial in store.trials():
        if trial.state == TrialState.RUNNING and trial.number not in own and _is_left(store, watch, trial):
            if not _seize(store, watch.driver, trial):
                continue
            if _may_go_on(store, trial):
                return trial.number
    return None


def _is_left(store: Store, watch: Watch, trial: FrozenTrial) -> bool:
    if is_held_by(trial, watch.driver):
        return True  # Lost between the storage and this driver when the storage failed.
    config = store.config
    run_dirs = config.run_dirs(trial.number, max(len(trial.user_attrs.get(SEEDS, ())), 1))
    return watch.is_dead(trial, pulse_of(run_dirs, config.log_path(trial.number)))


def _seize(store: Store, driver: Driver, seen: FrozenTrial) -> bool:
    """Write this driver's lease over a dead one; False if another driver was faster."""
    with study_lock(store.config):
        now = store.trial(seen.number)
        if now.state != TrialState.RUNNING or now.user_attrs.get(LEASE) != seen.user_attrs.get(LEASE):
            return False
        store.note(seen.number, {LEASE: driver.lease()})
    if storage_file(store.config) is None:
        time.sleep(_SETTLE_S)
    return is_held_by(store.trial(seen.number), driver)


def _may_go_on(store: Store, trial: FrozenTrial) -> bool:
    number, config = trial.number, store.config
    run_dirs = config.run_dirs(number, max(len(trial.user_attrs.get(SEEDS, ())), 1))
    if all(has_result(run_dir) for run_dir in run_dirs):
        say(f"trial {number}: its driver is gone, its training has ended meanwhile")
        return True
    retries = int(trial.user_attrs.get(RETRIES, 0))
    if marked(mark_of(config.trial_dir(number))):
        say(f"trial {number}: its driver is gone, its training is not; adopted")
        return True
    if retries >= config.max_retries:
        reason = f"its driver and its processes died {retries + 1} times; max_retries is {config.max_retries}"
        store.fail(number, reason, interrupted=True)
        say(f"trial {number}: failed: {reason}")
        return False
    store.note(number, {RETRIES: retries + 1})
    say(f"trial {number}: its driver is gone; goes on from its last checkpoint (retry {retries + 1})")
    return True
