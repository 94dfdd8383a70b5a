"""Two results beside each other: is the difference more than noise?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsr_dist.core.console import say
from vsr_dist.core.errors import BadInputError
from vsr_dist.core.files import write_json, write_whole
from vsr_dist.evaluation.output import markdown_comparisons, plain_comparisons
from vsr_dist.evaluation.results import (
    FORMAT_VERSION,
    Result,
    check_comparable,
    compare_methods,
    comparison_data,
    read_result,
)
from vsr_dist.metrics.table import FrameRow

RESULT_NAMES = ("metrics.json", "metrics.csv")


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
        raise BadInputError(f"{this.name} and {other.name} have no metric in common; evaluate both with the same ones")
    return comparison_data(this.main, f"{other.main} of {against}", found)


def compare_results(this: Path, against: Path, out: Path) -> None:
    """Two finished evaluations; writes comparison.json, comparison.md and comparison.txt."""
    data = compare_with_result(read_result(this), against)
    data["this"] = f"{data['this']} of {this}"
    out.mkdir(parents=True, exist_ok=True)
    text = plain_comparisons([data])
    write_whole(out / "comparison.txt", (text + "\n").encode())
    write_whole(
        out / "comparison.md", f"# {data['this']} against {data['other']}\n\n{markdown_comparisons([data])}\n".encode()
    )
    write_json(out / "comparison.json", {"format_version": FORMAT_VERSION, **data})
    say(text)
    say(f"comparison: {out / 'comparison.md'}")
