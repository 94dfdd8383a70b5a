"""The report's pictures: curves of several runs, the same windows of several runs, and what evaluations drew.

A run has one colour in all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vsr_dist.core.report_blocks import Block, Heading, Paragraph, Picture
from vsr_dist.metrics.drift import TOO_STRONG_LOSS, WEAK_LOSS
from vsr_dist.metrics.registry import METRICS
from vsr_dist.ops.picture import Picture as Pixels
from vsr_dist.ops.picture import four_of, side_by_side, with_titles
from vsr_dist.reporting.runs import Compared, Evaluation, TrainingRun
from vsr_dist.training.drift import NORMALISED_LOSS

# Okabe and Ito's colours, which people with colour blindness can distinguish, without their yellow, too pale for a line
# on white, and without black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Beyond six runs the colours repeat with another line style and marker.
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")


def colours_of(compared: Compared) -> dict[str, str]:
    """Label -> colour; an evaluation has that of its run, if it is among them."""
    colours: dict[str, str] = {}
    place = 0
    for one in compared.all:
        if isinstance(one, Evaluation) and one.subject == one.baseline:
            continue  # Bicubic has no colour of its own.
        run = compared.run_of(one) if isinstance(one, Evaluation) else None
        if run is not None:
            colours[one.label] = colours[run.label]
        else:
            colours[one.label] = COLOURS[place % len(COLOURS)]
            place += 1
    return colours


def style_of(place: int) -> dict[str, str]:
    """How matplotlib draws the run at a place of the report."""
    turn = place // len(COLOURS)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
        "marker": MARKERS[turn % len(MARKERS)],
    }


_BICUBIC_GREY = "0.45"


@dataclass(frozen=True)
class Panel:
    """One metric: its name in `metrics.jsonl`, the title, the metric of bicubic beside it, and whether it is D's loss
    over chance, which has a target range."""

    name: str
    title: str
    bicubic: str | None = None
    has_band: bool = False


_PSNR_Y = METRICS["psnr_y"]
PANELS = (
    Panel("val/psnr_y", f"held-out {_PSNR_Y.heading} ({_PSNR_Y.better} is better)", bicubic="val_bicubic/psnr_y"),
    Panel(NORMALISED_LOSS, METRICS[NORMALISED_LOSS].heading, has_band=True),
    Panel("perf/clips_per_s", METRICS["perf/clips_per_s"].heading),
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
            # A single point has no line, so its marker must be visible.
            size = 4.0 if len(points) < 30 else 0.0
            axes.plot(steps, values, linewidth=1.6, markersize=size, **style_of(place))  # type: ignore[arg-type]
    if panel.bicubic is not None:
        for level in sorted({round(value, 3) for run in runs for _, value in _points(run, panel.bicubic)[-1:]}):
            axes.axhline(level, color=_BICUBIC_GREY, linestyle=(0, (1, 1)), linewidth=1.3)
    if panel.has_band:
        axes.axhspan(TOO_STRONG_LOSS, WEAK_LOSS, color="#009e73", alpha=0.10, linewidth=0)
        axes.axhline(1.0, color="0.6", linewidth=0.8)
        text = f"target: {TOO_STRONG_LOSS:g} to {WEAK_LOSS:g}"
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


ASSETS = "assets"
_PANELS_IN_ROW = 5
_PANEL_PX = 224
_MAX_WINDOWS = 4
# Beyond these the page would be too heavy for a browser; the folders themselves hold everything.
_MAX_SEQUENCES = 8
_KINDS = {
    "crops": "where the compared methods differ most from the truth",
    "profiles": "one row over time",
    "differences": "difference from the truth",
}


@dataclass
class Gallery:
    """Blocks, and the PNG files that they name: path below the report's folder -> content."""

    blocks: list[Block] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def put(self, name: str, png: bytes, caption: str, folded: str | None = None) -> None:
        """Add a picture under a file name made of letters that every system and URL can hold."""
        path = f"{ASSETS}/{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}.png"
        assert path not in self.files
        self.files[path] = png
        self.blocks.append(Picture(path, caption, folded))


def add_samples(gallery: Gallery, runs: Sequence[TrainingRun]) -> None:
    """Held-out windows of the last validation: input, bicubic, every run that has the window, and the truth."""
    with_samples = [run for run in runs if run.samples is not None]
    if not with_samples:
        return
    gallery.blocks.append(Heading("Held-out windows"))
    steps = ", ".join(f"`{run.label}` at step {run.samples.step:,}" for run in with_samples if run.samples)
    gallery.blocks.append(Paragraph(f"The middle frame of held-out windows at the last validation: {steps}."))
    names = list(dict.fromkeys(name for run in with_samples for name in _windows(run)))
    for number, name in enumerate(names[:_MAX_WINDOWS]):
        for part, group in enumerate(_same_window(with_samples, name)):
            panels = _panels(group)
            who = ", ".join(f"`{label}`" for label in group)
            caption = f"{name}: input, bicubic, {who.replace('`', '')}, ground truth"
            gallery.put(f"window-{number}-{part}", _png(_rows(panels)), caption)
    if len(names) > _MAX_WINDOWS:
        gallery.blocks.append(Paragraph(f"{len(names) - _MAX_WINDOWS} more windows are in the runs' `samples/`."))


def add_evaluations(gallery: Gallery, evaluations: Sequence[Evaluation]) -> None:
    """The crops, profiles and difference maps of each sequence, of one evaluation after the other.

    Bicubic is in all of them: an evaluation of it alone is left out beside others.
    """
    shown = [one for one in evaluations if one.subject != one.baseline] or list(evaluations)
    names = list(dict.fromkeys(path.stem for one in shown for path in sorted((one.folder / "crops").glob("*.png"))))
    if len(names) > _MAX_SEQUENCES or not names:
        overviews = [one for one in shown if (one.folder / "comparison.png").is_file()]
        if overviews:
            gallery.blocks.append(Heading("Crops with the largest error"))
        for number, one in enumerate(overviews):
            gallery.put(
                f"comparison-{number}", (one.folder / "comparison.png").read_bytes(), f"{one.label}: all sequences"
            )
    for place, name in enumerate(names[:_MAX_SEQUENCES]):
        gallery.blocks.append(Heading(f"Sequence {name}"))
        for kind, words in _KINDS.items():
            for number, one in enumerate(shown):
                path = one.folder / kind / f"{name}.png"
                if path.is_file():
                    caption = f"{one.label}: {words}"
                    folded = None if kind == "crops" else caption
                    gallery.put(f"sequence-{place}-{kind}-{number}", path.read_bytes(), caption, folded)
    if len(names) > _MAX_SEQUENCES:
        text = f"{len(names) - _MAX_SEQUENCES} more sequences are in `crops/`, `profiles/` and `differences/`"
        gallery.blocks.append(Paragraph(f"{text} of the evaluations."))


def _windows(run: TrainingRun) -> dict[str, Pixels]:
    return run.samples.pictures if run.samples else {}


def _same_window(runs: Sequence[TrainingRun], name: str) -> list[dict[str, list[Pixels]]]:
    """Groups of run label -> its four panels whose truth is the same; a name alone does not tell that."""
    groups: list[dict[str, list[Pixels]]] = []
    for run in runs:
        picture_YXC = _windows(run).get(name)
        if picture_YXC is None:
            continue
        four = four_of(picture_YXC)
        for group in groups:
            first = next(iter(group.values()))
            if first[3].shape == four[3].shape and np.array_equal(first[3], four[3]):
                group[run.label] = four
                break
        else:
            groups.append({run.label: four})
    return groups


def _panels(group: dict[str, list[Pixels]]) -> dict[str, Pixels]:
    first = next(iter(group.values()))
    generated = {label: four[2] for label, four in group.items()}
    return {"input": first[0], "bicubic": first[1], **generated, "ground truth": first[3]}


def _rows(panels: dict[str, Pixels]) -> Pixels:
    """Titled panels in rows of a few, so that they stay large enough on a page."""
    titles, pictures = list(panels), list(panels.values())
    num_rows = math.ceil(len(titles) / _PANELS_IN_ROW)
    in_row = math.ceil(len(titles) / num_rows)  # 3 + 3 and not 5 + 1
    rows = []
    for first in range(0, len(titles), in_row):
        part = slice(first, first + in_row)
        rows.append(with_titles(side_by_side(pictures[part], _PANEL_PX), titles[part]))
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])


def _png(picture_YXC: Pixels) -> bytes:
    data: bytes = cv2.imencode(".png", cv2.cvtColor(picture_YXC, cv2.COLOR_RGB2BGR))[1].tobytes()
    return data
