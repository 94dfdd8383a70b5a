"""The generator's objective: the weights of the terms, and the one place that multiplies them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vsr_dist.core.errors import BadConfigError
from vsr_dist.losses.flow import FlowSource
from vsr_dist.losses.pixel import PixelName
from vsr_dist.losses.temporal import TemporalName
from vsr_dist.losses.tv import TvName

TermName = Literal["image", "adversarial", "perceptual", "tv", "temporal"]


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's terms; the defaults are listing 3 of the paper.

    A weight of 0 switches a term off: it is not computed. Raises BadConfigError for a weight that is negative
    or not finite, or when all are 0.

    Attributes:
        pixel: form of the image term.
        image: weight of the image term.
        adversarial: weight of the adversarial term.
        perceptual: weight of the perceptual term.
        tv: weight of the total variation; its default, the paper's, has no effect (`vsr_dist.losses.tv`).
        temporal: weight of the temporal term.
        tv_kind: `squared_mean` is the paper's; `anisotropic` and `isotropic` are the usual L1 forms.
        temporal_kind: `difference` is the paper's; `warped` compares along the motion of the real frames, where it
            explains them; `ping_pong` runs a recurrent generator there and back, which about doubles its cost.
        temporal_flow: motion for `warped`: `dis` estimates it from the real frames on the CPU at every step; `packed`
            enlarges the low-resolution flow of the data set and needs data.flow.
    """

    pixel: PixelName = "mse"
    image: float = 1.0
    adversarial: float = 0.001
    perceptual: float = 0.006
    tv: float = 2e-8
    temporal: float = 0.1
    tv_kind: TvName = "squared_mean"
    temporal_kind: TemporalName = "difference"
    temporal_flow: FlowSource = "dis"

    def __post_init__(self) -> None:
        bad = [f"{name} {weight}" for name, weight in self.weights().items() if not 0.0 <= weight < math.inf]
        if bad:
            raise BadConfigError(f"loss weights: expected finite numbers of at least 0, found {', '.join(bad)}")
        if not self.active_terms():
            raise BadConfigError("loss weights: all are 0, so nothing would be trained; set at least one above 0")

    def weights(self) -> dict[TermName, float]:
        """The weight of every term, in a fixed order."""
        return {
            "image": self.image,
            "adversarial": self.adversarial,
            "perceptual": self.perceptual,
            "tv": self.tv,
            "temporal": self.temporal,
        }

    def active_terms(self) -> tuple[TermName, ...]:
        """The terms whose weight is not 0, in a fixed order: those that the caller computes."""
        return tuple(name for name, weight in self.weights().items() if weight != 0.0)


@dataclass(frozen=True)
class LossSum:
    """`total` is the weighted sum with its graph; `terms` are the terms *before* weighting, detached."""

    total: Tensor
    terms: dict[TermName, Tensor]


def combine(terms: Mapping[TermName, Tensor], weights: Mapping[TermName, float | Tensor]) -> LossSum:
    """Multiply each term (scalar) by its weight, once, and add them up.

    The terms are returned unweighted for the log, so that their curves stay comparable when weights change;
    the weighted sum of what is returned is `total`. A weight may be a tensor that the caller adapts; it must
    carry no graph. Weights without a term are ignored; raises ValueError for no terms or a term without a
    weight.
    """
    missing = [name for name in terms if name not in weights]
    if missing or not terms:
        raise ValueError(f"loss: expected a weight for every term and at least one term, missing {missing}")
    weighted = [weights[name] * term for name, term in terms.items()]
    total = weighted[0]
    for value in weighted[1:]:
        total = total + value
    return LossSum(total=total, terms={name: term.detach() for name, term in terms.items()})
