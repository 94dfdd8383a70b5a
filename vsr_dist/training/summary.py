"""What a person reads at the end of a run: the last validation beside bicubic."""

from __future__ import annotations

from collections.abc import Mapping

_OURS, _BICUBIC = "val/", "val_bicubic/"


def summary_table(metrics: Mapping[str, float]) -> str:
    """One line per held-out metric: this run, bicubic and the difference; then the drift measures, one per line."""
    rows = [("held-out metric", "this run", "bicubic", "difference")]
    for name, ours in metrics.items():
        bicubic = metrics.get(_BICUBIC + name.removeprefix(_OURS))
        if name.startswith(_OURS) and bicubic is not None:
            rows.append((name, f"{ours:.4f}", f"{bicubic:.4f}", f"{ours - bicubic:+.4f}"))
    rows += [(name, f"{value:.4f}", "", "") for name, value in metrics.items() if name.startswith("drift/")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
