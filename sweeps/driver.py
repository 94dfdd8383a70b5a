"""Run a study: ask Optuna for values, train with them, tell it what came out; safe to stop and to start again.

One thread drives all trials of a driver and alone talks to the storage. Other drivers, here or on other machines, may
run the same study at the same time.
"""

from __future__ import annotations

import time

from optuna.trial import FrozenTrial, TrialState

from sweeps.backends import is_storage_fault
from sweeps.claims import claim, num_left, num_searched, searched
from sweeps.launch import sigterm_as_interrupt, stop_marked
from sweeps.lease import LEASE, Watch, is_held_by, this_driver
from sweeps.preflight import Checked, check_study
from sweeps.recovery import take_over
from sweeps.slots import Slots
from sweeps.space import describe, suggest
from sweeps.storage import REASON, Store, is_feasible, open_store, storage_name
from sweeps.study_config import StudyConfig
from sweeps.trial_options import plan_of
from sweeps.trial_run import TrialRun
from sweeps.verdict import Verdict
from sweeps.warm_start import warm_start
from vsr_dist.core.console import Progress, format_duration, say
from vsr_dist.core.errors import UserError

_INTERRUPTED = "interrupted by Ctrl-C or SIGTERM"
_POLL_S = 0.05
# Looking into the storage costs more than looking at a child process.
_IDLE_S = 1.0
# A database that restarts, or a network that is repaired, is waited for.
_STORAGE_PAUSE_S, _STORAGE_PATIENCE_S = 5.0, 3600.0


def run_study(config: StudyConfig) -> FrozenTrial | None:
    """Run trials until the study has `num_trials` of them, and its repeats; returns the best one.

    Everything that can be checked is checked before the first trial. Trials of earlier runs and of other drivers
    count, except those that were interrupted. None if no trial keeps every constraint; with several objectives, the
    feasible trial that is best by the first one. Raises UserError if no trial has a result.
    """
    checked = check_study(config)
    config.directory.mkdir(parents=True, exist_ok=True)
    store = open_store(config, checked.settings, train_steps=checked.train_steps, warmup_steps=checked.warmup_steps)
    warm_start(store, checked.settings)
    num_done = num_searched(config, store.trials())
    if not num_left(config, store.trials()):
        say(f"study {config.name} is complete: {num_done} of {config.num_trials} trials; raise num_trials for more")
    else:
        with sigterm_as_interrupt(), Progress(config.num_trials, "trial", start=num_done) as progress:
            _Loop(store, checked, progress).run()
    return _conclude(store)


class _Loop:
    """The trials that this driver runs at the moment."""

    def __init__(self, store: Store, checked: Checked, progress: Progress) -> None:
        self.store, self.config, self.checked, self.progress = store, store.config, checked, progress
        self.driver = this_driver()
        self.watch = Watch(self.driver, self.config.lease_s)
        self.slots = Slots(self.config.directory, self.config.launch.gpus_per_trial)
        self.runs: dict[int, TrialRun] = {}
        self._begin_s = self._renewed_s = time.monotonic()
        self._next_claim_s = 0.0
        self._waits = False
        self._outage_s: float | None = None

    def run(self) -> None:
        """Until nothing is left to do; whatever ends this call, no trial of this driver is left running."""
        try:
            while self._turn():
                time.sleep(_POLL_S if self.runs else _IDLE_S / 4)
        except BaseException as error:
            self._abandon(error)
            raise

    def _turn(self) -> bool:
        """Do what there is to do now; False if nothing is left. A storage that fails is asked again after a pause."""
        try:
            self._renew()
            if not self._has_work():
                return False
            self._fill()
            self._poll()
        except Exception as error:
            if not is_storage_fault(error):
                raise
            self._wait_for_storage(error)
        else:
            if self._outage_s is not None:
                say(f"study {self.config.name}: the storage answers again")
            self._outage_s = None
        return True

    def _wait_for_storage(self, error: Exception) -> None:
        """Pause, while the trainings go on; UserError once the storage has failed for too long."""
        now_s, name = time.monotonic(), storage_name(self.config)
        if self._outage_s is None:
            self._outage_s = now_s
            say(f"warning: storage {name} fails; asking again, trainings go on: {' '.join(str(error).split())}")
        if now_s - self._outage_s > _STORAGE_PATIENCE_S:
            raise UserError(
                f"storage {name} has failed for {format_duration(now_s - self._outage_s)}; mend it and start the study "
                "again: its trials go on from their checkpoints"
            ) from error
        # Nobody could renew a lease meanwhile.
        self.watch.forget()
        time.sleep(_STORAGE_PAUSE_S)

    def _has_work(self) -> bool:
        if self.runs:
            return True
        return not self._is_late() and num_left(self.config, self.store.trials()) > 0

    def _is_late(self) -> bool:
        limit_s = self.config.time_limit_s
        return limit_s is not None and time.monotonic() - self._begin_s > limit_s

    def _fill(self) -> None:
        """Begin trials while there are workers, GPUs and trials."""
        if len(self.runs) >= self.config.workers or time.monotonic() < self._next_claim_s or self._is_late():
            return
        while len(self.runs) < self.config.workers and (number := self._next()) is not None:
            parameters = suggest(self.store.open_trial(number), self.config.space)
            run = TrialRun(self.store, plan_of(self.config, self.store.trial(number), parameters), self.slots)
            log_path = self.config.log_path(number)
            if not log_path.parent.exists():
                log_path.parent.mkdir()
                say(f"trial {number}: {describe(parameters)}; output in {log_path}")
            self.runs[number] = run
        self._next_claim_s = time.monotonic() + _IDLE_S

    def _next(self) -> int | None:
        """A trial that another driver has left, else a new one, else None."""
        number = take_over(self.store, self.watch, self.runs.keys())
        if number is not None or not self.slots.any_free():
            return number
        number = claim(self.store, self.checked.starts, self.checked.base_seed, self.driver)
        if number is not None and (folder := self.config.trial_dir(number)).exists():
            raise UserError(
                f"{folder} is of a trial that the storage does not know; move it away or set another study_dir"
            )
        if number is None and not self.runs and not self._waits:
            self._waits = True
            say(f"study {self.config.name}: other drivers run what is left of it; waiting for them")
        return number

    def _poll(self) -> None:
        """Look at every trial, and tell the storage of those that are over."""
        for number, run in list(self.runs.items()):
            try:
                verdict = run.poll()
            except UserError as error:  # Such as a metrics file that cannot be read: this trial alone fails.
                stop_marked([run.mark], self.config.grace_s)
                verdict = Verdict("failed", reason=str(error))
            if verdict is not None:
                del self.runs[number]
                self._tell(run, verdict)
                self._next_claim_s = 0.0

    def _tell(self, run: TrialRun, verdict: Verdict) -> None:
        number, title = run.plan.number, self.config.objective.title
        if not self._holds(number):
            say(f"trial {number}: another driver has it now; left to that")
            return
        run_dirs = [str(path) for path in run.plan.run_dirs]
        self.store.note(number, {**verdict.facts, "seconds": round(run.seconds, 3), "run_dirs": run_dirs})
        self.store.constrain(number, verdict.constraints)
        if verdict.outcome == "complete":
            self.store.complete(number, verdict.values)
            outcome = f"{title} {verdict.values[0]:.4f}"
            violated = [name for name, value in verdict.constraints.items() if value > 0]
            outcome += f", violates {', '.join(violated)}" if violated else ""
        elif verdict.outcome == "pruned":
            self.store.prune(number, verdict.reason)
            outcome = f"pruned: {verdict.reason}"
        else:
            self.store.fail(number, verdict.reason)
            outcome = f"failed: {verdict.reason}"
        self.progress.advance(max(0, num_searched(self.config, self.store.trials()) - self.progress.done))
        self.progress.note(f"trial {number}: {outcome} | {format_duration(run.seconds)}")

    def _holds(self, number: int) -> bool:
        trial = self.store.trial(number)
        return trial.state == TrialState.RUNNING and is_held_by(trial, self.driver)

    def _renew(self) -> None:
        """Renew this driver's leases in time, and let go of trials that another driver took for left."""
        if time.monotonic() - self._renewed_s < self.config.lease_s / 4:
            return
        for number in list(self.runs):
            if self._holds(number):
                self.store.note(number, {LEASE: self.driver.lease()})
            else:
                say(f"trial {number}: another driver has it now; left to that")
                del self.runs[number]
        self._renewed_s = time.monotonic()

    def _abandon(self, error: BaseException) -> None:
        """Stop what this driver runs, and fail it as interrupted: it is made up for by another trial."""
        stopped = isinstance(error, KeyboardInterrupt)
        reason = _INTERRUPTED if stopped else f"its driver ended: {type(error).__name__}: {error}"
        stop_marked([run.mark for run in self.runs.values()], self.config.grace_s)
        try:
            for trial in self.store.trials():
                if trial.state == TrialState.RUNNING and is_held_by(trial, self.driver):
                    self.store.fail(trial.number, reason, interrupted=True)
        except Exception as fault:
            if not is_storage_fault(fault):
                raise
            say(f"warning: storage {storage_name(self.config)} fails; the next driver takes over what ran here")


def _conclude(store: Store) -> FrozenTrial | None:
    """Say which trial is best; UserError if none has a result."""
    config, trials = store.config, searched(store.config, store.trials())
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    title = config.objective.title
    if not complete:
        if not trials:
            say(f"study {config.name}: no trial has ended yet")
            return None
        last = trials[-1]
        raise UserError(
            f"all {len(trials)} trials of study {config.name} failed; the last one: {last.user_attrs[REASON]}; "
            f"see {config.log_path(last.number)}, mend it, and start anew with another name and study_dir"
        )
    sign = -1.0 if config.objective.direction == "maximize" else 1.0
    ranked = sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))
    best = next((trial for trial in ranked if is_feasible(trial)), None)
    if best is None:
        say(f"no trial of {len(complete)} with a result keeps every constraint; see vsr-dist study report")
    else:
        say(f"best: trial {best.number}, {title} {best.values[0]:.4f} with {describe(best.params)}")
    return best
