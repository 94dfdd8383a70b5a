"""The block of lines that a terminal shows while a run trains; elsewhere the same facts are plain lines in a log."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from types import TracebackType

from vsr_dist.core.console import Progress, format_duration, write_above

_REDRAW_S = 0.2
_BAR_CHARS = 24
_UP, _CLEAR_BELOW = "\x1b[{}F", "\x1b[J"


class LiveView(Progress):
    """Progress that keeps a few lines at the bottom of a terminal, redrawn in place at most five times a second.

    Lines are named; `show` replaces one. Anything said meanwhile is printed above the block, from any thread. Without
    a terminal, or on one that cannot move its cursor, `show` does nothing and `note` prints plain lines.
    """

    def __init__(self, total: int, unit: str, *, start: int = 0, enabled: bool = True) -> None:
        super().__init__(total, unit, start=start, enabled=enabled, bar=False)
        self._unit = unit
        self.drawing = enabled and sys.stderr.isatty() and os.environ.get("TERM") not in {None, "dumb"}
        self._lines: dict[str, str] = {}
        self._num_drawn, self._drawn_at_s = 0, 0.0
        self._lock = threading.RLock()

    def advance(self, count: int = 1) -> None:
        """Say that `count` more units are done."""
        super().advance(count)
        if self.drawing and time.monotonic() - self._drawn_at_s >= _REDRAW_S:
            self._draw()

    def show(self, name: str, text: str) -> None:
        """Put `text` into the line `name` of the block."""
        if self.drawing:
            self._lines[name] = text
            self._draw()

    def note(self, text: str) -> None:
        """A line above the block, or a plain line ending with the time left."""
        if self.drawing:
            self.above(text)
        else:
            super().note(text)

    def above(self, text: str) -> None:
        """Print a line above the block."""
        with self._lock:
            self._erase()
            sys.stderr.flush()
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
            self._draw()

    def __enter__(self) -> LiveView:
        if self.drawing:
            write_above(self.above)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.drawing:
            self._draw()
            write_above(None)
        self.drawing = False

    def _erase(self) -> None:
        if self._num_drawn:
            sys.stderr.write(_UP.format(self._num_drawn) + _CLEAR_BELOW)
        self._num_drawn = 0

    def _draw(self) -> None:
        with self._lock:
            width = shutil.get_terminal_size().columns
            lines = block(self._unit, self.done, self.total, self.seconds_left(), self._lines, width)
            self._erase()
            sys.stderr.write("".join(line + "\n" for line in lines))
            sys.stderr.flush()
            self._num_drawn, self._drawn_at_s = len(lines), time.monotonic()


def block(unit: str, done: int, total: int, seconds_left: float, lines: dict[str, str], width: int) -> list[str]:
    """The lines of the block, none longer than `width - 1` characters, so that none is wrapped."""
    share = done / total if total else 1.0
    filled = round(_BAR_CHARS * share)
    bar = f"[{'#' * filled}{'-' * (_BAR_CHARS - filled)}] {100 * share:3.0f} %"
    left = f" | {format_duration(seconds_left)} left" if seconds_left else ""
    margin = max([len(name) for name in lines] + [len(unit)])
    named = {unit: f"{done}/{total} {bar}{left}", **lines}
    return [f"{name.ljust(margin)}  {text}"[: width - 1] for name, text in named.items()]
