"""The files of an evaluation: tables, comparison picture and report. Every file appears whole or not at all."""

from __future__ import annotations

import csv
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.files import write_json, write_whole
from vsr_dist.core.provenance import package_versions
from vsr_dist.core.report_blocks import Block, Heading, Items, Paragraph, Table, to_markdown
from vsr_dist.core.report_blocks import Picture as PictureBlock
from vsr_dist.evaluation.results import (
    FORMAT_VERSION,
    FrameRow,
    compare_with_result,
    intervals,
    read_result,
    sequence_table,
    summarise,
)
from vsr_dist.evaluation.sources import EvaluationSource
from vsr_dist.evaluation.subjects import Subject
from vsr_dist.inference.engine import StreamOptions
from vsr_dist.inference.pictures import FILES_TEXT, FOLDERS, SHOW_TEXT, clear_pictures, stack_rows, write_png
from vsr_dist.metrics.registry import METRICS, Protocol, best_places
from vsr_dist.ops.picture import Picture

_COMPARISON_HEADER = ("compared", "metric", "difference", "95 % interval", "p", "verdict")
_COMPARISON_TEXT = (
    "`better` and `worse`: an exact two-sided sign-flip test of the differences per sequence gives p < 0.05. `within "
    "noise`: it does not. `too few sequences`: with fewer than six, p cannot be below 0.05. With several metrics, one "
    "in twenty is below 0.05 by chance. Shots of one video count as sequences of their own."
)
# Exists while an evaluation runs: the pictures of an interrupted one may be replaced.
_UNFINISHED = ".evaluating"
RESULT_FILES = ("report.md", "table.txt", "metrics.json", "metrics.csv", "sequences.csv", "comparison.png")
Scores = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Report:
    """All that is written of an evaluation, except the pictures of the sequences, which are written already."""

    title: str
    source: EvaluationSource
    subjects: Sequence[Subject]
    preset: Protocol
    metrics: tuple[str, ...]
    left_out: Mapping[str, str]
    rows: list[FrameRow]
    pictures: Sequence[Picture]
    comparisons: list[dict[str, Any]]
    max_frames: int | None

    @property
    def methods(self) -> list[str]:
        """The columns' names; the last is what was evaluated."""
        return [subject.name for subject in self.subjects]


def refuse_foreign(out: Path) -> None:
    """BadConfigError for a folder whose `videos/` and so on are not an evaluation's: `clear` would remove them."""
    if any((out / name).exists() for name in (_UNFINISHED, "metrics.json")):
        return
    filled = [name for name in FOLDERS if (out / name).is_file() or any((out / name).glob("*"))]
    if filled:
        raise BadConfigError(
            f"--out {out} holds {', '.join(f'{name}/' for name in filled)}, which would be replaced, but no "
            "evaluation; name another folder"
        )


def clear(out: Path, with_pictures: bool) -> None:
    """Make the output folder, and remove what an earlier evaluation wrote into it."""
    refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / _UNFINISHED, b"vsr-dist evaluate has not finished here\n")
    clear_pictures(out)
    if not with_pictures:
        for name in FOLDERS:
            (out / name).rmdir()
    for name in RESULT_FILES:
        (out / name).unlink(missing_ok=True)


def write(out: Path, report: Report) -> dict[str, Any]:
    """Tables, comparison picture and report; metrics.json is the last, so where it exists everything does.

    Returns the content of metrics.json.
    """
    table = summarise(report.rows, report.methods)
    sequences = sequence_table(report.rows, report.methods)
    sure = intervals(report.rows, report.methods)
    write_csv(out / "metrics.csv", report.rows, report.metrics)
    write_sequence_csv(out / "sequences.csv", sequences, report.metrics)
    if report.pictures:
        write_png(out / "comparison.png", stack_rows(list(report.pictures)))
    interval_text = ""
    if sure:
        interval_text = f"95 % intervals of overall ({_how(sure)})\n{aligned(_interval_rows(report, sure))}"
    parts = (
        plain_table(table, report.methods, report.metrics),
        interval_text,
        plain_comparisons(report.comparisons),
    )
    text = "\n\n".join(part for part in parts if part)
    write_whole(out / "table.txt", (text + "\n").encode())
    write_whole(out / "report.md", to_markdown(_blocks(report, table, sure)).encode())
    data = _data(report, table, sequences, sure)
    write_json(out / "metrics.json", data)
    (out / _UNFINISHED).unlink(missing_ok=True)
    say(text)
    for name, reason in report.left_out.items():
        say(f"not measured: {name}: {reason}")
    pictures = f"   pictures: {FILES_TEXT}" if report.pictures else ""
    say(f"report: {out / 'report.md'}{pictures}")
    return data


def compare_results(this: Path, against: Path, out: Path) -> None:
    """Two finished evaluations; writes comparison.json, comparison.md and comparison.txt."""
    data = compare_with_result(read_result(this), against)
    data["this"] = f"{data['this']} of {this}"
    out.mkdir(parents=True, exist_ok=True)
    text = plain_comparisons([data])
    write_whole(out / "comparison.txt", (text + "\n").encode())
    blocks = [Heading(f"{data['this']} against {data['other']}", 1), *_comparison_blocks([data])]
    write_whole(out / "comparison.md", to_markdown(blocks).encode())
    write_json(out / "comparison.json", {"format_version": FORMAT_VERSION, **data})
    say(text)
    say(f"comparison: {out / 'comparison.md'}")


def _data(report: Report, table: Scores, sequences: list[dict[str, Any]], sure: Mapping[str, Any]) -> dict[str, Any]:
    """metrics.json; docs/evaluation.md lists the keys."""
    source = report.source
    return {
        "format_version": FORMAT_VERSION,
        "command": shlex.join(sys.argv),
        "source": {**source.description, "scale": source.scale, "max_frames": report.max_frames},
        "split": source.description.get("split"),
        "data_digest": source.description.get("data_digest"),
        "subject": report.subjects[-1].description,
        "methods": report.methods,
        "protocol_name": report.preset.name,
        "protocol": report.preset.describe(source.scale),
        "metrics": {
            m.name: {"heading": m.heading, "better": m.better, "reducer": m.reducer, "protocol": m.text}
            for m in (METRICS[name] for name in report.metrics)
        },
        "left_out": dict(report.left_out),
        "versions": package_versions(),
        "table": table,
        "intervals": sure,
        "comparisons": report.comparisons,
        "sequences": sequences,
    }


def _blocks(report: Report, table: Scores, sure: Mapping[str, Any]) -> list[Block]:
    """report.md."""
    blocks: list[Block] = [Heading(report.title, 1), score_table(table, report.methods, report.metrics)]
    if sure:
        header, *rows = _interval_rows(report, sure)
        blocks += [Paragraph(f"**95 % intervals of `overall`** ({_how(sure)})"), Table(header, tuple(rows))]
    if report.comparisons:
        blocks += [Paragraph("**Comparisons**, paired over sequences"), *_comparison_blocks(report.comparisons)]
    blocks.append(Paragraph(f"**Protocol** {report.preset.describe(report.source.scale)}"))
    blocks.append(
        Items(tuple(f"**{METRICS[name].heading}** (`{name}`): {METRICS[name].text}." for name in report.metrics))
    )
    if report.max_frames is not None:
        blocks.append(Paragraph(f"Only the first {report.max_frames} frames of each sequence (`--frames`)."))
    default = asdict(StreamOptions())
    run = report.subjects[-1].description.get("inference", default)
    changed = [f"{name} {value}" for name, value in run.items() if value != default[name]]
    if changed:
        blocks.append(Paragraph(f"The network ran with {', '.join(changed)}."))
    blocks += [Paragraph(f"`{name}` was not measured: {reason}.") for name, reason in report.left_out.items()]
    if report.pictures:
        caption = ", ".join(["input", *report.methods[:2], "ground truth"])
        blocks += [PictureBlock("comparison.png", caption), Paragraph(SHOW_TEXT)]
    blocks.append(Paragraph("Numbers per frame are in `metrics.csv`, means per sequence in `sequences.csv`."))
    return blocks


def score_table(table: Scores, methods: Sequence[str], metrics: Sequence[str]) -> Table:
    """A row per video and method; the best value of each video and metric is bold."""
    rows = []
    for scope, by_method in table.items():
        best = {name: best_places([by_method[m].get(name) for m in methods], METRICS[name].better) for name in metrics}
        for place, method in enumerate(methods):
            cells = [_cell(by_method[method], name, bold=place in best[name]) for name in metrics]
            rows.append((scope, method, *cells))
    return Table(("video", "method", *(METRICS[name].heading for name in metrics)), tuple(rows))


def _cell(scores: Mapping[str, float], name: str, *, bold: bool = False) -> str:
    if name not in scores:
        return "-"
    text = METRICS[name].show(scores[name])
    return f"**{text}**" if bold else text


def plain_table(table: Scores, methods: Sequence[str], metrics: Sequence[str]) -> str:
    """The same numbers in aligned columns, for a terminal."""
    rows = [("video", "method", *(METRICS[name].heading for name in metrics))]
    rows += [
        (scope, method, *(_cell(by_method[method], name) for name in metrics))
        for scope, by_method in table.items()
        for method in methods
    ]
    return aligned(rows)


def plain_comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """For a terminal; empty if nothing was compared."""
    return aligned([_COMPARISON_HEADER, *_comparison_rows(comparisons)]) if comparisons else ""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first two to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)


def _comparison_blocks(comparisons: Sequence[Mapping[str, Any]]) -> list[Block]:
    return [Table(_COMPARISON_HEADER, tuple(_comparison_rows(comparisons))), Paragraph(_COMPARISON_TEXT)]


def _comparison_rows(comparisons: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for comparison in comparisons:
        title = f"{comparison['this']} - {comparison['other']}"
        for name, found in comparison["metrics"].items():
            span = "-" if found["interval"] is None else _span(name, found["interval"], "+")
            p = "-" if found["p"] is None else f"{found['p']:.4f}"
            metric = METRICS[name]
            rows.append((title, metric.heading, metric.show(found["difference"], "+"), span, p, found["verdict"]))
    return rows


def _interval_rows(report: Report, sure: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [("overall", "method", *(METRICS[name].heading for name in report.metrics))]
    for method in report.methods:
        cells = [_span(name, sure[method][name]) if name in sure.get(method, {}) else "-" for name in report.metrics]
        rows.append(("", method, *cells))
    return rows


def _how(sure: Mapping[str, Any]) -> str:
    """`BCa bootstrap over 50 sequences`, with each way once."""
    counts: dict[tuple[str, str], set[int]] = {}
    for by_metric in sure.values():
        for interval in by_metric.values():
            counts.setdefault((interval["method"], interval["units"]), set()).add(interval["num_units"])
    parts = []
    for (method, units), found in counts.items():
        # Metrics of pairs of frames have one value less per sequence.
        number = f"{min(found)} to {max(found)}" if len(found) > 1 else str(min(found))
        parts.append(f"{method} over {number} {units}")
    return "; ".join(parts)


def _span(name: str, interval: Mapping[str, Any], sign: str = "") -> str:
    return f"{METRICS[name].show(interval['low'], sign)}..{METRICS[name].show(interval['high'], sign)}"


def write_csv(path: Path, rows: Sequence[FrameRow], metrics: Sequence[str]) -> None:
    """One line per frame and method; an absent score is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["source", "sequence", "frame", "method", *metrics])
    for row in rows:
        cells = [repr(row.scores[name]) if name in row.scores else "" for name in metrics]
        writer.writerow([row.source, row.sequence, row.frame, row.method, *cells])
    write_whole(path, text.getvalue().encode())


def write_sequence_csv(path: Path, sequences: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """One line per sequence and method, from the entries of metrics.json's `sequences`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["source", "sequence", "frames", "method", *metrics])
    for entry in sequences:
        cells = [repr(entry["scores"][name]) if name in entry["scores"] else "" for name in metrics]
        writer.writerow([entry["source"], entry["sequence"], entry["num_frames"], entry["method"], *cells])
    write_whole(path, text.getvalue().encode())
