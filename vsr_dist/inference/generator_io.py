"""`generator.safetensors` and `generator.json`: a trained generator that loads without the run's configuration."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vsr_dist.core.config_io import parse_section
from vsr_dist.core.errors import BadCheckpointError
from vsr_dist.core.files import write_json
from vsr_dist.models import GENERATORS, Generator, GeneratorConfig, build_generator

WEIGHTS_NAME = "generator.safetensors"
DESCRIPTION_NAME = "generator.json"
_FORMAT_VERSION = 1


def save_generator(folder: Path, generator: Generator, config: GeneratorConfig, provenance: dict[str, Any]) -> None:
    """Write both files into `folder`, each published by rename; the description last.

    `provenance` is any JSON mapping that says where the weights come from; it is kept and not interpreted.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    weights = folder / WEIGHTS_NAME
    save_file(tensors, weights.with_suffix(".tmp"))
    os.replace(weights.with_suffix(".tmp"), weights)
    description = {
        "format_version": _FORMAT_VERSION,
        "scale": generator.scale,
        "generator": asdict(config),
        "provenance": provenance,
    }
    write_json(folder / DESCRIPTION_NAME, description)


def load_generator(path: Path) -> tuple[Generator, dict[str, Any]]:
    """(The generator in eval mode on the CPU, its description) from a run directory or a weight file.

    Raises BadCheckpointError if either file is missing, damaged or of another network.
    """
    folder = path if path.is_dir() else path.parent
    weights = folder / WEIGHTS_NAME if path.is_dir() else path
    if not weights.is_file():
        raise BadCheckpointError(
            f"no {WEIGHTS_NAME} in {path}; expected a finished run directory or a generator file"
            if path.is_dir()
            else f"no file {path}; expected a run directory or a {WEIGHTS_NAME}"
        )
    if weights.suffix != ".safetensors":
        raise BadCheckpointError(f"{path} is not a generator; expected a run directory or a {WEIGHTS_NAME}")
    description = _read_description(folder / DESCRIPTION_NAME)
    generator = _build(description, folder / DESCRIPTION_NAME)
    try:
        generator.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BadCheckpointError(
            f"{weights} does not hold the weights that {DESCRIPTION_NAME} describes: {error}"
        ) from error
    return generator.eval().requires_grad_(False), description


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start a generator from: tensors by name, and the SHA-256 of the file that they are from."""

    tensors: dict[str, Tensor]
    sha256: str


def initial_weights(path: Path, config: GeneratorConfig, scale: int) -> InitialWeights:
    """The weights of a trained generator, which must be as `config` and `scale` say.

    Raises BadCheckpointError as `load_generator` does, and for another architecture, whose differences it names.
    """
    generator, description = load_generator(path)
    found, wanted = {"scale": generator.scale}, {"scale": scale}
    for side, values in ((found, _config_of(description, path)), (wanted, config)):
        side |= {f"generator.{key}": value for key, value in asdict(values).items()}
    if found != wanted:
        differences = [
            f"{key} {found.get(key)!r} there, {wanted.get(key)!r} here"
            for key in sorted(found.keys() | wanted.keys())
            if found.get(key) != wanted.get(key)
        ]
        raise BadCheckpointError(
            f"train.init_generator {path} is a different generator ({'; '.join(differences)}); configure the same "
            "one, or use another file"
        )
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return InitialWeights(generator.state_dict(), digest)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text())
        version = description["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpointError(f"{path} cannot be read; it must be next to the weights: {error}") from error
    if version != _FORMAT_VERSION:
        raise BadCheckpointError(f"{path} has format version {version}; this release reads {_FORMAT_VERSION}")
    found: dict[str, Any] = description
    generator = found.get("generator")
    if not isinstance(generator, dict) or "kind" not in generator or not isinstance(found.get("scale"), int):
        raise BadCheckpointError(
            f"{path} has no generator.kind or no integer scale; copy it from the run that wrote the weights"
        )
    return found


def _build(description: dict[str, Any], path: Path) -> Generator:
    return build_generator(_config_of(description, path), description["scale"])


def _config_of(description: dict[str, Any], path: Path) -> GeneratorConfig:
    kind = description["generator"]["kind"]
    if kind not in GENERATORS:
        raise BadCheckpointError(f"{path}: unknown generator kind {kind!r}; this release knows {', '.join(GENERATORS)}")
    config, faults = parse_section("generator", GENERATORS[kind].config_type, description["generator"])
    if faults:
        raise BadCheckpointError(f"{path}: {'; '.join(faults)}")
    found: GeneratorConfig = config
    return found
