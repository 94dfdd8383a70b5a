"""Parallel coordinates: every setting is a line over its parameters, coloured by its objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from sweeps.findings import Findings
from sweeps.space import Categorical, Dimension, format_value, stored

# Dark is good. The lightest fifth of the map would not be seen on white.
_DARK_IS_LOW = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.8, 256)))
_DARK_IS_HIGH = _DARK_IS_LOW.reversed()
_MOST_TICKS = 8
_MOST_TICK_CHARS = 11
# Wider pictures are scaled down to a page's width, and their letters with them.
_MOST_INCHES = 13.0
_MOST_UPRIGHT = 8


@dataclass(frozen=True)
class Scale:
    """One vertical axis: where a value stands (0 to 1), and the values that are written beside it."""

    title: str
    place: Callable[[object], float]
    ticks: tuple[object, ...]


def parallel_figure(findings: Findings, labels: Mapping[str, str]) -> Figure | None:
    """Settings with a result; feasible ones in colour, the others grey, the best one thick. None without any."""
    trials = [trial for trial in findings.searched if set(trial.params) >= set(findings.config.space)]
    if not trials:
        return None
    objective = findings.config.objective
    values = [trial.values[0] for trial in trials]
    scales = [_scale(labels[path], dimension) for path, dimension in findings.config.space.items()]
    scales.append(_value_scale(objective.title, values))
    figure = Figure(figsize=(min(max(8.0, 1.5 * len(scales) + 1.5), _MOST_INCHES), 5.2), layout="constrained")
    axes = figure.add_subplot()
    coloured = [trial.values[0] for trial in trials if findings.is_good(trial)] or values
    colour = Normalize(min(coloured), max(coloured))
    colours = _DARK_IS_HIGH if objective.direction == "maximize" else _DARK_IS_LOW
    best = findings.best
    for trial in sorted(trials, key=findings.is_good):  # Feasible ones above the others.
        spots = [scale.place(trial.params[path]) for scale, path in zip(scales, findings.config.space, strict=False)]
        spots.append(scales[-1].place(trial.values[0]))
        is_best = best is not None and trial.number == best.number
        _draw_line(axes, findings, trial, spots, colours(colour(trial.values[0])), 3.2 if is_best else 1.3)
    _draw_scales(axes, scales)
    bar = figure.colorbar(ScalarMappable(colour, colours), ax=axes, pad=0.03, aspect=30)
    bar.set_label(f"{objective.title}, feasible (others grey)" if findings.config.constraints else objective.title)
    bar.ax.ticklabel_format(useOffset=False)
    return figure


def _draw_line(
    axes: Axes, findings: Findings, trial: FrozenTrial, spots: Sequence[float], colour: tuple[float, ...], width: float
) -> None:
    is_good = findings.is_good(trial)
    style: dict[str, Any] = (
        {"color": colour, "alpha": 0.9, "zorder": 3} if is_good else {"color": "0.75", "alpha": 0.7, "zorder": 1}
    )
    linestyle = "--" if findings.role(trial) == "start" else "-"
    axes.plot(range(len(spots)), spots, linestyle=linestyle, linewidth=width, solid_capstyle="round", **style)


def _draw_scales(axes: Axes, scales: Sequence[Scale]) -> None:
    for x, scale in enumerate(scales):
        axes.axvline(x, color="0.35", linewidth=0.9, zorder=2)
        for tick in scale.ticks:
            axes.text(x + 0.04, scale.place(tick), _short(tick), size=8, va="center", zorder=4,
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8})  # fmt: skip
    if len(scales) <= _MOST_UPRIGHT:
        axes.set_xticks(range(len(scales)), [scale.title.replace(".", ".\n") for scale in scales], size=9)
    else:
        titles = [scale.title for scale in scales]
        axes.set_xticks(range(len(scales)), titles, size=9, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(scales) - 1 + 0.55)
    axes.set_ylim(-0.05, 1.05)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _short(tick: object) -> str:
    text = format_value(tick)
    return text if len(text) <= _MOST_TICK_CHARS else f"{text[: _MOST_TICK_CHARS - 2]}.."


def _scale(title: str, dimension: Dimension) -> Scale:
    if isinstance(dimension, Categorical):
        return _categorical_scale(title, [stored(choice) for choice in dimension.choices])
    low, high = float(dimension.low), float(dimension.high)
    turn: Callable[[float], float] = math.log10 if dimension.log else float
    middle = 10 ** ((turn(low) + turn(high)) / 2) if dimension.log else (low + high) / 2
    return Scale(title, _between(turn(low), turn(high), turn), (dimension.low, middle, dimension.high))


def _value_scale(title: str, values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    return Scale(title, _between(low, high, float), (low, high) if low < high else (low,))


def _categorical_scale(title: str, choices: Sequence[object]) -> Scale:
    order = list(choices)
    every = max(1, math.ceil(len(order) / _MOST_TICKS))
    return Scale(title, lambda value: order.index(value) / (len(order) - 1), tuple(order[::every]))


def _between(low: float, high: float, turn: Callable[[float], float]) -> Callable[[object], float]:
    def place(value: object) -> float:
        assert isinstance(value, (int, float))
        return 0.5 if low == high else (turn(value) - low) / (high - low)

    return place
