"""The search space of a study: dotted configuration paths, each with the values to try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from vsr_dist.config import check_config, config_tree, parse_config
from vsr_dist.core.config_io import Tree, apply_overrides, field_types, flatten, key_faults, parse_section, raise_faults
from vsr_dist.core.errors import BadConfigError, nearest_hint

Value = bool | int | float | str | list[Any] | dict[str, Any]
Stored = bool | int | float | str
Parameters = dict[str, Value]
# The driver sets these for every trial.
DRIVER_KEYS = ("name", "run_dir", "tracking.tags", "tracking.extra_params")


@dataclass(frozen=True)
class FloatRange:
    """Real numbers from low to high, both included; `log` spreads them evenly over the orders of magnitude.

    With `step` only low, low + step, ... are tried; high must be one of them.
    """

    low: float
    high: float
    type: Literal["float"] = "float"
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: optuna.Trial, path: str) -> Value:
        """A value for `path`, chosen by the trial's sampler."""
        return trial.suggest_float(path, self.low, self.high, log=self.log, step=self.step)

    def distribution(self) -> BaseDistribution:
        """The distribution in Optuna's storage."""
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value_of(self, kept: Stored) -> Value:
        """The value that Optuna stores as `kept`."""
        return kept

    def extremes(self) -> tuple[Value, ...]:
        """The values at the ends."""
        return (self.low, self.high)


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from low to high, both included; `log` and `step` as in `FloatRange`."""

    low: int
    high: int
    type: Literal["int"] = "int"
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, log=self.log, step=None if self.log and self.step == 1 else self.step)

    def suggest(self, trial: optuna.Trial, path: str) -> Value:
        """A value for `path`, chosen by the trial's sampler."""
        return trial.suggest_int(path, self.low, self.high, log=self.log, step=self.step)

    def distribution(self) -> BaseDistribution:
        """The distribution in Optuna's storage."""
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def value_of(self, kept: Stored) -> Value:
        """The value that Optuna stores as `kept`."""
        return kept

    def extremes(self) -> tuple[Value, ...]:
        """The values at the ends."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Categorical:
    """One of the listed values; no order among them is assumed.

    A value may also be a list or a mapping (a whole section, for settings that belong together); storages and tables
    show it as YAML on one line.
    """

    choices: tuple[Value, ...]
    type: Literal["categorical"] = "categorical"

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or len({repr(choice) for choice in self.choices}) < len(self.choices):
            raise BadConfigError(f"choices: expected at least 2 different values, found {list(self.choices)}")

    def suggest(self, trial: optuna.Trial, path: str) -> Value:
        """A value for `path`, chosen by the trial's sampler."""
        kept = trial.suggest_categorical(path, [stored(choice) for choice in self.choices])
        assert kept is not None  # None is no choice: `Value` does not hold it
        return self.value_of(kept)

    def distribution(self) -> BaseDistribution:
        """The distribution in Optuna's storage."""
        return CategoricalDistribution([stored(choice) for choice in self.choices])

    def value_of(self, kept: Stored) -> Value:
        """The choice that Optuna stores as `kept`."""
        return next(choice for choice in self.choices if stored(choice) == kept)

    def extremes(self) -> tuple[Value, ...]:
        """Every choice: any of them may be invalid."""
        return self.choices


Dimension = FloatRange | IntRange | Categorical
Space = Mapping[str, Dimension]
DIMENSIONS: dict[str, type[Dimension]] = {"float": FloatRange, "int": IntRange, "categorical": Categorical}


def parse_space(tree: object) -> tuple[dict[str, Dimension], list[str]]:
    """(The space, faults) from the `space` section of a study; each fault is one message."""
    if not isinstance(tree, dict) or not tree:
        return {}, ["space: expected at least one entry such as adversarial.weight: {type: float, low: ..., high: ...}"]
    space: dict[str, Dimension] = {}
    faults: list[str] = []
    for path, value in tree.items():
        dimension, found = _parse_dimension(str(path), value)
        faults += found
        if dimension is not None:
            space[str(path)] = dimension
    return space, faults


def suggest(trial: optuna.Trial, space: Space) -> Parameters:
    """One value per path, chosen by the trial's sampler, in the order of the space."""
    return {path: dimension.suggest(trial, path) for path, dimension in space.items()}


def describe(parameters: Mapping[str, Any]) -> str:
    """Parameters on one line, for messages."""
    return ", ".join(f"{path} {format_value(value)}" for path, value in parameters.items())


def format_value(value: object) -> str:
    """A parameter's value for tables: four digits of a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_override(path: str, value: Value) -> str:
    """`PATH=VALUE` that `--set` reads back to the same value (`1.0e-05`, and not the text `1e-05`, for 0.00001)."""
    return f"{path}={_one_line(value)}"


def stored(value: Value) -> Stored:
    """The value as Optuna stores it: lists and mappings as YAML on one line."""
    return _one_line(value) if isinstance(value, (list, dict)) else value


def given_values(space: Space, values: Mapping[str, Any], base: Mapping[str, Any], origin: str) -> dict[str, Stored]:
    """Values of a trial that is not sampled, as Optuna stores them; keys that are not given keep the base's value.

    base: the resolved base configuration by dotted key, sections included. BadConfigError for keys and values outside
    the space.
    """
    faults = [
        f"{origin}: {path} is not in the space{nearest_hint(path, space)}" for path in values if path not in space
    ]
    found: dict[str, Stored] = {}
    for path, dimension in space.items():
        value = values.get(path, base.get(path))
        source = "" if path in values else ", the base's value since none is given"
        try:
            found[path] = _fit(dimension, value)
        except (ValueError, TypeError):
            faults.append(f"{origin}: {path} is {value!r}{source}; expected {_described(dimension)}")
    raise_faults("start", faults)
    return found


def sections_of(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Every section and every value of a nested mapping by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            found |= sections_of(value, f"{prefix}{key}.")
    return found


def _fit(dimension: Dimension, value: Any) -> Stored:  # noqa: ANN401 - whatever a user wrote
    """The value as Optuna stores it; ValueError or TypeError if it is outside the dimension."""
    if isinstance(dimension, Categorical):
        return stored(dimension.choices[dimension.choices.index(value)])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    number = int(value) if isinstance(dimension, IntRange) else float(value)
    if number != value or not dimension.low <= number <= dimension.high:
        raise ValueError
    if dimension.step is not None and not math.isclose(
        (number - dimension.low) / dimension.step, round((number - dimension.low) / dimension.step), abs_tol=1e-9
    ):
        raise ValueError
    return number


def _described(dimension: Dimension) -> str:
    if isinstance(dimension, Categorical):
        return f"one of {list(dimension.choices)}"
    step = f" in steps of {dimension.step}" if dimension.step not in (None, 1) else ""
    return f"{dimension.type} from {dimension.low} to {dimension.high}{step}"


def _one_line(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False)
    return str(text).removesuffix("\n").removesuffix("\n...")


def is_driver_key(path: str) -> bool:
    """True for keys that the driver sets; neither `set` nor `space` may name them."""
    return any(path == key or path.startswith(f"{key}.") for key in DRIVER_KEYS)


def check_space(space: Space, base_tree: Tree, origin: str) -> None:
    """Raise one BadConfigError with all faults of a space for a base configuration.

    base_tree: nested mappings of a valid configuration as written, not resolved: the choice of another network
    must not meet the keys of the one that it replaces. Each path must be a key of the resolved configuration, and
    each extreme value alone must make a valid configuration.
    """
    known = flatten(config_tree(parse_config(base_tree, origin)))
    sections = sections_of(config_tree(parse_config(base_tree, origin)))
    faults: list[str] = []
    for path, dimension in space.items():
        if is_driver_key(path):
            faults.append(f"space.{path}: the driver sets {path} for every trial; remove it from the space")
        elif path not in known and not (path in sections and isinstance(dimension, Categorical)):
            faults.append(f"space.{path}: no such key in the training configuration{nearest_hint(path, known)}")
        else:
            faults += [fault for value in dimension.extremes() for fault in _value_faults(base_tree, path, value)]
    raise_faults(origin, faults)


def _parse_dimension(path: str, value: object) -> tuple[Dimension | None, list[str]]:
    if not isinstance(value, dict):
        return None, [f"space.{path} is {value!r}; expected a mapping with type and low, high or choices"]
    kind = str(value.get("type"))
    if kind not in DIMENSIONS:
        return None, [f"space.{path}.type is {kind!r}{nearest_hint(kind, DIMENSIONS)}; choose {', '.join(DIMENSIONS)}"]
    faults = key_faults(value, field_types(DIMENSIONS[kind]), f"space.{path}.")
    if faults:
        return None, faults
    dimension, found = parse_section(f"space.{path}", DIMENSIONS[kind], value)
    return dimension, found


def _value_faults(base_tree: Tree, path: str, value: Value) -> list[str]:
    override = as_override(path, value)
    try:
        check_config(parse_config(apply_overrides(base_tree, [override]), override))
    except BadConfigError as error:
        return [f"space.{path}: {error}" if str(error).startswith(override) else f"space.{path}: {override}: {error}"]
    return []


def _check_range(low: float, high: float, *, log: bool, step: float | None) -> None:
    """Raise BadConfigError for a range that cannot be sampled."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadConfigError(f"expected low below high, both finite, found {low} and {high}")
    if log and low <= 0:
        raise BadConfigError(f"log: true needs low above 0, found {low}")
    if step is None:
        return
    if log:
        raise BadConfigError(f"log: true and step {step} cannot be combined; remove one")
    _check_step(low, high, step)


def _check_step(low: float, high: float, step: float) -> None:
    num_steps: Any = (high - low) / step if step > 0 else 0.0
    if num_steps < 1 - 1e-9 or abs(num_steps - round(num_steps)) > 1e-9 * max(1.0, num_steps):
        raise BadConfigError(f"expected a step above 0 that divides high - low = {high - low:g}, found {step}")
