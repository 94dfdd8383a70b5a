"""Run a study: ask Optuna for values, train with them, tell it what came out; safe to stop and to start again."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.trial import FrozenTrial, TrialState

from sweeps.launch import GRACE_S, launch_command, mark_of, run_logged, sigterm_as_interrupt, stop_marked
from sweeps.preflight import check_study
from sweeps.space import Parameters, as_override, describe, suggest
from sweeps.storage import REASON, Store, open_store
from sweeps.study_config import StudyConfig
from sweeps.verdict import Verdict, judge
from vsr_dist.core.console import Progress, format_duration, say
from vsr_dist.core.errors import UserError

_LOCK_NAME = "driver.lock"
_LEFT_RUNNING = "the driver was killed while this trial ran"
_INTERRUPTED = "interrupted by Ctrl-C or SIGTERM"


def run_study(config: StudyConfig, *, grace_s: float = GRACE_S) -> FrozenTrial:
    """Run trials until the study has `num_trials` of them; returns the best one.

    Everything that can be checked is checked before the first trial. Trials of earlier runs count, except those
    that were interrupted. Raises UserError if no trial of the study has a result.

    grace_s: time that the processes of a stopped trial get to end by themselves.
    """
    settings = check_study(config)
    config.directory.mkdir(parents=True, exist_ok=True)
    with _only_driver(config), sigterm_as_interrupt():
        store = open_store(config, settings)
        _clear_left_running(store, config, grace_s)
        num_done = len(store.counted())
        if num_done >= config.num_trials:
            say(f"study {config.name} is complete: {num_done} of {config.num_trials} trials; raise num_trials for more")
        else:
            with Progress(config.num_trials, "trial", start=num_done) as progress:
                for _ in range(num_done, config.num_trials):
                    _run_trial(store, config, progress, grace_s)
        return _conclude(store, config)


def trial_options(config: StudyConfig, number: int, parameters: Parameters) -> list[str]:
    """Options of `vsr_dist.train` for one trial.

    Overrides are, in order: the study's own, the sampled values, and what tells the trials apart.
    """
    overrides = [
        *config.set,
        *(as_override(path, value) for path, value in parameters.items()),
        as_override("name", f"{config.name}-trial-{number:04d}"),
        as_override("run_dir", str(config.trial_dir(number))),
        as_override("tracking.tags.study", config.name),
        as_override("tracking.tags.trial", str(number)),
    ]
    return ["--config", config.base, *(part for override in overrides for part in ("--set", override))]


def _run_trial(store: Store, config: StudyConfig, progress: Progress, grace_s: float) -> None:
    """Ask, run, tell."""
    folder = config.trial_dir(store.next_number())
    if folder.exists():
        raise UserError(f"{folder} is of a trial that the storage does not know; move it away or set another study_dir")
    trial = store.ask(config.seed)
    parameters = suggest(trial, config.space)
    folder.mkdir()
    log_path = config.log_path(trial.number)
    say(f"trial {trial.number}: {describe(parameters)}; output in {log_path}")
    try:
        ending = run_logged(
            [*launch_command(config.launch), *trial_options(config, trial.number, parameters)],
            log_path,
            mark_of(folder),
            timeout_s=config.trial_timeout_s,
            grace_s=grace_s,
        )
    except KeyboardInterrupt:
        store.fail(trial.number, _INTERRUPTED, interrupted=True)
        raise
    verdict = judge(folder, config.objective.metric, ending, log_path)
    _tell(store, trial.number, verdict)
    progress.advance()
    outcome = f"failed: {verdict.reason}" if verdict.value is None else f"{config.objective.metric} {verdict.value:.4f}"
    progress.note(f"trial {trial.number}: {outcome} | {format_duration(ending.seconds)}")


def _tell(store: Store, number: int, verdict: Verdict) -> None:
    store.note(number, verdict.facts)
    if verdict.value is None:
        store.fail(number, verdict.reason)
    else:
        store.complete(number, verdict.value)


def _clear_left_running(store: Store, config: StudyConfig, grace_s: float) -> None:
    """Fail the trials of a driver that was killed, and stop what still runs of them on this machine."""
    for trial in store.running():
        num_stopped = stop_marked(mark_of(config.trial_dir(trial.number)), grace_s)
        store.fail(trial.number, _LEFT_RUNNING, interrupted=True)
        stopped = f"; stopped {num_stopped} process(es) of it" if num_stopped else ""
        say(f"trial {trial.number}: failed: {_LEFT_RUNNING}{stopped}")


def _conclude(store: Store, config: StudyConfig) -> FrozenTrial:
    """Say which trial is best; UserError if none has a result."""
    counted = store.counted()
    if not any(trial.state == TrialState.COMPLETE for trial in counted):
        last = counted[-1]
        raise UserError(
            f"all {len(counted)} trials of study {config.name} failed; the last one: {last.user_attrs[REASON]}; "
            f"see {config.log_path(last.number)}, mend it, and start anew with another name and study_dir"
        )
    best = store.study.best_trial
    say(f"best: trial {best.number}, {config.objective.metric} {best.value:.4f} with {describe(best.params)}")
    return best


@contextmanager
def _only_driver(config: StudyConfig) -> Iterator[None]:
    """Hold the study's lock, which the system releases however this process ends; UserError if it is taken."""
    path = config.directory / _LOCK_NAME
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another driver runs study {config.name} ({path} is locked); let it end first") from None
        yield
