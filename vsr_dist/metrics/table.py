"""Per-frame scores -> per video and overall, as data, CSV and markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_dist.core.files import write_whole
from vsr_dist.metrics.registry import TABLE

# Name -> (heading, decimals, +1 if higher is better or -1 if lower is).
METRICS: dict[str, tuple[str, int, int]] = {
    metric.name: (metric.heading, metric.decimals, metric.direction) for metric in TABLE
}
_FACTOR = {metric.name: metric.factor for metric in TABLE}


@dataclass(frozen=True)
class FrameRow:
    """Scores of one frame under one method; the temporal ones are absent on the first frame of a sequence."""

    source: str
    sequence: str
    frame: int
    method: str
    scores: dict[str, float]


def mean_scores(rows: Sequence[FrameRow], method: str) -> dict[str, float]:
    """Mean of each metric over the frames that have it; empty for no rows of the method."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        if row.method == method:
            for name, value in row.scores.items():
                columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}


def summarise(rows: Sequence[FrameRow], methods: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Scope -> method -> metric: every source video, and `overall`, the mean of the videos' means.

    Videos count the same in `overall`, however many frames they have.
    """
    sources = list(dict.fromkeys(row.source for row in rows))
    table = {
        source: {m: mean_scores([row for row in rows if row.source == source], m) for m in methods}
        for source in sources
    }
    overall: dict[str, dict[str, float]] = {}
    for method in methods:
        names = list(dict.fromkeys(name for source in sources for name in table[source][method]))
        overall[method] = {
            name: _mean([table[s][method][name] for s in sources if name in table[s][method]]) for name in names
        }
    return {**table, "overall": overall}


def markdown_table(
    table: Mapping[str, Mapping[str, Mapping[str, float]]], methods: Sequence[str], metrics: Sequence[str]
) -> str:
    """A table with a row per video and method; the better value of each video and metric is bold."""
    headings = ["video", "method", *(METRICS[name][0] for name in metrics)]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for scope, by_method in table.items():
        for method in methods:
            cells = [_cell(by_method, method, name, methods) for name in metrics]
            lines.append("| " + " | ".join([scope, method, *cells]) + " |")
    return "\n".join(lines)


def plain_table(
    table: Mapping[str, Mapping[str, Mapping[str, float]]], methods: Sequence[str], metrics: Sequence[str]
) -> str:
    """The same numbers in aligned columns, for a terminal."""
    rows = [["video", "method", *(METRICS[name][0] for name in metrics)]]
    rows += [
        [scope, method, *(_number(by_method[method], name) for name in metrics)]
        for scope, by_method in table.items()
        for method in methods
    ]
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first two to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[FrameRow], metrics: Sequence[str] = tuple(METRICS)) -> None:
    """One line per frame and method, the file seen whole; an absent score is an empty cell."""
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


def _cell(by_method: Mapping[str, Mapping[str, float]], method: str, name: str, methods: Sequence[str]) -> str:
    text = _number(by_method[method], name)
    values = [by_method[m][name] * METRICS[name][2] for m in methods if name in by_method[m]]
    best = name in by_method[method] and len(values) > 1 and by_method[method][name] * METRICS[name][2] == max(values)
    return f"**{text}**" if best else text


def shown(name: str, value: float, sign: str = "") -> str:
    """A value of a metric as the tables show it; `sign` "+" for a difference."""
    return f"{value * _FACTOR[name]:{sign}.{METRICS[name][1]}f}"


def _number(scores: Mapping[str, float], name: str) -> str:
    return shown(name, scores[name]) if name in scores else "-"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
