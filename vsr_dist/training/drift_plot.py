"""`drift.png`: how the discriminator fared over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vsr_dist.metrics.drift import DEAD_FRACTION, DEAD_GRADIENT, OVERFIT, PROBE_GAP, TOO_STRONG_LOSS, WEAK_LOSS
from vsr_dist.training.drift import NORMALISED_LOSS, loss_history, trend_of, verdict_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_NAME = "drift.png"
Lines = Sequence[Mapping[str, Any]]


def write_drift_plot(lines: Lines, path: Path) -> bool:
    """Draw the lines of a `metrics.jsonl`; returns False, with nothing written, if D was never measured."""
    if not loss_history(lines):
        return False
    drift_figure(lines).savefig(path, dpi=110)
    return True


def drift_figure(lines: Lines) -> Figure:
    """Three panels over the steps: normalised loss with its trend, what D tells apart, gradients and controllers."""
    # A second of import that only the end of a run need pay.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8.0, 8.5), layout="constrained")
    level, accuracy, gradients = figure.subplots(3, 1, sharex=True)
    _draw_level(level, lines)
    for name, label in (("paired_accuracy", "right on pairs"), ("auc", "AUC"), ("probe_auc", "AUC of the spectra")):
        _draw(accuracy, lines, f"drift/{name}", label)
    _draw(accuracy, lines, "drift/overfit", f"overfit (limit {OVERFIT})", linestyle="--")
    accuracy.axhline(0.5, color="0.6", linewidth=0.8)
    accuracy.set_ylabel(f"discriminator (probe gap limit {PROBE_GAP})")
    _draw(gradients, lines, "drift/gradient_ratio", "gradient, adversarial / image")
    _draw(gradients, lines, "drift/dead_fraction", f"dead logits (limit {DEAD_FRACTION})")
    for name in sorted({key for line in lines for key in line if key.startswith("control/")}):
        _draw(gradients, lines, name, name, linestyle=":")
    gradients.set_yscale("symlog", linthresh=DEAD_GRADIENT)
    gradients.set_ylabel("gradients, controllers")
    gradients.set_xlabel("step")
    for axes in (level, accuracy, gradients):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def _draw_level(axes: Axes, lines: Lines) -> None:
    history = loss_history(lines)
    steps, values = np.array(history, dtype=np.float64).T
    axes.plot(steps, values, marker=".", label="D loss / chance, held out")
    axes.axhspan(TOO_STRONG_LOSS, WEAK_LOSS, color="tab:green", alpha=0.08)
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    trend = trend_of(history)
    if trend is not None:
        late = steps >= (steps[0] + steps[-1]) / 2.0
        middle = np.median(steps[late]), np.median(values[late])
        line = middle[1] + trend.slope * (steps[late] - middle[0]) / 1000.0
        text = f"{trend.slope:+.3f} per 1000 steps ({trend.low:+.3f} to {trend.high:+.3f})"
        axes.plot(steps[late], line, color="tab:red", label=text)
    last = [name for line in lines if (name := verdict_of(line)) is not None]
    axes.set_title(f"discriminator: {last[-1] if last else 'not judged'}")
    axes.set_ylabel(NORMALISED_LOSS)


def _draw(axes: Axes, lines: Lines, name: str, label: str, linestyle: str = "-") -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, linestyle=linestyle, label=label)
