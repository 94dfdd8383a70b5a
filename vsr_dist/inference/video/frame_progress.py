"""How far an upscaling job is, over all its processes: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from vsr_dist.core.console import Progress
from vsr_dist.inference.video.work_folder import Part

LINE_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0


def format_rate(frames_per_s: float) -> str:
    """Such as `12.3 frames/s`, with two digits below one."""
    return f"{frames_per_s:.{1 if frames_per_s >= 1 else 2}f} frames/s"


class FrameProgress:
    """Counts this process's frames as they are encoded, and those of the other parts as their segments are finished.

    `verb` is what is done to them, such as "upscaled"; `done`: what an earlier start has done of this part.
    """

    def __init__(self, verb: str, total: int, done: int, others: Sequence[Part], *, enabled: bool) -> None:
        self._verb, self._others = verb, others
        self._own, self._enabled = done, enabled
        self._lock = threading.Lock()
        shown = done + self._look() if enabled else done
        self._first = shown
        self._progress = Progress(total, "frame", start=shown, enabled=enabled)
        self._began_s = self._said_s = self._looked_s = time.monotonic()

    def _look(self) -> int:
        return sum(part.look()[0] for part in self._others)

    def advance(self, count: int = 1) -> None:
        """`count` more frames of this process are done."""
        if not self._enabled:
            return
        with self._lock:
            self._own += count
            now_s = time.monotonic()
            shown = self._progress.done + count
            if self._others and now_s - self._looked_s >= _LOOK_EVERY_S:
                self._looked_s = now_s
                shown = max(shown, self._own + self._look())
            # A container may state fewer frames than there are.
            self._progress.total = max(self._progress.total, shown)
            self._progress.advance(shown - self._progress.done)
            if now_s - self._said_s >= LINE_EVERY_S:
                self._said_s = now_s
                self._say(now_s)

    def _say(self, now_s: float) -> None:
        # On a terminal the bar says it.
        if self._progress.has_bar:
            return
        done, total = self._progress.done, self._progress.total
        rate = (done - self._first) / max(now_s - self._began_s, 1e-6)
        self._progress.note(f"{self._verb} {done} of {total} frames, {format_rate(rate)}")

    def __enter__(self) -> FrameProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
