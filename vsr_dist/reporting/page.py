"""A report's files: one HTML page that needs nothing else, markdown with its pictures, a table, and the curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from vsr_dist.core.console import format_duration
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.files import write_whole
from vsr_dist.core.report_blocks import Block, Heading, Items, Paragraph, Picture, Table, to_html, to_markdown
from vsr_dist.metrics.drift import VERDICTS
from vsr_dist.metrics.registry import best_places, find_metric
from vsr_dist.reporting.pictures import ASSETS, Gallery, add_evaluations, add_samples, colours_of, curves_figure
from vsr_dist.reporting.runs import SCORES_NAME, Compared, Evaluation, TrainingRun
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
        raise BadConfigError(f"OUT_DIR {out} is a file; expected a folder or a new name")
    for name in (CONFIG_NAME, SCORES_NAME):
        if (out / name).is_file():
            raise BadConfigError(f"OUT_DIR {out} is a run or an evaluation (it contains {name}); choose another folder")
    other = [name for name in (HTML_NAME, MARKDOWN_NAME, CSV_NAME, CURVES_NAME) if (out / name).is_file()]
    if other and not _is_ours(out):
        raise BadConfigError(
            f"OUT_DIR {out} contains a {other[0]} that vsr-dist report did not write; choose another folder"
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
        raise BadConfigError(f"OUT_DIR {out} cannot be written: {error}; choose a writable folder") from error
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
            row = [run.label, "run", run.folder, "held-out windows", "", metric, step, repr(value)]
            writer.writerow([*row, find_metric(metric).better])
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


ABSENT = "-"
_MAX_CELL_CHARS = 80
_OURS, _BICUBIC = "val/", "val_bicubic/"


def head_blocks(compared: Compared) -> list[Block]:
    """Title, what is compared, and everything that is missing."""
    counts = [
        f"{len(group)} {noun}{'s' if len(group) != 1 else ''}"
        for group, noun in ((compared.runs, "training run"), (compared.evaluations, "evaluation"))
        if group
    ]
    text = f"{' and '.join(counts)} side by side: {', '.join(f'`{label}`' for label in compared.labels)}."
    blocks: list[Block] = [Heading("Runs side by side", 1), Paragraph(text)]
    missing = [f"`{one.label}`: {fault}" for one in compared.all for fault in one.missing]
    if missing:
        blocks += [Heading("What is missing"), Items(tuple(missing))]
    return blocks


def validation_blocks(runs: Sequence[TrainingRun], colours: Mapping[str, str]) -> list[Block]:
    """The last validation of each run during training, with the distance from bicubic."""
    found = [run.last(_OURS) for run in runs]
    names = list(dict.fromkeys(name.removeprefix(_OURS) for _, values in found for name in values))
    if not names:
        return []
    bicubic = [run.last(_BICUBIC)[1] for run in runs]
    same = _same_windows(bicubic, names)
    rows = [("step", ABSENT, *(str(step) if values else ABSENT for step, values in found))]
    for name in names:
        metric = find_metric(name)
        values = [values.get(_OURS + name) for _, values in found]
        best = best_places(values, metric.better if same else "-")
        cells = [
            score_cell(name, value, baseline.get(_BICUBIC + name), place in best)
            for place, (value, baseline) in enumerate(zip(values, bicubic, strict=True))
        ]
        rows.append((metric.heading, metric.better, *cells))
    text = (
        "On the fixed held-out windows of the training, with the averaged generator; in brackets the difference from "
        "bicubic on the same windows. The best value of a row is bold."
    )
    blocks: list[Block] = [Heading("Last validation"), Paragraph(text + _one_seed(runs))]
    if len({step for step, values in found if values}) > 1:
        blocks.append(Paragraph("**The steps differ:** the runs have trained for different numbers of steps."))
    if not same:
        blocks.append(
            Paragraph(
                "**Not comparable:** bicubic scores differ, so the runs were validated on different windows. No best "
                "value is marked; at most the differences from bicubic can be compared."
            )
        )
    header = ("metric", "better", *(run.label for run in runs))
    blocks.append(Table(header, tuple(rows), colours=marks_of(header, len(runs), colours)))
    return blocks


def settings_blocks(runs: Sequence[TrainingRun], colours: Mapping[str, str]) -> list[Block]:
    """Settings that differ between the runs: those that affect the result, then the others, collapsed."""
    if len(runs) < 2:
        return []
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    io = frozenset().union(*(run.io for run in runs))
    different = [key for key in keys if len({_plain(run.config.get(key, ABSENT)) for run in runs}) > 1]
    blocks: list[Block] = [Heading("Settings that differ")]
    result = [key for key in different if key not in io]
    if result:
        blocks.append(_settings_table(runs, result, colours))
    else:
        blocks.append(Paragraph("No setting that affects the result differs."))
    if len(different) > len(result):
        others = [key for key in different if key in io]
        blocks.append(
            _settings_table(runs, others, colours, folded=f"Names, folders, speed and reporting ({len(others)})")
        )
    return blocks


def facts_blocks(runs: Sequence[TrainingRun], colours: Mapping[str, str]) -> list[Block]:
    """How each run went, and where it comes from."""
    if not runs:
        return []
    rows = [(title, *(_short(read(run)) for run in runs)) for title, read in _FACTS.items()]
    rows += _version_rows(runs)
    header = ("fact", *(run.label for run in runs))
    commands = [f"`{run.label}`: `{run.environment['command']}`" for run in runs if "command" in run.environment]
    blocks: list[Block] = [
        Heading("The runs"),
        Table(header, tuple(rows), colours=marks_of(header, len(runs), colours)),
    ]
    return [*blocks, Items(tuple(commands), folded="Commands")] if commands else blocks


def verdict_words(run: TrainingRun) -> str:
    """The last verdict on the discriminator, in a word."""
    code = run.last("drift/verdict_code")[1].get("drift/verdict_code")
    return VERDICTS[int(code)] if code is not None else "not measured"


def _same_windows(bicubic: Sequence[dict[str, float]], names: Sequence[str]) -> bool:
    """True if bicubic scored the same in all runs that have a validation: the windows are the same then."""
    known = [scores for scores in bicubic if scores]
    keys = [_BICUBIC + name for name in names]
    return all(
        abs(scores[key] - known[0][key]) <= 1e-4 * max(abs(known[0][key]), 1e-6)
        for scores in known[1:]
        for key in keys
        if key in scores and key in known[0]
    )


def _one_seed(runs: Sequence[TrainingRun]) -> str:
    if len(runs) < 2:
        return ""
    return " Two runs also differ by their seeds: repeat with other seeds to measure that difference."


def _settings_table(
    runs: Sequence[TrainingRun], keys: Sequence[str], colours: Mapping[str, str], folded: str | None = None
) -> Table:
    rows = tuple((f"`{key}`", *(_short(_plain(run.config.get(key, ABSENT))) for run in runs)) for key in keys)
    header = ("setting", *(run.label for run in runs))
    return Table(header, rows, folded=folded, colours=marks_of(header, len(runs), colours))


def _plain(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CELL_CHARS else f"{text[: _MAX_CELL_CHARS - 3]}..."


def _steps(run: TrainingRun) -> str:
    return f"{run.steps_done:,} of {run.config.get('train.steps', 0):,}"


def _duration(run: TrainingRun) -> str:
    if run.summary is not None and "seconds" in run.summary:
        return format_duration(float(run.summary["seconds"]))
    if len(run.lines) < 2:
        return ABSENT
    return f"{format_duration(run.lines[-1]['time_s'] - run.lines[0]['time_s'])} between first and last log line"


def _speed(run: TrainingRun) -> str:
    if run.summary is not None and "clips_per_s" in run.summary:
        return f"{run.summary['clips_per_s']:.1f} clips/s"
    speed = run.last("perf/clips_per_s")[1].get("perf/clips_per_s")
    return ABSENT if speed is None else f"{speed:.1f} clips/s in the last log line"


def _machine(run: TrainingRun) -> str:
    summary, machine = run.summary or {}, run.environment.get("machine", {})
    processes = summary.get("processes", run.environment.get("launch", {}).get("WORLD_SIZE"))
    gpus = sorted(set(machine.get("gpus", [])))
    device = ", ".join(gpus) if gpus and summary.get("device") != "cpu" else summary.get("device", ABSENT)
    return f"{processes or '?'} x {device}" if summary or processes else ABSENT


def _commit(run: TrainingRun) -> str:
    git = run.environment.get("git", {})
    if "commit" not in git:
        return "no checkout" if run.environment else ABSENT
    changed = {"true": ", files changed", "unknown": ", changes unknown"}.get(git.get("changed", ""), "")
    return f"{git['commit'][:12]}{changed}"


_FACTS: dict[str, Callable[[TrainingRun], str]] = {
    "state": lambda run: run.state,
    "discriminator": verdict_words,
    "steps": _steps,
    "duration": _duration,
    "speed": _speed,
    "processes x device": _machine,
    "seed": lambda run: str(run.config.get("seed", ABSENT)),
    "data digest": lambda run: str((run.summary or {}).get("data_digest", ABSENT))[:12],
    "commit": _commit,
    "MLflow run": lambda run: run.mlflow_run_id or ABSENT,
    "folder": lambda run: str(run.folder),
}


def _version_rows(runs: Sequence[TrainingRun]) -> list[tuple[str, ...]]:
    """Versions: torch in any case, others where they differ."""
    versions = [(run.summary or run.environment).get("versions", {}) for run in runs]
    names = list(dict.fromkeys(name for found in versions for name in found))
    shown = [n for n in names if n == "torch" or len({found[n] for found in versions if n in found}) > 1]
    return [(f"version of {name}", *(str(found.get(name, ABSENT)) for found in versions)) for name in shown]


def evaluation_blocks(evaluations: Sequence[Evaluation], colours: Mapping[str, str]) -> list[Block]:
    """The overall scores of evaluations, and those of each video, folded."""
    if not evaluations:
        return []
    faults = _evaluation_faults(evaluations)
    blocks: list[Block] = [
        Heading("Evaluation"),
        Paragraph(
            "Whole sequences, measured by `vsr-dist evaluate`. The best value of a row is bold."
            + (
                " In brackets the 95 % interval of the mean, over sequences or, of one or two, over frames."
                if any("intervals" in e.scores for e in evaluations)
                else ""
            )
        ),
    ]
    if faults:
        blocks.append(Paragraph(f"**Not comparable:** {'; '.join(faults)}. No best value is marked."))
    blocks.append(_evaluation_table(evaluations, "overall", colours, mark=not faults))
    scopes = list(dict.fromkeys(scope for one in evaluations for scope in one.table if scope != "overall"))
    for scope in scopes:
        blocks.append(_evaluation_table(evaluations, scope, colours, mark=not faults, folded=scope))
    for protocol in dict.fromkeys(str(one.scores.get("protocol", "")) for one in evaluations):
        if protocol:
            blocks.append(Paragraph(f"**Protocol.** {protocol}"))
    return blocks


def _evaluation_faults(evaluations: Sequence[Evaluation]) -> list[str]:
    """Why scores must not be compared."""
    found: dict[str, Sequence[object]] = {
        "the data sets differ": [one.scores.get("data_digest") for one in evaluations],
        "the splits differ": [one.scores.get("split") for one in evaluations],
        "the protocols differ": [one.scores.get("protocol") for one in evaluations],
        "the sequences differ": [_frames_of(one) for one in evaluations],
        "the baselines differ": [one.baseline for one in evaluations],
    }
    return [text for text, values in found.items() if len({str(value) for value in values}) > 1]


def _frames_of(one: Evaluation) -> list[tuple[str, int]]:
    """(Sequence, number of frames) of everything that was measured; of an older result the videos."""
    listed = one.scores.get("sequences")
    if listed is None:
        return [(scope, 0) for scope in one.table]
    return sorted({(str(entry["sequence"]), int(entry["num_frames"])) for entry in listed})


def _evaluation_table(
    evaluations: Sequence[Evaluation], scope: str, colours: Mapping[str, str], *, mark: bool, folded: str | None = None
) -> Table:
    """A column of each evaluation, and before them one of the baseline if it is the same for all."""
    first = evaluations[0]
    shared = first.baseline if mark else None
    shown = [one for one in evaluations if one.subject != shared]
    columns = [one.table.get(scope, {}).get(one.subject, {}) for one in shown]
    header, rows = ["metric", "better"], []
    if shared is not None:
        header.append(shared)
        columns.insert(0, first.table.get(scope, {}).get(shared, {}))
    for name in dict.fromkeys(name for column in columns for name in column):
        metric = find_metric(name)
        values = [column.get(name) for column in columns]
        best = best_places(values, metric.better if mark else "-")
        cells = [score_cell(name, value, None, place in best) for place, value in enumerate(values)]
        if scope == "overall":
            sure = [one.interval(name) for one in shown]
            first_shown = len(cells) - len(shown)
            certain = zip(cells[first_shown:], sure, strict=True)
            cells[first_shown:] = [_with_interval(name, cell, ends) for cell, ends in certain]
        rows.append((metric.heading, metric.better, *cells))
    rows.insert(0, ("of", *[ABSENT] * (len(header) - 1), *(_origin(one) for one in shown)))
    header += [one.label for one in shown]
    return Table(tuple(header), tuple(rows), folded=folded, colours=marks_of(header, len(shown), colours))


def _with_interval(name: str, cell: str, ends: tuple[float, float] | None) -> str:
    metric = find_metric(name)
    return cell if ends is None else f"{cell} ({metric.show(ends[0])} to {metric.show(ends[1])})"


def _origin(one: Evaluation) -> str:
    """The run and the step that the evaluated generator is of."""
    if not one.origin:
        return str(one.scores.get("subject", {}).get("method", one.subject))
    return f"{one.origin.get('run', '?')}, step {one.origin.get('steps', '?')}"


def score_cell(name: str, value: float | None, baseline: float | None, is_best: bool) -> str:
    """A value, bold if it is the best, with its difference from the baseline in brackets if there is one."""
    if value is None:
        return ABSENT
    metric = find_metric(name)
    text = f"**{metric.show(value)}**" if is_best else metric.show(value)
    if baseline is None:
        return text
    return f"{text} ({metric.show(value - baseline, '+')})"


def marks_of(header: Sequence[str], num_labels: int, colours: Mapping[str, str]) -> tuple[str, ...]:
    """Colours of a header whose last cells are labels; a run may be named like one of the other cells."""
    first = len(header) - num_labels
    return tuple(colours.get(cell, "") if place >= first else "" for place, cell in enumerate(header))
