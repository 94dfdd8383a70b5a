"""One colour for each run, the same in every table and picture of a report."""

from __future__ import annotations

from vsr_dist.reporting.runs import Compared, Evaluation

# Okabe and Ito's colours, which people with colour blindness tell apart; of their yellow and black the one is too pale
# for a line on white, and the other is for what belongs to no run.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Beyond six runs the colours come again with another line style and marker.
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")


def colours_of(compared: Compared) -> dict[str, str]:
    """Label -> colour; an evaluation has that of its run, if it is among them."""
    colours: dict[str, str] = {}
    place = 0
    for one in compared.all:
        if isinstance(one, Evaluation) and one.subject == one.baseline:
            continue  # Bicubic has no colour of its own.
        run = compared.run_of(one) if isinstance(one, Evaluation) else None
        if run is not None:
            colours[one.label] = colours[run.label]
        else:
            colours[one.label] = COLOURS[place % len(COLOURS)]
            place += 1
    return colours


def style_of(place: int) -> dict[str, str]:
    """How matplotlib draws the run at a place of the report."""
    turn = place // len(COLOURS)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
        "marker": MARKERS[turn % len(MARKERS)],
    }
