"""Generators and discriminators: one file each, and two tables that name them all.

A new one takes its file, its line in the table and in the union below, and its row in the contract tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.models.base import Discriminator, Generator, RecurrentGenerator, State
from vsr_dist.models.basicvsr import Basicvsr, BasicvsrConfig
from vsr_dist.models.compact import Compact, CompactConfig
from vsr_dist.models.espcn import Espcn, EspcnConfig
from vsr_dist.models.paper_srgan import PaperSrgan, PaperSrganConfig
from vsr_dist.models.recurrent import RecurrentConfig, build_recurrent
from vsr_dist.models.spatiotemporal import Spatiotemporal, SpatiotemporalConfig
from vsr_dist.models.srgan_discriminator import SrganDiscriminator, SrganDiscriminatorConfig
from vsr_dist.models.srresnet import Srresnet, SrresnetConfig
from vsr_dist.models.unet_discriminator import UnetConfig, UnetDiscriminator
from vsr_dist.models.vsrnet import Vsrnet, VsrnetConfig

GeneratorConfig = (
    PaperSrganConfig | RecurrentConfig | EspcnConfig | VsrnetConfig | SrresnetConfig | CompactConfig | BasicvsrConfig
)
DiscriminatorConfig = SrganDiscriminatorConfig | UnetConfig | SpatiotemporalConfig


@dataclass(frozen=True)
class GeneratorEntry:
    """A generator's configuration class and its constructor from (configuration, scale)."""

    config_type: type[GeneratorConfig]
    build: Callable[[Any, int], Generator]


@dataclass(frozen=True)
class DiscriminatorEntry:
    """A discriminator's configuration class and its constructor from (configuration, scale)."""

    config_type: type[DiscriminatorConfig]
    build: Callable[[Any, int], Discriminator]


GENERATORS: dict[str, GeneratorEntry] = {
    "paper_srgan": GeneratorEntry(PaperSrganConfig, PaperSrgan),
    "recurrent": GeneratorEntry(RecurrentConfig, build_recurrent),
    "espcn": GeneratorEntry(EspcnConfig, Espcn),
    "vsrnet": GeneratorEntry(VsrnetConfig, Vsrnet),
    "srresnet": GeneratorEntry(SrresnetConfig, Srresnet),
    "compact": GeneratorEntry(CompactConfig, Compact),
    "basicvsr": GeneratorEntry(BasicvsrConfig, Basicvsr),
}
DISCRIMINATORS: dict[str, DiscriminatorEntry] = {
    "srgan": DiscriminatorEntry(SrganDiscriminatorConfig, SrganDiscriminator),
    "unet": DiscriminatorEntry(UnetConfig, UnetDiscriminator),
    "spatiotemporal": DiscriminatorEntry(SpatiotemporalConfig, Spatiotemporal),
}


def build_generator(config: GeneratorConfig, scale: int) -> Generator:
    """The generator that `config.kind` names, fresh; BadConfigError if it cannot do the scale."""
    _check_kind("generator", config.kind, GENERATORS)
    return GENERATORS[config.kind].build(config, scale)


def build_discriminator(config: DiscriminatorConfig, scale: int) -> Discriminator:
    """The discriminator that `config.kind` names, fresh; BadConfigError if it cannot do the scale."""
    _check_kind("discriminator", config.kind, DISCRIMINATORS)
    return DISCRIMINATORS[config.kind].build(config, scale)


def _check_kind(role: str, kind: str, table: dict[str, Any]) -> None:
    if kind not in table:
        raise BadConfigError(f"{role}: expected one of {', '.join(table)}, found {kind!r}{nearest_hint(kind, table)}")


__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "Discriminator",
    "DiscriminatorConfig",
    "DiscriminatorEntry",
    "Generator",
    "GeneratorConfig",
    "GeneratorEntry",
    "RecurrentGenerator",
    "State",
    "build_discriminator",
    "build_generator",
]
