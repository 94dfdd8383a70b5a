"""YAML and `PATH=VALUE` overrides -> plain dictionaries -> strict dataclasses, with errors that teach.

A field has an effect: on the result unless marked, only on the speed, or only on where things are read and written.
Tests show that `speed` and `io` fields keep the loss equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from vsr_dist.core.errors import BadConfigError, nearest_hint

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


Tree = dict[str, Any]


# Of a YAML document with its aliases written out: far more than any configuration has.
_MAX_NODES = 100_000


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that is given twice and aliases that grow without bounds."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
        """Number of nodes with every alias written out."""
        if node not in counts:
            counts[node] = _MAX_NODES  # Met again before it is counted: it is part of itself.
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            below = [part for item in parts for part in (item if isinstance(item, tuple) else (item,))]
            counts[node] = 1 + sum(self._count(part, counts) for part in below)
        if counts[node] > _MAX_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"its aliases stand for more than {_MAX_NODES:,} values", node.start_mark
            )
        return counts[node]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"given twice: {', '.join(twice)}", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def read_yaml(path: Path) -> Tree:
    """The mapping that a YAML file holds; an absent or malformed file is a `BadConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadConfigError(f"no configuration file {path}; name an existing YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfigError(f"{path} cannot be read as a YAML text file: {error}") from error
    tree = _parse(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise BadConfigError(f"{path} holds a {type(tree).__name__}; expected a mapping of sections")
    return tree


def _parse(text: str, origin: str) -> Any:  # noqa: ANN401 - any YAML value
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise BadConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise BadConfigError(f"{origin} is not a configuration: its values are nested too deeply") from None
    except ValueError as error:  # Such as an integer of 5,000 digits, or a date with the month 13.
        raise BadConfigError(f"{origin} holds a value that cannot be read: {error}") from error


def _parse_value(text: str, origin: str) -> Any:  # noqa: ANN401 - any YAML value
    """The value of an override. A '#' belongs to it, where YAML would begin a comment."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise BadConfigError(f"{origin} has bytes that are not UTF-8; rename the file or folder, or use a UTF-8 locale")
    if "#" in text:
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            node = None  # `_parse` says what is wrong.
        if node is None or text[node.end_mark.index :].strip().startswith("#"):
            return text.strip()
    return _parse(text, origin)


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """A copy of `tree` with each `a.b.c=value` set; the value is read as YAML (`3`, `1e-4`, `true`, `[1, 2]`)."""
    result = _copy(tree)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise BadConfigError(f"override '{override}' is not of the form PATH=VALUE, e.g. loss.tv=1e-3")
        set_path(result, path.strip(), _parse_value(text, f"the value of override {override!a}"))
    return result


def add_override_option(parser: argparse.ArgumentParser, example: str = "loss.tv=1e-3") -> None:
    """`--set PATH=VALUE`, repeatable, as `overrides`: the same option for every command that reads a configuration."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help=f"override one key, e.g. --set {example}; may be repeated",
    )


def set_path(tree: Tree, path: str, value: object) -> None:
    """Set the dotted `path` in a nested mapping, making the sections on the way."""
    *sections, leaf = path.split(".")
    node = tree
    for name in sections:
        below = node.setdefault(name, {})
        if not isinstance(below, dict):
            raise BadConfigError(f"cannot set {path}: '{name}' is a value, not a section")
        node = below
    node[leaf] = value


def key_faults(tree: Mapping[str, Any], sections: Mapping[str, type], prefix: str = "") -> list[str]:
    """One message for each key of `tree` that `sections` (key -> type) lacks or that has no value.

    An unknown key is answered with the nearest known one. Empty values are caught here because jsonargparse
    takes a null for any type.
    """
    faults = []
    for key, value in tree.items():
        if key not in sections:
            hint = nearest_hint(str(key), sections)
            faults.append(f"unknown key {prefix}{key}{hint}")
        elif value is None and type(None) not in typing.get_args(sections[key]):
            faults.append(f"{prefix}{key} is empty; give a value or remove the key")
        elif dataclasses.is_dataclass(sections[key]):
            if isinstance(value, dict):
                faults += key_faults(value, field_types(sections[key]), f"{prefix}{key}.")
            else:
                faults.append(f"{prefix}{key} is {value!r}; expected a section with keys")
    return faults


def field_types(config_type: type) -> dict[str, type]:
    """Field name -> resolved type of a dataclass."""
    hints = typing.get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type)}


def parse_section(name: str, config_type: type, value: object) -> tuple[Any, list[str]]:
    """(The typed value, no faults) or (None, all that is wrong), for one dotted key of the configuration."""
    parser = _parser(name, config_type)
    try:
        return parser.instantiate(parser.parse_object({name: value}))[name], []
    except Exception as error:  # noqa: BLE001 - jsonargparse raises several kinds; the text is all a user needs
        # jsonargparse stops at the first fault of a section; asking key by key finds the others.
        types = field_types(config_type) if dataclasses.is_dataclass(config_type) else {}
        parts = value.items() if isinstance(value, dict) else ()
        below = [parse_section(f"{name}.{key}", types[key], part)[1] for key, part in parts if key in types]
        return None, [fault for faults in below for fault in faults] or [_clean(str(error))]


@cache
def _parser(name: str, config_type: type) -> ArgumentParser:
    """Making one, which looks at every field, takes longer than what it then does; a study asks dozens of times."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=config_type)
    return parser


def raise_faults(origin: str, faults: Iterable[str]) -> None:
    """Raise one `BadConfigError` that names every fault, if there is one."""
    found = list(faults)
    if found:
        raise BadConfigError(f"{origin}: " + "; ".join(found))


def to_tree(config: Any) -> Tree:  # noqa: ANN401 - any dataclass instance
    """A dataclass as nested plain mappings (tuples become lists), ready for YAML."""
    plain = _plain(dataclasses.asdict(config))
    assert isinstance(plain, dict)
    return plain


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _copy(tree: Mapping[str, Any]) -> Tree:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in tree.items()}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(below) for below in value]
    return value


def _clean(message: str) -> str:
    """jsonargparse's message on one line, without its name for the argument parser."""
    text = " ".join(message.split())
    text = text.removeprefix("Parser key ").replace('"', "").replace("typing.", "")
    return re.sub(r"a <class '([\w.]+)'>", r"\1", text)
