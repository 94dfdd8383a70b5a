"""One trial under way: its trainings one after another, each watched, pruned or stopped, and then judged."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sweeps.following import Follower, follower_of
from sweeps.launch import free_port, launch_command, mark_of, marked
from sweeps.slots import Slot, Slots
from sweeps.storage import Store
from sweeps.training_process import Ending, Limits, TrainingProcess
from sweeps.trial_options import TrialPlan, training_options
from sweeps.verdict import Verdict, combine, has_result, judge

# Why a trial is being stopped, in the storage before the signal is sent: a driver that takes over must not resume it.
PRUNING = "pruning"
_LOOK_EVERY_S = 0.5
_FROM_BEFORE = Ending(exit_status=None, seconds=0.0)


@dataclass
class _Current:
    """The training that runs."""

    place: int
    process: TrainingProcess
    follower: Follower


class TrialRun:
    """Runs the trainings of a trial that have no result yet, so it is the same for a new trial and for one that an
    earlier driver began. `poll` never waits."""

    def __init__(self, store: Store, plan: TrialPlan, slots: Slots) -> None:
        self.store, self.plan, self.slots = store, plan, slots
        self.config = store.config
        self.pruned = str(store.trial(plan.number).user_attrs.get(PRUNING, ""))
        self.seconds = 0.0
        self._begin_s = time.monotonic()
        self._verdicts: list[Verdict] = []
        self._current: _Current | None = None
        self._next_look_s = 0.0

    @property
    def mark(self) -> str:
        """What the processes of this trial carry."""
        return mark_of(self.config.trial_dir(self.plan.number))

    def poll(self) -> Verdict | None:
        """The trial's verdict once there is one."""
        if self._current is None:
            return self._begin_next()
        ending = self._current.process.poll()
        if ending is None:
            self._look(self._current)
            return None
        current, self._current = self._current, None
        current.follower.look()  # What came since the last look belongs to the report, too late to prune.
        return self._take(current.place, ending)

    def _begin_next(self) -> Verdict | None:
        """Go on with the first training that has no result: adopt its processes if it runs, else start it."""
        plan = self.plan
        for place in range(len(self._verdicts), len(plan.run_dirs)):
            running = bool(marked(self.mark))
            if not running and (self.pruned or has_result(plan.run_dirs[place])):
                self._follow(place).follower.look()
                return self._take(place, _FROM_BEFORE)
            slot = None if running else self.slots.take()
            if not running and slot is None:
                return None  # Until GPUs are free.
            self._current = self._follow(place)
            if slot is not None:
                self._start(place, self._current.process, slot)
            elif self.pruned:
                self._current.process.stop("pruned")
            return None
        raise AssertionError("a trial with all its verdicts is over")

    def _take(self, place: int, ending: Ending) -> Verdict | None:
        verdict = judge(self.config, self.plan.run_dirs[place], ending, self._log_path, self.pruned)
        self._verdicts.append(verdict)
        if verdict.outcome == "complete" and place + 1 < len(self.plan.run_dirs):
            return None
        self.seconds = time.monotonic() - self._begin_s
        return combine(self._verdicts)

    def _follow(self, place: int) -> _Current:
        config, run_dir = self.config, self.plan.run_dirs[place]
        limits = Limits(config.trial_timeout_s, config.stall_timeout_s, config.grace_s)
        process = TrainingProcess(run_dir, config.trial_dir(self.plan.number), self._log_path, limits)
        follower = follower_of(self.store, self.plan.number, self.plan.role, place, run_dir)
        return _Current(place, process, follower)

    def _start(self, place: int, process: TrainingProcess, slot: Slot) -> None:
        self.plan.run_dirs[place].mkdir(parents=True, exist_ok=True)
        command = [
            *launch_command(self.config.launch, free_port()),
            *training_options(self.config, self.plan, place),
        ]
        # torchrun kills its workers so long after it has passed a SIGTERM on to them.
        patience = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, int(self.config.grace_s)))}
        try:
            process.start(command, {**patience, **slot.environment}, slot.files)
        finally:
            slot.release()  # The launcher has the locks of its own.

    def _look(self, current: _Current) -> None:
        """Prune if the metrics say so."""
        now_s = time.monotonic()
        if self.pruned or now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _LOOK_EVERY_S
        reason = current.follower.look()
        if reason is not None:
            self.pruned = reason
            self.store.note(self.plan.number, {PRUNING: reason})
            current.process.stop("pruned")

    @property
    def _log_path(self) -> Path:
        return self.config.log_path(self.plan.number)
