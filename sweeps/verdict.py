"""What became of a trial, from the files that its training run left."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.launch import Ending
from vsr_dist.core.errors import nearest_hint
from vsr_dist.run_dir import SUMMARY_NAME, read_ended

_TAIL_BYTES = 64_000
_MAX_REASON_CHARS = 400
_RANK_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s*")
# `error: ...` is how our commands end for a user's mistake; the other is the last line of a Python traceback.
_OWN_ERROR = re.compile(r"^error: ")
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b(?::|$)")
# What the launchers add below the cause.
_LAUNCHER_NOISE = ("ChildFailedError", "CalledProcessError", "SignalException")


@dataclass(frozen=True)
class Verdict:
    """The objective of a trial, or None and the reason why there is none; and facts for the storage."""

    value: float | None
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def judge(run_dir: Path, metric: str, ending: Ending, log_path: Path) -> Verdict:
    """Decide by `summary.json`: a finite `metric` in a finished run's summary is a result, anything else is not.

    The exit status does not decide: a run that wrote its summary has finished, even if its launcher then
    stumbled.
    """
    path = run_dir / SUMMARY_NAME
    if not path.is_file():
        return Verdict(None, _why_no_summary(run_dir, ending, log_path))
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        metrics = dict(summary["metrics"])
        exit_reason = summary["exit_reason"]
    except (ValueError, KeyError, TypeError) as error:
        return Verdict(None, f"{SUMMARY_NAME} is not what a training run writes ({type(error).__name__}: {error})")
    facts = {name: value for name, value in metrics.items() if name.startswith("drift/")}
    facts |= {name: summary[name] for name in ("mlflow_run_id", "clips_per_s") if name in summary}
    if exit_reason != "finished":
        return Verdict(None, f"the run ended early: {exit_reason}", facts)
    if metric not in metrics:
        return Verdict(None, f"the summary has no metric {metric}{nearest_hint(metric, metrics)}", facts)
    value = metrics[metric]
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return Verdict(None, f"{metric} is {value}; expected a finite number", facts)
    return Verdict(float(value), facts=facts)


def last_error(log_path: Path) -> str:
    """The line of a log that says best why a command failed, or an empty string for an empty log.

    Our own `error: ...` line if there is one, else the last exception, else the last line.
    """
    lines = [_RANK_PREFIX.sub("", line).strip() for line in _tail(log_path).splitlines()]
    lines = [line for line in lines if line]
    for pattern in (_OWN_ERROR, _EXCEPTION):
        hits = [line for line in lines if pattern.match(line) and not any(word in line for word in _LAUNCHER_NOISE)]
        if hits:
            return hits[-1][:_MAX_REASON_CHARS]
    return lines[-1][:_MAX_REASON_CHARS] if lines else ""


def _why_no_summary(run_dir: Path, ending: Ending, log_path: Path) -> str:
    """What stopped the trial: its own time limit, what the run noted at its end, or else what its log says last."""
    if ending.exit_status is None:
        return f"stopped after {ending.seconds:.0f} s, the study's trial_timeout_s"
    noted = read_ended(run_dir)
    if noted is not None and noted["exit_reason"] != "finished":
        message = str(noted.get("message", ""))[:_MAX_REASON_CHARS]
        return f"the run ended early: {noted['exit_reason']}{': ' if message else ''}{message}"
    cause = last_error(log_path) or "no output"
    return f"{cause} (exit status {ending.exit_status})"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")
