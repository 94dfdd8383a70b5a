"""Names, directions and digits of metrics, and which of several values is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vsr_dist.metrics.table import METRICS

# Of metrics that no table of evaluations lists; what is in neither has no direction.
_LOWER = frozenset({"stlpips", "lpips", "dists", "tlp", "warping_error"})


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
    """The metric with a plain name such as `psnr_y`."""
    if name in METRICS:
        title, decimals, direction = METRICS[name]
        # `tdiff x1e4`: the heading tells the factor.
        plain, times, factor = title.rpartition(" x")
        return Metric(title, decimals, direction, float(factor) if times and plain else 1.0)
    return Metric(name, 4, -1 if name in _LOWER else 0)


def best_places(values: Sequence[float | None], direction: int) -> set[int]:
    """Places of the best value, of all that share it; none without a direction, or with fewer than two values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not direction or len(known) < 2 or len(set(known)) == 1:
        return set()
    best = max(known) if direction > 0 else min(known)
    return {place for place, value in enumerate(values) if value == best}
