"""What a study found, as plain facts: which trials are feasible, which is best, and what repeats say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from sweeps.config import StudyConfig
from sweeps.objective import Row, constraint_values, objective_value, read_rows
from sweeps.storage import REASON, REPEAT_OF, counted, first_number, load_trials, role_of

STATE_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_NUM_BEST, _NUM_COLUMNS = 10, 4
_MIN_FOR_DEVIATION = 2


@dataclass(frozen=True)
class Repeats:
    """Results of the trainings of one trial with new seeds."""

    values: tuple[float, ...]
    num_feasible: int

    @property
    def mean(self) -> float:
        """Mean over the trainings."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for a single training."""
        return statistics.stdev(self.values) if len(self.values) >= _MIN_FOR_DEVIATION else None

    def describe(self) -> str:
        """Mean and standard deviation, for people."""
        deviation = "" if self.deviation is None else f" +/- {self.deviation:.4f}"
        return f"{self.mean:.4f}{deviation} (n = {len(self.values)})"


@dataclass(frozen=True)
class Findings:
    """A study's configuration and the trials that count, by number (`storage.counted`)."""

    config: StudyConfig
    trials: Sequence[FrozenTrial]

    def in_state(self, state: TrialState) -> list[FrozenTrial]:
        """Trials in a state."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def searched(self) -> list[FrozenTrial]:
        """Complete trials that are no repeats: each is a setting of its own."""
        complete = [trial for trial in self.in_state(TrialState.COMPLETE) if trial.values is not None]
        return [trial for trial in complete if role_of(trial) != "repeat"]

    @property
    def starts(self) -> list[FrozenTrial]:
        """Trials with values that the study's file gives, such as the paper's setting, in any state."""
        return [trial for trial in self.trials if role_of(trial) == "start"]

    def excess(self, trial: FrozenTrial) -> dict[str, float]:
        """By how much the trial violates each constraint that was measured (feasible at 0 and below)."""
        known = trial.constraints or {}
        return {c.name: known[c.name] for c in self.config.constraints if c.name in known}

    def is_feasible(self, trial: FrozenTrial) -> bool:
        """True if the trial is complete and keeps every constraint; one that was not measured counts as violated."""
        excess = self.excess(trial)
        return trial.state == TrialState.COMPLETE and all(
            excess.get(constraint.name, 1.0) <= 0 for constraint in self.config.constraints
        )

    def is_good(self, trial: FrozenTrial) -> bool:
        """True if the setting is feasible: the trial itself and, if it was repeated, most of its repeats."""
        repeats = self.repeats(trial)
        return self.is_feasible(trial) and (repeats is None or 2 * repeats.num_feasible > len(repeats.values))

    @property
    def feasible(self) -> list[FrozenTrial]:
        """The complete settings that keep every constraint, by number."""
        return [trial for trial in self.searched if self.is_good(trial)]

    @property
    def ranked(self) -> list[FrozenTrial]:
        """Complete settings, feasible ones first, each kind best first (equal ones by number).

        Repeated settings come before others and are ordered by the mean of their repeats. With several objectives, the
        Pareto front comes first, ordered by the first objective.
        """
        front = {trial.number for trial in self.front}
        sign = -1.0 if self.config.objective.direction == "maximize" else 1.0

        def key(trial: FrozenTrial) -> tuple[bool, bool, bool, float, int]:
            repeats = self.repeats(trial)
            value = trial.values[0] if repeats is None else repeats.mean
            off_front = self.config.is_multi_objective and trial.number not in front
            return not self.is_good(trial), off_front, repeats is None, sign * value, trial.number

        return sorted(self.searched, key=key)

    @property
    def best(self) -> FrozenTrial | None:
        """The best feasible setting, or None."""
        ranked = self.ranked
        return ranked[0] if ranked and self.is_good(ranked[0]) else None

    @property
    def front(self) -> list[FrozenTrial]:
        """The Pareto front of the feasible settings."""
        signs = [-1.0 if objective.direction == "maximize" else 1.0 for objective in self.config.objectives]
        costs = {t.number: [s * v for s, v in zip(signs, t.values, strict=True)] for t in self.feasible}

        def beaten(number: int) -> bool:
            mine = costs[number]
            return any(
                other != mine and all(theirs <= own for theirs, own in zip(other, mine, strict=True))
                for other in costs.values()
            )

        return [trial for trial in self.feasible if not beaten(trial.number)]

    def repeats_of(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Complete trials that repeat this one with new seeds."""
        number = first_number(trial)
        return [other for other in self.in_state(TrialState.COMPLETE) if other.user_attrs.get(REPEAT_OF) == number]

    def repeats(self, trial: FrozenTrial) -> Repeats | None:
        """Results of the repeats of a trial for the first objective; None if it was not repeated."""
        others = self.repeats_of(trial)
        if not others:
            return None
        trainings = [training for other in others for training in self._by_seed(other)]
        values = tuple(value for value, _ in trainings)
        return Repeats(values, sum(is_kept for _, is_kept in trainings))

    def _by_seed(self, trial: FrozenTrial) -> list[tuple[float, bool]]:
        """(First objective, are all constraints kept) of each training of a trial.

        If the run directories are on another machine: what the storage has, the mean and the worst.
        """
        stored = [(trial.values[0], self.is_feasible(trial))]
        config, runs = self.config, self.rows(trial)
        if len(runs) == 1 or not all(runs):
            return stored
        found = []
        for rows in runs:
            excess = constraint_values(config.constraints, rows, partial=True)
            is_kept = all(excess.get(constraint.name, 1.0) <= 0 for constraint in config.constraints)
            found.append((objective_value(config.objective, rows), is_kept))
        return found

    def run_dirs(self, trial: FrozenTrial) -> list[Path]:
        """Run directories of a trial's trainings; they may be on another machine."""
        noted = trial.user_attrs.get("run_dirs")
        if noted:
            return [Path(text) for text in noted]
        return self.config.run_dirs(first_number(trial), self.config.seeds_per_trial)

    def rows(self, trial: FrozenTrial) -> list[list[Row]]:
        """Rows of metrics of each of its trainings; empty for those on another machine."""
        return [read_rows(folder) for folder in self.run_dirs(trial)]

    def most_failed(self) -> tuple[str, int] | None:
        """(The constraint that most complete trials violate, how many of them); None if none is violated."""
        missed = {
            constraint.name: sum(self.excess(trial).get(constraint.name, 1.0) > 0 for trial in self.searched)
            for constraint in self.config.constraints
        }
        name = max(missed, key=lambda name: missed[name], default=None)
        return None if name is None or missed[name] == 0 else (name, missed[name])

    def why_not(self, trial: FrozenTrial) -> str:
        """Why a trial has no result."""
        return str(trial.user_attrs.get(REASON, "its driver died, and max_retries is reached"))

    @property
    def summary(self) -> str:
        """How many trials there are, by state, and what the study optimises."""
        counts = [f"{len(found)} {name}" for state, name in STATE_NAMES.items() if (found := self.in_state(state))]
        goals = [f"{objective.direction} `{objective.describe()}`" for objective in self.config.objectives]
        return f"{len(self.trials)} trials of `{self.config.base}`: {', '.join(counts)}. Objective: {'; '.join(goals)}."

    @property
    def answer(self) -> str:
        """Which trial is best, or why there is none, in one or two sentences."""
        best, complete = self.best, self.searched
        if not complete:
            return "No trial is complete yet."
        if best is None:
            missed = self.most_failed()
            assert missed is not None  # Without a violated constraint every result is feasible, but for its repeats.
            return (
                f"**No trial is feasible.** Of {len(complete)} complete settings, {missed[1]} violate the constraint "
                f"`{missed[0]}`, more than any other."
            )
        feasible = f"{len(self.feasible)} of {len(complete)} settings are feasible. " if self.config.constraints else ""
        if self.config.is_multi_objective:
            return f"{feasible}On the Pareto front: trials {', '.join(str(trial.number) for trial in self.front)}."
        repeats = self.repeats(best)
        again = f"; repeated with new seeds: {repeats.describe()}" if repeats else ""
        return f"{feasible}Best: **trial {best.number}**, {self.config.objective.title} {best.values[0]:.4f}{again}."

    @property
    def shown(self) -> list[FrozenTrial]:
        """The best settings, best first, and the given ones for comparison."""
        best = self.ranked[:_NUM_BEST]
        numbers = {trial.number for trial in best}
        return best + [trial for trial in self.starts if trial.values and trial.number not in numbers]

    @property
    def compared(self) -> list[FrozenTrial]:
        """Trials that tables have a column for: the given ones, then the best few."""
        shown = self.shown
        starts = [trial for trial in shown if role_of(trial) == "start"]
        return starts + [trial for trial in shown if trial not in starts][:_NUM_COLUMNS]

    @property
    def has_repeats(self) -> bool:
        """True if a setting that is shown was repeated."""
        return any(self.repeats(trial) for trial in self.shown)


def load_findings(config: StudyConfig) -> Findings:
    """The findings of an existing study; UserError if there is none yet."""
    return Findings(config, counted(load_trials(config)))
