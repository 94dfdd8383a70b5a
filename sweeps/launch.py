"""Run one trial's command with its output in a file, and leave no process of it behind.

torchrun puts each worker into a session of its own, so a process group does not hold a whole trial, and a killed
torchrun leaves its workers. Every process of a trial therefore inherits a mark in its environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from sweeps.study_config import LaunchConfig
from vsr_dist.core.errors import UserError

MARK = "VSR_DIST_TRIAL"
# Enough for processes that heed SIGTERM; the rest is killed.
GRACE_S = 15.0
_KILL_WAIT_S = 0.1
_KILL_LIMIT_S = 30.0


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit status, negative for a signal, or None if it was stopped at its time limit."""

    exit_status: int | None
    seconds: float


def launch_command(launch: LaunchConfig) -> list[str]:
    """The command up to the options of `vsr_dist.train`."""
    if launch.command:
        return list(launch.command)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch.config_file)]
    return [*accelerate, *launch.args, "-m", "vsr_dist.train"]


def mark_of(trial_dir: Path) -> str:
    """The mark of a trial's processes: where its folder really is."""
    return str(trial_dir.resolve())


def run_logged(
    command: Sequence[str], log_path: Path, mark: str, *, timeout_s: float | None, grace_s: float = GRACE_S
) -> Ending:
    """Run a command to its end or its time limit; stdout and stderr go to `log_path`.

    Whatever ends this call, a Ctrl-C included, no process that carries `mark` is left.
    """
    begin_s = time.monotonic()
    try:
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, MARK: mark},
                start_new_session=True,  # A Ctrl-C on the terminal reaches the driver alone.
            )
        status = _wait(process, timeout_s)
        seconds = time.monotonic() - begin_s
    finally:
        stop_marked(mark, grace_s)
    return Ending(status, seconds)


def stop_marked(mark: str, grace_s: float = GRACE_S) -> int:
    """Ask every process with the mark to end (SIGTERM), kill what is left, and return how many there were.

    Raises UserError for processes that the system cannot kill, such as one that hangs in a driver call.
    """
    found = _marked(mark)
    if not found:
        return 0
    try:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(found, timeout=grace_s)
    finally:  # Also if a second Ctrl-C cuts the wait short.
        _kill_marked(mark)
    return len(found)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, so that a scheduler's stop cleans up as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kill_marked(mark: str) -> None:
    """Kill until none is left; a process may have started another one in the meantime."""
    limit_s = time.monotonic() + _KILL_LIMIT_S
    while left := _marked(mark):
        if time.monotonic() > limit_s:
            pids = ", ".join(str(process.pid) for process in left)
            raise UserError(f"processes {pids} of {mark} cannot be killed; end them, then start the study again")
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_KILL_WAIT_S)


def _wait(process: subprocess.Popen[bytes], timeout_s: float | None) -> int | None:
    """Exit status, or None at the time limit."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _marked(mark: str) -> list[psutil.Process]:
    """Living processes of this user on this machine with the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
