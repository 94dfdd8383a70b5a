"""Terminal output: lines and progress bars, from `sharding.console`, and the status display of training."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from types import TracebackType

from sharding.console import Progress, format_duration, redirect_lines, say

__all__ = ["LiveView", "Progress", "format_duration", "say"]

_REDRAW_S = 0.2
_BAR_CHARS = 24
_UP, _CLEAR_BELOW = "\x1b[{}F", "\x1b[J"


class LiveView(Progress):
    """Progress that keeps a block of named lines at the bottom of a terminal, redrawn at most five times a second.

    `show` sets the text of a line. Lines printed meanwhile, from any thread, appear above the block. Without a
    terminal, or on one that cannot move its cursor, `show` does nothing and `note` prints plain lines.
    """

    def __init__(self, total: int, unit: str, *, start: int = 0, enabled: bool = True) -> None:
        super().__init__(total, unit, start=start, enabled=enabled, bar=False)
        self.drawing = enabled and sys.stderr.isatty() and os.environ.get("TERM") not in {None, "dumb"}
        self._lines: dict[str, str] = {}
        self._num_drawn, self._drawn_at_s = 0, 0.0
        self._lock = threading.RLock()

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        super().advance(count)
        if self.drawing and time.monotonic() - self._drawn_at_s >= _REDRAW_S:
            self._draw()

    def show(self, name: str, text: str) -> None:
        """Set the text of the line `name`."""
        if self.drawing:
            self._lines[name] = text
            self._draw()

    def note(self, text: str) -> None:
        """Print a line above the block, or a plain line that ends with the time left."""
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
            redirect_lines(self.above)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.drawing:
            self._draw()
            redirect_lines(None)
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
    """The lines of the block, each at most `width - 1` characters long, so that no line wraps."""
    share = done / total if total else 1.0
    filled = round(_BAR_CHARS * share)
    bar = f"[{'#' * filled}{'-' * (_BAR_CHARS - filled)}] {100 * share:3.0f} %"
    left = f" | {format_duration(seconds_left)} left" if seconds_left else ""
    margin = max([len(name) for name in lines] + [len(unit)])
    named = {unit: f"{done}/{total} {bar}{left}", **lines}
    return [f"{name.ljust(margin)}  {text}"[: width - 1] for name, text in named.items()]
