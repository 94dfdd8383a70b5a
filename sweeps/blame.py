"""Why a training left no result: its own limits, memory, another rank, or what its log says last."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from sweeps.training_process import Ending
from vsr_dist.run_dir import read_ended

_TAIL_BYTES = 64_000
_MAX_REASON_CHARS = 400
_RANK_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s*")
# `error: ...` is how our commands end for a user's mistake; the other is the last line of a Python traceback.
_OWN_ERROR = re.compile(r"^error: ")
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b(?::|$)")
# What the launchers add below the cause.
_LAUNCHER_NOISE = ("ChildFailedError", "CalledProcessError", "SignalException")
# torch on a GPU, torch on a CPU, Python, C++.
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: |not enough memory|_ArrayMemoryError|^MemoryError"
    r"|std::bad_alloc|Cannot allocate memory"
)
# torchrun's report of the process that died first.
_ROOT_CAUSE = re.compile(r"Root Cause \(first observed failure\).*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", re.DOTALL)


def why_no_summary(run_dir: Path, ending: Ending, log_path: Path) -> str:
    """One line: what the driver did, else memory, else what the run noted at its end, else a killed process, else the
    log's last error."""
    if ending.stopped == "time_limit":
        return f"stopped after {ending.seconds:.0f} s, the study's trial_timeout_s"
    if ending.stopped == "stall":
        return f"stopped: nothing new in its metrics or output for stall_timeout_s ({ending.seconds:.0f} s in all)"
    log = _tail(log_path)
    cause = _memory_error(log)
    if cause:
        return f"out of memory: {cause}"
    killed = _killed(log, ending)
    noted = read_ended(run_dir)
    if noted is not None and noted["exit_reason"] not in ("finished", "lost_rank"):
        message = str(noted.get("message", "")).partition("\n")[0][:_MAX_REASON_CHARS]
        kind = "diverged" if noted.get("error") == "NonFiniteError" else noted["exit_reason"]
        return f"the run ended early: {kind}{': ' if message else ''}{message}"
    if killed:
        return killed
    status = "unknown, for an earlier driver started it" if ending.exit_status is None else ending.exit_status
    return f"{last_error(log_path) or 'no output'} (exit status {status})"


def last_error(log_path: Path) -> str:
    """The line of a log that says best why a command failed, or an empty string for an empty log.

    Our own `error: ...` line if there is one, else the last exception, else the last line.
    """
    lines = _lines(_tail(log_path))
    for pattern in (_OWN_ERROR, _EXCEPTION):
        hits = [line for line in lines if pattern.match(line) and not any(word in line for word in _LAUNCHER_NOISE)]
        if hits:
            return hits[-1][:_MAX_REASON_CHARS]
    return lines[-1][:_MAX_REASON_CHARS] if lines else ""


def _memory_error(log: str) -> str:
    """The line that says that memory ran out, or an empty string."""
    hits = [line for line in _lines(log) if _OUT_OF_MEMORY.search(line)]
    return hits[-1][:_MAX_REASON_CHARS] if hits else ""


def _killed(log: str, ending: Ending) -> str:
    """Which process a signal ended first, or an empty string; of SIGKILL, what mostly sends it."""
    found = _ROOT_CAUSE.findall(log)
    who, status = ("the training", ending.exit_status) if not found else (f"rank {found[-1][0]}", int(found[-1][1]))
    if status is None or status >= 0:
        return ""
    if -status == signal.SIGKILL:
        return f"{who} was killed (exit status -9): by hand, or by the system for want of memory, see dmesg"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "an unknown signal"
    return f"{who} was ended by {name} (exit status {status})"


def _lines(text: str) -> list[str]:
    lines = (_RANK_PREFIX.sub("", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _tail(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")
