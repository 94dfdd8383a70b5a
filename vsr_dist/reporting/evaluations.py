"""The report's tables of evaluations: a column of each, beside what all were measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vsr_dist.core.report_blocks import Block, Heading, Paragraph, Table
from vsr_dist.metrics.registry import best_places, find_metric
from vsr_dist.reporting.cells import ABSENT, marks_of, score_cell
from vsr_dist.reporting.runs import Evaluation


def evaluation_blocks(evaluations: Sequence[Evaluation], colours: Mapping[str, str]) -> list[Block]:
    """The overall scores of evaluations, and those of each video, folded."""
    if not evaluations:
        return []
    faults = _evaluation_faults(evaluations)
    blocks: list[Block] = [
        Heading("Evaluation"),
        Paragraph(
            "Whole sequences, measured by `vsr-dist evaluate`. Bold is the best value of a line."
            + (
                " In brackets the 95 % interval of the mean, over sequences, or over frames of one or two."
                if any("intervals" in e.scores for e in evaluations)
                else ""
            )
        ),
    ]
    if faults:
        blocks.append(Paragraph(f"**Not comparable:** {'; '.join(faults)}. Nothing is marked."))
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
        best = best_places(values, metric.direction if mark else 0)
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
