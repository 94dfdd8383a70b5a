"""`study report`: what a study found, as markdown, as one HTML page, and as a CSV file of all trials."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from sharding.index import write_bytes
from sweeps.findings import Findings
from sweeps.importance import importances
from sweeps.report_parallel import parallel_figure
from sweeps.report_plots import drift_figure, history_figure, importance_figure, pareto_figure
from sweeps.report_text import best_blocks, ending_blocks, importance_blocks, labels_of, space_blocks, summary_blocks
from sweeps.storage import load_trials
from sweeps.study_config import StudyConfig
from vsr_dist.core.errors import UserError
from vsr_dist.core.report_blocks import Block, Heading, Picture, to_html, to_markdown

MARKDOWN_NAME, HTML_NAME, CSV_NAME = "report.md", "report.html", "report.csv"
_DPI = 110


@dataclass(frozen=True)
class ReportFiles:
    """Where the report's files lie."""

    markdown: Path
    page: Path
    table: Path
    pictures: tuple[Path, ...]

    @property
    def all(self) -> list[Path]:
        """All of them."""
        return [self.markdown, self.page, self.table, *self.pictures]


def write_report(config: StudyConfig) -> ReportFiles:
    """Write the report into the study's folder, also of a study that still runs.

    Each file is replaced whole, so that a reader never sees half of one.
    """
    trials = load_trials(config)
    if not trials:
        raise UserError(f"study {config.name} has no trials yet; start it with: vsr-dist study run")
    findings = Findings(config, trials)
    blocks, figures = report_blocks(findings)
    pictures = {name: _png(figure) for name, figure in figures.items()}
    folder = config.directory
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        MARKDOWN_NAME: to_markdown(blocks).encode(),
        HTML_NAME: to_html(blocks, f"Study {config.name}", pictures).encode(),
        CSV_NAME: report_csv(findings).encode(),
        **pictures,
    }
    for name, content in contents.items():
        write_bytes(folder / name, content)  # Several drivers may end at the same time.
    return ReportFiles(
        folder / MARKDOWN_NAME, folder / HTML_NAME, folder / CSV_NAME, tuple(folder / name for name in pictures)
    )


def report_blocks(findings: Findings) -> tuple[list[Block], dict[str, Figure]]:
    """The whole report, and the pictures that it names, by file name."""
    config = findings.config
    labels = labels_of(list(config.space))
    found = [importances(findings, place) for place in range(len(config.objectives))]
    titles = [objective.title for objective in config.objectives]
    figures: dict[str, Figure] = {}
    bars = []
    for place, (one, title) in enumerate(zip(found, titles, strict=True)):
        if one.shares:
            bars.append(f"report_importance{'' if len(found) == 1 else f'_{place}'}.png")
            figures[bars[-1]] = importance_figure(one, labels, title)
    blocks = [*summary_blocks(findings), *best_blocks(findings), *space_blocks(findings)]
    for heading, name, caption, figure in _pictures(findings, labels):
        figures[name] = figure
        blocks += [Heading(heading), Picture(name, caption)]
    blocks += [*importance_blocks(found, titles, labels, bars), *ending_blocks(findings)]
    return blocks, figures


def report_csv(findings: Findings) -> str:
    """All trials by number: values, constraints in their own units, parameters, and what was noted of each."""
    config = findings.config
    notes = sorted({key for trial in findings.trials for key in trial.user_attrs} - {"role"})
    objectives = [objective.title for objective in config.objectives]
    constraints = [f"constraint {constraint.name}" for constraint in config.constraints]
    header = ["trial", "state", "role", *objectives, "feasible", *constraints, *config.space, "duration_s", *notes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for trial in findings.trials:
        writer.writerow(_csv_row(findings, trial, notes))
    return text.getvalue()


def _csv_row(findings: Findings, trial: FrozenTrial, notes: list[str]) -> list[object]:
    config, excess = findings.config, findings.excess(trial)
    values = trial.values or [""] * len(config.objectives)
    is_complete = trial.state == TrialState.COMPLETE
    measured = [c.measured(excess[c.name]) if c.name in excess else "" for c in config.constraints]
    parameters = [trial.params.get(path, "") for path in config.space]
    duration = "" if trial.duration is None else trial.duration.total_seconds()
    noted = [trial.user_attrs.get(key, "") for key in notes]
    return [
        *(trial.number, trial.state.name, findings.role(trial)),
        *values,
        findings.is_feasible(trial) if is_complete else "",
        *measured,
        *parameters,
        duration,
        *(value if isinstance(value, str | int | float) else json.dumps(value) for value in noted),
    ]


def _pictures(findings: Findings, labels: dict[str, str]) -> Iterator[tuple[str, str, str, Figure]]:
    """(Heading, file name, caption, picture) of each that there is something to draw for."""
    drift = drift_figure(findings)
    if drift is not None:
        caption = "Held-out discriminator loss over its chance value, by step; thin lines are repeats with fresh seeds"
        yield "Drift: the best settings against the given ones", "report_drift.png", caption, drift
    yield "History", "report_history.png", "The objective by trial", history_figure(findings)
    if findings.config.is_multi_objective:
        yield "Pareto front", "report_pareto.png", "Feasible settings that no other one beats", pareto_figure(findings)
    parallel = parallel_figure(findings, labels)
    if parallel is not None:
        caption = "Every setting with a result is a line; the best one is thick, a given one is dashed"
        yield "All settings", "report_parallel.png", caption, parallel


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    # Without matplotlib's version in it: the same trials give the same bytes.
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()
