"""The configuration of a study: strict YAML -> a frozen `StudyConfig`, with every fault in one error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sweeps.space import Dimension, is_driver_key, parse_space
from vsr_dist.core.config_io import (
    Tree,
    apply_overrides,
    field_types,
    key_faults,
    parse_section,
    raise_faults,
    read_yaml,
)
from vsr_dist.core.errors import BadConfigError

Direction = Literal["maximize", "minimize"]
# What one wants of the validation metrics whose names begin so; a direction against it is surely a slip.
_WANTED: dict[str, Direction] = {
    "val/psnr": "maximize",
    "val/ssim": "maximize",
    "val/tof": "minimize",
    "val/tdiff": "minimize",
    "val/lpips": "minimize",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a trial is judged by: a metric of the final validation, and whether more of it is better.

    Only `val/*` is accepted. A loss would not do: it contains the weights that a study tunes, so the study would
    shrink its own weights instead of improving the pictures.
    """

    metric: str = "val/psnr_y"
    direction: Direction = "maximize"

    def __post_init__(self) -> None:
        if self.metric.startswith("loss_"):
            raise BadConfigError(
                f"objective.metric {self.metric} contains the weights that a study tunes, so the smallest weights "
                "would win; use a validation metric such as val/psnr_y"
            )
        if not self.metric.startswith("val/"):
            raise BadConfigError(f"objective.metric is {self.metric}; expected a validation metric such as val/psnr_y")
        for prefix, wanted in _WANTED.items():
            if self.metric.startswith(prefix) and self.direction != wanted:
                raise BadConfigError(
                    f"objective.direction is {self.direction}, but of {self.metric} one wants to {wanted}; set that"
                )


@dataclass(frozen=True)
class LaunchConfig:
    """How a trial is started: with `accelerate launch`, or with a command of your own.

    Attributes:
        config_file: accelerate configuration file.
        args: further options of `accelerate launch`, e.g. `[--main_process_port, "0"]`.
        command: instead of both, the whole command up to the options of `vsr_dist.train`, e.g.
            `[srun, torchrun, --nproc_per_node, "8", -m, vsr_dist.train]`.
    """

    config_file: str | None = None
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.config_file):
            raise BadConfigError("launch: give config_file (an accelerate configuration) or command, and not both")
        if self.command and self.args:
            raise BadConfigError("launch: args belong to accelerate launch; put them into command")


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
        num_trials: trials in all, over every run of the driver. Interrupted ones are not counted.
        seed: of the sampler.
        objective: what a trial is judged by.
        storage: Optuna storage as a `sqlite:///FILE` URL; empty means the journal file `<study_dir>/journal.log`.
        trial_timeout_s: a trial that runs longer is stopped and counts as failed; empty means no limit.
    """

    name: str
    base: str
    study_dir: str
    launch: LaunchConfig
    space: dict[str, Dimension]
    set: tuple[str, ...] = ()
    num_trials: int = 20
    seed: int = 0
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    storage: str | None = None
    trial_timeout_s: float | None = None

    @property
    def directory(self) -> Path:
        """`study_dir` as a path."""
        return Path(self.study_dir)

    def trial_dir(self, number: int) -> Path:
        """Run directory of one trial."""
        return self.directory / f"trial_{number:04d}"

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
    types = field_types(StudyConfig)
    required = [item.name for item in dataclasses.fields(StudyConfig) if _is_required(item)]
    faults = [f"{key} is missing" for key in required if key not in tree]
    faults += key_faults({key: value for key, value in tree.items() if key != "space"}, types)
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
    study = StudyConfig(**values)
    raise_faults(origin, _study_faults(study))
    return study


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _study_faults(study: StudyConfig) -> list[str]:
    """Rules over single values and between them."""
    faults = []
    if not _NAME.fullmatch(study.name):
        faults.append(f"name is {study.name!r}; expected letters, digits, '.', '_' and '-' only")
    if study.num_trials < 1:
        faults.append(f"num_trials is {study.num_trials}; expected at least 1")
    if study.trial_timeout_s is not None and not study.trial_timeout_s > 0:
        faults.append(f"trial_timeout_s is {study.trial_timeout_s}; expected above 0, or leave it out for no limit")
    if study.storage is not None and not study.storage.startswith(_SQLITE):
        faults.append(
            f"storage is {study.storage!r}; expected {_SQLITE}FILE, or leave it out for a journal in study_dir"
        )
    for override in study.set:
        path = override.partition("=")[0].strip()
        if is_driver_key(path):
            faults.append(f"set: the driver sets {path} for every trial; take it out")
        elif path in study.space:
            faults.append(f"set: {path} is in the space as well; keep one of the two")
    return faults
