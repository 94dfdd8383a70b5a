"""Everything about a study that can be checked before its first trial."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from sweeps.launch import launch_command
from sweeps.space import check_space
from sweeps.study_config import StudyConfig
from vsr_dist.build import open_inputs
from vsr_dist.config import check_config, config_tree, parse_config
from vsr_dist.core.config_io import apply_overrides, flatten, read_yaml, to_tree
from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.core.fields import effects
from vsr_dist.core.world import World
from vsr_dist.training.validation import clip_scores

_TINY_PX = 64


def check_study(config: StudyConfig) -> dict[str, Any]:
    """Check a study against its base configuration; returns the settings that its trials have in common.

    These are the objective, the space, and every `result` field of the base that the space leaves alone, by dotted
    key. Raises BadConfigError before anything is written or started.
    """
    tree = apply_overrides(read_yaml(Path(config.base)), config.set)
    base = parse_config(tree, config.base)
    check_config(base)
    check_space(config.space, tree, config.base)
    names = validation_names(base.data.clip_frames)
    if config.objective.metric not in names:
        hint = nearest_hint(config.objective.metric, names)
        raise BadConfigError(f"objective.metric {config.objective.metric} is not computed by a validation{hint}")
    _check_launch(config)
    if config.launch.config_file is not None:
        # A command of one's own may start trials where this machine's files are not.
        open_inputs(base, World(0, base.train.processes or 1))
    kinds = effects(base)
    fixed = {key: value for key, value in flatten(config_tree(base)).items() if kinds.get(key, "result") == "result"}
    settings = {key: value for key, value in fixed.items() if key not in config.space}
    settings |= flatten(to_tree(config.objective), "study.objective.")
    return settings | {f"study.space.{path}": to_tree(dimension) for path, dimension in config.space.items()}


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
