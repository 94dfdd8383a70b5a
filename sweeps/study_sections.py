"""Sections of a study's YAML file: how trials are started, sampled, pruned and repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsr_dist.core.errors import BadConfigError

SamplerKind = Literal["tpe", "random", "gp", "qmc"]
PrunerKind = Literal["none", "median", "hyperband", "patient_median"]


@dataclass(frozen=True)
class LaunchConfig:
    """How a trial is started: with `accelerate launch`, or with a command of your own.

    Attributes:
        config_file: accelerate configuration file.
        args: further options of `accelerate launch`. Each trial gets a free `--main_process_port` unless they hold one.
        command: instead of both, the whole command up to the options of `vsr_dist.train`, e.g.
            `[srun, torchrun, --nproc_per_node, "8", -m, vsr_dist.train]`.
        gpus_per_trial: GPUs that each trial has for itself, by CUDA_VISIBLE_DEVICES; 0 leaves that variable alone.
    """

    config_file: str | None = None
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    gpus_per_trial: int = 0

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.config_file):
            raise BadConfigError("launch: give config_file (an accelerate configuration) or command, and not both")
        if self.command and self.args:
            raise BadConfigError("launch: args belong to accelerate launch; put them into command")
        if self.gpus_per_trial < 0:
            raise BadConfigError(f"launch: gpus_per_trial is {self.gpus_per_trial}; expected at least 0")


@dataclass(frozen=True)
class SamplerConfig:
    """Who chooses the values of a trial.

    Attributes:
        kind: `tpe` (tree of Parzen estimators, over all parameters together, running trials counted as bad ones),
            `random`, `gp` (Gaussian process, for one objective) or `qmc` (Sobol sequence).
        startup_trials: trials that `tpe` and `gp` draw at random first.
    """

    kind: SamplerKind = "tpe"
    startup_trials: int = 10

    def __post_init__(self) -> None:
        if self.startup_trials < 0:
            raise BadConfigError(f"sampler: startup_trials is {self.startup_trials}; expected at least 0")


@dataclass(frozen=True)
class PrunerConfig:
    """Which trials end early because others did better after as many training steps.

    Attributes:
        kind: `none`; `median` (worse than the median of earlier trials at that step); `patient_median` (that, once it
            has not improved for `patience` validations); `hyperband` (successive halving in brackets).
        startup_trials: trials that must have ended before `median` and `patient_median` prune.
        warmup_steps: training steps before which nothing is pruned, and the smallest budget of `hyperband`; empty
            means the training's own `warmup_steps`, for before them a trial has not yet met its discriminator.
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
    """Trainings that tell a good setting from a lucky one, after the search.

    Attributes:
        top: best feasible trials that are repeated; 0 repeats none.
        seeds: trainings of each, with seeds that no trial of the search had; they are never pruned.
    """

    top: int = 0
    seeds: int = 3

    def __post_init__(self) -> None:
        if self.top < 0 or self.seeds < 1:
            raise BadConfigError(
                f"repeat: expected top of at least 0 and seeds of at least 1, found {self.top} and {self.seeds}"
            )
