"""The result of a training and of a trial, from the files that trainings leave, and why there is none."""

from __future__ import annotations

import json
import math
import re
import signal
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sweeps.config import StudyConfig
from sweeps.objective import constraint_values, objective_value, read_rows
from vsr_dist.core.errors import UserError
from vsr_dist.run_dir import SUMMARY_NAME, read_ended

Stop = Literal["time_limit", "stall", "pruned"]
Outcome = Literal["complete", "pruned", "failed"]
# For a constraint that a pruned training has no value of: violated.
UNKNOWN_EXCESS = 1.0
_FACTS = ("drift/", "val/", "val_bicubic/")
_TAIL_BYTES = 64_000
_MAX_REASON_CHARS = 400
_RANK_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s*")
# `error: ...` is the last line of our commands at a user's mistake; the other ends a Python traceback.
_OWN_ERROR = re.compile(r"^error: ")
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b(?::|$)")
# Lines that launchers add below the cause.
_LAUNCHER_NOISE = ("ChildFailedError", "CalledProcessError", "SignalException")
# torch on a GPU, torch on a CPU, Python, C++.
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: |not enough memory|_ArrayMemoryError|^MemoryError"
    r"|std::bad_alloc|Cannot allocate memory"
)
# torchrun's report of the process that failed first.
_ROOT_CAUSE = re.compile(r"Root Cause \(first observed failure\).*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", re.DOTALL)


@dataclass(frozen=True)
class Ending:
    """How a training's processes ended.

    Attributes:
        exit_status: of the command, negative for a signal; None if an earlier attempt of the trial ran it.
        seconds: that they ran.
        stopped: why the driver stopped them, or None if they ended by themselves.
    """

    exit_status: int | None
    seconds: float
    stopped: Stop | None = None


@dataclass(frozen=True)
class Verdict:
    """The result of a training, or of a whole trial.

    Attributes:
        outcome: `complete` has values; `pruned` was stopped by the pruner or a stop rule; `failed` has a reason only.
        values: by objective.
        constraints: by name; feasible at 0 and below.
        reason: why it is not complete.
        facts: for the storage, JSON values.
    """

    outcome: Outcome
    values: tuple[float, ...] = ()
    constraints: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def judge(config: StudyConfig, run_dir: Path, ending: Ending, log_path: Path, pruned: str = "") -> Verdict:
    """Judge one training by its `summary.json`: a finished run with finite objectives is complete.

    The exit status does not decide: a run that wrote its summary has finished, even if its launcher then failed.

    pruned: why the pruner or a stop rule stopped it, if one did.
    """
    summary = run_dir / SUMMARY_NAME
    if not summary.is_file():
        if pruned:
            return _pruned(config, run_dir, ending, pruned)
        return Verdict("failed", reason=why_no_summary(run_dir, ending, log_path))
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
        metrics, exit_reason = dict(found["metrics"]), found["exit_reason"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{SUMMARY_NAME} is not what a training run writes ({type(error).__name__}: {error})"
        return Verdict("failed", reason=reason)
    facts = {name: value for name, value in metrics.items() if name.startswith(_FACTS) and _is_finite(value)}
    facts |= {name: found[name] for name in ("mlflow_run_id", "clips_per_s") if name in found}
    if exit_reason != "finished":
        return Verdict("failed", reason=f"the run ended early: {exit_reason}", facts=facts)
    try:
        rows = read_rows(run_dir)
        values = tuple(objective_value(objective, rows) for objective in config.objectives)
        constraints = constraint_values(config.constraints, rows)
    except UserError as error:
        return Verdict("failed", reason=str(error), facts=facts)
    return Verdict("complete", values, constraints, facts=facts)


def has_result(run_dir: Path) -> bool:
    """True if a training has ended and resuming it would change nothing."""
    if (run_dir / SUMMARY_NAME).is_file():
        return True
    ended = read_ended(run_dir)
    return ended is not None and ended["exit_reason"] == "failed"


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """A trial's verdict from its trainings with several seeds: mean values, worst constraints, mean facts.

    Pruned or failed if one training is: a mean over fewer seeds could not be compared.
    """
    facts = _mean_facts([verdict.facts for verdict in verdicts])
    names = {name for verdict in verdicts for name in verdict.constraints}
    worst = {name: max(v.constraints[name] for v in verdicts if name in v.constraints) for name in sorted(names)}
    for place, verdict in enumerate(verdicts):
        if verdict.outcome != "complete":
            which = f"training {place + 1}: " if len(verdicts) > 1 else ""
            return Verdict(verdict.outcome, constraints=worst, reason=which + verdict.reason, facts=facts)
    values = tuple(statistics.fmean(each) for each in zip(*(v.values for v in verdicts), strict=True))
    return Verdict("complete", values, worst, facts=facts)


def _pruned(config: StudyConfig, run_dir: Path, ending: Ending, reason: str) -> Verdict:
    try:
        rows = read_rows(run_dir)
    except UserError as error:
        return Verdict("failed", reason=str(error))
    known = constraint_values(config.constraints, rows, partial=True)
    constraints = {c.name: known.get(c.name, UNKNOWN_EXCESS) for c in config.constraints}
    facts = {name: value for name, value in _last_values(rows).items() if _is_finite(value)}
    if ending.exit_status == -signal.SIGKILL:
        reason += "; it was killed before it saved a checkpoint, see grace_s"
    return Verdict("pruned", constraints=constraints, reason=reason, facts=facts)


def _last_values(rows: Sequence[tuple[int, Any]]) -> dict[str, float]:
    """The newest value of each validation metric."""
    return {name: value for _, row in rows for name, value in row.items() if name.startswith(_FACTS)}


def _mean_facts(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of the numbers that every training has; the ids of tracked runs as a list."""
    shared = set.intersection(*(set(each) for each in facts)) if facts else set()
    means: dict[str, Any] = {
        name: statistics.fmean(each[name] for each in facts)
        for name in sorted(shared)
        if all(_is_finite(each[name]) for each in facts)
    }
    return means | {"mlflow_run_ids": [each["mlflow_run_id"] for each in facts if each.get("mlflow_run_id")]}


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def why_no_summary(run_dir: Path, ending: Ending, log_path: Path) -> str:
    """Why a training failed, on one line: a limit of the study, else memory, else what `ended.json` says, else a
    signal, else the last error in the log."""
    if ending.stopped == "time_limit":
        return f"stopped after {ending.seconds:.0f} s by the study's trial_timeout_s"
    if ending.stopped == "stall":
        return f"stopped: no new metrics or output for stall_timeout_s ({ending.seconds:.0f} s in all)"
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
    status = "unknown" if ending.exit_status is None else ending.exit_status
    return f"{last_error(log_path) or 'no output'} (exit status {status})"


def last_error(log_path: Path) -> str:
    """The line of a log that explains best why a command failed, or an empty string for an empty log.

    Our own `error: ...` line if there is one, else the last exception, else the last line.
    """
    lines = _lines(_tail(log_path))
    for pattern in (_OWN_ERROR, _EXCEPTION):
        hits = [line for line in lines if pattern.match(line) and not any(word in line for word in _LAUNCHER_NOISE)]
        if hits:
            return hits[-1][:_MAX_REASON_CHARS]
    return lines[-1][:_MAX_REASON_CHARS] if lines else ""


def _memory_error(log: str) -> str:
    """The line about running out of memory, or an empty string."""
    hits = [line for line in _lines(log) if _OUT_OF_MEMORY.search(line)]
    return hits[-1][:_MAX_REASON_CHARS] if hits else ""


def _killed(log: str, ending: Ending) -> str:
    """Which process a signal ended first, or an empty string."""
    found = _ROOT_CAUSE.findall(log)
    who, status = ("the training", ending.exit_status) if not found else (f"rank {found[-1][0]}", int(found[-1][1]))
    if status is None or status >= 0:
        return ""
    if -status == signal.SIGKILL:
        return f"{who} was killed (exit status -9), perhaps because the system ran out of memory, see dmesg"
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
