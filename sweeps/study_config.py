"""The configuration of a study: strict YAML -> a frozen `StudyConfig`, with every fault in one error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.objective import Constraint, ObjectiveConfig, StopRule
from sweeps.space import Dimension, is_driver_key, parse_space
from sweeps.study_sections import LaunchConfig, PrunerConfig, RepeatConfig, SamplerConfig
from vsr_dist.core.config_io import (
    Tree,
    apply_overrides,
    field_types,
    key_faults,
    parse_section,
    raise_faults,
    read_yaml,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Beginnings of a storage: what follows is Optuna's or the backend's own affair.
STORAGE_KINDS = ("sqlite:///", "postgresql+psycopg://", "journal:", "grpc://")
_AT_LEAST_ONE = ("num_trials", "workers", "seeds_per_trial")
_ABOVE_ZERO = ("trial_timeout_s", "time_limit_s", "stall_timeout_s", "lease_s")


@dataclass(frozen=True)
class StudyConfig:
    """A study. Relative paths are relative to the current directory.

    Attributes:
        name: of the study; trials are named after it.
        base: YAML file of the training configuration that trials vary.
        study_dir: folder of the study; holds the storage, a folder per trial, and the report.
        launch: how a trial is started.
        space: what is tried, by configuration path.
        set: overrides `PATH=VALUE` that every trial gets, e.g. a shorter training.
        num_trials: trials in all, over every run of every driver, without repeats. Interrupted ones are not counted.
        seed: of the sampler.
        objectives: what a trial is judged by; `objective: ...` in the file is short for one. Several make a
            multi-objective study, which cannot be pruned.
        constraints: what a trial must keep to be feasible.
        stop_when: rules that end a hopeless trial early.
        storage: Optuna storage: `sqlite:///FILE`, `postgresql+psycopg://USER@HOST/DATABASE`, `journal:FILE` or
            `grpc://HOST:PORT`; empty means the journal file `<study_dir>/journal.log`.
        sampler: who chooses the values.
        pruner: which trials end early.
        start: values of the first trials, by configuration path; what a mapping leaves out keeps the base's value, so
            `{}` is the base itself.
        warm_start: YAML files of other studies, whose finished trials the sampler learns from.
        seeds_per_trial: trainings per trial, one after another, with the seeds of the base, the base + 1, ...
        repeat: trainings with fresh seeds after the search.
        workers: trials at a time of one driver.
        time_limit_s: a run of the driver begins no trial after so long; empty means no limit.
        trial_timeout_s: a training that runs longer is stopped and counts as failed; empty means no limit.
        stall_timeout_s: a training that has written nothing for so long is stopped and counts as failed; must exceed
            its start and the time between two log lines. Empty means no limit.
        grace_s: time that a stopped training has to save and end by itself before it is killed.
        lease_s: a driver on another machine that has not renewed its claim on a trial for so long is taken for dead.
        max_retries: times that a trial whose driver and processes died goes on from its last checkpoint.
    """

    name: str
    base: str
    study_dir: str
    launch: LaunchConfig
    space: dict[str, Dimension]
    set: tuple[str, ...] = ()
    num_trials: int = 20
    seed: int = 0
    objectives: tuple[ObjectiveConfig, ...] = field(default_factory=lambda: (ObjectiveConfig(),))
    constraints: tuple[Constraint, ...] = ()
    stop_when: tuple[StopRule, ...] = ()
    storage: str | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    start: tuple[dict[str, Any], ...] = ()
    warm_start: tuple[str, ...] = ()
    seeds_per_trial: int = 1
    repeat: RepeatConfig = field(default_factory=RepeatConfig)
    workers: int = 1
    time_limit_s: float | None = None
    trial_timeout_s: float | None = None
    stall_timeout_s: float | None = 1800.0
    grace_s: float = 30.0
    lease_s: float = 60.0
    max_retries: int = 2

    @property
    def objective(self) -> ObjectiveConfig:
        """The objective, or the first of several."""
        return self.objectives[0]

    @property
    def is_multi_objective(self) -> bool:
        """True if there are several objectives."""
        return len(self.objectives) > 1

    @property
    def directory(self) -> Path:
        """`study_dir` as a path."""
        return Path(self.study_dir)

    def trial_dir(self, number: int) -> Path:
        """Folder of one trial; its run directory too, unless it trains with several seeds."""
        return self.directory / f"trial_{number:04d}"

    def run_dirs(self, number: int, num_seeds: int) -> list[Path]:
        """Run directories of a trial's trainings, by seed."""
        folder = self.trial_dir(number)
        return [folder] if num_seeds == 1 else [folder / f"seed_{place}" for place in range(num_seeds)]

    def log_path(self, number: int) -> Path:
        """Where the output of one trial's processes goes."""
        return self.trial_dir(number) / "output.log"


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML file, apply overrides `PATH=VALUE` of its own keys in order, and check everything.

    Every fault found is in one BadConfigError.
    """
    return parse_study(apply_overrides(read_yaml(path), overrides), str(path))


def parse_study(tree: Tree, origin: str) -> StudyConfig:
    """A `StudyConfig` from nested mappings; `origin` opens the error message.

    What needs the base configuration (do the paths exist, are the values valid) is checked by the driver.
    """
    types: dict[str, Any] = {**field_types(StudyConfig), "objective": ObjectiveConfig}
    required = [item.name for item in dataclasses.fields(StudyConfig) if _is_required(item)]
    faults = [f"{key} is missing" for key in required if key not in tree]
    faults += key_faults({key: value for key, value in tree.items() if key != "space"}, types)
    if "objective" in tree and "objectives" in tree:
        faults.append("objective and objectives: give one of the two")
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "space":
            values[key], found = parse_space(value)
        elif key in types and value is not None:
            values[key], found = parse_section(key, types[key], value)
        else:
            found = []  # Unknown and empty keys are among the faults already.
        faults += found
    raise_faults(origin, faults)
    if "objective" in values:
        values["objectives"] = (values.pop("objective"),)
    if tree.get("stall_timeout_s", 0) is None:
        values["stall_timeout_s"] = None
    study = StudyConfig(**values)
    raise_faults(origin, [*_study_faults(study), *_search_faults(study), *_override_faults(study)])
    return study


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _study_faults(study: StudyConfig) -> list[str]:
    """Rules over single values."""
    faults = []
    if not _NAME.fullmatch(study.name):
        faults.append(f"name is {study.name!r}; expected letters, digits, '.', '_' and '-' only")
    for key in _AT_LEAST_ONE:
        if getattr(study, key) < 1:
            faults.append(f"{key} is {getattr(study, key)}; expected at least 1")
    for key in _ABOVE_ZERO:
        value = getattr(study, key)
        if value is not None and not value > 0:
            faults.append(f"{key} is {value}; expected above 0, or leave it out for the default")
    for key in ("grace_s", "max_retries"):
        if not getattr(study, key) >= 0:
            faults.append(f"{key} is {getattr(study, key)}; expected at least 0")
    if study.storage is not None and not study.storage.startswith(STORAGE_KINDS):
        faults.append(
            f"storage begins with {study.storage.partition(':')[0]!r}; expected sqlite:///FILE, "
            "postgresql+psycopg://USER@HOST/DATABASE, journal:FILE or grpc://HOST:PORT, or leave it out for a journal "
            "in study_dir"
        )
    return faults


def _search_faults(study: StudyConfig) -> list[str]:
    """Rules between what is searched, and how."""
    faults = []
    if not study.objectives:
        faults.append("objectives: expected at least one")
    if study.is_multi_objective:
        if study.pruner.kind != "none":
            faults.append(f"pruner.kind {study.pruner.kind} needs one objective, for several have no order; set none")
        if study.sampler.kind == "gp":
            faults.append("sampler.kind gp needs one objective; set tpe")
        if study.repeat.top:
            faults.append("repeat.top needs one objective, for several have no order; leave repeat out")
    names = [constraint.name for constraint in study.constraints]
    faults += [f"constraints: {name} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
    if len(study.start) > study.num_trials:
        faults.append(f"start has {len(study.start)} entries, but num_trials is {study.num_trials}; raise num_trials")
    return faults


def _override_faults(study: StudyConfig) -> list[str]:
    """`set` must leave the space and the driver's own keys alone."""
    faults = []
    for override in study.set:
        path = override.partition("=")[0].strip()
        if is_driver_key(path):
            faults.append(f"set: the driver sets {path} for every trial; take it out")
        elif path in study.space:
            faults.append(f"set: {path} is in the space as well; keep one of the two")
    if "seed" in study.space and (study.seeds_per_trial > 1 or study.repeat.top):
        faults.append("space: seed is varied by seeds_per_trial and repeat already; take it out of the space")
    return faults
