"""Everything about a study that can be checked before its first trial."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sweeps.curves import NoValueError, reduce_curve
from sweeps.launch import launch_command
from sweeps.objective import used_metrics
from sweeps.slots import check_gpus
from sweeps.space import Stored, as_override, check_space, given_values, sections_of
from sweeps.study_config import StudyConfig
from vsr_dist.build import open_inputs
from vsr_dist.config import Config, check_config, config_tree, parse_config
from vsr_dist.core.collectives import World
from vsr_dist.core.config_io import Tree, apply_overrides, flatten, read_yaml, to_tree
from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.core.fields import effects
from vsr_dist.training.console import PERFORMANCE
from vsr_dist.training.drift import MEASURES
from vsr_dist.training.validation import clip_scores

_TINY_PX = 64


@dataclass(frozen=True)
class Checked:
    """What the check of a study against its base configuration found.

    Attributes:
        settings: what all trials have in common and what decides what an objective means, by dotted key: objectives,
            constraints, rules, space, and every `result` field of the base that the space leaves alone.
        starts: values of the first trials, as Optuna keeps them.
        base_seed: the base's.
        train_steps: steps of a training.
        warmup_steps: those before the discriminator plays.
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
        # A command of one's own may start trials where this machine's files are not.
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
    """Every metric that is asked for must be one that a training computes."""
    names = validation_names(base.data.clip_frames)
    if base.train.perceptual_metric == "stlpips":
        names.add("val/stlpips")
    known = names | {f"val_bicubic/{name.removeprefix('val/')}" for name in names} | MEASURES | PERFORMANCE
    asked = used_metrics(config.objectives, config.constraints, config.stop_when)
    plays = base.adversarial.is_on or not {"adversarial", "adversarial.weight"}.isdisjoint(config.space)
    for metric, setting in asked.items():
        if metric in MEASURES and not plays:
            raise BadConfigError(
                f"{setting}: {metric} needs a discriminator that plays; set adversarial.weight above 0"
            )
        if metric not in known:
            where = "logged by a training" if metric.startswith("perf/") else "computed by a validation"
            raise BadConfigError(f"{setting}: {metric} is not {where}{nearest_hint(metric, known)}")


def _check_trends(config: StudyConfig, base: Config) -> None:
    """A trend needs evaluations: a study whose trials have too few would fail each at its end."""
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


def validation_names(clip_frames: int) -> set[str]:
    """Names of the metrics that a validation computes, found by computing them for a tiny clip."""
    shape_TCYX = (clip_frames, 3, _TINY_PX, _TINY_PX)
    return set(clip_scores("val", torch.zeros(shape_TCYX), torch.ones(shape_TCYX), scale=1))


def _check_launch(config: StudyConfig) -> None:
    file = config.launch.config_file
    if file is not None and not Path(file).is_file():
        raise BadConfigError(f"launch.config_file: there is no file {file}; name an accelerate configuration")
    program = launch_command(config.launch)[0]
    if shutil.which(program) is None:
        raise BadConfigError(f"launch.command: there is no program {program}; give its path or install it")
    check_gpus(config.launch.gpus_per_trial, config.workers)
