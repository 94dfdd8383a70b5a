"""What a study found, as plain facts: trials by role, who is feasible, who is best, and what repeats say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from sweeps.curves import Row, read_rows
from sweeps.objective import constraint_values, objective_value
from sweeps.storage import REASON
from sweeps.study_config import StudyConfig

_LEAST_FOR_DEVIATION = 2


@dataclass(frozen=True)
class Repeats:
    """What the trainings with fresh seeds of one trial gave; `deviation` is the sample standard deviation."""

    values: tuple[float, ...]
    num_feasible: int

    @property
    def mean(self) -> float:
        """Mean over the trainings."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for a single training."""
        return statistics.stdev(self.values) if len(self.values) >= _LEAST_FOR_DEVIATION else None

    def describe(self) -> str:
        """Mean and standard deviation, for people."""
        deviation = "" if self.deviation is None else f" +/- {self.deviation:.4f}"
        return f"{self.mean:.4f}{deviation} (n = {len(self.values)})"


@dataclass(frozen=True)
class Findings:
    """A study's configuration and all its trials, by number."""

    config: StudyConfig
    trials: Sequence[FrozenTrial]

    def role(self, trial: FrozenTrial) -> str:
        """`search`, `start` (values given in the study's file), `repeat` or `warm` (of another study)."""
        return str(trial.user_attrs.get("role", "search"))

    def in_state(self, state: TrialState) -> list[FrozenTrial]:
        """Trials in a state."""
        return [trial for trial in self.trials if trial.state == state]

    @property
    def searched(self) -> list[FrozenTrial]:
        """Trials with a result that are no repeats: each of them is a setting of its own."""
        complete = [trial for trial in self.in_state(TrialState.COMPLETE) if trial.values is not None]
        return [trial for trial in complete if self.role(trial) != "repeat"]

    @property
    def starts(self) -> list[FrozenTrial]:
        """Trials with the values that the study's file gives, such as the paper's setting; with a result or not."""
        return [trial for trial in self.trials if self.role(trial) == "start"]

    def excess(self, trial: FrozenTrial) -> dict[str, float]:
        """How far the trial is on the wrong side of each constraint that was measured (feasible at 0 and below)."""
        known = trial.constraints or {}
        return {c.name: known[c.name] for c in self.config.constraints if c.name in known}

    def is_feasible(self, trial: FrozenTrial) -> bool:
        """True if the trial has a result and keeps every constraint; one that was not measured is not kept."""
        excess = self.excess(trial)
        return trial.state == TrialState.COMPLETE and all(
            excess.get(constraint.name, 1.0) <= 0 for constraint in self.config.constraints
        )

    def is_good(self, trial: FrozenTrial) -> bool:
        """True if the setting is feasible: the trial itself and, where it was repeated, most of the repeats."""
        repeats = self.repeats(trial)
        return self.is_feasible(trial) and (repeats is None or 2 * repeats.num_feasible > len(repeats.values))

    @property
    def feasible(self) -> list[FrozenTrial]:
        """The settings with a result that keep every constraint, by number."""
        return [trial for trial in self.searched if self.is_good(trial)]

    @property
    def ranked(self) -> list[FrozenTrial]:
        """Settings with a result, feasible ones first, each kind best first (equals by number).

        By the repeats' mean if there are repeats: those come before what was not repeated. Several objectives: the
        Pareto front first, then by the first objective.
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
        """Feasible settings that no other one beats in all objectives."""
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
        """Trials with a result that repeat this one with fresh seeds."""
        return [
            other for other in self.in_state(TrialState.COMPLETE) if other.user_attrs.get("repeat_of") == trial.number
        ]

    def repeats(self, trial: FrozenTrial) -> Repeats | None:
        """What the repeats of a trial gave for the first objective; None if it was not repeated."""
        others = self.repeats_of(trial)
        if not others:
            return None
        trainings = [training for other in others for training in self._by_seed(other)]
        values = tuple(value for value, _ in trainings)
        return Repeats(values, sum(is_kept for _, is_kept in trainings))

    def _by_seed(self, trial: FrozenTrial) -> list[tuple[float, bool]]:
        """(First objective, are all constraints kept) of each training of a trial.

        Where the runs are not all on this machine, what the storage has: the mean, and the worst.
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
        """Run directories of a trial's trainings, which may be on another machine."""
        noted = trial.user_attrs.get("run_dirs")
        if noted:
            return [Path(text) for text in noted]
        return self.config.run_dirs(trial.number, self.config.seeds_per_trial)

    def rows(self, trial: FrozenTrial) -> list[list[Row]]:
        """Rows of metrics of each of its trainings; empty ones for what is not on this machine."""
        return [read_rows(folder) for folder in self.run_dirs(trial)]

    def most_failed(self) -> tuple[str, int] | None:
        """(The constraint that most trials with a result miss, how many of them); None if none is missed."""
        missed = {
            constraint.name: sum(self.excess(trial).get(constraint.name, 1.0) > 0 for trial in self.searched)
            for constraint in self.config.constraints
        }
        name = max(missed, key=lambda name: missed[name], default=None)
        return None if name is None or missed[name] == 0 else (name, missed[name])

    def why_not(self, trial: FrozenTrial) -> str:
        """Why a trial has no result."""
        return str(trial.user_attrs.get(REASON, "no reason given"))
