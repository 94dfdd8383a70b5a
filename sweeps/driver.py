"""Run a study: Optuna's `Study.optimize` in a thread per worker, with one launched trial as its objective.

Other drivers, on this machine or others, may run the same study at the same time if it is in a database. This gives
each trial its number, and the first `num_trials` numbers are the study. A driver that dies stops its heartbeats; then
another driver, or its next run, retries its trials from their last checkpoint. A training never outlives its driver.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import FrameType
from typing import Any, TypeVar

import optuna
import psutil
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PatientPruner
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from sweeps.config import Checked, PrunerConfig, StudyConfig, check_study
from sweeps.findings import Findings
from sweeps.objective import Row, objective_points, stop_reason
from sweeps.space import describe, suggest
from sweeps.storage import (
    DRIVER,
    REASON,
    REPEAT_OF,
    ROLE,
    SEEDS,
    START,
    SURPLUS,
    counted,
    create_study,
    faults_as_user_errors,
    first_number,
    one_line,
    open_storage,
    retry,
    role_of,
    storage_fault,
    storage_name,
    warm_start,
)
from sweeps.trial import StoppedError, TrialPlan, run_trial
from sweeps.verdict import Verdict
from vsr_dist.core.console import Progress, format_duration, say
from vsr_dist.core.errors import UserError
from vsr_dist.core.rng import mix, purpose
from vsr_dist.training.samples import SAMPLES_NAME

# Of the study's folder: pictures for optuna-dashboard.
_ARTIFACTS_NAME = "artifacts"
_INTERRUPTED = "interrupted by Ctrl-C or SIGTERM"
_IDLE_S = 0.5
_POLL_S = 0.1
# A database that restarts, or a network that is repaired, is waited for.
_STORAGE_PAUSE_S, _STORAGE_PATIENCE_S = 5.0, 3600.0
# A driver that died between the creation of a trial and its claim; clocks of machines may differ.
_UNCLAIMED_S = 120.0
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_MAX_NUMPY_SEED = 2**32
_Result = TypeVar("_Result")


class _TrialFailedError(Exception):
    """The trial failed with a reason; the study goes on."""


class _StorageAwayError(Exception):
    """The storage has failed for longer than the driver waits, or fails while the driver stops."""


@dataclass
class _Attempt:
    """What a worker runs at the moment.

    Attributes:
        number: of the trial.
        verdict: the result, once it is recorded.
        error: what ended the trial without a result.
    """

    number: int
    verdict: Verdict | None = None
    error: BaseException | None = None


def run_study(config: StudyConfig) -> FrozenTrial | None:
    """Run trials until the study has `num_trials` of them, and its repeats; returns the best one.

    Everything that can be checked is checked before the first trial. Trials of earlier runs and of other drivers
    count. None if no trial keeps every constraint; with several objectives, the feasible trial that is best by the
    first one. Raises UserError if no trial gave a result, and KeyboardInterrupt after SIGINT or SIGTERM.
    """
    checked = check_study(config)
    config.directory.mkdir(parents=True, exist_ok=True)
    storage = open_storage(config)
    with faults_as_user_errors(config):
        study = create_study(config, storage, make_pruner(config.pruner, checked), checked.settings)
        warm_start(config, study, checked.settings)
        trials = counted(study.get_trials(deepcopy=False))
    num_done = len(_ended(_searched(trials)))
    if num_done >= config.num_trials and not _missing_repeats(config, checked, trials) and not _unfinished(trials):
        say(f"study {config.name} is complete: {num_done} of {config.num_trials} trials; raise num_trials for more")
    else:
        with Progress(config.num_trials, "trial", start=num_done) as progress:
            trials = _Driver(config, checked, storage, study, progress).run()
    return _conclude(config, trials)


class _Driver:
    """The workers of one driver process, and what they share."""

    def __init__(
        self, config: StudyConfig, checked: Checked, storage: BaseStorage, study: optuna.Study, progress: Progress
    ) -> None:
        self.config, self.checked, self.progress = config, checked, progress
        self.stopping = threading.Event()
        self._storage, self._study = storage, study
        self._lock = threading.RLock()
        # Workers that are about to start a trial, which is not in the storage yet; and what the others run.
        self._starting: set[int] = set()
        self._attempts: dict[int, _Attempt] = {}
        self._begin_s = time.monotonic()
        self._error: BaseException | None = None
        self._outage_s: float | None = None
        self._waits = False
        self._has_heartbeats = isinstance(storage, RDBStorage)
        # Without heartbeats nobody knows whether another driver lives: what is running now is not waited for.
        running = [] if self._has_heartbeats else study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._ignored = {trial.number for trial in running}
        if running:
            say(
                f"warning: trials {', '.join(str(trial.number) for trial in running)} are in state RUNNING; this "
                "storage has no heartbeats, so they count as lost and are replaced by new ones"
            )

    def run(self) -> list[FrozenTrial]:
        """Until nothing is left to do; returns the trials that count.

        No training is left by this driver, and no trial in state RUNNING unless the storage stays away.
        """
        threads = [threading.Thread(target=self._work, args=(worker,)) for worker in range(self.config.workers)]
        with _noted_signals() as signals:
            for thread in threads:
                thread.start()
            num_obeyed = 0
            while any(thread.is_alive() for thread in threads):
                time.sleep(_POLL_S)
                if len(signals) > num_obeyed:
                    self._obey(is_first=num_obeyed == 0)
                    num_obeyed = len(signals)
        is_away = isinstance(self._error, _StorageAwayError)
        if self._error is not None and not is_away:
            raise self._error
        if signals:
            raise KeyboardInterrupt
        if is_away:
            raise UserError(str(self._error)) from self._error
        return self.patiently(lambda: self._counted(self._study))

    def _obey(self, *, is_first: bool) -> None:
        """SIGINT or SIGTERM: stop the workers; after a further one, the supervisors kill the trainings."""
        if is_first:
            say("stopping: training runs save a checkpoint and exit; press Ctrl-C again to kill them")
            self.stopping.set()
            return
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.terminate()

    def _work(self, worker: int) -> None:
        """One worker: one trial after another."""
        try:
            # Objects of its own: the sampler is seeded for each trial, and a pruner sets itself up when first used.
            pruner = make_pruner(self.config.pruner, self.checked)
            study = self.patiently(
                lambda: optuna.load_study(study_name=self.config.name, storage=self._storage, pruner=pruner)
            )
            while self._wait_for_work(study, worker):
                try:
                    study.optimize(
                        lambda trial: self._objective(trial, worker),
                        n_trials=1,
                        catch=(_TrialFailedError,),
                        callbacks=[self._report_end],
                    )
                except Exception as error:  # noqa: BLE001 - raised again unless the study can go on
                    self._settle(study, self._attempts.get(worker), error)
                finally:
                    with self._lock:
                        self._starting.discard(worker)
                        self._attempts.pop(worker, None)
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self._error = self._error or error
            self.stopping.set()

    def _settle(self, study: optuna.Study, attempt: _Attempt | None, error: Exception) -> None:
        """After an error of `Study.optimize`: leave no trial in state RUNNING; raises `error` if it is a fault of ours.

        The objective's own errors come out of it once Optuna has set the trial to FAIL. All others are of Optuna's own
        calls: the storage failed, or another driver has ended the trial.
        """
        if attempt is None:
            if storage_fault(error) is None:
                raise error
            return self.note_outage(error)
        if attempt.error is not None and error is attempt.error:
            if isinstance(error, StoppedError):
                return None
            raise error
        state = self.patiently(lambda: study.get_trials(deepcopy=False)[attempt.number].state)
        if state != TrialState.RUNNING:
            return None
        if storage_fault(error) is None:
            raise error
        verdict = attempt.verdict
        outcome = TrialState.FAIL if verdict is None else _STATES[verdict.outcome]
        values = verdict.values if verdict is not None and outcome == TrialState.COMPLETE else None
        told = self.patiently(lambda: study.tell(attempt.number, values, outcome, skip_if_finished=True))
        if verdict is not None:
            self._report_end(study, told)

    def _wait_for_work(self, study: optuna.Study, worker: int) -> bool:
        """True once a trial can be started or resumed; False if nothing is left, or this driver should stop."""
        limit_s = self.config.time_limit_s
        while not self.stopping.is_set():
            if limit_s is not None and time.monotonic() - self._begin_s > limit_s:
                return False
            found = self.patiently(lambda: self._look_for_work(study, worker))
            if found is not None:
                return found
            self.stopping.wait(_IDLE_S)
        return False

    def _look_for_work(self, study: optuna.Study, worker: int) -> bool | None:
        """True if there is a trial to run, False if nothing is left; None while others run the rest."""
        self._retry_unstarted(study)
        config = self.config
        with self._lock:
            trials = self._counted(study)
            for given in _missing_starts(config, self.checked, trials):
                study.enqueue_trial(**given)
            trials = self._counted(study)
            waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
            num_new = max(0, config.num_trials - len(_searched(trials)))
            if len(waiting) + num_new > len(self._starting):
                self._starting.add(worker)
                return True
            if missing := _missing_repeats(config, self.checked, trials):
                for given in missing:
                    study.enqueue_trial(**given)
                return None
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if not self._has_heartbeats:
            running = [trial for trial in running if trial.number in self._own_numbers()]
        if not running and not self._starting:
            return False
        if not self._waits and not self._attempts:
            self._waits = True
            say(f"study {config.name}: other drivers run the remaining trials; waiting for them")
        return None

    def _counted(self, study: optuna.Study) -> list[FrozenTrial]:
        trials = counted(study.get_trials(deepcopy=False))
        return [t for t in trials if t.state != TrialState.RUNNING or t.number not in self._ignored]

    def _own_numbers(self) -> set[int]:
        with self._lock:
            return {attempt.number for attempt in self._attempts.values()}

    def _retry_unstarted(self, study: optuna.Study) -> None:
        """Queue the trials of dead drivers again: by Optuna's heartbeat, and those that never had one."""
        if self._has_heartbeats:
            fail_stale_trials(study)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            assert trial.datetime_start is not None  # Set together with the state.
            is_claimed = DRIVER in trial.user_attrs or trial.number in self._own_numbers()
            if is_claimed or datetime.now() - trial.datetime_start < timedelta(seconds=_UNCLAIMED_S):
                continue
            told = study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            if (
                told.state == TrialState.FAIL and REASON not in told.user_attrs
            ):  # Its driver has not ended it meanwhile.
                retry(study, trial, max_deaths=self.config.max_retries)

    def _objective(self, trial: optuna.Trial, worker: int) -> Sequence[float]:
        """Run one trial: the function that `Study.optimize` calls."""
        with self._lock:
            attempt = self._attempts[worker] = _Attempt(trial.number)
            self._starting.discard(worker)
        try:
            plan = self.patiently(lambda: self._prepare(trial))
            watch = _Watch(self, trial, plan)
            begin_s = time.monotonic()
            verdict = run_trial(self.config, plan, worker, watch)
            seconds = round(time.monotonic() - begin_s, 3)
            facts = {**verdict.facts, "seconds": seconds, "run_dirs": [str(path) for path in plan.run_dirs]}
            self.patiently(lambda: self._record(trial, plan, verdict, facts))
        except _TrialFailedError:
            raise
        except Exception as error:
            attempt.error = error
            if not isinstance(error, _StorageAwayError):
                self.patiently(lambda: self._queue_again(trial, attempt))
            raise
        attempt.verdict = verdict
        if verdict.outcome == "pruned":
            raise optuna.TrialPruned(verdict.reason)
        if verdict.outcome == "failed":
            raise _TrialFailedError(verdict.reason)
        return verdict.values

    def _prepare(self, trial: optuna.Trial) -> TrialPlan:
        """Claim a trial and choose its values; may be called again if the storage fails.

        _TrialFailedError if other drivers started the last trials at the same moment; UserError if its folder exists.
        """
        config, study = self.config, trial.study
        trials = self._counted(study)
        frozen = next(found for found in trials if found.number == trial.number)
        number = first_number(frozen)
        error: Exception | None = None
        if is_surplus(config, trials, frozen):
            error = _TrialFailedError("another driver has started the last trial")
        elif number == trial.number and DRIVER not in frozen.user_attrs and config.trial_dir(number).exists():
            error = UserError(
                f"{config.trial_dir(number)} exists, but the storage does not know its trial; move it away or set "
                "another study_dir"
            )
        if error is not None:
            trial.set_user_attr(SURPLUS, True)
            trial.set_user_attr(REASON, str(error))
            raise error
        trial.set_user_attr(DRIVER, f"{socket.gethostname()}:{os.getpid()}")
        # A sampler that is seeded once per process would repeat its first values whenever a study is continued.
        study.sampler = make_sampler(config, number)
        # A new object, for it knows the values that an earlier call has stored.
        parameters = suggest(optuna.Trial(study, trial._trial_id), config.space)
        seeds = frozen.user_attrs.get(SEEDS)
        if seeds is None:
            seeds = [self.checked.base_seed + index for index in range(config.seeds_per_trial)]
            trial.set_user_attr(SEEDS, seeds)
            trial.set_user_attr(ROLE, role_of(frozen))
        config.trial_dir(number).mkdir(parents=True, exist_ok=True)
        say(f"trial {trial.number}: {describe(parameters)}; output in {config.log_path(number)}")
        run_dirs = tuple(config.run_dirs(number, len(seeds)))
        repeat_of = frozen.user_attrs.get(REPEAT_OF)
        return TrialPlan(number, parameters, role_of(frozen), tuple(seeds), run_dirs, repeat_of)

    def _record(self, trial: optuna.Trial, plan: TrialPlan, verdict: Verdict, facts: Mapping[str, Any]) -> None:
        """Write a verdict's facts, constraints and pictures; may be called again if the storage fails."""
        for key, value in facts.items():
            trial.set_user_attr(key, value)
        if verdict.reason:
            trial.set_user_attr(REASON, verdict.reason)
        known = trial.constraints
        for name, excess in verdict.constraints.items():
            if name not in known:
                trial.set_constraint(name, excess)
        folder = self.config.directory / _ARTIFACTS_NAME
        folder.mkdir(exist_ok=True)
        store = FileSystemArtifactStore(folder)
        if not get_all_artifact_meta(trial):
            for picture in sorted(plan.run_dirs[0].glob(f"{SAMPLES_NAME}/step_*/*.png")):
                upload_artifact(artifact_store=store, file_path=str(picture), study_or_trial=trial)

    def _queue_again(self, trial: optuna.Trial, attempt: _Attempt) -> None:
        """Queue a trial whose training was stopped without a result again; `Study.optimize` then sets it to FAIL."""
        study = trial.study
        frozen = study.get_trials()[trial.number]
        if frozen.state != TrialState.RUNNING or SURPLUS in frozen.user_attrs:
            return
        is_stopped = isinstance(attempt.error, StoppedError)
        reason = _INTERRUPTED if is_stopped else f"its driver failed: {one_line(repr(attempt.error))}"
        trial.set_user_attr(REASON, reason)
        retry(study, frozen)

    def _report_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Print one line about a trial that ended; a callback of `Study.optimize`."""
        if trial.user_attrs.get(SURPLUS):
            return
        if trial.state == TrialState.COMPLETE:
            outcome = f"{self.config.objective.title} {trial.values[0]:.4f}"
            violated = [name for name, value in trial.constraints.items() if value > 0]
            outcome += f", violates {', '.join(violated)}" if violated else ""
        else:
            state = "pruned" if trial.state == TrialState.PRUNED else "failed"
            outcome = f"{state}: {trial.user_attrs.get(REASON)}"
        with self._lock:
            num_done = len(_ended(_searched(self._counted(study))))
            self.progress.advance(max(0, num_done - self.progress.done))
            self.progress.note(
                f"trial {trial.number}: {outcome} | {format_duration(trial.user_attrs.get('seconds', 0.0))}"
            )

    def patiently(self, call: Callable[[], _Result]) -> _Result:
        """Repeat a call until the storage answers; _StorageAwayError once it has failed for too long."""
        while True:
            try:
                result = call()
            except Exception as error:
                if storage_fault(error) is None:
                    raise
                self.note_outage(error)
                self.stopping.wait(_STORAGE_PAUSE_S)
            else:
                self.note_answer()
                return result

    def note_outage(self, error: Exception) -> None:
        """Remember since when the storage fails; _StorageAwayError once that is too long."""
        name, now_s = storage_name(self.config), time.monotonic()
        with self._lock:
            if self._outage_s is None:
                self._outage_s = now_s
                fault = one_line(storage_fault(error))
                say(f"warning: storage {name} fails, retrying; training runs continue: {fault}")
            if now_s - self._outage_s > _STORAGE_PATIENCE_S or self.stopping.is_set():
                raise _StorageAwayError(
                    f"storage {name} has failed for {format_duration(now_s - self._outage_s)}; repair it and run "
                    "the study again: its trials resume from their checkpoints"
                ) from error

    def note_answer(self) -> None:
        """The storage works."""
        with self._lock:
            if self._outage_s is not None:
                say(f"study {self.config.name}: the storage is available again")
            self._outage_s = None


class _Watch:
    """Connects a running trial to Optuna; see `sweeps.trial.Watch`."""

    def __init__(self, driver: _Driver, trial: optuna.Trial, plan: TrialPlan) -> None:
        self._driver, self._trial, self._plan = driver, trial, plan
        self._last_step = -1
        self._next_check_s = 0.0

    def look(self, index: int, rows: Sequence[Row]) -> str | None:
        """Report the objective so far; returns why the training should stop, or None."""
        config = self._driver.config
        # Repeats run to their end. Only a trial's first training is reported: the others have the same steps.
        is_search = self._plan.role != "repeat"
        if is_search and (reason := stop_reason(config.stop_when, rows)) is not None:
            return reason
        if is_search and index == 0 and not config.is_multi_objective:
            try:
                return self._report(rows)
            except Exception as error:
                if storage_fault(error) is None:
                    raise
                self._driver.note_outage(error)
        return None

    def check(self) -> None:
        """StoppedError if the driver is stopping, or if another driver has taken over the trial."""
        if self._driver.stopping.is_set():
            raise StoppedError
        now_s = time.monotonic()
        if now_s < self._next_check_s:
            return
        self._next_check_s = now_s + self._driver.config.heartbeat_s
        try:
            state = self._trial.study.get_trials(deepcopy=False)[self._trial.number].state
            self._driver.note_answer()
        except Exception as error:
            if storage_fault(error) is None:
                raise
            self._driver.note_outage(error)
            return
        if state != TrialState.RUNNING:
            say(f"trial {self._trial.number}: another driver has taken over this trial; its training is stopped here")
            raise StoppedError

    def _report(self, rows: Sequence[Row]) -> str | None:
        config = self._driver.config
        for step, value in objective_points(config.objective, rows):
            if step > self._last_step:
                self._trial.report(value, step)
                self._last_step = step
                if self._trial.should_prune():
                    return f"{config.pruner.kind} pruner: {config.objective.title} {value:.4g} at step {step}"
        return None


def is_surplus(config: StudyConfig, trials: Sequence[FrozenTrial], trial: FrozenTrial) -> bool:
    """True if a trial has no place in the study, because drivers started more at the same moment than were left.

    The storage numbers trials one after another, so all drivers agree: the first `num_trials` numbers are the search,
    and the first trial with a given start, or with the seed of a repeat, is the one that counts.
    """
    number, key = first_number(trial), _given_key(trial)
    earlier = [other for other in trials if first_number(other) < number]
    if key is not None and any(_given_key(other) == key for other in earlier):
        return True
    return role_of(trial) in ("search", "start") and len(_searched(earlier)) >= config.num_trials


def _given_key(trial: FrozenTrial) -> tuple[Any, ...] | None:
    """What a queued trial was made for; None for a sampled one."""
    role, attrs = role_of(trial), trial.user_attrs
    if role == "start":
        return (role, attrs[START])
    return (role, attrs[REPEAT_OF], tuple(attrs[SEEDS])) if role == "repeat" else None


def _searched(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of the search in any state: no repeats, none of other studies."""
    return [trial for trial in trials if role_of(trial) in ("search", "start")]


def _ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state.is_finished()]


def _unfinished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if not trial.state.is_finished()]


def _missing_starts(config: StudyConfig, checked: Checked, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Arguments of `Study.enqueue_trial` for each given trial that the study does not have yet."""
    known = {_given_key(trial) for trial in trials}
    missing = [index for index in range(len(checked.starts)) if ("start", index) not in known]
    missing = missing[: max(0, config.num_trials - len(_searched(trials)))]
    return [{"params": checked.starts[index], "user_attrs": {ROLE: "start", START: index}} for index in missing]


def _missing_repeats(config: StudyConfig, checked: Checked, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """The same for the repeats of the best trials; none before the search has ended."""
    searched = _searched(trials)
    if _unfinished(searched) or len(searched) < config.num_trials or not config.repeat.top:
        return []
    known = {_given_key(trial) for trial in trials}
    # Without their repeats, so that the results of these do not change which trials are repeated.
    findings = Findings(config, searched)
    winners = [trial for trial in findings.ranked if findings.is_good(trial)][: config.repeat.top]
    first_seed = checked.base_seed + config.seeds_per_trial
    wanted = [(winner, first_seed + offset) for winner in winners for offset in range(config.repeat.seeds)]
    return [
        {
            "params": winner.params,
            "user_attrs": {ROLE: "repeat", REPEAT_OF: first_number(winner), SEEDS: [seed]},
        }
        for winner, seed in wanted
        if ("repeat", first_number(winner), (seed,)) not in known
    ]


def _conclude(config: StudyConfig, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Print which trial is best; UserError if no trial gave a result."""
    ended = _ended(_searched(trials))
    if not ended:
        say(f"study {config.name}: no trial has ended yet")
        return None
    findings = Findings(config, trials)
    if not findings.searched:
        last = ended[-1]
        states = Counter("pruned" if trial.state == TrialState.PRUNED else "failed" for trial in ended)
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        raise UserError(
            f"no trial of study {config.name} gave a result ({counts}); the last one: {last.user_attrs.get(REASON)}; "
            f"see {config.log_path(first_number(last))}, fix it, and start again with another name and study_dir"
        )
    best = findings.best
    if best is None:
        say(f"none of {len(findings.searched)} complete trials keeps every constraint; see vsr-dist study report")
        return None
    repeats = findings.repeats(best)
    again = "" if repeats is None else f", with new seeds {repeats.describe()},"
    say(f"best: trial {best.number}, {config.objective.title} {best.values[0]:.4f}{again} with {describe(best.params)}")
    return best


def make_sampler(config: StudyConfig, number: int) -> BaseSampler:
    """The sampler of one trial; depends on the study's seed, the trial's number, and the trials before it."""
    seed = mix(purpose("study"), config.seed, number) % _MAX_NUMPY_SEED
    kind, startup = config.sampler.kind, config.sampler.startup_trials
    if kind == "tpe":
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
    if kind == "gp":
        return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    if kind == "qmc":
        # One sequence for the whole study: the storage keeps the place in it, so its scrambling must not change.
        study_seed = mix(purpose("study"), config.seed) % _MAX_NUMPY_SEED
        return QMCSampler(seed=study_seed, scramble=True, warn_independent_sampling=False)
    return RandomSampler(seed=seed)


def make_pruner(config: PrunerConfig, checked: Checked) -> BasePruner:
    """The pruner of a study. Its steps are training steps."""
    warmup = config.warmup_steps if config.warmup_steps is not None else checked.warmup_steps
    if config.kind == "none":
        return NopPruner()
    if config.kind == "hyperband":
        return HyperbandPruner(max(warmup, 1), checked.train_steps, config.reduction_factor)
    # A trial is compared at its own validations, so every one of them is looked at (interval 1).
    median = MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=warmup)
    return median if config.kind == "median" else PatientPruner(median, config.patience)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM are only noted, in the list that this gives; one that is ignored stays ignored.

    A KeyboardInterrupt could come at any line, such as between the starts of two threads.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
