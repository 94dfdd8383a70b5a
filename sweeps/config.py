"""The configuration of a study: strict YAML -> a frozen `StudyConfig`, and all checks that need no trial."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from sweeps.objective import (
    Constraint,
    NoValueError,
    ObjectiveConfig,
    StopRule,
    reduce_curve,
    used_metrics,
)
from sweeps.space import (
    Dimension,
    Stored,
    as_override,
    check_space,
    given_values,
    is_driver_key,
    parse_space,
    sections_of,
)
from vsr_dist.build import open_inputs
from vsr_dist.config import Config, check_config, config_tree, parse_config
from vsr_dist.core.collectives import World
from vsr_dist.core.config_io import (
    Tree,
    apply_overrides,
    effects,
    field_types,
    flatten,
    key_faults,
    parse_section,
    raise_faults,
    read_yaml,
    to_tree,
)
from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.metrics.registry import METRICS, validation_metrics

SamplerKind = Literal["tpe", "random", "gp", "qmc"]
PrunerKind = Literal["none", "median", "hyperband", "patient_median"]
CUDA_VARIABLE = "CUDA_VISIBLE_DEVICES"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Optuna or the database checks what follows.
STORAGE_KINDS = ("sqlite:///", "postgresql+psycopg://", "journal:", "grpc://")
_AT_LEAST_ONE = ("num_trials", "workers", "seeds_per_trial")
_ABOVE_ZERO = ("trial_timeout_s", "time_limit_s", "stall_timeout_s", "heartbeat_s")


@dataclass(frozen=True)
class LaunchConfig:
    """How a training is started: with `accelerate launch`, or with a custom command.

    Attributes:
        config_file: accelerate configuration file.
        args: further options of `accelerate launch`. Each trial gets a free `--main_process_port` unless they hold one.
        command: instead of both, the whole command up to the options of `vsr_dist.train`, e.g.
            `[srun, torchrun, --nproc_per_node, "8", -m, vsr_dist.train]`.
        gpus_per_trial: GPUs of each worker, taken from the visible ones and set by CUDA_VISIBLE_DEVICES; 0 leaves that
            variable alone.
    """

    config_file: str | None = None
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    gpus_per_trial: int = 0

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.config_file):
            raise BadConfigError("launch: give config_file (an accelerate configuration) or command, and not both")
        if self.command and self.args:
            raise BadConfigError("launch: args belong to accelerate launch; add them to command")
        if self.gpus_per_trial < 0:
            raise BadConfigError(f"launch: gpus_per_trial is {self.gpus_per_trial}; expected at least 0")


@dataclass(frozen=True)
class SamplerConfig:
    """How the values of a trial are chosen.

    Attributes:
        kind: `tpe` (multivariate tree of Parzen estimators; running trials count as bad ones), `gp` (Gaussian
            process), `random` or `qmc` (Sobol sequence). `tpe` and `gp` use constraints and take several objectives.
        startup_trials: trials that `tpe` and `gp` draw at random first.
    """

    kind: SamplerKind = "tpe"
    startup_trials: int = 10

    def __post_init__(self) -> None:
        if self.startup_trials < 0:
            raise BadConfigError(f"sampler: startup_trials is {self.startup_trials}; expected at least 0")


@dataclass(frozen=True)
class PrunerConfig:
    """Which trials are stopped early because others did better after as many training steps.

    Attributes:
        kind: `none`; `median` (worse than the median of earlier trials at that step); `patient_median` (that, once it
            has not improved for `patience` validations); `hyperband` (successive halving in brackets).
        startup_trials: trials that must have ended before `median` and `patient_median` prune.
        warmup_steps: training steps before which nothing is pruned, and the smallest budget of `hyperband`; empty
            means the training's own `warmup_steps`, since all trials are alike until adversarial training starts.
        patience: validations without improvement that `patient_median` allows.
        reduction_factor: `hyperband` keeps one of so many trials at each rung.
    """

    kind: PrunerKind = "none"
    startup_trials: int = 5
    warmup_steps: int | None = None
    patience: int = 2
    reduction_factor: int = 3

    def __post_init__(self) -> None:
        least = {"startup_trials": 0, "warmup_steps": 0, "patience": 0, "reduction_factor": 2}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise BadConfigError(f"pruner: {name} is {value}; expected at least {lowest}")


@dataclass(frozen=True)
class RepeatConfig:
    """Trainings with new seeds, after the search, of its best trials: a single seed can be lucky.

    Attributes:
        top: number of best feasible trials to repeat; 0 repeats none.
        seeds: trainings of each, with seeds that no trial of the search used; they are never pruned.
    """

    top: int = 0
    seeds: int = 3

    def __post_init__(self) -> None:
        if self.top < 0 or self.seeds < 1:
            raise BadConfigError(
                f"repeat: expected top of at least 0 and seeds of at least 1, found {self.top} and {self.seeds}"
            )


@dataclass(frozen=True)
class StudyConfig:
    """A study. Relative paths are relative to the current directory.

    Attributes:
        name: of the study; trials are named after it.
        base: YAML file of the training configuration that trials vary.
        study_dir: folder of the study; holds the storage, a folder per trial, and the report.
        launch: how a training is started.
        space: the values to try, by configuration path.
        set: overrides `PATH=VALUE` that every trial gets, e.g. a shorter training.
        num_trials: trials in all, over every run of every driver, without repeats. A trial that is interrupted and
            resumed counts once.
        seed: of the sampler.
        objectives: the study's objectives; `objective: ...` in the file is short for one. Several make a
            multi-objective study, which cannot be pruned.
        constraints: bounds that a feasible trial keeps.
        stop_when: rules that stop a trial early.
        storage: Optuna storage: `sqlite:///FILE`, `postgresql+psycopg://USER@HOST/DATABASE`, `journal:FILE` or
            `grpc://HOST:PORT`; empty means `sqlite:///<study_dir>/study.db`.
        sampler: how values are chosen.
        pruner: which trials are stopped early because others did better.
        start: values of the first trials, by configuration path; what a mapping leaves out keeps the base's value, so
            `{}` is the base itself.
        warm_start: YAML files of other studies, whose completed trials the sampler learns from.
        seeds_per_trial: trainings per trial, one after another, with the seeds of the base, the base + 1, ...
        repeat: trainings with fresh seeds after the search.
        workers: trials that one driver runs at a time.
        time_limit_s: a run of the driver starts no trial after this time; empty means no limit.
        trial_timeout_s: a training that runs longer is stopped and its trial fails; empty means no limit.
        stall_timeout_s: a training that writes nothing for this time is stopped and its trial fails; must exceed its
            start and the time between two log lines. Empty means no limit.
        grace_s: time that a stopped training has to save and exit before it is killed.
        heartbeat_s: interval of Optuna's heartbeat. A trial without a heartbeat for three intervals is retried from
            its last checkpoint.
        max_retries: how often a trial whose driver died is retried; then it fails.
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
    heartbeat_s: int = 20
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
        """File with the output of one trial's processes."""
        return self.trial_dir(number) / "output.log"


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML file, apply overrides `PATH=VALUE` of its own keys in order, and check everything.

    Every fault found is in one BadConfigError.
    """
    return parse_study(apply_overrides(read_yaml(path), overrides), str(path))


def parse_study(tree: Tree, origin: str) -> StudyConfig:
    """A `StudyConfig` from nested mappings; `origin` opens the error message.

    `check_study` checks what needs the base configuration: whether paths exist and values are valid.
    """
    types: dict[str, Any] = {**field_types(StudyConfig), "objective": ObjectiveConfig}
    required = [item.name for item in dataclasses.fields(StudyConfig) if _is_required(item)]
    faults = [f"{key} is missing" for key in required if key not in tree]
    faults += key_faults({key: value for key, value in tree.items() if key != "space"}, types)
    if "objective" in tree and "objectives" in tree:
        faults.append("objective and objectives: give only one of them")
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
            "postgresql+psycopg://USER@HOST/DATABASE, journal:FILE or grpc://HOST:PORT, or leave it out for a SQLite "
            "file in study_dir"
        )
    return faults


def _search_faults(study: StudyConfig) -> list[str]:
    """Rules between what is searched, and how."""
    faults = []
    if not study.objectives:
        faults.append("objectives: expected at least one")
    if study.is_multi_objective:
        if study.pruner.kind != "none":
            faults.append(f"pruner.kind {study.pruner.kind} needs one objective; set none")
        if study.repeat.top:
            faults.append("repeat.top needs one objective; leave repeat out")
    names = [constraint.name for constraint in study.constraints]
    faults += [f"constraints: {name} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
    if len(study.start) > study.num_trials:
        faults.append(f"start has {len(study.start)} entries, but num_trials is {study.num_trials}; raise num_trials")
    return faults


def _override_faults(study: StudyConfig) -> list[str]:
    """`set` must not name keys of the space or those that the driver sets."""
    faults = []
    for override in study.set:
        path = override.partition("=")[0].strip()
        if is_driver_key(path):
            faults.append(f"set: the driver sets {path} for every trial; remove it")
        elif path in study.space:
            faults.append(f"set: {path} is in the space as well; keep one of the two")
    if "seed" in study.space and (study.seeds_per_trial > 1 or study.repeat.top):
        faults.append("space: seed is varied by seeds_per_trial and repeat already; remove it from the space")
    return faults


@dataclass(frozen=True)
class Checked:
    """Results of checking a study against its base configuration.

    Attributes:
        settings: what all trials of a study must share, by dotted key, so that their objectives can be compared:
            objectives, constraints, space, and every `result` field of the base that the space does not vary.
        starts: values of the first trials, as Optuna stores them.
        base_seed: the base's.
        train_steps: steps of a training.
        warmup_steps: those before adversarial training starts.
    """

    settings: dict[str, Any]
    starts: tuple[dict[str, Stored], ...]
    base_seed: int
    train_steps: int
    warmup_steps: int


def check_study(config: StudyConfig) -> Checked:
    """Check a study against its base configuration; BadConfigError before anything is written or started."""
    tree = apply_overrides(read_yaml(Path(config.base)), config.set)
    base = parse_config(tree, config.base)
    check_config(base)
    check_space(config.space, tree, config.base)
    resolved = sections_of(config_tree(base))
    starts = tuple(
        given_values(config.space, values, resolved, f"start[{place}]") for place, values in enumerate(config.start)
    )
    for place, values in enumerate(starts):
        _check_start(config, tree, place, values)
    _check_metrics(config, base)
    _check_trends(config, base)
    _check_launch(config)
    if config.launch.config_file is not None:
        # A custom command may run trials on machines that have other files.
        open_inputs(base, World(0, base.train.processes or 1))
    settings = _settings(config, base)
    return Checked(settings, starts, base.seed, base.train.steps, base.train.warmup_steps)


def _settings(config: StudyConfig, base: Config) -> dict[str, Any]:
    kinds = effects(base)
    fixed = {key: value for key, value in flatten(config_tree(base)).items() if kinds.get(key, "result") == "result"}
    inside = tuple(f"{path}." for path in config.space)
    settings = {k: v for k, v in fixed.items() if k not in config.space and not k.startswith(inside)}
    for place, objective in enumerate(config.objectives):
        name = "study.objective" if not config.is_multi_objective else f"study.objectives.{place}"
        settings |= flatten(to_tree(objective), f"{name}.")
    for constraint in config.constraints:
        settings[f"study.constraints.{constraint.name}"] = to_tree(constraint)
    settings["study.seeds_per_trial"] = config.seeds_per_trial
    return settings | {f"study.space.{path}": to_tree(dimension) for path, dimension in config.space.items()}


def _check_start(config: StudyConfig, tree: Tree, place: int, values: Mapping[str, Stored]) -> None:
    overrides = [as_override(path, config.space[path].value_of(value)) for path, value in values.items()]
    try:
        check_config(parse_config(apply_overrides(tree, overrides), f"start[{place}]"))
    except BadConfigError as error:
        raise BadConfigError(f"start[{place}]: {error}") from error


def _check_metrics(config: StudyConfig, base: Config) -> None:
    """Every metric that is used must be one that a training logs."""
    names = {metric.name for metric in validation_metrics(base.data.clip_frames)}
    if base.train.perceptual_metric == "stlpips":
        names.add("stlpips")
    known = {f"{group}/{name}" for name in names for group in ("val", "val_bicubic")}
    known |= {name for name in METRICS if "/" in name}
    asked = used_metrics(config.objectives, config.constraints, config.stop_when)
    is_adversarial = base.adversarial.is_on or not {"adversarial", "adversarial.weight"}.isdisjoint(config.space)
    for metric, setting in asked.items():
        if metric in METRICS and metric.startswith(("drift/", "d/")) and not is_adversarial:
            raise BadConfigError(f"{setting}: {metric} needs adversarial training; set adversarial.weight above 0")
        if metric not in known:
            raise BadConfigError(f"{setting}: no training logs {metric}{nearest_hint(metric, known)}")


def _check_trends(config: StudyConfig, base: Config) -> None:
    """Refuse a trend over too few evaluations: every trial would fail at its end."""
    train = base.train
    if not {"train", "train.steps", "train.validate_every", "train.warmup_steps"}.isdisjoint(config.space):
        return
    steps = [*range(train.validate_every, train.steps, train.validate_every), train.steps]
    points = [(step, 0.0) for step in steps if step > train.warmup_steps]
    for constraint in config.constraints:
        try:
            reduce_curve(points or [(0, 0.0)], constraint.reduce, None)
        except NoValueError as error:
            raise BadConfigError(f"constraint {constraint.name}: {error}") from error


def _check_launch(config: StudyConfig) -> None:
    file = config.launch.config_file
    if file is not None and not Path(file).is_file():
        raise BadConfigError(f"launch.config_file: there is no file {file}; name an accelerate configuration")
    if config.launch.command and shutil.which(config.launch.command[0]) is None:
        raise BadConfigError(
            f"launch.command: there is no program {config.launch.command[0]}; give its path or install it"
        )
    wanted, found = config.workers * config.launch.gpus_per_trial, len(visible_gpus())
    if config.launch.gpus_per_trial and wanted > found:
        raise BadConfigError(
            f"{config.workers} worker(s) with {config.launch.gpus_per_trial} GPU(s) per trial need {wanted} GPUs, but "
            f"this machine has {found}; lower --workers or --gpus-per-trial, or check {CUDA_VARIABLE}"
        )


def visible_gpus() -> tuple[str, ...]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    given = os.environ.get(CUDA_VARIABLE)
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    with suppress(RuntimeError):  # A broken driver: then there are none.
        return tuple(str(number) for number in range(torch.cuda.device_count()))
    return ()
