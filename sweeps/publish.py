"""The report's way out: onto disk, and into MLflow as a run of the study's own, if the base configuration tracks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from sweeps.findings import Findings
from sweeps.report import ReportFiles, write_report
from sweeps.storage import load_trials
from sweeps.study_config import StudyConfig
from vsr_dist.config import load_config
from vsr_dist.core.console import say
from vsr_dist.core.errors import UserError
from vsr_dist.training.tracked_runs import log_own_run

STUDY_KIND = "study"


def publish_report(config: StudyConfig) -> tuple[ReportFiles, str | None]:
    """Write the report, and bring it to MLflow; its files, and the id of the study's run there.

    None without tracking, or, with a warning on stdout, if the server did not take it.
    """
    files = write_report(config)
    tracking = load_config(Path(config.base), config.set).tracking
    if not tracking.mlflow:
        return files, None
    trials = load_trials(config)
    try:
        run_id = log_own_run(
            tracking,
            config.directory,
            files.all,
            name=f"study {config.name}",
            token=study_token(config, trials),
            tags={**tracking.tags, **study_tags(Findings(config, trials))},
            source="vsr-dist study",
        )
    except UserError as error:
        say(f"warning: {error}")
        return files, None
    return files, run_id


def study_tags(findings: Findings) -> dict[str, str]:
    """Tags of the study's run: what it is, and how far it got."""
    best, config = findings.best, findings.config
    tags = {
        "study": config.name,
        "kind": STUDY_KIND,
        "trials": str(len(findings.trials)),
        "trials_with_result": str(len(findings.in_state(TrialState.COMPLETE))),
    }
    if best is not None and not config.is_multi_objective:
        tags |= {"best_trial": str(best.number), "best_value": f"{best.values[0]:.6g}"}
    return tags


def study_token(config: StudyConfig, trials: Sequence[FrozenTrial]) -> str:
    """The same on every machine that shares the storage, and another for a later study with the same name."""
    begin = trials[0].datetime_start
    return f"study-{config.name}-{begin.isoformat() if begin else ''}"
