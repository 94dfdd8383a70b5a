"""Terminal output of all packages: lines on stdout, and progress as a bar on a terminal or as lines in a log.

The module is here because `sharding` is the lowest package and imports no other; `vsr_dist.core.console` adds the
status display of training and is what `vsr_dist` and `sweeps` import from.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

LINE_EVERY_S = 5.0


class Progress:
    """Counts finished work out of `total` units (0 if unknown): a bar on a terminal, plain lines in a log.

    With a `verb`, such as "packed", a log gets a line with count, speed and time left every `LINE_EVERY_S` and at the
    end; without one, only what `note` prints. `start` units were done before. A disabled one (on ranks other than 0)
    prints nothing.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        verb: str | None = None,
        start: int = 0,
        enabled: bool = True,
        bar: bool = True,
    ) -> None:
        self._unit, self._verb, self._enabled = unit, verb, enabled
        self.total, self.done, self._start = total, start, start
        self._begin_s = self._line_at_s = time.monotonic()
        draws = enabled and bar and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total or None, desc=verb, initial=start, unit=unit, dynamic_ncols=True) if draws else None
        )

    @property
    def has_bar(self) -> bool:
        """True if a bar is drawn, on a terminal."""
        return self._bar is not None

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._verb is not None and time.monotonic() - self._line_at_s >= LINE_EVERY_S:
            self._print_line()

    def note(self, text: str) -> None:
        """Print a line above the bar, or in a log a plain line that ends with the time left."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            return
        say(f"{text} | {format_duration(self.seconds_left())} left")

    def seconds_left(self) -> float:
        """Estimate from the mean speed since the start of this process; 0 if it is unknown."""
        done = self.done - self._start
        if not done or not self.total:
            return 0.0
        return (time.monotonic() - self._begin_s) / done * (self.total - self.done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._verb is not None and kind is None:
            self._print_line()

    def _print_line(self) -> None:
        self._line_at_s = time.monotonic()
        if not self._enabled:
            return
        rate = (self.done - self._start) / max(self._line_at_s - self._begin_s, 1e-6)
        total = f" of {self.total}" if self.total else ""
        left_s = self.seconds_left()
        left = f", {format_duration(left_s)} left" if left_s else ""
        say(f"{self._verb} {self.done}{total} {self._unit}s, {rate:.1f} {self._unit}s/s{left}")


# At most one writer: it draws at the bottom of the terminal and prints lines above its drawing.
_writers: list[Callable[[str], None]] = []


def say(text: str) -> None:
    """Print a line (or several) on stdout and flush; above anything that is drawn at the bottom of the terminal."""
    if _writers:
        _writers[-1](text)
        return
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def redirect_lines(writer: Callable[[str], None] | None) -> None:
    """Send lines to `writer`, which draws at the bottom of the terminal, instead of stdout; None undoes it."""
    _writers.clear()
    if writer is not None:
        _writers.append(writer)


def format_duration(seconds: float) -> str:
    """`75 s` -> `1m15s`; with hours, and without seconds, from 3,600 s on."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
