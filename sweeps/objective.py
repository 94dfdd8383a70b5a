"""How a trial is judged: objectives, constraints and stop rules, all from the rows of its `metrics.jsonl`.

None of them may contain what a study tunes. A training loss does (it is a sum with the tuned weights), and so does the
gradient ratio: the study would shrink its own weights instead of improving the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vsr_dist.core.errors import BadConfigError, UserError, nearest_hint
from vsr_dist.metrics.drift import drift_slope
from vsr_dist.metrics.registry import find_metric
from vsr_dist.training.tracking import METRICS_NAME, read_metrics

Row = tuple[int, Mapping[str, float]]
Point = tuple[int, float]
Reduction = Literal[
    "last",
    "tail_median",
    "tail_min",
    "tail_max",
    "tail_slope",
    "tail_slope_low",
    "tail_slope_high",
    "tail_rise",
    "tail_rise_low",
    "tail_rise_high",
]
# The discriminator is measured from the end of the warm-up on, and only then.
_ADVERSARIAL_PREFIX = "drift/"
_TAIL_SHARE = 0.25
_STEPS_PER_SLOPE = 1000.0
_NO_METRICS = ("step", "time_s")


class NoValueError(UserError):
    """A number cannot be computed from a curve; the message says why."""


class MissingMetricError(NoValueError):
    """A run has no value of a metric; the message names similar ones."""


def read_rows(run_dir: Path) -> list[Row]:
    """(Step, metrics) of a run so far, by step; none if it has logged nothing. A half-written last line is left out.

    What was logged at one step by several lines (training and validation) is one row.
    """
    rows: dict[int, dict[str, float]] = {}
    for line in read_metrics(run_dir / METRICS_NAME):
        values = {name: float(value) for name, value in line.items() if name not in _NO_METRICS}
        rows.setdefault(int(line["step"]), {}).update(values)
    return sorted(rows.items())


def adversarial_start(rows: Sequence[Row]) -> int | None:
    """Step of the first evaluation of the discriminator, or None if there is none (yet)."""
    return next((step for step, row in rows if any(name.startswith(_ADVERSARIAL_PREFIX) for name in row)), None)


def curve(rows: Sequence[Row], metric: str) -> list[Point]:
    """(Step, value) of one metric, by step; MissingMetricError if no row has it."""
    points = [(step, row[metric]) for step, row in rows if metric in row]
    if not points:
        known = sorted({name for _, row in rows for name in row})
        raise MissingMetricError(f"the run has no metric {metric}{nearest_hint(metric, known)}")
    return points


def ratio_curve(rows: Sequence[Row], metric: str, reference: str) -> list[Point]:
    """`metric / reference` at the steps that have both; NoValueError where the reference is 0."""
    points = []
    for step, value, below in _pairs(rows, metric, reference):
        if below == 0.0:
            raise NoValueError(f"{metric} / {reference}: the divisor is 0 at step {step}")
        points.append((step, value / below))
    return points


def difference_curve(rows: Sequence[Row], metric: str, reference: str) -> list[Point]:
    """`metric - reference` at the steps that have both."""
    return [(step, value - below) for step, value, below in _pairs(rows, metric, reference)]


def after_warmup(points: Sequence[Point], start: int | None) -> list[Point]:
    """Points from the discriminator's first evaluation on (`adversarial_start`); all but step 0 if it has none."""
    return [point for point in points if (point[0] >= start if start is not None else point[0] > 0)]


def tail(points: Sequence[Point], start: int | None) -> list[Point]:
    """The last quarter of the points after the warm-up, by their number, rounded up."""
    late = after_warmup(points, start)
    return late[len(late) - math.ceil(len(late) * _TAIL_SHARE) :]


def reduce_curve(points: Sequence[Point], reduction: Reduction, start: int | None) -> float:
    """One number out of a curve; NoValueError if it has too few points for it or if the number is not finite.

    `last`: its last value. `tail_median`, `tail_min`, `tail_max`: of the last quarter of the points after the warm-up.
    `tail_slope` and the ends of its 95 % interval, `_low` and `_high`: Theil-Sen slope per 1000 steps over the later
    half of the steps since the warm-up, as the monitor's `drift/slope` (`vsr_dist.metrics.drift.drift_slope`).
    `tail_rise`, `_low`, `_high`: that slope times the steps since the warm-up, which is the change over a whole run,
    however long.
    """
    if reduction == "last":
        value = points[-1][1]
    elif reduction in _OF_TAIL:
        values = [value for _, value in tail(points, start)]
        if not values:
            raise NoValueError(f"{reduction}: no evaluation after the warm-up; train longer or validate more often")
        value = float(_OF_TAIL[reduction](values))
    else:
        value = _trend(after_warmup(points, start), reduction)
    if not math.isfinite(value):
        raise NoValueError(f"{reduction} is {value}; expected a finite number")
    return value


_OF_TAIL: dict[str, Callable[[list[float]], Any]] = {"tail_median": np.median, "tail_min": np.min, "tail_max": np.max}


def _trend(late: Sequence[Point], reduction: Reduction) -> float:
    """A `tail_slope*` or `tail_rise*` of the points after the warm-up."""
    trend = drift_slope([step for step, _ in late], [value for _, value in late]) if late else None
    if trend is None:
        raise NoValueError(
            f"{reduction}: expected at least 3 evaluations in the later half of the adversarial steps, found "
            f"{len(late)} in all of them; lower train.validate_every"
        )
    end = {"low": trend.low, "high": trend.high}.get(reduction.rpartition("_")[2], trend.slope)
    return end * (late[-1][0] - late[0][0]) / _STEPS_PER_SLOPE if reduction.startswith("tail_rise") else end


def _pairs(rows: Sequence[Row], metric: str, reference: str) -> list[tuple[int, float, float]]:
    """(Step, metric, reference) where a row has both; MissingMetricError if none has."""
    below = dict(curve(rows, reference))
    pairs = [(step, value, below[step]) for step, value in curve(rows, metric) if step in below]
    if not pairs:
        raise MissingMetricError(f"the run has {metric} and {reference}, but at no step both")
    return pairs


Direction = Literal["maximize", "minimize"]
TermReduction = Literal["last", "tail_median", "best"]
_DEFAULT_METRIC = "val/psnr_y"
_LOSSES = ("loss_", "loss/")
# The first contains the adversarial weight; a code and logits measure no quality.
_NOT_IN_OBJECTIVE = ("drift/gradient_ratio", "drift/verdict_code", "d/real", "d/fake")


@dataclass(frozen=True)
class Term:
    """One weighted term of an objective: `weight * hinge(reduce(metric / relative_to))`.

    Attributes:
        metric: name in `metrics.jsonl`.
        weight: factor; below 0 for what should be low in an objective that is maximized.
        reduce: `last` value, `tail_median` (last quarter of the evaluations after the warm-up), or the `best` of
            those evaluations.
        relative_to: metric that it is divided by at each step, e.g. bicubic's.
        above: only what exceeds this counts: max(x - above, 0).
        below: only what is missing up to this counts: max(below - x, 0).
    """

    metric: str
    weight: float = 1.0
    reduce: TermReduction = "last"
    relative_to: str | None = None
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if self.weight == 0.0:
            raise BadConfigError(f"the objective's term {self.metric} has weight 0; remove it")
        if self.above is not None and self.below is not None:
            raise BadConfigError(f"the objective's term {self.metric} has above and below; give each a term of its own")
        for name in filter(None, (self.metric, self.relative_to)):
            _refuse_tuned_losses(name)
        if find_metric(self.metric).better == "near 0" and self.above is None and self.below is None:
            raise BadConfigError(
                f"the objective's term {self.metric} is best at 0; give one term with above: 0 and one with below: 0"
            )

    @property
    def better_direction(self) -> Direction | None:
        """The direction in which this term improves; None if that is not known."""
        better = find_metric(self.metric).better
        if better == "-":
            return None
        # Of a signed metric a term counts one side, which should be small.
        is_wanted = better == "higher" or (better == "near 0" and self.below is not None)
        return "maximize" if is_wanted == self._is_rising else "minimize"

    @property
    def _is_rising(self) -> bool:
        """True if the term grows with its metric."""
        return (self.weight > 0) != (self.below is not None)

    def value(self, rows: Sequence[Row], direction: Direction) -> float:
        """The term's share in the objective; NoValueError if the rows do not give one."""
        if self.relative_to is None:
            points = curve(rows, self.metric)
        else:
            points = ratio_curve(rows, self.metric, self.relative_to)
        start = adversarial_start(rows)
        if self.reduce == "best":
            highest = (direction == "maximize") == self._is_rising
            raw = _extreme(points, start, "max" if highest else "min")
        else:
            raw = reduce_curve(points, self.reduce, start)
        if self.above is not None:
            raw = max(raw - self.above, 0.0)
        if self.below is not None:
            raw = max(self.below - raw, 0.0)
        return self.weight * raw

    def describe(self) -> str:
        """The term as a formula, for people."""
        text = self.metric if self.relative_to is None else f"{self.metric} / {self.relative_to}"
        text = text if self.reduce == "last" else f"{self.reduce}({text})"
        if self.above is not None:
            text = f"max({text} - {self.above:g}, 0)"
        if self.below is not None:
            text = f"max({self.below:g} - {text}, 0)"
        return text if self.weight == 1.0 else f"{self.weight:g} * {text}"


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective of a study: one metric of the last validation, or a weighted sum of terms.

    Attributes:
        metric: short for one term with this metric.
        direction: whether more of it is better.
        terms: the sum's terms, in place of `metric`.
        name: what reports call it; empty for the metric's name, or `objective` for a sum.
    """

    metric: str | None = None
    direction: Direction = "maximize"
    terms: tuple[Term, ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if self.metric is not None and self.terms:
            raise BadConfigError("objective: metric is short for a single term; give metric or terms, and not both")
        if self.metric is None and not self.terms:
            object.__setattr__(self, "metric", _DEFAULT_METRIC)
        for term in self.all_terms:
            if term.better_direction not in (None, self.direction):
                raise BadConfigError(
                    f"objective.direction is {self.direction}, but {term.describe()} improves if you "
                    f"{term.better_direction} it; change the direction, or the sign of its weight"
                )

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """The terms, also where `metric` stands for a single one."""
        return self.terms if self.metric is None else (Term(self.metric),)

    @property
    def title(self) -> str:
        """What reports call it."""
        if self.name is not None or self.metric is not None:
            return str(self.name or self.metric)
        return self.terms[0].describe() if len(self.terms) == 1 else "objective"

    def describe(self) -> str:
        """The objective as a formula, for people."""
        return " + ".join(term.describe() for term in self.all_terms).replace("+ -", "- ")


def objective_value(config: ObjectiveConfig, rows: Sequence[Row]) -> float:
    """The objective of a run; NoValueError (a UserError) if a metric is missing, with the nearest names, or not finite.

    rows: (step, metrics) by step, from `read_rows`.
    """
    return sum(term.value(rows, config.direction) for term in config.all_terms)


def objective_points(config: ObjectiveConfig, rows: Sequence[Row]) -> list[Point]:
    """(Step, the objective if the run ended there) at each evaluation after step 0 that has one."""
    metric = config.all_terms[0].metric
    points = []
    for place, (step, row) in enumerate(rows):
        if step == 0 or metric not in row:
            continue
        try:
            points.append((step, objective_value(config, rows[: place + 1])))
        except NoValueError:
            continue  # Not yet: a drift measure in the warm-up, for instance.
    return points


def used_metrics(
    objectives: Sequence[ObjectiveConfig], constraints: Sequence[Constraint], rules: Sequence[StopRule]
) -> dict[str, str]:
    """Every metric that is used -> the setting that uses it first, for a check before trial 0."""
    used: dict[str, str] = {}
    for objective in objectives:
        for term in objective.all_terms:
            used |= _named(f"objective {objective.title}", (term.metric, term.relative_to), used)
    for constraint in constraints:
        used |= _named(f"constraint {constraint.name}", (constraint.metric, constraint.relative_to), used)
    for rule in rules:
        used |= _named("stop_when", (rule.metric,), used)
    return used


def _named(setting: str, metrics: Sequence[str | None], used: Mapping[str, str]) -> dict[str, str]:
    return {metric: setting for metric in metrics if metric is not None and metric not in used}


def _extreme(points: Sequence[Point], start: int | None, side: Literal["max", "min"]) -> float:
    values = [value for _, value in after_warmup(points, start)]
    if not values:
        raise NoValueError("best: no evaluation after the warm-up; train longer or validate more often")
    return reduce_curve([(0, max(values) if side == "max" else min(values))], "last", start)


def _refuse_tuned_losses(metric: str) -> None:
    if metric.startswith(_LOSSES) or metric in _NOT_IN_OBJECTIVE:
        raise BadConfigError(
            f"objective.metric {metric} contains the loss weights that a study tunes, or measures no quality; use a "
            "validation metric such as val/psnr_y"
        )
    check_family("objective.metric", metric)


_FAMILIES = ("val/", "val_bicubic/", "drift/", "d/", "perf/")


@dataclass(frozen=True)
class Constraint:
    """A bound that a feasible trial keeps.

    Attributes:
        name: in tables and in the storage.
        metric: name in `metrics.jsonl`.
        reduce: how its curve becomes one number (`reduce_curve`).
        relative_to: metric that is subtracted at each step, e.g. bicubic's.
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
        """By how much a measured number violates the bound: feasible at 0 and below."""
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
    """Stops a trial early: a metric is beyond a bound at `times` consecutive evaluations.

    Attributes:
        metric: name in `metrics.jsonl`.
        above: bound that it must exceed.
        below: bound that it must fall under; exactly one of the two is given.
        times: consecutive evaluations.
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
        """Why the trial should stop, or None. An earlier streak counts too, so the time of the call does not matter."""
        streak = 0
        for step, value in ((step, row[self.metric]) for step, row in rows if self.metric in row):
            if step <= self.after_step:
                continue
            beyond = value > self.above if self.above is not None else value < (self.below or 0.0)
            streak = streak + 1 if beyond else 0
            if streak == self.times:
                side = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
                return f"{self.metric} {value:.4g}, {side} at {self.times} consecutive evaluations, step {step}"
        return None


def constraint_values(
    constraints: Sequence[Constraint], rows: Sequence[Row], *, partial: bool = False
) -> dict[str, float]:
    """By constraint, by how much the run violates its bound; feasible at 0 and below.

    NoValueError if one cannot be computed; with `partial`, as for a run that was stopped early, it is left out.
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
    """Why a trial should stop now, by the first rule that applies; None if it should go on."""
    return next((reason for rule in rules if (reason := rule.reason(rows)) is not None), None)


def check_family(setting: str, metric: str) -> None:
    """Raise BadConfigError for metrics that do not measure quality, or that contain the tuned weights."""
    if not metric.startswith(_FAMILIES):
        raise BadConfigError(
            f"{setting}: {metric} does not measure a trial's quality; expected a name that begins with "
            f"{', '.join(_FAMILIES)}, such as val/psnr_y"
        )
