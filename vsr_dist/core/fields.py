"""What a configuration field may change: the result, only the speed, or only where things are read and written.

Fields are `result` unless marked. Tests show that `speed` and `io` fields keep the loss equal.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Effect = Literal["result", "speed", "io"]


def speed(default: Any) -> Any:  # noqa: ANN401 - stands for a value of the field's own type, like dataclasses.field
    """A field with a default that changes how fast a run is and not what it computes."""
    return dataclasses.field(default=default, metadata={"effect": "speed"})


def io(default: Any) -> Any:  # noqa: ANN401 - as above
    """A field with a default that changes what is read, written or reported and not what is computed."""
    return dataclasses.field(default=default, metadata={"effect": "io"})


def effect_of(field: dataclasses.Field[Any]) -> Effect:
    """The effect of one dataclass field."""
    effect: Effect = field.metadata.get("effect", "result")
    return effect


def effects(config: Any, prefix: str = "") -> dict[str, Effect]:  # noqa: ANN401 - any dataclass instance
    """Dotted key -> effect for every leaf of a nested dataclass; a marked mapping marks all that it holds."""
    found: dict[str, Effect] = {}
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= effects(value, f"{key}.")
        elif isinstance(value, dict):
            found |= {f"{key}.{name}": effect_of(field) for name in value}
        else:
            found[key] = effect_of(field)
    return found
