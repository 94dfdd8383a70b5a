"""Follow the metrics of running trainings: report to the pruner, and see who is hopeless."""

from __future__ import annotations

import math
import os
from pathlib import Path

from sweeps.curves import read_rows
from sweeps.objective import objective_points, stop_reason
from sweeps.storage import Store
from sweeps.study_config import StudyConfig
from vsr_dist.training.tracking import METRICS_NAME


class Follower:
    """Reads one training's `metrics.jsonl` whenever it has changed."""

    def __init__(self, store: Store, number: int, run_dir: Path, *, reports: bool, stops: bool) -> None:
        """`reports`: tell intermediate values and prune; `stops`: heed the study's `stop_when` rules."""
        self._store, self._number, self._run_dir = store, number, run_dir
        self._reports, self._stops = reports, stops
        self._seen: tuple[float, int] | None = None
        # Optuna keeps the first value of a step, so a resumed training has nothing to add to earlier ones.
        self._last_step = max(store.trial(number).intermediate_values, default=-1) if reports else -1

    def look(self) -> str | None:
        """Why the training should be stopped as hopeless, or None. UserError if the file is not what it should be."""
        if not (self._reports or self._stops) or not self._has_changed():
            return None
        rows = read_rows(self._run_dir)
        config = self._store.config
        if self._stops and (reason := stop_reason(config.stop_when, rows)) is not None:
            return reason
        if self._reports:
            for step, value in objective_points(config.objective, rows):
                if step > self._last_step and math.isfinite(value):
                    self._last_step = step
                    if self._store.report(self._number, step, value):
                        return f"{config.pruner.kind} pruner: {config.objective.title} {value:.4g} at step {step}"
        return None

    def _has_changed(self) -> bool:
        try:
            status = os.stat(self._run_dir / METRICS_NAME)
        except FileNotFoundError:
            return False
        now = (status.st_mtime, status.st_size)
        changed, self._seen = now != self._seen, now
        return changed


def follower_of(store: Store, number: int, role: str, place: int, run_dir: Path) -> Follower:
    """The follower of a trial's training number `place`. Repeats run to their end; only first trainings are reported,
    for others have the same steps."""
    config: StudyConfig = store.config
    searched = role != "repeat"
    reports = searched and place == 0 and not config.is_multi_objective
    return Follower(store, number, run_dir, reports=reports, stops=searched and bool(config.stop_when))
