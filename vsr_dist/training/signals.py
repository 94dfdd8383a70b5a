"""SIGTERM, the signal of preemption and of `docker stop`, as a flag that the training loop asks for."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

# What `accelerate launch` and torchrun set for the processes that they start.
_LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
# prctl(2): the signal that the kernel sends to this process when its parent ends.
_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Remembers that SIGTERM came. The handler only sets a flag: the loop saves and stops between two steps."""

    def __init__(self) -> None:
        self._requested = False

    def listen(self) -> None:
        """Install the handler; call in the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)
        _hear_of_launchers_end()

    def __call__(self) -> bool:
        """True once the signal came."""
        return self._requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._requested = True


def _hear_of_launchers_end() -> None:
    """Get SIGTERM when the launcher that started this process ends, so that no orphan trains on.

    `accelerate launch` with one process dies of SIGTERM without passing it on, and no launcher can pass on SIGKILL.
    Only under a launcher: a training started from a shell may outlive the shell. Linux only; elsewhere nothing is done.
    """
    if sys.platform == "linux" and any(name in os.environ for name in _LAUNCHED):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
