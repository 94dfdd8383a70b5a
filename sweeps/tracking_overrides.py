"""What tells a study's runs apart in MLflow: tags to search by, and parameters as they are searched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import yaml

from sweeps.space import Parameters
from sweeps.study_config import StudyConfig
from vsr_dist.core.config_io import read_yaml

# Tags of a training run that bind it to its study.
TRIAL_TAGS = ("study", "trial", "kind", "role", "seed", "repeat_of")
_LOG_DIGITS = 6


def tracking_overrides(config: StudyConfig, number: int, parameters: Parameters) -> list[str]:
    """Overrides `PATH=VALUE` for one trial's training: the tags `study`, `trial` and `kind=trial`, and further
    parameters `log10.PATH` for what is searched logarithmically.

    MLflow's charts have linear axes: on them a weight between 1e-4 and 1e-2 is one heap at the left.
    """
    tags = {"study": config.name, "trial": str(number), "kind": "trial"}
    overrides = [f"tracking.tags.{key}={_flow(value)}" for key, value in tags.items()]
    extra = {**_own_extra(config), **log10_parameters(config, parameters)}
    if extra:
        overrides.append(f"tracking.extra_params={_flow(extra)}")
    return overrides


def log10_parameters(config: StudyConfig, parameters: Mapping[str, object]) -> dict[str, str]:
    """`log10.PATH` -> log10 of the value, as text, for each parameter whose dimension is logarithmic."""
    return {
        f"log10.{path}": repr(round(math.log10(value), _LOG_DIGITS))
        for path, value in parameters.items()
        if getattr(config.space.get(path), "log", False) and isinstance(value, (int, float))
    }


def _own_extra(config: StudyConfig) -> dict[str, str]:
    """The base's own further parameters, which an override of the whole mapping would otherwise drop."""
    tracking = read_yaml(Path(config.base)).get("tracking") or {}
    return dict(tracking.get("extra_params") or {})


def _flow(value: object) -> str:
    """YAML on one line; texts keep their quotes where they would read as numbers."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
