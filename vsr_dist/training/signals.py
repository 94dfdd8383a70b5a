"""SIGTERM, the signal of preemption and of `docker stop`, as a flag that the training loop asks for."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Remembers that SIGTERM came. The handler only sets a flag: the loop saves and stops between two steps."""

    def __init__(self) -> None:
        self._requested = False

    def listen(self) -> None:
        """Install the handler; call in the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def __call__(self) -> bool:
        """True once the signal came."""
        return self._requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._requested = True
