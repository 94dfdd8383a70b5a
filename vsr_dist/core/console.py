"""What a person reads while a command works: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from sharding.progress import format_duration, say, write_above

__all__ = ["Progress", "format_duration", "say", "write_above"]


class Progress:
    """Counts work of a known total. On a terminal it draws a bar; elsewhere `note` prints plain lines.

    A disabled one (on ranks other than 0) does nothing.
    """

    def __init__(self, total: int, unit: str, *, start: int = 0, enabled: bool = True, bar: bool = True) -> None:
        self._enabled = enabled
        self.total, self.done, self._start = total, start, start
        self._begin_s = time.monotonic()
        on_terminal = enabled and bar and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, unit=unit, dynamic_ncols=True) if on_terminal else None

    @property
    def has_bar(self) -> bool:
        """True if it draws, on a terminal."""
        return self._bar is not None

    def advance(self, count: int = 1) -> None:
        """Say that `count` more units are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)

    def note(self, text: str) -> None:
        """A line above the bar, or a plain line ending with the time left."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            return
        say(f"{text} | {format_duration(self.seconds_left())} left")

    def seconds_left(self) -> float:
        """Estimate from the mean speed since the start of this process."""
        done = self.done - self._start
        if not done:
            return 0.0
        return (time.monotonic() - self._begin_s) / done * (self.total - self.done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
