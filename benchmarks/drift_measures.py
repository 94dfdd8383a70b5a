"""Numbers of docs/drift.md, out of the metrics.jsonl of its runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scipy.stats import linregress
from scipy.stats import t as student

from sweeps.curves import (
    Reduction,
    Row,
    adversarial_start,
    after_warmup,
    curve,
    difference_curve,
    ratio_curve,
    read_rows,
    reduce_curve,
)

LOSS = "drift/normalized_loss"
GAMMA = "control/r1_gamma"
# Name -> metric, its reference, whether the ratio to it is taken and not the difference, and the reduction.
MEASURES: dict[str, tuple[str, str | None, bool, Reduction]] = {
    "loss": (LOSS, None, False, "tail_median"),
    "rise": (LOSS, None, False, "tail_rise"),
    "rise_high": (LOSS, None, False, "tail_rise_high"),
    "dead": ("drift/dead_fraction", None, False, "tail_median"),
    "paired": ("drift/paired_accuracy", None, False, "tail_median"),
    "auc": ("drift/auc", None, False, "tail_median"),
    "probe_auc": ("drift/probe_auc", None, False, "tail_median"),
    "gradient_ratio": ("drift/gradient_ratio", None, False, "tail_median"),
    "hf_gap": ("drift/high_frequency_gap", None, False, "tail_median"),
    "psnr_y": ("val/psnr_y", None, False, "tail_median"),
    "psnr_gain": ("val/psnr_y", "val_bicubic/psnr_y", False, "tail_median"),
    "ssim_y": ("val/ssim_y", None, False, "tail_median"),
    "tof": ("val/tof", None, False, "tail_median"),
    "tdiff_ratio": ("val/tdiff", "val_bicubic/tdiff", True, "tail_median"),
    "stlpips": ("val/stlpips", None, False, "tail_median"),
    "stlpips_bicubic": ("val_bicubic/stlpips", None, False, "tail_median"),
}

# Of runs without a perceptual metric.
WITHOUT_PERCEPTUAL = tuple(name for name in MEASURES if not name.startswith("stlpips"))


@dataclass(frozen=True)
class Spread:
    """Mean over runs, and the ends of its 95 % interval by Student's t; none of those for a single run."""

    mean: float
    low: float
    high: float

    def text(self, decimals: int) -> str:
        if math.isnan(self.low):
            return f"{self.mean:.{decimals}f}"
        return f"{self.mean:.{decimals}f} ({self.low:.{decimals}f} to {self.high:.{decimals}f})"


def spread(values: Sequence[float]) -> Spread:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(mean, math.nan, math.nan)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Spread(mean, mean - half, mean + half)


def measures(rows: Sequence[Row], names: Collection[str] = MEASURES) -> dict[str, float]:
    """Measures of one run, by default all of them.

    The tail is its last quarter; a rise is the trend of the later half, per whole run.
    """
    start = adversarial_start(rows)
    found = {}
    for name in names:
        metric, reference, divided, reduction = MEASURES[name]
        if reference is None:
            points = curve(rows, metric)
        else:
            points = (ratio_curve if divided else difference_curve)(rows, metric, reference)
        found[name] = reduce_curve(points, reduction, start)
    return found


def later_half(rows: Sequence[Row], metric: str) -> list[tuple[int, float]]:
    """Points of the later half of the steps, which a rise is taken from; none for a metric that was not logged."""
    if not any(metric in row for _, row in rows):
        return []
    points = after_warmup(curve(rows, metric), adversarial_start(rows))
    middle = (points[0][0] + points[-1][0]) / 2.0
    return [point for point in points if point[0] >= middle]


def rests(rows: Sequence[Row]) -> list[float]:
    """The normalised loss of the later half less its line of least squares."""
    steps, losses = zip(*later_half(rows, LOSS), strict=True)
    line = linregress(steps, losses)
    return [loss - (line.intercept + line.slope * step) for step, loss in zip(steps, losses, strict=True)]


def swing(rows: Sequence[Row]) -> float:
    """Standard deviation of the normalised loss about its line, over the later half."""
    rest = rests(rows)
    return math.sqrt(sum(value * value for value in rest) / (len(rest) - 2))


def autocorrelation(rows: Sequence[Row]) -> float:
    """Of what the line leaves, from one evaluation to the next; the interval of a rise takes it to be 0."""
    rest = rests(rows)
    return sum(first * second for first, second in pairwise(rest)) / max(sum(value * value for value in rest), 1e-30)


def gamma_range(rows: Sequence[Row]) -> float:
    """Largest over smallest gamma of R1 in the later half; 1 where it is not steered."""
    gammas = [gamma for _, gamma in later_half(rows, GAMMA)]
    return max(gammas) / min(gammas) if gammas else 1.0


def finished_rows(folder: Path, name: str) -> dict[int, list[Row]]:
    """Seed -> rows of the finished runs of an arm."""
    found = {}
    for path in sorted(folder.glob(f"{name}-seed*")):
        if path.is_dir() and (path / "summary.json").exists():
            found[int(path.name.rpartition("seed")[2])] = read_rows(path)
    return dict(sorted(found.items()))


def column(runs: Mapping[int, Mapping[str, float]], name: str) -> list[float]:
    return [values[name] for values in runs.values()]


def acceptance(values: Mapping[str, float]) -> dict[str, bool]:
    """What a healthy run is held to, by name."""
    return {
        "loss 0.35 to 0.75": 0.35 <= values["loss"] <= 0.75,
        "rise's upper end below 0.10": values["rise_high"] < 0.10,
        "dead below 0.05": values["dead"] < 0.05,
        "paired accuracy above 0.8": values["paired"] > 0.8,
    }
