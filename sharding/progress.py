"""How far a long job is, in frames: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

LINE_EVERY_S = 5.0


class Progress:
    """Frames done out of `num_frames` (None if it is not known), with frames/s and the time left.

    `verb` is what is done to them, such as "packed". On a terminal the bar is on stderr; else lines are on stdout,
    the last one when all is done.
    """

    def __init__(self, verb: str, num_frames: int | None) -> None:
        self._verb = verb
        self._num_frames = num_frames
        self._done = 0
        self._begin_s = self._said_s = time.monotonic()
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=num_frames, desc=verb, unit="frame", dynamic_ncols=True) if on_terminal else None

    def show(self, num_done: int) -> None:
        """Say that `num_done` frames are done in all."""
        step, self._done = num_done - self._done, num_done
        if self._bar is not None:
            self._bar.update(step)
            return
        now_s = time.monotonic()
        if now_s - self._said_s >= LINE_EVERY_S:
            self._said_s = now_s
            self._say()

    def _say(self) -> None:
        elapsed_s = max(time.monotonic() - self._begin_s, 1e-6)
        rate = self._done / elapsed_s
        total = "" if self._num_frames is None else f" of {self._num_frames}"
        left = ""
        if self._num_frames is not None and 0 < self._done < self._num_frames:
            left = f", {format_duration((self._num_frames - self._done) / rate)} left"
        say(f"{self._verb} {self._done}{total} frames, {rate:.1f} frames/s{left}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._say()


# At most one: what draws at the bottom of the terminal, and prints above that.
_above: list[Callable[[str], None]] = []


def say(text: str) -> None:
    """One line (or block) on stdout, at once; above whatever is drawn at the bottom of the terminal."""
    if _above:
        _above[-1](text)
        return
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_above(writer: Callable[[str], None] | None) -> None:
    """Give what is said to `writer`, which draws at the bottom of the terminal; None puts that back."""
    _above.clear()
    if writer is not None:
        _above.append(writer)


def format_duration(seconds: float) -> str:
    """`75 s` -> `1m15s`; hours are added from 3,600 s on."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
