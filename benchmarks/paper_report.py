"""What paper_table.py measured, as data, as a table for people, as plain sentences and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vsr_dist.metrics.registry import DEFAULT_METRICS, METRICS

FACTORS = {"tdiff": 1e4}
COMPARED = ("psnr_y", "ssim_y", "tof")


@dataclass(frozen=True)
class Trained:
    """One model's runs. scores: seed -> metric on `overall`, the mean of the held-out videos.

    cpu_s: seed -> CPU seconds of the training processes, start-up, validation and checkpoints included; None where a
    kill of this script has lost them.
    """

    name: str
    settings: str
    parameters: int
    steps: int
    step_cpu_s: float
    cpu_s: Mapping[int, float | None]
    frame_ms: float
    scores: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Spread:
    """Mean, least and greatest value over the seeds."""

    mean: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(sum(values) / len(values), min(values), max(values))


def metric_spread(model: Trained, metric: str) -> Spread:
    return spread([scores[metric] for scores in model.scores.values()])


def gain(model: Trained, bicubic: Mapping[str, float], metric: str) -> Spread:
    """The metric minus bicubic's, signed so that above 0 is better."""
    sign = METRICS[metric].direction
    return spread([sign * (scores[metric] - bicubic[metric]) for scores in model.scores.values()])


def verdict(difference: Spread) -> str:
    if difference.low > 0:
        return "better"
    if difference.high < 0:
        return "worse"
    return "no clear difference"


def sentence(model: Trained, bicubic: Mapping[str, float]) -> str:
    """How a model compares with bicubic; only what holds for every seed is called better or worse."""
    parts = []
    for metric in COMPARED:
        heading, decimals = METRICS[metric].heading, METRICS[metric].decimals
        found = gain(model, bicubic, metric)
        sign = METRICS[metric].direction
        change = f"{sign * found.mean:+.{decimals}f}"
        parts.append(f"{heading} {change} ({verdict(found)})")
    seeds = len(model.scores)
    return f"**{model.name}** against bicubic, {seeds} seed{'s' if seeds > 1 else ''}: {', '.join(parts)}."


def table(models: Sequence[Trained], bicubic: Mapping[str, float], bicubic_frame_ms: float) -> str:
    """Markdown: a row per model, mean and range over seeds."""
    headings = ["model", "parameters", "steps", "ms per frame", *(METRICS[name].heading for name in DEFAULT_METRICS)]
    cells = [_number(bicubic[name], name) for name in DEFAULT_METRICS]
    rows = [["bicubic", "0", "-", f"{bicubic_frame_ms:.0f}", *cells]]
    for model in models:
        cells = []
        for name in DEFAULT_METRICS:
            found = metric_spread(model, name)
            mean, low, high = (_number(value, name) for value in (found.mean, found.low, found.high))
            cells.append(mean if len(model.scores) == 1 else f"{mean} ({low} to {high})")
        rows.append([model.name, f"{model.parameters:,}", f"{model.steps:,}", f"{model.frame_ms:.0f}", *cells])
    lines = ["| " + " | ".join(row) + " |" for row in [headings, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])


def _number(value: float, metric: str) -> str:
    return f"{value * FACTORS.get(metric, 1.0):.{METRICS[metric].decimals}f}"


def document(models: Sequence[Trained], bicubic: Mapping[str, float], facts: Mapping[str, object]) -> str:
    """The whole of docs/paper_table.md. facts: see `paper_table.facts_of`."""
    known = [value for model in models for value in model.cpu_s.values() if value is not None]
    in_all = f"{min(known) / 60:.1f} to {max(known) / 60:.1f}" if known else "an unknown number of"
    parts = [
        "# The paper's models, ours and baselines under one budget",
        "Written by `make paper-table` (`benchmarks/paper_table.py`); do not edit. Every model was trained on the same "
        f"shards of the demo for {facts['minutes']:g} CPU-minutes per seed on one core, with the settings of its "
        "configuration, and evaluated on frames that none was trained or tuned on. Mean over the seeds, in brackets "
        "their range.",
        table(models, bicubic, float(str(facts["bicubic_frame_ms"]))),
        "\n".join(f"- {sentence(model, bicubic)}" for model in models),
        "![gain over bicubic, every seed](images/paper_table.png)",
        f"**How the budget was kept.** Training has no time limit, so {facts['calibration_s']:g} CPU-seconds of each "
        "model's training gave its CPU time per step, and the steps were set to fill the budget; the learning rate's "
        "schedule ends with it. With start-up, two validations, checkpoints and neighbours on the machine a run took "
        f"{in_all} CPU-minutes. The paper's networks are {facts['width']} channels wide "
        "(64 in the paper), with their losses, optimiser and learning rate. Time per frame is CPU time of one core on "
        f"{facts['frame_px']} px inputs.",
        f"**Protocol.** {facts['protocol']}",
    ]
    return "\n\n".join(parts) + "\n"


def as_data(models: Sequence[Trained], bicubic: Mapping[str, float]) -> dict[str, object]:
    """Everything behind the table, for the JSON file."""
    found: dict[str, object] = {}
    for model in models:
        summary = {name: asdict(metric_spread(model, name)) for name in DEFAULT_METRICS}
        gains = {name: asdict(gain(model, bicubic, name)) for name in DEFAULT_METRICS}
        found[model.name] = {**asdict(model), "summary": summary, "better_than_bicubic_by": gains}
    return found


def draw(models: Sequence[Trained], bicubic: Mapping[str, float], path: Path) -> None:
    """Gain over bicubic in PSNR-Y, SSIM-Y and tOF: a dot per seed, a line from least to greatest."""
    figure, axes = plt.subplots(1, len(COMPARED), figsize=(12, 0.5 * len(models) + 1.5), sharey=True)
    places = range(len(models))
    for axis, metric in zip(axes, COMPARED, strict=True):
        sign = METRICS[metric].direction
        for place, model in zip(places, models, strict=True):
            gains = [sign * (scores[metric] - bicubic[metric]) for scores in model.scores.values()]
            colour = "tab:green" if min(gains) > 0 else "tab:red" if max(gains) < 0 else "tab:gray"
            axis.plot([min(gains), max(gains)], [place, place], color=colour, linewidth=2)
            axis.plot(gains, [place] * len(gains), "o", color=colour, markersize=5)
        axis.axvline(0.0, color="black", linewidth=1)
        axis.set_title(f"{METRICS[metric].heading}: better than bicubic by", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(list(places), [model.name for model in models])
    axes[0].invert_yaxis()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
