"""What a trial is judged by: objectives, constraints and rules that end it early, all from the rows of its metrics.

None of them may contain what a study tunes. A training loss does (it is a sum with the tuned weights), and so does the
gradient ratio: the study would shrink its own weights instead of improving the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.curves import (
    NoValueError,
    Point,
    Row,
    adversarial_start,
    after_warmup,
    curve,
    ratio_curve,
    reduce_curve,
)
from sweeps.limits import Constraint, StopRule, check_family, constraint_values, stop_reason
from vsr_dist.core.errors import BadConfigError

Direction = Literal["maximize", "minimize"]
TermReduction = Literal["last", "tail_median", "best"]
_DEFAULT_METRIC = "val/psnr_y"
_LOSSES = ("loss_", "loss/")
# Weighted by the adversarial weight; and a code that is no quantity.
_NOT_IN_OBJECTIVE = ("drift/gradient_ratio", "drift/verdict_code")
# What one wants of the metrics whose names begin so; a direction against it is surely a slip.
_WANTED: dict[str, Direction] = {
    "val/psnr": "maximize",
    "val/ssim": "maximize",
    "val/tof": "minimize",
    "val/tdiff": "minimize",
    "val/lpips": "minimize",
    "drift/normalized_loss": "minimize",
    "drift/dead_fraction": "minimize",
    "drift/paired_accuracy": "maximize",
    "drift/auc": "maximize",
    "perf/clips_per_s": "maximize",
    "perf/step_ms": "minimize",
}
_OPPOSITE: dict[Direction, Direction] = {"maximize": "minimize", "minimize": "maximize"}


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
            raise BadConfigError(f"the objective's term {self.metric} has weight 0; take it out")
        if self.above is not None and self.below is not None:
            raise BadConfigError(f"the objective's term {self.metric} has above and below; give each a term of its own")
        for name in filter(None, (self.metric, self.relative_to)):
            _check_free_of_weights(name)

    @property
    def wants(self) -> Direction | None:
        """The direction of the objective that this term surely belongs into; None if nobody can tell."""
        found = next((wanted for prefix, wanted in _WANTED.items() if self.metric.startswith(prefix)), None)
        return found if found is None or self._is_rising else _OPPOSITE[found]

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
    """What a trial is judged by: one metric of the last validation, or a weighted sum of terms.

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
            if term.wants not in (None, self.direction):
                raise BadConfigError(
                    f"objective.direction is {self.direction}, but of {term.describe()} one wants to {term.wants}; "
                    "set that, or the other sign of its weight"
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

    rows: (step, metrics) by step, as `sweeps.curves.read_rows` gives them.
    """
    return sum(term.value(rows, config.direction) for term in config.all_terms)


def objective_points(config: ObjectiveConfig, rows: Sequence[Row]) -> list[Point]:
    """(Step, what the objective would be if the run ended there) at each evaluation after step 0 that gives one."""
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
    """Every metric that is asked for -> the setting that first asks, for a check before trial 0."""
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


def _check_free_of_weights(metric: str) -> None:
    if metric.startswith(_LOSSES) or metric in _NOT_IN_OBJECTIVE:
        raise BadConfigError(
            f"objective.metric {metric} contains the weights that a study tunes, or is no quantity, so the study "
            "would tune the measure and not the pictures; use a validation metric such as val/psnr_y"
        )
    check_family("objective.metric", metric)


__all__ = [
    "Constraint",
    "Direction",
    "ObjectiveConfig",
    "StopRule",
    "Term",
    "constraint_values",
    "objective_points",
    "objective_value",
    "stop_reason",
    "used_metrics",
]
