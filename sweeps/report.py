"""What a study found: a table of its trials, best first, and the history of the objective."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from sweeps.space import format_value
from sweeps.storage import REASON, load_trials
from sweeps.study_config import StudyConfig
from vsr_dist.core.errors import UserError

REPORT_NAME = "report.md"
PICTURE_NAME = "report.png"


# Metric of the last validation -> heading: where the discriminator stood, 1 being chance.
DRIFT_COLUMNS = {"drift/normalized_loss": "D loss / chance", "drift/paired_accuracy": "D right on pairs"}


def write_report(config: StudyConfig) -> tuple[Path, Path]:
    """Write `report.md` and `report.png` into the study's folder, also of a study that still runs; their paths."""
    trials = load_trials(config)
    if not trials:
        raise UserError(f"study {config.name} has no trials yet; start it with: vsr-dist study run")
    table_path, picture_path = config.directory / REPORT_NAME, config.directory / PICTURE_NAME
    table_path.write_text(report_text(config, trials), encoding="utf-8")
    history_figure(config, trials).savefig(picture_path, dpi=120)
    return table_path, picture_path


def report_text(config: StudyConfig, trials: Sequence[FrozenTrial]) -> str:
    """The report as markdown; nothing in it depends on when or where it was written."""
    objective = config.objective
    ranked = rank(config, trials)
    num_complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    lines = [
        f"# Study {config.name}",
        "",
        f"{len(trials)} trials of `{config.base}`, {num_complete} with a result. Objective: {objective.direction} "
        f"`{objective.metric}` of the last validation.",
        "",
        *_table(config, ranked),
        "",
        f"![{objective.metric} by trial]({PICTURE_NAME})",
    ]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    if failed:
        lines += ["", "## Trials without a result", ""]
        lines += [f"- Trial {trial.number}: {trial.user_attrs.get(REASON, 'no reason given')}" for trial in failed]
    return "\n".join(lines) + "\n"


def rank(config: StudyConfig, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials with a result, best first (equals by number), then the others by number."""
    sign = -1.0 if config.objective.direction == "maximize" else 1.0

    def key(trial: FrozenTrial) -> tuple[bool, float, int]:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            return False, sign * trial.value, trial.number
        return True, 0.0, trial.number

    return sorted(trials, key=key)


def history_figure(config: StudyConfig, trials: Sequence[FrozenTrial]) -> Figure:
    """Objective by trial number, the best so far as a line, and failed trials as crosses at the lower edge."""
    objective = config.objective
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    points = [(trial.number, trial.value) for trial in complete if trial.value is not None]
    failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    if points:
        numbers, values = zip(*points, strict=True)
        best = list(accumulate(values, max if objective.direction == "maximize" else min))
        axes.step(numbers, best, where="post", color="tab:blue", label="best so far")
        axes.scatter(numbers, values, color="tab:blue", zorder=3, label="trial")
    if failed:
        # y in shares of the axes' height, so that the crosses do not stretch the scale of the values.
        axes.scatter(
            failed,
            [0.03] * len(failed),
            marker="x",
            color="tab:red",
            transform=axes.get_xaxis_transform(),
            label="failed",
        )
    axes.set_xlabel("trial")
    axes.set_ylabel(objective.metric)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_title(f"study {config.name}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.5, max(trial.number for trial in trials) + 0.5)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _table(config: StudyConfig, trials: Sequence[FrozenTrial]) -> list[str]:
    header = ["trial", "state", config.objective.metric, *DRIFT_COLUMNS.values(), *config.space, "seconds"]
    rows = [header, ["---"] * len(header)]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        parameters = [format_value(trial.params.get(path, "")) for path in config.space]
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.0f}"
        drift = [f"{trial.user_attrs[name]:.2f}" if name in trial.user_attrs else "" for name in DRIFT_COLUMNS]
        rows.append([str(trial.number), trial.state.name, value, *drift, *parameters, seconds])
    return ["| " + " | ".join(row) + " |" for row in rows]
