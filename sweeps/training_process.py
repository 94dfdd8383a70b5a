"""The processes of one training: started or adopted, watched without waiting, asked to end, else killed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sweeps.launch import kill_marked, mark_of, marked, start_logged, terminate_marked
from vsr_dist.run_dir import ENDED_NAME, SUMMARY_NAME
from vsr_dist.training.tracking import METRICS_NAME

Stop = Literal["time_limit", "stall", "pruned"]
# Looking for marked processes reads every process of the machine; the end of an own child is seen at once.
_SCAN_EVERY_S = 0.5
_SIGNS_OF_LIFE = (METRICS_NAME, ENDED_NAME, SUMMARY_NAME, "checkpoints")


@dataclass(frozen=True)
class Ending:
    """How a training's processes ended.

    Attributes:
        exit_status: of the command, negative for a signal; None for adopted processes, which are no children.
        seconds: that they ran, as far as this driver knows.
        stopped: why the driver stopped them, or None if they ended by themselves.
        had_to_kill: True if SIGTERM was not enough.
    """

    exit_status: int | None
    seconds: float
    stopped: Stop | None = None
    had_to_kill: bool = False


@dataclass(frozen=True)
class Limits:
    """When a training is stopped; None means never. See `StudyConfig`."""

    timeout_s: float | None
    stall_s: float | None
    grace_s: float


class TrainingProcess:
    """Watches what carries the mark of a trial. Call `poll` often: nothing here waits."""

    def __init__(self, run_dir: Path, trial_dir: Path, log_path: Path, limits: Limits) -> None:
        self.run_dir, self.log_path, self.limits = run_dir, log_path, limits
        self._mark = mark_of(trial_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._begin_s = self._next_scan_s = time.monotonic()
        self._deadline_s: float | None = None
        self._stopped: Stop | None = None
        self._pulse = _pulse(run_dir, log_path)
        self._pulse_s = self._begin_s

    def start(self, command: Sequence[str], environment: Mapping[str, str], keep_fds: Sequence[int]) -> None:
        """Start the command; without this call the object watches processes that run already."""
        self._process = start_logged(command, self.log_path, self._mark, environment, keep_fds)

    def stop(self, why: Stop) -> None:
        """Send SIGTERM; `poll` sees to the rest."""
        if self._deadline_s is None:
            self._stopped = why
            self._deadline_s = time.monotonic() + self.limits.grace_s
            terminate_marked(self._mark)

    def poll(self) -> Ending | None:
        """How it ended, or None while a process of it lives."""
        now_s = time.monotonic()
        if self._deadline_s is None:
            if not self._has_ended(now_s):
                self._stop_if_overdue(now_s)
                return None
            # What the command left behind, such as the other ranks of a launcher that was killed.
            if not terminate_marked(self._mark):
                return self._ending(now_s, had_to_kill=False)
            self._deadline_s = now_s + self.limits.grace_s
        if now_s < self._deadline_s:
            if now_s < self._next_scan_s:
                return None
            self._next_scan_s = now_s + _SCAN_EVERY_S / 5
            if marked(self._mark):
                return None
            return self._ending(now_s, had_to_kill=False)
        kill_marked(self._mark)
        return self._ending(now_s, had_to_kill=True)

    def _has_ended(self, now_s: float) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        if now_s < self._next_scan_s:
            return False
        self._next_scan_s = now_s + _SCAN_EVERY_S
        return not marked(self._mark)

    def _stop_if_overdue(self, now_s: float) -> None:
        limits = self.limits
        if limits.timeout_s is not None and now_s - self._begin_s > limits.timeout_s:
            self.stop("time_limit")
        elif limits.stall_s is not None and now_s - self._pulse_s > limits.stall_s:
            pulse = _pulse(self.run_dir, self.log_path)
            if pulse == self._pulse:
                self.stop("stall")
            else:
                self._pulse, self._pulse_s = pulse, now_s - max(0.0, time.time() - max(when for when, _ in pulse))

    def _ending(self, now_s: float, *, had_to_kill: bool) -> Ending:
        status = None if self._process is None else self._process.wait()
        return Ending(status, now_s - self._begin_s, self._stopped, had_to_kill)


def _pulse(run_dir: Path, log_path: Path) -> list[tuple[float, int]]:
    """(Time of change in seconds, bytes) of the files in which a living training leaves traces."""
    found = []
    for path in (log_path, *(run_dir / name for name in _SIGNS_OF_LIFE)):
        try:
            status = os.stat(path)
        except OSError:
            found.append((0.0, 0))
        else:
            found.append((status.st_mtime, status.st_size))
    return found


def pulse_of(run_dirs: Sequence[Path], log_path: Path) -> list[tuple[float, int]]:
    """The traces of all trainings of a trial, to see from another machine whether they go on."""
    return [trace for run_dir in run_dirs for trace in _pulse(run_dir, log_path)]
