"""The report's pictures of values: history, Pareto front, importances, and drift curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from sweeps.curves import curve
from sweeps.findings import Findings
from sweeps.importance import Importances
from vsr_dist.training.drift import NORMALISED_LOSS

# Okabe and Ito's colours, which people with colour blindness tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#9aa0a6"
_MAX_PAPER, _NUM_BEST = 2, 3
_PLACES = ("best", "second", "third")
_BEST_COLOURS = (BLUE, GREEN, PURPLE)


def history_figure(findings: Findings) -> Figure:
    """Each objective by trial number; what has no value stands at the lower edge."""
    objectives = findings.config.objectives
    figure = Figure(figsize=(9.0, 0.8 + 3.4 * len(objectives)), layout="constrained")
    panels = figure.subplots(len(objectives), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axes, objective) in enumerate(zip(panels, objectives, strict=True)):
        _draw_history(axes, findings, place)
        axes.set_ylabel(f"{objective.title} ({'higher' if objective.direction == 'maximize' else 'lower'} is better)")
    panels[-1].set_xlabel("trial")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    last = max(trial.number for trial in findings.trials)
    panels[-1].set_xlim(-0.5, last + 0.5)
    _legend_beside(panels[0])
    return figure


def pareto_figure(findings: Findings) -> Figure:
    """The first objective against each other one, with the front."""
    objectives, front = findings.config.objectives, findings.front
    figure = Figure(figsize=(7.5, 0.6 + 4.2 * (len(objectives) - 1)), layout="constrained")
    panels = figure.subplots(len(objectives) - 1, 1, squeeze=False)[:, 0]
    for place, axes in enumerate(panels, start=1):
        for label, style, trials in _kinds(findings):
            _scatter(axes, [(t.values[place], t.values[0]) for t in trials], label, style)
        line = sorted((trial.values[place], trial.values[0]) for trial in front)
        if len(objectives) == 2 and line:
            axes.plot(*zip(*line, strict=True), color=BLUE, linewidth=1.2, label="Pareto front", zorder=1)
        for trial in front:
            axes.annotate(
                str(trial.number), (trial.values[place], trial.values[0]), (5, 4), textcoords="offset points", size=8
            )
        axes.set_xlabel(f"{objectives[place].title} ({objectives[place].direction})")
        axes.set_ylabel(f"{objectives[0].title} ({objectives[0].direction})")
        axes.grid(alpha=0.3)
        _plain(axes)
    _legend_beside(panels[0])
    return figure


def importance_figure(found: Importances, labels: Mapping[str, str], title: str) -> Figure:
    """Shares by parameter, a bar for each method; the highest mean on top."""
    mean = {path: sum(shares.get(path, 0.0) for shares in found.shares.values()) for path in labels}
    paths = sorted(labels, key=lambda path: (mean[path], path))
    figure = Figure(figsize=(8.0, 1.4 + 0.5 * len(paths)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(found.shares)
    for place, ((method, shares), colour) in enumerate(zip(found.shares.items(), (BLUE, ORANGE), strict=False)):
        offsets = [row + 0.4 - height * (place + 0.5) for row in range(len(paths))]
        axes.barh(offsets, [shares.get(path, 0.0) for path in paths], height * 0.92, color=colour, label=method)
    axes.set_yticks(range(len(paths)), [labels[path] for path in paths])
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share of the importance, {found.num_trials} trials")
    axes.set_title(title)
    axes.grid(alpha=0.3, axis="x")
    _legend_beside(axes)
    return figure


def drift_figure(findings: Findings) -> Figure | None:
    """Normalised discriminator loss by step: the best settings against the given ones; None without curves.

    Repeats are thin lines in the colour of the setting that they repeat.
    """
    # Beside feasible settings the given one is the comparison; without any, the best that there is.
    others = [trial for trial in findings.ranked if findings.role(trial) != "start"][:_NUM_BEST]
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for trial, colour, place in zip(others, _BEST_COLOURS, _PLACES, strict=False):
        kind = place if findings.is_good(trial) else f"{place}, not feasible"
        _draw_curves(axes, findings, trial, colour, f"trial {trial.number} ({kind})")
    for trial, colour in zip(findings.starts[:_MAX_PAPER], (RED, ORANGE), strict=False):
        _draw_curves(axes, findings, trial, colour, f"trial {trial.number} (given setting)", "--")
    if not axes.lines:
        return None
    axes.axhline(1.0, color="0.55", linewidth=0.9, zorder=0)
    axes.annotate(
        "chance",
        (1.0, 1.0),
        (-4, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        size=8,
        color="0.4",
    )
    _draw_band(axes, findings)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("step")
    axes.set_ylabel("discriminator loss / chance, held out")
    axes.grid(alpha=0.3)
    _legend_beside(axes)
    return figure


def _draw_history(axes: Axes, findings: Findings, place: int) -> None:
    for label, style, trials in _kinds(findings):
        _scatter(axes, [(t.number, t.values[place]) for t in trials], label, style)
    repeats = [t for t in findings.in_state(TrialState.COMPLETE) if findings.role(t) == "repeat"]
    _scatter(axes, [(t.number, t.values[place]) for t in repeats], "repeat", {"marker": "D", "color": PURPLE, "s": 26})
    pool = [t for t in findings.searched if findings.is_feasible(t)]
    if pool and len(findings.config.objectives) == 1:
        better = max if findings.config.objective.direction == "maximize" else min
        numbers, values = zip(*((t.number, t.values[0]) for t in pool), strict=True)
        axes.step(
            numbers,
            list(accumulate(values, better)),
            where="post",
            color=BLUE,
            linewidth=1.3,
            label="best so far",
            zorder=1,
        )
    edges = ((TrialState.PRUNED, "pruned", "v", ORANGE), (TrialState.FAIL, "failed", "x", RED))
    for state, label, marker, colour in edges:
        trials = findings.in_state(state)
        if trials:
            # y in shares of the axes' height, so that these do not stretch the scale of the values.
            axes.scatter([t.number for t in trials], [0.03] * len(trials), marker=marker, color=colour, label=label,
                         transform=axes.get_xaxis_transform(), clip_on=False, zorder=3)  # fmt: skip
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    _plain(axes)


def _kinds(findings: Findings) -> list[tuple[str, dict[str, Any], list[FrozenTrial]]]:
    """(Label, style, settings with a result) of each kind that a picture tells apart."""
    trials = findings.searched
    given = [t for t in trials if findings.role(t) == "start"]
    warm = [t for t in trials if findings.role(t) == "warm"]
    own = [t for t in trials if findings.role(t) not in ("start", "warm")]
    feasible = "feasible" if findings.config.constraints else "trial"
    return [
        (feasible, {"color": BLUE, "s": 34}, [t for t in own if findings.is_feasible(t)]),
        ("not feasible", {"facecolors": "none", "edgecolors": GREY, "s": 34},
         [t for t in own if not findings.is_feasible(t)]),
        ("given setting", {"marker": "s", "color": RED, "s": 40}, given),
        ("of another study", {"marker": "^", "color": GREEN, "s": 34}, warm),
    ]  # fmt: skip


def _scatter(axes: Axes, points: Sequence[tuple[float, float]], label: str, style: Mapping[str, Any]) -> None:
    if points:
        axes.scatter(*zip(*points, strict=True), label=label, zorder=3, **style)


def _draw_curves(
    axes: Axes, findings: Findings, trial: FrozenTrial, colour: str, label: str, linestyle: str = "-"
) -> None:
    named = False
    for other in (trial, *findings.repeats_of(trial)):
        for rows in findings.rows(other):
            if not any(NORMALISED_LOSS in row for _, row in rows):
                continue
            steps, values = zip(*curve(rows, NORMALISED_LOSS), strict=True)
            thin = other is not trial
            axes.plot(steps, values, linestyle, color=colour, linewidth=0.8 if thin else 1.8,
                      alpha=0.55 if thin else 1.0, label=None if named else label)  # fmt: skip
            named = True


def _draw_band(axes: Axes, findings: Findings) -> None:
    """The constraints on the tail's level, as the borders of what is feasible."""
    for constraint in findings.config.constraints:
        bound = constraint.at_most if constraint.at_most is not None else constraint.at_least
        if constraint.metric == NORMALISED_LOSS and constraint.reduce in ("last", "tail_median") and bound is not None:
            axes.axhline(bound, color=GREEN, linewidth=1.0, linestyle=":", zorder=0)
            axes.annotate(f"{constraint.name} {bound:g}", (0.0, bound), (4, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", size=8, color=GREEN)  # fmt: skip


def _legend_beside(axes: Axes) -> None:
    """A legend to the right of the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    unique: dict[str, Artist] = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def _plain(axes: Axes) -> None:
    """Numbers in full: an offset above the axis is read wrongly."""
    axes.ticklabel_format(axis="y", useOffset=False)
