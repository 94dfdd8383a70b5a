"""`report.png`: the curves of several runs over the steps, one colour for each run in all panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vsr_dist.metrics.drift import TOO_STRONG_LOSS, WEAK_LOSS
from vsr_dist.reporting.colours import style_of
from vsr_dist.reporting.runs import TrainingRun
from vsr_dist.training.monitor import NORMALISED_LOSS

_BICUBIC_GREY = "0.45"


@dataclass(frozen=True)
class Panel:
    """One metric: its name in `metrics.jsonl`, the title, the metric of bicubic beside it, and whether it is D's loss
    over chance, which has a wished band."""

    name: str
    title: str
    bicubic: str | None = None
    has_band: bool = False


PANELS = (
    Panel("val/psnr_y", "held-out PSNR-Y, dB (higher is better)", bicubic="val_bicubic/psnr_y"),
    Panel(NORMALISED_LOSS, "held-out discriminator loss / chance", has_band=True),
    Panel("perf/clips_per_s", "training speed, clips/s"),
    Panel("loss_g/total", "generator loss, weighted total"),
    Panel("loss_g/image", "image term"),
    Panel("loss_g/perceptual", "perceptual term"),
    Panel("loss_g/adversarial", "adversarial term"),
    Panel("loss_g/temporal", "temporal term"),
    Panel("loss_g/tv", "total variation term"),
    Panel("loss_d/total", "discriminator loss in training"),
)


def shown_panels(runs: Sequence[TrainingRun]) -> list[Panel]:
    """The panels that some run has a value for."""
    return [panel for panel in PANELS if any(panel.name in line for run in runs for line in run.lines)]


def curves_figure(runs: Sequence[TrainingRun]) -> Figure | None:
    """Two columns of panels under one legend; None if no run has a curve."""
    panels = shown_panels(runs)
    if not panels:
        return None
    num_rows = (len(panels) + 1) // 2
    # Rooms in inches: the legend takes a line for each two runs.
    num_legend_lines = (len(runs) + 2) // 2
    figure = Figure(figsize=(11.0, 2.9 * num_rows + 0.25 * num_legend_lines), layout="constrained")
    grid = list(figure.subplots(num_rows, 2, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, runs)
        axes.set_xlim(0, max(run.steps_done for run in runs) * 1.02 or 1)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], label=run.label, markersize=4, **style_of(n)) for n, run in enumerate(runs)]  # type: ignore[arg-type]
    if any(panel.bicubic for panel in panels):
        handles.append(Line2D([], [], label="bicubic", color=_BICUBIC_GREY, linestyle=(0, (1, 1))))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4), frameon=False)
    return figure


def _draw(axes: Axes, panel: Panel, runs: Sequence[TrainingRun]) -> None:
    for place, run in enumerate(runs):
        points = _points(run, panel.name)
        if points:
            steps, values = zip(*points, strict=True)
            # A single point has no line: its marker must be seen.
            size = 4.0 if len(points) < 30 else 0.0
            axes.plot(steps, values, linewidth=1.6, markersize=size, **style_of(place))  # type: ignore[arg-type]
    if panel.bicubic is not None:
        for level in sorted({round(value, 3) for run in runs for _, value in _points(run, panel.bicubic)[-1:]}):
            axes.axhline(level, color=_BICUBIC_GREY, linestyle=(0, (1, 1)), linewidth=1.3)
    if panel.has_band:
        axes.axhspan(TOO_STRONG_LOSS, WEAK_LOSS, color="#009e73", alpha=0.10, linewidth=0)
        axes.axhline(1.0, color="0.6", linewidth=0.8)
        text = f"wished: {TOO_STRONG_LOSS:g} to {WEAK_LOSS:g}"
        axes.annotate(text, (1.0, TOO_STRONG_LOSS), (-4, 4), xycoords=("axes fraction", "data"), ha="right",
                      textcoords="offset points", size=8, color="#00664a")  # fmt: skip
        axes.set_ylim(0.0, max(1.1, axes.get_ylim()[1]))
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.3)
    axes.ticklabel_format(axis="y", useOffset=False)


def _points(run: TrainingRun, name: str) -> list[tuple[int, float]]:
    return [(int(line["step"]), float(line[name])) for line in run.lines if name in line]
