"""Bounds of a study: constraints that a feasible trial keeps, and rules that end a hopeless trial early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.curves import NoValueError, Reduction, Row, adversarial_start, curve, difference_curve, reduce_curve
from vsr_dist.core.errors import BadConfigError

_FAMILIES = ("val/", "val_bicubic/", "drift/", "perf/")


@dataclass(frozen=True)
class Constraint:
    """What a trial must keep: a number at most, or at least, so large.

    Attributes:
        name: in tables and in the storage.
        metric: name in `metrics.jsonl`.
        reduce: one number out of its curve (`sweeps.curves.reduce_curve`).
        relative_to: metric that is taken off at each step, e.g. bicubic's.
        at_most: highest value that is feasible.
        at_least: lowest value that is feasible; exactly one of the two is given.
    """

    name: str
    metric: str
    reduce: Reduction = "last"
    relative_to: str | None = None
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise BadConfigError(f"constraint {self.name}: give at_most or at_least, and not both")
        for name in filter(None, (self.metric, self.relative_to)):
            check_family(f"constraint {self.name}", name)

    def measure(self, rows: Sequence[Row]) -> float:
        """The number that is bounded, in its own unit."""
        if self.relative_to is None:
            points = curve(rows, self.metric)
        else:
            points = difference_curve(rows, self.metric, self.relative_to)
        return reduce_curve(points, self.reduce, adversarial_start(rows))

    def excess(self, measured: float) -> float:
        """How far a measured number is on the wrong side of the bound: feasible at 0 and below."""
        if self.at_most is not None:
            return measured - self.at_most
        assert self.at_least is not None  # one of the two is given
        return self.at_least - measured

    def measured(self, excess: float) -> float:
        """The number in its own unit, back from `excess`."""
        return excess + self.at_most if self.at_most is not None else (self.at_least or 0.0) - excess

    def describe(self) -> str:
        """The constraint as a formula, for people."""
        text = self.metric if self.relative_to is None else f"{self.metric} - {self.relative_to}"
        bound = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        return f"{text if self.reduce == 'last' else f'{self.reduce}({text})'} {bound}"


@dataclass(frozen=True)
class StopRule:
    """Ends a hopeless trial early: a metric beyond a bound at `times` evaluations in succession.

    Attributes:
        metric: name in `metrics.jsonl`.
        above: bound that it must exceed.
        below: bound that it must fall under; exactly one of the two is given.
        times: evaluations in succession.
        after_step: evaluations up to this step do not count.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    times: int = 3
    after_step: int = 0

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise BadConfigError(f"stop_when {self.metric}: give above or below, and not both")
        if self.times < 1 or self.after_step < 0:
            raise BadConfigError(
                f"stop_when {self.metric}: expected times of at least 1 and after_step of at least 0, found "
                f"{self.times} and {self.after_step}"
            )
        check_family("stop_when", self.metric)

    def reason(self, rows: Sequence[Row]) -> str | None:
        """Why the trial should end, or None. Any streak counts, so the answer does not depend on when one asks."""
        streak = 0
        for step, value in ((step, row[self.metric]) for step, row in rows if self.metric in row):
            if step <= self.after_step:
                continue
            beyond = value > self.above if self.above is not None else value < (self.below or 0.0)
            streak = streak + 1 if beyond else 0
            if streak == self.times:
                side = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
                return f"{self.metric} {value:.4g}, {side} at {self.times} evaluations in succession, step {step}"
        return None


def constraint_values(
    constraints: Sequence[Constraint], rows: Sequence[Row], *, partial: bool = False
) -> dict[str, float]:
    """By constraint, how far the run is on the wrong side of its bound; feasible at 0 and below.

    NoValueError if one of them cannot be told; with `partial`, as for a run that was stopped early, it is left out.
    """
    values = {}
    for constraint in constraints:
        try:
            values[constraint.name] = constraint.excess(constraint.measure(rows))
        except NoValueError as error:
            if not partial:
                raise type(error)(f"constraint {constraint.name}: {error}") from error
    return values


def stop_reason(rules: Sequence[StopRule], rows: Sequence[Row]) -> str | None:
    """Why a trial should end now, by the first rule that says so; None if it should go on."""
    return next((reason for rule in rules if (reason := rule.reason(rows)) is not None), None)


def check_family(setting: str, metric: str) -> None:
    """Refuse metrics that say nothing of a trial's worth, or that contain the tuned weights."""
    if not metric.startswith(_FAMILIES):
        raise BadConfigError(
            f"{setting}: {metric} is of no family that a trial is judged by ({', '.join(_FAMILIES)}); use a validation "
            "metric such as val/psnr_y"
        )
