"""The one door for configurations: YAML file plus `PATH=VALUE` overrides -> a strict, frozen `Config`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from vsr_dist.core.config_io import (
    Tree,
    apply_overrides,
    field_types,
    flatten,
    io,
    key_faults,
    parse_section,
    raise_faults,
    read_yaml,
    to_tree,
)
from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.data.config import DataConfig
from vsr_dist.losses.objective import LossConfig
from vsr_dist.metrics.registry import CROP_MARGIN_PX, CROP_MULTIPLE_PX
from vsr_dist.models import (
    DISCRIMINATORS,
    GENERATORS,
    DiscriminatorConfig,
    GeneratorConfig,
    build_discriminator,
    build_generator,
)
from vsr_dist.models.base import Generator, RecurrentGenerator
from vsr_dist.models.features import PerceptualConfig
from vsr_dist.models.recurrent import RecurrentConfig
from vsr_dist.models.spatiotemporal import SpatiotemporalConfig
from vsr_dist.ops.flow import MIN_SIDE_PX
from vsr_dist.training.config import AdversarialConfig, OptimizerConfig, TrainConfig
from vsr_dist.training.tracking import TrackingConfig

_DEFAULT_KIND = {"generator": "recurrent", "discriminator": "spatiotemporal"}


@dataclass(frozen=True)
class Config:
    """Everything that a training run is made of. The resolved form is saved in the run directory and can be rerun.

    Attributes:
        name: name of the run, in MLflow and in tables.
        run_dir: folder that the run writes.
        seed: decides initial weights, order, augmentation and dropout.
        scale: enlargement; must equal the scale that the data was packed with.
    """

    name: str = io("run")
    run_dir: str = io("runs/run")
    seed: int = 0
    scale: int = 4
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=RecurrentConfig)
    discriminator: DiscriminatorConfig = field(default_factory=SpatiotemporalConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    generator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=4e-4, betas=(0.0, 0.99))
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides in order, and check everything; every fault found is in one error."""
    return parse_config(apply_overrides(read_yaml(path), overrides), str(path))


def parse_config(tree: Tree, origin: str) -> Config:
    """A `Config` from nested mappings. Missing keys take their defaults; `origin` opens the error message."""
    sections, faults = section_types(tree)
    values: dict[str, Any] = {}
    for name, value in tree.items():
        found = key_faults({name: value}, sections)
        if not found:
            values[name], unnamed = parse_section(name, sections[name], value)
            found = [fault if name in fault else f"{name}: {fault}" for fault in unnamed]
        faults += found
    raise_faults(origin, faults)
    return Config(**values)


def section_types(tree: Tree) -> tuple[dict[str, type], list[str]]:
    """(Type of each top-level key, faults); `generator.kind` and `discriminator.kind` choose their classes."""
    types = field_types(Config)
    faults = []
    tables: dict[str, dict[str, Any]] = {"generator": GENERATORS, "discriminator": DISCRIMINATORS}
    for role, table in tables.items():
        section = tree.get(role)
        kind = section.get("kind", _DEFAULT_KIND[role]) if isinstance(section, dict) else _DEFAULT_KIND[role]
        if not isinstance(kind, str) or kind not in table:
            faults.append(f"{role}.kind is {kind!r}{nearest_hint(str(kind), table)}; choose {', '.join(table)}")
            kind = _DEFAULT_KIND[role]
        types[role] = table[kind].config_type
    return types, faults


def config_tree(config: Config) -> Tree:
    """The resolved configuration as nested plain mappings."""
    return to_tree(config)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML text that `load_config` reads back to an equal `Config`."""
    return yaml.safe_dump(config_tree(config), sort_keys=False)


def check_config(config: Config) -> None:
    """Rules that tie sections together, checked before anything is read or built; all faults at once."""
    faults = _stage_faults(config) + _network_faults(config) + _loss_faults(config) + _adversarial_faults(config)
    val_px, least_px = config.data.val_crop_px * config.scale, CROP_MULTIPLE_PX + CROP_MARGIN_PX
    if config.data.clip_frames > 1 and val_px < least_px:
        faults.append(
            f"data.val_crop_px {config.data.val_crop_px} x scale {config.scale} is below the {least_px} px that the "
            "validation's tOF needs; enlarge it"
        )
    if config.loss.temporal > 0 and config.data.clip_frames < 2:
        faults.append("loss.temporal needs data.clip_frames of at least 2")
    taken = sorted(flatten(config_tree(config)).keys() & config.tracking.extra_params.keys())
    faults += [f"tracking.extra_params: {name} is a parameter of every run already; rename it" for name in taken]
    raise_faults("configuration", faults)


def _stage_faults(config: Config) -> list[str]:
    """Terms that a warm-up would leave nothing of, or that it would leave no step for."""
    train, loss = config.train, config.loss
    faults = []
    if train.warmup_steps >= train.steps and (config.adversarial.is_on or loss.perceptual > 0):
        faults.append(
            f"train.warmup_steps {train.warmup_steps} leaves no step of train.steps {train.steps} for the adversarial "
            "and the perceptual term; lower it, or set adversarial.weight=0 and loss.perceptual=0"
        )
    if train.warmup_steps > 0 and loss.image == loss.tv == loss.temporal == 0:
        faults.append("train.warmup_steps needs a weight above 0 in loss.image, loss.tv or loss.temporal")
    return faults


def _loss_faults(config: Config) -> list[str]:
    """Forms of the losses that this data or these networks cannot serve."""
    loss, data, faults = config.loss, config.data, []
    if loss.temporal > 0 and loss.temporal_kind == "warped":
        if loss.temporal_flow == "packed" and not data.flow:
            faults.append("loss.temporal_flow=packed needs data.flow=true, and data packed with --flow")
        if loss.temporal_flow == "dis" and data.crop_px * config.scale < MIN_SIDE_PX:
            faults.append(
                f"loss.temporal_flow=dis needs crops of at least {MIN_SIDE_PX} high-resolution px; data.crop_px "
                f"{data.crop_px} x scale {config.scale} is less: enlarge the crop or use temporal_flow=packed"
            )
    if max(*loss.weights().values(), config.adversarial.weight) == 0:
        faults.append("all weights of loss and adversarial.weight are 0, so nothing would be trained; set one above 0")
    return faults


def _adversarial_faults(config: Config) -> list[str]:
    """Penalties that these networks cannot have, and controls without what they control or measure."""
    adversarial, faults = config.adversarial, []
    gamma_on, weight_on = adversarial.gamma_control.target > 0, adversarial.weight_control.ratio > 0
    if not adversarial.is_on:
        if gamma_on or weight_on:
            faults.append("adversarial.weight is 0, but gamma_control or weight_control is on; set it above 0")
        return faults
    is_penalised = max(adversarial.r1_gamma, adversarial.r2_gamma) > 0
    if is_penalised and adversarial.penalty == "exact" and config.train.compile:
        faults.append(
            "train.compile=true cannot differentiate twice, as adversarial.penalty=exact does; set "
            "adversarial.penalty=finite_difference or train.compile=false"
        )
    dropout = getattr(config.discriminator, "dropout", 0.0)
    if is_penalised and adversarial.penalty == "finite_difference" and dropout > 0:
        faults.append(
            "adversarial.penalty=finite_difference would measure the noise of dropout; set discriminator.dropout=0 "
            "or adversarial.penalty=exact"
        )
    if gamma_on and not is_penalised:
        faults.append(
            "adversarial.gamma_control controls adversarial.r1_gamma and r2_gamma; set one of them above 0 as the "
            "initial value"
        )
    if weight_on and config.loss.image == 0:
        faults.append(
            "adversarial.weight_control measures gradients relative to the image term's; set loss.image above 0"
        )
    return faults


def _network_faults(config: Config) -> list[str]:
    """What the networks refuse, found by building them without memory (on the meta device)."""
    try:
        with torch.device("meta"):
            generator = build_generator(config.generator, config.scale)
            discriminator = build_discriminator(config.discriminator, config.scale)
    except BadConfigError as error:
        return [str(error)]
    except RuntimeError as error:  # torch cannot even count the elements of a weight
        return [f"the networks are too large ({str(error).splitlines()[0]}); lower their channels, filters or levels"]
    data, faults = config.data, []
    for key in ("crop_px", "val_crop_px"):
        side = getattr(data, key)
        if generator.input_px is not None and side != generator.input_px:
            faults.append(f"data.{key} is {side}; the generator is built for generator.input_px = {generator.input_px}")
        if side < generator.min_px:
            faults.append(
                f"data.{key} is {side}; generator {config.generator.kind} as configured needs at least "
                f"{generator.min_px} px"
            )
        if config.adversarial.is_on and side * config.scale % discriminator.multiple_px:
            faults.append(
                f"data.{key} {side} x scale {config.scale} is not a multiple of the {discriminator.multiple_px} px "
                f"that discriminator {config.discriminator.kind} needs; change it or lower discriminator.levels"
            )
        elif config.adversarial.is_on and side * config.scale < discriminator.min_px:
            faults.append(
                f"data.{key} {side} x scale {config.scale} is below the {discriminator.min_px} px that discriminator "
                f"{config.discriminator.kind} needs; enlarge it or lower discriminator.levels"
            )
    if generator.uses_flow and not data.flow:
        faults.append(
            f"generator {config.generator.kind} as configured needs packed flow; set data.flow=true, and pack the "
            f"data with --flow {generator.flow_method}"
        )
    if data.clip_frames < generator.min_frames:
        faults.append(
            f"data.clip_frames is {data.clip_frames}; generator {config.generator.kind} as configured needs at "
            f"least {generator.min_frames}"
        )
    faults += _recurrence_faults(config, generator)
    if config.adversarial.is_on and data.clip_frames < discriminator.min_frames:
        faults.append(
            f"data.clip_frames is {data.clip_frames}; discriminator {config.discriminator.kind} needs at least "
            f"{discriminator.min_frames} frames per clip"
        )
    return faults


def _recurrence_faults(config: Config, generator: Generator) -> list[str]:
    """Settings that need another memory than the generator's."""
    faults = []
    if config.train.carry_state:
        if config.data.order != "ordered":
            faults.append(f"train.carry_state needs data.order=ordered, found {config.data.order}")
        if not generator.carries_state:
            faults.append(
                f"train.carry_state: generator {config.generator.kind} as configured has no state to carry; use "
                "recurrent with a recurrence, without alignment, bidirectional or lookahead_frames, or paper_srgan "
                "with its LSTM"
            )
        if config.loss.is_ping_pong:
            faults.append("train.carry_state and loss.temporal_kind=ping_pong cannot be combined; choose one")
    if config.train.checkpoint_activations and not generator.can_checkpoint:
        faults.append(
            f"train.checkpoint_activations: generator {config.generator.kind} as configured does not run frame by "
            "frame; use recurrent without bidirectional, or set it to false"
        )
    if config.loss.temporal > 0 and config.loss.temporal_kind == "ping_pong" and not _is_recurrent(config, generator):
        faults.append(
            f"loss.temporal_kind=ping_pong needs a recurrent generator, which {config.generator.kind} as configured "
            "is not; choose another temporal_kind"
        )
    return faults


def _is_recurrent(config: Config, generator: Generator) -> bool:
    """True if a frame's result depends on the frames before it and on no later one."""
    if config.generator.kind == "paper_srgan":
        return config.generator.lstm
    return isinstance(generator, RecurrentGenerator) and getattr(config.generator, "recurrence", "") != "none"
