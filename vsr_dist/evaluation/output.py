"""What an evaluation leaves in its folder: tables, pictures and the report. Every file is seen whole or not at all."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.files import write_json, write_whole
from vsr_dist.core.versions import package_versions
from vsr_dist.evaluation.results import FORMAT_VERSION, intervals, sequence_table
from vsr_dist.evaluation.sources import EvaluationSource
from vsr_dist.evaluation.subjects import Subject
from vsr_dist.inference.pictures import FILES_TEXT, FOLDERS, SHOW_TEXT, clear_pictures, stack_rows, write_png
from vsr_dist.metrics.protocol import Protocol
from vsr_dist.metrics.registry import METRICS
from vsr_dist.metrics.table import (
    FrameRow,
    aligned,
    markdown_table,
    plain_table,
    shown,
    summarise,
    write_csv,
    write_sequence_csv,
)
from vsr_dist.ops.picture import Picture

_HEADINGS = ("compared", "metric", "difference", "95 % interval", "p", "verdict")
# There while an evaluation is at work: the pictures of an interrupted one may be replaced.
_UNFINISHED = ".evaluating"
RESULT_FILES = ("report.md", "table.txt", "metrics.json", "metrics.csv", "sequences.csv", "comparison.png")


@dataclass(frozen=True)
class Report:
    """All that is written of an evaluation, but for the pictures of the sequences, which are there already."""

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
        """The columns' names; the last is what was asked for."""
        return [subject.name for subject in self.subjects]


def refuse_foreign(out: Path) -> None:
    """BadConfigError for a folder whose `videos/` and so on are not an evaluation's: `clear` would remove them."""
    if any((out / name).exists() for name in (_UNFINISHED, "metrics.json")):
        return
    filled = [name for name in FOLDERS if (out / name).is_file() or any((out / name).glob("*"))]
    if filled:
        raise BadConfigError(
            f"--out {out} holds {', '.join(f'{name}/' for name in filled)}, which would be replaced, and no "
            "evaluation; name another folder"
        )


def clear(out: Path, with_pictures: bool) -> None:
    """The output folder, without what an earlier evaluation left, which would pass for this one's."""
    refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / _UNFINISHED, b"vsr-dist evaluate has not finished here\n")
    clear_pictures(out)
    if not with_pictures:
        for name in FOLDERS:
            (out / name).rmdir()
    for name in RESULT_FILES:
        (out / name).unlink(missing_ok=True)


def write(out: Path, report: Report) -> None:
    """Tables, comparison picture and report; metrics.json is the last, so where it is all is."""
    table = summarise(report.rows, report.methods)
    sequences = sequence_table(report.rows, report.methods)
    sure = intervals(report.rows, report.methods)
    write_csv(out / "metrics.csv", report.rows, report.metrics)
    write_sequence_csv(out / "sequences.csv", sequences, report.metrics)
    if report.pictures:
        write_png(out / "comparison.png", stack_rows(list(report.pictures)))
    text = "\n\n".join(
        part
        for part in (
            plain_table(table, report.methods, report.metrics),
            _plain_intervals(report, sure),
            plain_comparisons(report.comparisons),
        )
        if part
    )
    write_whole(out / "table.txt", (text + "\n").encode())
    write_whole(out / "report.md", _markdown(report, table, sure).encode())
    write_json(out / "metrics.json", _data(report, table, sequences, sure))
    (out / _UNFINISHED).unlink(missing_ok=True)
    say(text)
    for name, reason in report.left_out.items():
        say(f"left out: {name}: {reason}")
    pictures = f"   pictures beside it: {FILES_TEXT}" if report.pictures else ""
    say(f"report: {out / 'report.md'}{pictures}")


def _data(
    report: Report, table: Mapping[str, Any], sequences: list[dict[str, Any]], sure: Mapping[str, Any]
) -> dict[str, Any]:
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
            name: {
                "heading": METRICS[name].heading,
                "better": "higher" if METRICS[name].direction > 0 else "lower",
                "protocol": METRICS[name].text,
            }
            for name in report.metrics
        },
        "left_out": dict(report.left_out),
        "versions": package_versions(),
        "table": table,
        "intervals": sure,
        "comparisons": report.comparisons,
        "sequences": sequences,
    }


def _markdown(report: Report, table: Mapping[str, Any], sure: Mapping[str, Any]) -> str:
    metrics = [f"- **{METRICS[name].heading}** (`{name}`): {METRICS[name].text}." for name in report.metrics]
    parts = [f"# {report.title}", markdown_table(table, report.methods, report.metrics)]
    if sure:
        parts += [f"**95 % intervals of `overall`** ({_how(sure)})", _markdown_rows(_interval_rows(report, sure))]
    if report.comparisons:
        parts += ["**Compared**, paired over sequences", _markdown_rows([_HEADINGS, *_rows_of(report.comparisons)])]
        parts += [COMPARISON_TEXT]
    parts += [f"**Protocol** {report.preset.describe(report.source.scale)}", "\n".join(metrics)]
    if report.max_frames is not None:
        parts.append(f"Of each sequence the first {report.max_frames} frames were measured (`--frames`).")
    parts += [f"`{name}` was left out: {reason}." for name, reason in report.left_out.items()]
    if report.pictures:
        parts += [f"![{', '.join(['input', *report.methods[:2], 'ground truth'])}](comparison.png)", SHOW_TEXT]
    parts.append("Per-frame numbers are in `metrics.csv`, means per sequence in `sequences.csv`.")
    return "\n\n".join(parts) + "\n"


COMPARISON_TEXT = (
    "`better` and `worse`: an exact two-sided sign-flip test of the differences per sequence gives p < 0.05. `within "
    "noise`: it does not. `too few sequences`: below six no p can be under 0.05. Several metrics are several "
    "looks: one in twenty is under 0.05 by chance. Shots of one video count as sequences of their own."
)


def plain_comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """For a terminal; empty if nothing was compared."""
    return aligned([_HEADINGS, *_rows_of(comparisons)]) if comparisons else ""


def _rows_of(comparisons: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for comparison in comparisons:
        title = f"{comparison['this']} - {comparison['other']}"
        for name, found in comparison["metrics"].items():
            interval = found["interval"]
            span = "-" if interval is None else _span(name, interval, "+")
            p = "-" if found["p"] is None else f"{found['p']:.4f}"
            cells = [METRICS[name].heading, shown(name, found["difference"], "+"), span, p, found["verdict"]]
            rows.append([title, *cells])
    return rows


def markdown_comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The same as a table of a report."""
    return "\n\n".join([_markdown_rows([_HEADINGS, *_rows_of(comparisons)]), COMPARISON_TEXT])


def _plain_intervals(report: Report, sure: Mapping[str, Any]) -> str:
    rows = _interval_rows(report, sure)
    return f"95 % intervals of overall ({_how(sure)})\n{aligned(rows)}" if sure else ""


def _interval_rows(report: Report, sure: Mapping[str, Any]) -> list[list[str]]:
    rows = [["overall", "method", *(METRICS[name].heading for name in report.metrics)]]
    for method in report.methods:
        cells = [_span(name, sure[method][name]) if name in sure.get(method, {}) else "-" for name in report.metrics]
        rows.append(["", method, *cells])
    return rows


def _how(sure: Mapping[str, Any]) -> str:
    """`BCa bootstrap over 50 sequences`, with each way once."""
    counts: dict[tuple[str, str], set[int]] = {}
    for by_metric in sure.values():
        for interval in by_metric.values():
            counts.setdefault((interval["method"], interval["units"]), set()).add(interval["num_units"])
    parts = []
    for (method, units), found in counts.items():
        # Measures of pairs of frames have one value less per sequence.
        number = f"{min(found)} to {max(found)}" if len(found) > 1 else str(min(found))
        parts.append(f"{method} over {number} {units}")
    return "; ".join(parts)


def _span(name: str, interval: Mapping[str, Any], sign: str = "") -> str:
    return f"{shown(name, interval['low'], sign)}..{shown(name, interval['high'], sign)}"


def _markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
