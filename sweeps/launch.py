"""Start the processes of a training, find them again, and leave none behind.

torchrun puts each worker into a session of its own, so a process group does not hold a whole trial, and a killed
torchrun leaves its workers. Every process of a trial therefore inherits a mark in its environment, by which also
another driver finds it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from sweeps.study_sections import LaunchConfig
from vsr_dist.core.config_io import read_yaml
from vsr_dist.core.errors import UserError

MARK = "VSR_DIST_TRIAL"
_PORT_OPTION = "--main_process_port"
_KILL_WAIT_S = 0.1
_KILL_LIMIT_S = 30.0


def launch_command(launch: LaunchConfig, port: int | None = None) -> list[str]:
    """The command up to the options of `vsr_dist.train`; `port` is where the trial's processes are to meet."""
    if launch.command:
        return list(launch.command)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch.config_file)]
    meeting = [] if port is None or _chooses_port(launch) else [_PORT_OPTION, str(port)]
    return [*accelerate, *meeting, *launch.args, "-m", "vsr_dist.train"]


def _chooses_port(launch: LaunchConfig) -> bool:
    """True if the options name a port, or the configuration leaves the choice of a free one to the launcher (0)."""
    if any(word.partition("=")[0] == _PORT_OPTION for word in launch.args):
        return True
    return read_yaml(Path(str(launch.config_file))).get("main_process_port") == 0


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mark_of(trial_dir: Path) -> str:
    """The mark of a trial's processes: where its folder really is."""
    return str(trial_dir.resolve())


def start_logged(
    command: Sequence[str], log_path: Path, mark: str, environment: Mapping[str, str], keep_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own; stdout and stderr are added to `log_path`.

    keep_fds: open files that the process inherits, and with them their locks.
    """
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, MARK: mark},
            start_new_session=True,  # A Ctrl-C on the terminal reaches the driver alone.
            pass_fds=keep_fds,
        )


def marked(mark: str) -> list[psutil.Process]:
    """Living processes of this user on this machine with the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def terminate_marked(mark: str) -> int:
    """Ask every process with the mark to end (SIGTERM); returns how many there were."""
    found = marked(mark)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    return len(found)


def kill_marked(mark: str) -> None:
    """Kill until none is left, for a process may start another one in the meantime.

    Raises UserError for processes that the system cannot kill, such as one that hangs in a driver call.
    """
    limit_s = time.monotonic() + _KILL_LIMIT_S
    while left := marked(mark):
        if time.monotonic() > limit_s:
            pids = ", ".join(str(process.pid) for process in left)
            raise UserError(f"processes {pids} of {mark} cannot be killed; end them, then start the study again")
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_KILL_WAIT_S)


def stop_marked(marks: Sequence[str], grace_s: float) -> None:
    """Ask all processes of several trials to end, and kill what is left after `grace_s`."""
    found = [process for mark in marks for process in marked(mark)]
    try:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(found, timeout=grace_s)
    finally:  # Also if a second Ctrl-C cuts the wait short.
        for mark in marks:
            kill_marked(mark)


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
