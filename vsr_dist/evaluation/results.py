"""The result of an evaluation: scores per frame, their tables, intervals and comparisons, and reading them back."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vsr_dist.core.errors import BadInputError
from vsr_dist.metrics.registry import METRICS, in_order
from vsr_dist.metrics.uncertainty import (
    LEVEL,
    Difference,
    Interval,
    compare,
    interval_over_frames,
    interval_over_sequences,
)

FORMAT_VERSION = 2
RESULT_NAMES = ("metrics.json", "metrics.csv")
_FIXED_COLUMNS = ("source", "sequence", "frame", "method")


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
    return {name: _mean(columns[name]) for name in in_order(tuple(columns))}


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
        names = in_order(tuple(name for source in sources for name in table[source][method]))
        overall[method] = {
            name: _mean([table[s][method][name] for s in sources if name in table[s][method]]) for name in names
        }
    return {**table, "overall": overall}


@dataclass(frozen=True)
class Result:
    """One evaluation: rows of every frame and method, and what its metrics.json says. `name` is for messages."""

    name: str
    rows: list[FrameRow]
    main: str
    measured_alike: dict[str, Any]


class Columns:
    """Values of one metric under one method, per sequence, with each sequence's share in `overall`."""

    def __init__(self, rows: Sequence[FrameRow], method: str, metric: str) -> None:
        self.frames: dict[str, list[float]] = {}
        sources: dict[str, str] = {}
        for row in rows:
            if row.method == method and metric in row.scores:
                self.frames.setdefault(row.sequence, []).append(row.scores[metric])
                sources[row.sequence] = row.source
        totals: dict[str, int] = {}
        for name, values in self.frames.items():
            totals[sources[name]] = totals.get(sources[name], 0) + len(values)
        self.means = {name: sum(values) / len(values) for name, values in self.frames.items()}
        # `overall` is the mean of the videos' means over frames.
        self.weights = {name: len(values) / totals[sources[name]] for name, values in self.frames.items()}

    def interval(self) -> Interval | None:
        """Over sequences if there are three, else over blocks of frames."""
        names, weights = list(self.frames), list(self.weights.values())
        found = interval_over_sequences([self.means[name] for name in names], weights)
        return found or interval_over_frames(list(self.frames.values()), weights)


def metrics_of(rows: Sequence[FrameRow]) -> tuple[str, ...]:
    """The metrics that any row has."""
    return in_order(tuple({name for row in rows for name in row.scores}))


def sequence_table(rows: Sequence[FrameRow], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Per sequence and method: how many frames, and the mean of each metric."""
    table = []
    groups: dict[tuple[str, str], list[FrameRow]] = {}
    for row in rows:
        groups.setdefault((row.sequence, row.method), []).append(row)
    for sequence in dict.fromkeys(row.sequence for row in rows):
        for method in methods:
            group = groups.get((sequence, method), [])
            if group:
                means = {name: Columns(group, method, name).means[sequence] for name in metrics_of(group)}
                entry = {"sequence": sequence, "source": group[0].source, "method": method}
                table.append({**entry, "num_frames": len(group), "scores": means})
    return table


def intervals(rows: Sequence[FrameRow], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method -> metric -> interval of `overall`; metrics with too few values are absent."""
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        for metric in metrics_of([row for row in rows if row.method == method]):
            interval = Columns(rows, method, metric).interval()
            if interval is not None:
                found.setdefault(method, {})[metric] = {**asdict(interval), "level": LEVEL}
    return found


def compare_methods(
    this_rows: Sequence[FrameRow], this: str, other_rows: Sequence[FrameRow], other: str
) -> dict[str, Difference]:
    """Metric -> verdict on `this` against `other`, for the metrics of both, paired over sequences."""
    wanted = [name for name in metrics_of(this_rows) if name in metrics_of(other_rows)]
    found = {}
    for metric in wanted:
        ours, theirs = Columns(this_rows, this, metric), Columns(other_rows, other, metric)
        names = [name for name in ours.means if name in theirs.means]
        if names:
            found[metric] = compare(
                [ours.means[name] for name in names],
                [theirs.means[name] for name in names],
                [ours.weights[name] for name in names],
                METRICS[metric].direction,
            )
    return found


def comparison_data(this: str, other: str, differences: dict[str, Difference]) -> dict[str, Any]:
    """One entry of metrics.json's `comparisons`."""
    return {"this": this, "other": other, "metrics": {name: asdict(found) for name, found in differences.items()}}


def read_result(path: Path) -> Result:
    """A finished evaluation, by its folder or by its metrics.json or metrics.csv. BadInputError if it is not whole."""
    folder = path if path.is_dir() else path.parent
    try:
        data = json.loads((folder / "metrics.json").read_text())
        with (folder / "metrics.csv").open(newline="") as file:
            rows = [_row(line) for line in csv.DictReader(file)]
        methods = list(data.get("methods") or next(iter(data["table"].values())))
        alike = {key: data.get(key) for key in ("protocol_name", "data_digest")}
        alike["scale"] = data.get("source", {}).get("scale")
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise BadInputError(
            f"{path} is not a finished evaluation ({error}); expected the folder of one, with metrics.json and "
            "metrics.csv in it"
        ) from error
    return Result(str(path), rows, methods[-1], alike)


def check_measured_alike(name: str, measured_alike: Mapping[str, Any], other: Result) -> None:
    """BadInputError unless protocol, set and scale, which is the border, are those of `other`.

    Known before the first frame: `name`, for the message, need not have been measured yet.
    """
    for key, what in (("protocol_name", "protocol"), ("data_digest", "data set"), ("scale", "scale")):
        mine, theirs = measured_alike.get(key), other.measured_alike.get(key)
        if key != "protocol_name" and None in (mine, theirs):
            continue  # A result of an earlier version does not say.
        if mine != theirs:
            raise BadInputError(
                f"{name} and {other.name} cannot be compared: {what} {mine} and {theirs}; evaluate both in the same way"
            )


def check_comparable(this: Result, other: Result) -> None:
    """BadInputError unless both were measured on the same frames in the same way."""
    check_measured_alike(this.name, this.measured_alike, other)
    mine_frames, theirs_frames = ({(row.sequence, row.frame) for row in side.rows} for side in (this, other))
    if mine_frames != theirs_frames:
        odd = sorted(mine_frames ^ theirs_frames)
        raise BadInputError(
            f"{this.name} and {other.name} cannot be compared: {len(odd)} frames are in one only, first frame "
            f"{odd[0][1]} of {odd[0][0]}; evaluate both on the same frames"
        )


def _row(line: dict[str, str]) -> FrameRow:
    scores = {
        name: float(value) for name, value in line.items() if name not in _FIXED_COLUMNS and value and name in METRICS
    }
    return FrameRow(line["source"], line["sequence"], int(line["frame"]), line["method"], scores)


def is_result(path: Path) -> bool:
    """True for a finished evaluation's folder or one of its files, as opposed to a run or a weight file."""
    return path.name in RESULT_NAMES or (path / RESULT_NAMES[0]).is_file()


def compare_in_one(rows: Sequence[FrameRow], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The last method against every other of the same evaluation."""
    return [
        comparison_data(methods[-1], other, compare_methods(rows, methods[-1], rows, other))
        for other in reversed(methods[:-1])
    ]


def compare_with_result(this: Result, against: Path) -> dict[str, Any]:
    """This evaluation's main method against that of a finished one. BadInputError if they do not compare."""
    other = read_result(against)
    check_comparable(this, other)
    found = compare_methods(this.rows, this.main, other.rows, other.main)
    if not found:
        raise BadInputError(
            f"{this.name} and {other.name} have no metric in common; evaluate both with the same --metrics"
        )
    return comparison_data(this.main, f"{other.main} of {against}", found)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
