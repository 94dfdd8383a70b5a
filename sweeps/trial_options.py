"""What the training of a trial is told: its overrides, and nothing of the study's storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from sweeps.space import Parameters, as_override
from sweeps.storage import REPEAT_OF, SEEDS, role_of
from sweeps.study_config import StudyConfig
from sweeps.tracking_overrides import tracking_overrides


@dataclass(frozen=True)
class TrialPlan:
    """A trial as its driver runs it.

    Attributes:
        number: in the storage.
        parameters: sampled or given values, by configuration path.
        role: `search`, `start` or `repeat`.
        seeds: of its trainings; empty for the one that the parameters or the base name.
        run_dirs: of its trainings.
        repeat_of: the trial that it repeats.
    """

    number: int
    parameters: Parameters
    role: str
    seeds: tuple[int, ...]
    run_dirs: tuple[Path, ...]
    repeat_of: int | None = None


def plan_of(config: StudyConfig, trial: FrozenTrial, parameters: Parameters) -> TrialPlan:
    """The plan of a running trial, from what the storage knows of it."""
    seeds = tuple(trial.user_attrs.get(SEEDS, ()))
    run_dirs = tuple(config.run_dirs(trial.number, max(len(seeds), 1)))
    return TrialPlan(trial.number, parameters, role_of(trial), seeds, run_dirs, trial.user_attrs.get(REPEAT_OF))


def training_options(config: StudyConfig, plan: TrialPlan, place: int) -> list[str]:
    """Options of `vsr_dist.train` for a trial's training number `place`.

    Overrides are, in order: the study's own, the sampled values, and what tells the trainings apart. Always
    `--resume auto`, which starts where there is no checkpoint.
    """
    several = len(plan.run_dirs) > 1
    name = f"{config.name}-trial-{plan.number:04d}" + (f"-seed-{place}" if several else "")
    tags: dict[str, Any] = {"role": plan.role}
    if plan.repeat_of is not None:
        tags["repeat_of"] = plan.repeat_of
    own: dict[str, Any] = {"name": name, "run_dir": str(plan.run_dirs[place])}
    if _is_seeded(config, plan):
        own["seed"] = tags["seed"] = plan.seeds[place]
    overrides = [
        *config.set,
        *_overrides(plan.parameters),
        *_overrides(own),
        *tracking_overrides(config, plan.number, plan.parameters),
        *_overrides({f"tracking.tags.{key}": str(value) for key, value in tags.items()}),
    ]
    options = ["--config", config.base, *(part for override in overrides for part in ("--set", override))]
    return [*options, "--resume", "auto"]


def _is_seeded(config: StudyConfig, plan: TrialPlan) -> bool:
    """Whether the driver sets the seed; a study may vary or fix it instead."""
    return bool(plan.seeds) and "seed" not in config.space


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [as_override(path, value) for path, value in values.items()]
