"""Run one command so that no process of it outlives this one or the driver.

    python supervisor.py LOCK GRACE_S PARENT_PID COMMAND...

A launcher that dies leaves its ranks behind: torchrun starts each in a session of its own, and `accelerate launch` ends
at SIGTERM without ending its training. On Linux this process adopts them (PR_SET_CHILD_SUBREAPER). It stops every
process below it when the command ends, when it gets SIGTERM, and when its parent, the driver, dies
(PR_SET_PDEATHSIG; elsewhere it looks for its parent). Processes get SIGTERM, and SIGKILL after GRACE_S seconds or at a
second SIGTERM. It holds LOCK meanwhile, so a retry starts only after all processes of the earlier attempt have ended.
It exits as the command did. It imports nothing of the project: it is started once per training.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_POLL_S = 0.05
_KILL_LIMIT_S = 30.0
_CANNOT_START = 127


class _StopRequests:
    """How many SIGTERMs came, and whether the parent lives."""

    def __init__(self, parent_pid: int) -> None:
        self._parent_pid = parent_pid
        self.count = 0
        signal.signal(signal.SIGTERM, self._on_sigterm)
        # Only wakes this process up. It may come several times: the kernel sends it whenever a thread of a dying parent
        # hands its children over to another thread.
        signal.signal(signal.SIGHUP, lambda number, frame: None)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)

    def _on_sigterm(self, number: int, frame: object) -> None:
        self.count += 1

    def is_stopping(self) -> bool:
        """True once this process should end."""
        return self.count > 0 or os.getppid() != self._parent_pid


def main(argv: Sequence[str]) -> int:
    """See the module's text; returns the exit status, or ends by the signal that ended the command."""
    lock_path, grace_s, parent_pid, *command = argv
    requests = _StopRequests(int(parent_pid))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with open(lock_path, "a", encoding="ascii") as lock:
        while not _try_lock(lock.fileno()):
            if requests.is_stopping():
                return 128 + signal.SIGTERM
            time.sleep(_POLL_S)
        if requests.is_stopping():
            return 128 + signal.SIGTERM
        try:
            # This process has one thread, so preexec_fn is safe.
            process = subprocess.Popen(command, preexec_fn=_die_with_supervisor)  # noqa: PLW1509
        except OSError as error:
            print(f"error: {command[0]} cannot be started: {error}", file=sys.stderr, flush=True)  # noqa: T201
            return _CANNOT_START
        while process.poll() is None and not requests.is_stopping():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2 * _POLL_S)
        _end_descendants(process, requests, float(grace_s))
    if process.returncode is None:
        return 1
    if process.returncode < 0:
        # SIGKILL and SIGSTOP cannot be reset, and need not be.
        with suppress(OSError):
            signal.signal(-process.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -process.returncode)
    return process.returncode


def _end_descendants(process: subprocess.Popen[bytes], requests: _StopRequests, grace_s: float) -> None:
    begin_s, num_before = time.monotonic(), requests.count
    _send(signal.SIGTERM)
    while _descendants() and time.monotonic() - begin_s < grace_s and requests.count <= max(num_before, 1):
        process.poll()
        time.sleep(_POLL_S)
    limit_s = time.monotonic() + _KILL_LIMIT_S
    while _descendants():  # A process may start another one meanwhile.
        _send(signal.SIGKILL)
        process.poll()
        if time.monotonic() > limit_s:
            pids = ", ".join(str(found.pid) for found in _descendants())
            print(f"error: processes {pids} cannot be killed", file=sys.stderr, flush=True)  # noqa: T201
            break
        time.sleep(_POLL_S)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)


def _descendants() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _send(number: int) -> None:
    for process in _descendants():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _die_with_supervisor() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _LIBC.prctl(option, value, 0, 0, 0)


_LIBC = ctypes.CDLL(None)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
