"""Per-frame scores -> per video and overall, as data, CSV and markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Name -> (heading, decimals, +1 if higher is better or -1 if lower is).
METRICS: dict[str, tuple[str, int, int]] = {
    "psnr_y": ("PSNR-Y dB", 2, +1),
    "ssim_y": ("SSIM-Y", 4, +1),
    "psnr_rgb": ("PSNR-RGB dB", 2, +1),
    "ssim_rgb": ("SSIM-RGB", 4, +1),
    "tof": ("tOF px", 3, -1),
    "tdiff": ("tdiff x1e4", 2, -1),
}
_FACTOR = {"tdiff": 1e4}


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[FrameRow]) -> None:
    """One line per frame and method; an absent score is an empty cell."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "sequence", "frame", "method", *METRICS])
        for row in rows:
            cells = [repr(row.scores[name]) if name in row.scores else "" for name in METRICS]
            writer.writerow([row.source, row.sequence, row.frame, row.method, *cells])


def _cell(by_method: Mapping[str, Mapping[str, float]], method: str, name: str, methods: Sequence[str]) -> str:
    text = _number(by_method[method], name)
    values = [by_method[m][name] * METRICS[name][2] for m in methods if name in by_method[m]]
    best = name in by_method[method] and len(values) > 1 and by_method[method][name] * METRICS[name][2] == max(values)
    return f"**{text}**" if best else text


def _number(scores: Mapping[str, float], name: str) -> str:
    if name not in scores:
        return "-"
    return f"{scores[name] * _FACTOR.get(name, 1.0):.{METRICS[name][1]}f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
