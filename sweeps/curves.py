"""The rows of a run's `metrics.jsonl`, and numbers out of the curve of one metric: its end, its tail, its slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vsr_dist.core.errors import UserError, nearest_hint
from vsr_dist.metrics.drift import drift_slope
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
    """A curve does not give the number that was asked of it; the message says why."""


class MissingMetricError(NoValueError):
    """A run has no value of a metric; the message names those that come nearest."""


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
            raise NoValueError(f"{metric} / {reference}: the latter is 0 at step {step}")
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
