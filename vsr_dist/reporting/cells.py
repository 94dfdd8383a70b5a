"""Cells that several tables of a report have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vsr_dist.metrics.registry import find_metric

ABSENT = "-"


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
