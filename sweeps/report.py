"""What a study found: `report.md`, `report.html` and `report.csv` in its folder, and a run of its own in MLflow.

Plots are Optuna's; the drift curves are drawn here.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from sharding.index import write_bytes
from sweeps.config import StudyConfig
from sweeps.findings import STATE_NAMES, Findings, load_findings
from sweeps.objective import curve
from sweeps.space import Categorical, Dimension, format_value, stored
from sweeps.storage import REPEAT_OF, load_trials, role_of
from vsr_dist.config import load_config
from vsr_dist.core.console import say
from vsr_dist.core.errors import UserError
from vsr_dist.core.report_blocks import Block, Heading, Items, Paragraph, Picture, Table, to_html, to_markdown
from vsr_dist.training.drift import NORMALISED_LOSS
from vsr_dist.training.tracked_runs import log_own_run

matplotlib.use("Agg")
MARKDOWN_NAME, HTML_NAME, CSV_NAME = "report.md", "report.html", "report.csv"
_DPI, _HEIGHT_INCHES = 110, 4.8
# PED-ANOVA compares the best quarter: its own default of a tenth is a trial or two in a small study.
_BEST_SHARE = 0.25
_MIN_TRIALS, _MIN_TRIALS_PER_PARAMETER = 10, 2
_MAX_PARETO_OBJECTIVES = 3
# Okabe and Ito's colours, which people with colour blindness can distinguish.
_BEST_COLOURS, _GIVEN_COLOURS = ("#0072b2", "#009e73", "#cc79a7"), ("#d55e00", "#e69f00")


@dataclass(frozen=True)
class ReportFiles:
    """Paths of the report's files."""

    markdown: Path
    page: Path
    table: Path
    pictures: tuple[Path, ...]

    @property
    def all(self) -> list[Path]:
        """All of them."""
        return [self.markdown, self.page, self.table, *self.pictures]


@dataclass(frozen=True)
class ReportPicture:
    """One figure of the report."""

    name: str
    heading: str
    caption: str
    figure: Figure


def publish_report(config: StudyConfig) -> tuple[ReportFiles, str | None]:
    """Write the report, and log it to the study's own MLflow run if the base configuration tracks.

    Returns its files, and the run's id: None without tracking, or, with a warning, if the server did not take it.
    """
    findings = load_findings(config)
    files = write_report(config, findings)
    tracking = load_config(Path(config.base), config.set).tracking
    if not tracking.mlflow:
        return files, None
    best = findings.best
    tags = {
        **tracking.tags,
        "study": config.name,
        "kind": "study",
        "trials": str(len(findings.trials)),
        "trials_with_result": str(len(findings.in_state(TrialState.COMPLETE))),
    }
    if best is not None and not config.is_multi_objective:
        tags |= {"best_trial": str(best.number), "best_value": f"{best.values[0]:.6g}"}
    begin = load_trials(config)[0].datetime_start
    # The same on every machine that shares the storage, and different for a later study with the same name.
    token = f"study-{config.name}-{begin.isoformat() if begin else ''}"
    name, source = f"study {config.name}", "vsr-dist study"
    try:
        run_id = log_own_run(tracking, config.directory, files.all, name=name, token=token, tags=tags, source=source)
    except UserError as error:
        say(f"warning: {error}")
        return files, None
    return files, run_id


def write_report(config: StudyConfig, findings: Findings | None = None) -> ReportFiles:
    """Write the report into the study's folder, also while the study runs.

    Each file is replaced whole, so that a reader never sees half of one.
    """
    findings = findings or load_findings(config)
    if not findings.trials:
        raise UserError(f"study {config.name} has no trials yet; start it with: vsr-dist study run")
    # Optuna's plots set a style for all that follows, and warn of trials that have the same value.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pictures = report_pictures(findings)
        contents = {picture.name: _png(picture.figure) for picture in pictures}
    names = tuple(contents)
    blocks = report_blocks(findings, pictures)
    page = to_html(blocks, f"Study {config.name}", contents)
    contents |= {
        MARKDOWN_NAME: to_markdown(blocks).encode(),
        HTML_NAME: page.encode(),
        CSV_NAME: report_csv(findings).encode(),
    }
    folder = config.directory
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_bytes(folder / name, content)  # Several drivers may end at the same time.
    return ReportFiles(
        folder / MARKDOWN_NAME, folder / HTML_NAME, folder / CSV_NAME, tuple(folder / name for name in names)
    )


def report_blocks(findings: Findings, pictures: Sequence[ReportPicture]) -> list[Block]:
    """The report from top to bottom."""
    config, best = findings.config, best_table(findings)
    blocks: list[Block] = [Heading(f"Study {config.name}", 1), Paragraph(findings.summary), Paragraph(findings.answer)]
    if config.set:
        blocks.append(Paragraph(f"Every trial was trained with {', '.join(f'`{item}`' for item in config.set)}."))
    if best is not None:
        blocks.append(Heading("Best trials"))
        if findings.has_repeats:
            blocks.append(Paragraph("Feasible settings first; among them repeated ones first, by their mean."))
        blocks.append(best)
    constraints = constraint_table(findings)
    if constraints is not None:
        blocks += [Heading("Constraints"), constraints]
    blocks += [Heading("Settings"), settings_table(findings)]
    for picture in pictures:
        blocks += [Heading(picture.heading), Picture(picture.name, picture.caption)]
    blocks += [Heading("Parameter importances"), *importance_blocks(findings)]
    for state, heading in ((TrialState.FAIL, "Failed trials"), (TrialState.PRUNED, "Pruned trials")):
        found = findings.in_state(state)
        if found:
            reasons = (f"Trial {trial.number}: {' '.join(findings.why_not(trial).split())}" for trial in found)
            blocks += [Heading(heading), Items(tuple(reasons))]
    return [*blocks, Heading("All trials"), all_trials_table(findings), Paragraph("All values are in `report.csv`.")]


def best_table(findings: Findings) -> Table | None:
    """The best trials and the given ones, with their values; None without a complete trial."""
    config, shown = findings.config, findings.shown
    if not shown:
        return None
    header = ["trial", "role", *(objective.title for objective in config.objectives)]
    header += ["new seeds, mean +/- s.d."] if findings.has_repeats else []
    header += ["feasible"] if config.constraints else []
    rows = []
    for trial in shown:
        repeats = findings.repeats(trial)
        row = [str(trial.number), role_of(trial), *(f"{value:.4f}" for value in trial.values)]
        row += [repeats.describe() if repeats else ""] if findings.has_repeats else []
        if config.constraints:
            word = "yes" if findings.is_feasible(trial) else "no"
            row.append(f"{word}; {repeats.num_feasible} of {len(repeats.values)} repeats" if repeats else word)
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def constraint_table(findings: Findings) -> Table | None:
    """A row per constraint: how many settings keep it, and its value in the best and the given ones."""
    columns = findings.compared
    if not findings.config.constraints or not columns:
        return None
    rows = []
    for constraint in findings.config.constraints:
        excess = [findings.excess(trial).get(constraint.name) for trial in findings.searched]
        num_met = sum(value is not None and value <= 0 for value in excess)
        row = [constraint.name, f"`{constraint.describe()}`", f"{num_met} of {len(excess)}"]
        for trial in columns:
            value = findings.excess(trial).get(constraint.name)
            word = "met" if value is not None and value <= 0 else "missed"
            row.append("not measured" if value is None else f"{constraint.measured(value):.4g} {word}")
        rows.append(tuple(row))
    return Table(("constraint", "rule", "met by", *map(_column_heading, columns)), tuple(rows))


def settings_table(findings: Findings) -> Table:
    """The space, and the values of the best and the given settings."""
    columns = findings.compared
    rows = tuple(
        (f"`{path}`", _describe_dimension(dimension), *(format_value(trial.params.get(path, "")) for trial in columns))
        for path, dimension in findings.config.space.items()
    )
    return Table(("parameter", "range", *map(_column_heading, columns)), rows)


def all_trials_table(findings: Findings) -> Table:
    """Every trial that counts, by number."""
    config = findings.config
    header = ("trial", "role", "state", *(objective.title for objective in config.objectives), "feasible", "seconds")
    rows = []
    for trial in findings.trials:
        values = [f"{value:.4f}" for value in trial.values] if trial.values else [""] * len(config.objectives)
        feasible = ("yes" if findings.is_feasible(trial) else "no") if trial.state == TrialState.COMPLETE else ""
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.0f}"
        of = trial.user_attrs.get(REPEAT_OF)
        role = role_of(trial) if of is None else f"{role_of(trial)} of {of}"
        rows.append((str(trial.number), role, STATE_NAMES[trial.state], *values, feasible, seconds))
    return Table(header, tuple(rows), folded=f"{len(rows)} trials")


def importance_blocks(findings: Findings) -> list[Block]:
    """By objective, a table of importances with the number of trials, or the reason why there is none."""
    labels, num = labels_of(list(findings.config.space)), len(_comparable(findings))
    blocks: list[Block] = []
    for place, objective in enumerate(findings.config.objectives):
        found = importances(findings, place)
        if isinstance(found, str):
            blocks.append(Paragraph(f"`{objective.title}`: {found}."))
        else:
            rows = tuple((labels[path], f"{share:.2f}") for path, share in found.items())
            blocks.append(Table((f"{objective.title} (n = {num})", "PED-ANOVA"), rows))
    if any(isinstance(block, Table) for block in blocks):
        blocks.append(
            Paragraph(
                "PED-ANOVA compares the best quarter of the trials with all of them. With few trials the shares are "
                "rough: a small share does not mean that a parameter has no effect."
            )
        )
    return blocks


def importances(findings: Findings, place: int = 0) -> dict[str, float] | str:
    """Parameter -> share (0 to 1) of the importance for an objective, largest first; or why there is none.

    Optuna's PED-ANOVA over the complete settings without repeats, which are no new settings.
    """
    trials, space = _comparable(findings), findings.config.space
    needed = max(_MIN_TRIALS, _MIN_TRIALS_PER_PARAMETER * len(space))
    if len(trials) < needed:
        return f"{len(trials)} complete trials are too few for importances of {len(space)} parameters; {needed} needed"
    values = [trial.values[place] for trial in trials]
    if min(values) == max(values) or not all(map(math.isfinite, values)):
        return "the objective is the same in all trials, so no parameter had an effect"
    study = _study_of(findings, place)
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE))


def _comparable(findings: Findings) -> list[FrozenTrial]:
    """Complete settings that have a value for every path of the space."""
    return [trial for trial in findings.searched if set(trial.params) >= set(findings.config.space)]


def _study_of(findings: Findings, *places: int) -> optuna.Study:
    """A copy in memory with some of the objectives, for Optuna's plots: settings only, under their own numbers."""
    directions = [findings.config.objectives[place].direction for place in places]
    study = optuna.create_study(directions=directions)
    trials = {trial.number: trial for trial in _comparable(findings)}
    for number in range(max(trials, default=-1) + 1):
        trial = trials.get(number)
        if trial is None:
            study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
            continue
        copied = optuna.trial.create_trial(
            values=[trial.values[place] for place in places],
            params=trial.params,
            distributions=trial.distributions,
            constraints=trial.constraints or None,
        )
        study.add_trial(copied)
    return study


def report_pictures(findings: Findings) -> list[ReportPicture]:
    """The figures of the report; none that would be empty."""
    config, found = findings.config, []
    drift = drift_figure(findings)
    if drift is not None:
        caption = "Held-out discriminator loss over its chance value, by step; thin lines are repeats with new seeds"
        found.append(ReportPicture("report_drift.png", "Drift of the best and of the given settings", caption, drift))
    if not _comparable(findings):
        return found
    for place, objective in enumerate(config.objectives):
        suffix, title = f"_{place}" if config.is_multi_objective else "", objective.title
        study, width = _study_of(findings, place), max(8.0, 1.6 * len(config.space) + 2.0)
        figure = _figure(partial(plots.plot_optimization_history, study, target_name=title))
        found.append(
            ReportPicture(f"report_history{suffix}.png", f"History of {title}", "The objective by trial", figure)
        )
        if len(config.space) > 1 and len(_comparable(findings)) > 1:
            figure = _figure(partial(plots.plot_parallel_coordinate, study, target_name=title), width)
            caption = "Every complete setting is a line; dotted ones are not feasible"
            found.append(ReportPicture(f"report_parallel{suffix}.png", f"Settings and {title}", caption, figure))
        if not isinstance(importances(findings, place), str):
            evaluator = PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE)
            figure = _figure(partial(plots.plot_param_importances, study, evaluator, target_name=title))
            caption = "Share of each parameter by PED-ANOVA"
            found.append(ReportPicture(f"report_importance{suffix}.png", f"Importances for {title}", caption, figure))
    if config.is_multi_objective and len(config.objectives) <= _MAX_PARETO_OBJECTIVES:
        study, titles = _study_of(findings, *range(len(config.objectives))), [one.title for one in config.objectives]
        figure = _figure(partial(plots.plot_pareto_front, study, target_names=titles))
        found.append(ReportPicture("report_pareto.png", "Pareto front", "Settings and the Pareto front", figure))
    return found


def _figure(plot: Callable[[], Axes], width_inches: float = 9.0) -> Figure:
    """The figure of one of Optuna's plots, which are made by pyplot."""
    figure = plot().get_figure()
    assert isinstance(figure, Figure)
    pyplot.close(figure)
    figure.set_size_inches(width_inches, _HEIGHT_INCHES)
    return figure


def drift_figure(findings: Findings) -> Figure | None:
    """Normalised discriminator loss by step of the best settings and of the given ones; None without such a metric.

    Repeats are thin lines in the colour of the setting that they repeat.
    """
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    best = [trial for trial in findings.ranked if role_of(trial) != "start"]
    for trial, colour, place in zip(best, _BEST_COLOURS, ("best", "second", "third"), strict=False):
        kind = place if findings.is_good(trial) else f"{place}, not feasible"
        _draw_drift(axes, findings, trial, colour, f"trial {trial.number} ({kind})")
    for trial, colour in zip(findings.starts, _GIVEN_COLOURS, strict=False):
        _draw_drift(axes, findings, trial, colour, f"trial {trial.number} (given setting)", "--")
    if not axes.lines:
        return None
    axes.axhline(1.0, color="0.55", linewidth=0.9, zorder=0)
    for constraint in findings.config.constraints:
        bound = constraint.at_most if constraint.at_most is not None else constraint.at_least
        if constraint.metric == NORMALISED_LOSS and constraint.reduce in ("last", "tail_median") and bound is not None:
            axes.axhline(bound, color="#009e73", linewidth=1.0, linestyle=":", zorder=0, label=constraint.name)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("step")
    axes.set_ylabel("held-out discriminator loss / chance")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return figure


def _draw_drift(
    axes: Axes, findings: Findings, trial: FrozenTrial, colour: str, label: str, linestyle: str = "-"
) -> None:
    for other in (trial, *findings.repeats_of(trial)):
        for rows in findings.rows(other):
            if any(NORMALISED_LOSS in row for _, row in rows):
                steps, values = zip(*curve(rows, NORMALISED_LOSS), strict=True)
                width, alpha = (1.8, 1.0) if other is trial else (0.8, 0.55)
                axes.plot(steps, values, linestyle, color=colour, linewidth=width, alpha=alpha, label=label)
                label = ""


def report_csv(findings: Findings) -> str:
    """All trials by number: values, constraints in their own units, parameters, and the trial's attributes."""
    config = findings.config
    notes = sorted({key for trial in findings.trials for key in trial.user_attrs} - {"role"})
    objectives = [objective.title for objective in config.objectives]
    constraints = [f"constraint {constraint.name}" for constraint in config.constraints]
    header = ["trial", "state", "role", *objectives, "feasible", *constraints, *config.space, "duration_s", *notes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for trial in findings.trials:
        excess = findings.excess(trial)
        noted = [trial.user_attrs.get(key, "") for key in notes]
        cells: list[object] = [trial.number, trial.state.name, role_of(trial)]
        cells += trial.values or [""] * len(config.objectives)
        cells.append(findings.is_feasible(trial) if trial.state == TrialState.COMPLETE else "")
        cells += [c.measured(excess[c.name]) if c.name in excess else "" for c in config.constraints]
        cells += [trial.params.get(path, "") for path in config.space]
        cells.append("" if trial.duration is None else trial.duration.total_seconds())
        cells += [value if isinstance(value, str | int | float) else json.dumps(value) for value in noted]
        writer.writerow(cells)
    return text.getvalue()


def labels_of(paths: Sequence[str]) -> dict[str, str]:
    """Configuration path -> its shortest unique end of two parts or more.

    `discriminator_optimizer.schedule.learning_rate` -> `schedule.learning_rate`; one part alone says too little.
    """
    labels = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[first:]) for first in reversed(range(max(len(parts) - 1, 1)))]
        labels[path] = next(
            end for end in ends if all(other == path or not f".{other}".endswith(f".{end}") for other in paths)
        )
    return labels


def _describe_dimension(dimension: Dimension) -> str:
    if isinstance(dimension, Categorical):
        return ", ".join(format_value(stored(choice)) for choice in dimension.choices)
    scale = " (logarithmic)" if dimension.log else ""
    return f"{format_value(dimension.low)} to {format_value(dimension.high)}{scale}"


def _column_heading(trial: FrozenTrial) -> str:
    return f"trial {trial.number}{' (given)' if role_of(trial) == 'start' else ''}"


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    # Without matplotlib's version in it: the same trials give the same bytes.
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None}, bbox_inches="tight")
    return data.getvalue()
