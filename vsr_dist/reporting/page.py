"""A report's files: one HTML page that needs nothing else, markdown with its pictures, a table, and the curves."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.files import write_whole
from vsr_dist.core.report_blocks import Block, Heading, Paragraph, Picture, to_html, to_markdown
from vsr_dist.metrics.registry import find_metric
from vsr_dist.reporting.pictures import ASSETS, Gallery, add_evaluations, add_samples, colours_of, curves_figure
from vsr_dist.reporting.runs import SCORES_NAME, Compared, TrainingRun
from vsr_dist.reporting.tables import (
    evaluation_blocks,
    facts_blocks,
    head_blocks,
    settings_blocks,
    validation_blocks,
)
from vsr_dist.run_dir import CONFIG_NAME

HTML_NAME, MARKDOWN_NAME, CSV_NAME, CURVES_NAME = "report.html", "report.md", "report.csv", "report.png"
# In the page, so that a report of another command is not overwritten.
_MARK = "<!-- vsr-dist report -->"
_DPI = 110


@dataclass(frozen=True)
class ReportFiles:
    """The paths of the files of a report."""

    page: Path
    documents: tuple[Path, ...]
    pictures: tuple[Path, ...]

    @property
    def all(self) -> list[Path]:
        """All of them, the page first."""
        return [self.page, *self.documents, *self.pictures]


def refuse_out(out: Path) -> None:
    """Refuse a folder in which the report would overwrite something else."""
    if out.exists() and not out.is_dir():
        raise BadConfigError(f"OUT_DIR {out} is a file; name a folder, or a name that is free")
    for name in (CONFIG_NAME, SCORES_NAME):
        if (out / name).is_file():
            raise BadConfigError(f"OUT_DIR {out} is a run or an evaluation (it holds {name}); name another folder")
    other = [name for name in (HTML_NAME, MARKDOWN_NAME, CSV_NAME, CURVES_NAME) if (out / name).is_file()]
    if other and not _is_ours(out):
        raise BadConfigError(
            f"OUT_DIR {out} holds a {other[0]} that vsr-dist report did not write; name another folder"
        )


def _is_ours(out: Path) -> bool:
    """True if there is a report of this verb."""
    page = out / HTML_NAME
    return page.is_file() and _MARK in page.read_text(errors="replace")


def write_report(compared: Compared, out: Path) -> ReportFiles:
    """Write the report into `out`. Each file is replaced whole; pictures of an earlier report are removed."""
    blocks, pictures = report_blocks(compared)
    # Pictures in `assets/` that are older than any report belong to somebody else.
    older = sorted((out / ASSETS).glob("*.png")) if _is_ours(out) else []
    contents = {
        **pictures,
        CSV_NAME: report_csv(compared).encode(),
        MARKDOWN_NAME: to_markdown(blocks).encode(),
        # Last: where the page exists, all its files do.
        HTML_NAME: (to_html(blocks, _title(compared), pictures) + f"{_MARK}\n").encode(),
    }
    try:
        (out / ASSETS).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_whole(out / name, content)
    except OSError as error:
        raise BadConfigError(f"OUT_DIR {out} cannot be written: {error}; name a folder that can") from error
    for path in older:
        if f"{ASSETS}/{path.name}" not in pictures:
            path.unlink()
    if CURVES_NAME not in pictures:
        (out / CURVES_NAME).unlink(missing_ok=True)
    documents = (out / MARKDOWN_NAME, out / CSV_NAME)
    return ReportFiles(out / HTML_NAME, documents, tuple(out / name for name in pictures))


def report_blocks(compared: Compared) -> tuple[list[Block], dict[str, bytes]]:
    """The whole report, and the PNG files that it names, by path below its folder."""
    runs, evaluations = compared.runs, compared.evaluations
    colours = colours_of(compared)
    blocks = [*head_blocks(compared), *validation_blocks(runs, colours), *evaluation_blocks(evaluations, colours)]
    blocks += [*settings_blocks(runs, colours), *facts_blocks(runs, colours)]
    gallery = Gallery()
    figure = curves_figure(runs)
    if figure is not None:
        gallery.files[CURVES_NAME] = _png(figure)
        caption = "Curves over the steps; a run has the same colour in all panels and tables"
        gallery.blocks += [Heading("Curves"), Picture(CURVES_NAME, caption)]
    add_samples(gallery, runs)
    add_evaluations(gallery, evaluations)
    return [*blocks, *gallery.blocks, _ending(compared)], gallery.files


def report_csv(compared: Compared) -> str:
    """A line for each value: label, kind, folder, scope, method, metric, step, value, and which direction is better.

    Values are unrounded and without the factors that the tables show.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "kind", "folder", "scope", "method", "metric", "step", "value", "better"])
    for run in compared.runs:
        for metric, step, value in _last_values(run):
            plain = metric.rpartition("/")[2]
            better = find_metric(plain).better if metric.startswith("val") else "-"
            writer.writerow([run.label, "run", run.folder, "held-out windows", "", metric, step, repr(value), better])
    for one in compared.evaluations:
        for scope, by_method in one.table.items():
            for method, scores in by_method.items():
                for name, value in scores.items():
                    row = [one.label, "evaluation", one.folder, scope, method, name, "", repr(value)]
                    writer.writerow([*row, find_metric(name).better])
    return text.getvalue()


def _last_values(run: TrainingRun) -> list[tuple[str, int, float]]:
    """(Metric, step, value): the newest value of every scalar of the run."""
    newest: dict[str, tuple[int, float]] = {}
    for line in run.lines:
        for name, value in line.items():
            if name not in {"step", "time_s"}:
                newest[name] = (int(line["step"]), value)
    return [(name, step, value) for name, (step, value) in newest.items()]


def _title(compared: Compared) -> str:
    return f"{', '.join(compared.labels)} side by side"


def _ending(compared: Compared) -> Paragraph:
    folders = ", ".join(f"`{one.folder}`" for one in compared.all)
    return Paragraph(f"Made by `vsr-dist report` from {folders}; every value unrounded is in `{CSV_NAME}`.")


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    # Without matplotlib's version in it: the same runs give the same bytes.
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()
