"""What became of a trial, from the files that its trainings left."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sweeps.blame import why_no_summary
from sweeps.curves import read_rows
from sweeps.objective import constraint_values, objective_value
from sweeps.study_config import StudyConfig
from sweeps.training_process import Ending
from vsr_dist.core.errors import UserError
from vsr_dist.run_dir import SUMMARY_NAME, read_ended

Outcome = Literal["complete", "pruned", "failed"]
# Of a constraint that a pruned training gives no value of: violated, by as much as makes no difference to the others'.
UNKNOWN_EXCESS = 1.0
_FACTS = ("drift/", "val/", "val_bicubic/")


@dataclass(frozen=True)
class Verdict:
    """How a training, or a whole trial, came out.

    Attributes:
        outcome: `complete` has values, `pruned` was hopeless and stopped, `failed` has a reason only.
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
    """Decide on one training by its `summary.json`: a finished run with finite objectives is a result.

    The exit status does not decide: a run that wrote its summary has finished, even if its launcher then stumbled.

    pruned: why it was stopped as hopeless, if it was.
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
    """True if a training is over for good, so that resuming it would not change anything."""
    if (run_dir / SUMMARY_NAME).is_file():
        return True
    ended = read_ended(run_dir)
    return ended is not None and ended["exit_reason"] == "failed"


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """A trial from its trainings with several seeds: mean values, worst constraints, mean facts.

    Pruned or failed as soon as one training is, for a mean over fewer seeds could not be compared.
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
    if ending.had_to_kill:
        reason += "; it had to be killed before it had saved"
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
