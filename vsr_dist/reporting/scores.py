"""Names, directions and digits of metrics, and which of several values is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vsr_dist.metrics.registry import METRICS


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its heading, decimals, and the factor that the heading names.

    `direction`: +1 if higher is better, -1 if lower is, 0 if nobody can say.
    """

    title: str
    decimals: int
    direction: int
    factor: float = 1.0

    def show(self, value: float) -> str:
        """The value as the heading says."""
        return f"{value * self.factor:.{self.decimals}f}"

    @property
    def better(self) -> str:
        """The direction in a word."""
        return {1: "higher", -1: "lower"}.get(self.direction, "-")


def metric_of(name: str) -> Metric:
    """The metric with a plain name such as `psnr_y`; one that no evaluation measures has no direction."""
    if name not in METRICS:
        return Metric(name, 4, 0)
    row = METRICS[name]
    return Metric(row.heading, row.decimals, row.direction, row.factor)


def best_places(values: Sequence[float | None], direction: int) -> set[int]:
    """Places of the best value, of all that share it; none without a direction, or with fewer than two values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not direction or len(known) < 2 or len(set(known)) == 1:
        return set()
    best = max(known) if direction > 0 else min(known)
    return {place for place, value in enumerate(values) if value == best}
