"""The generator's loss: its terms in one table, their weights, and the one place that multiplies them.

The adversarial term is not here: it belongs to the adversarial training (`vsr_dist.training.config.AdversarialConfig`,
`vsr_dist.losses.adversarial`) and joins the others in the sum.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns, K the two directions of
flow, N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vsr_dist.core.errors import BadConfigError
from vsr_dist.losses.perceptual import perceptual
from vsr_dist.losses.pixel import PIXEL, TV, PixelName, TvName
from vsr_dist.losses.temporal import (
    FlowSource,
    TemporalName,
    flow_back,
    temporal_difference,
    temporal_ping_pong,
    temporal_warped,
)

ADVERSARIAL_TERM = "adversarial"
BalanceName = Literal["weights", "shares"]


@dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the generator's terms; the defaults are listing 3 of the paper.

    A weight of 0 switches a term off: it is not computed. Raises BadConfigError for a weight that is negative or not
    finite.

    Attributes:
        balance: `weights`: each weight multiplies its term. `shares`: the weight of every term but the image term, the
            adversarial one included, is the norm of its gradient at the generator's output over the image term's. The
            factor that gives this share is measured over the first `balance_steps` steps in which the term acts, and
            fixed from then on.
        balance_steps: number of these steps.
        pixel: form of the image term.
        image: weight of the image term.
        perceptual: weight of the perceptual term.
        tv: weight of the total variation; its default, the paper's, has no effect (`vsr_dist.losses.pixel`).
        temporal: weight of the temporal term.
        tv_kind: `squared_mean` is the paper's; `anisotropic` and `isotropic` are the usual L1 forms.
        temporal_kind: `difference` is the paper's; `warped` compares along the motion of the real frames, where it
            explains them; `ping_pong` runs a recurrent generator forward and backward, which about doubles its cost.
        temporal_flow: motion for `warped`: `dis` estimates it from the real frames on the CPU at every step; `packed`
            enlarges the low-resolution flow of the data set and needs data.flow.
    """

    balance: BalanceName = "weights"
    balance_steps: int = 20
    pixel: PixelName = "mse"
    image: float = 1.0
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
        if self.balance_steps < 1:
            raise BadConfigError(f"loss.balance_steps is {self.balance_steps}, expected at least 1")
        if self.balance == "shares" and self.image == 0:
            raise BadConfigError("loss.balance=shares measures all terms by the image term; set loss.image above 0")

    def weights(self) -> dict[str, float]:
        """The weight of every term of the table, in its order."""
        return {name: getattr(self, name) for name in TERMS}

    @property
    def is_ping_pong(self) -> bool:
        """True if the generator runs over the clip and back."""
        return self.temporal > 0 and self.temporal_kind == "ping_pong"


@dataclass(frozen=True)
class LossInputs:
    """What the terms may read, of one micro-batch.

    Clips: float RGB in [0, 1]. returned_BTCYX: frames 0 .. T-2 of the way back, with `ping_pong` only. Features: of the
    frames that the perceptual term compares, (N, C, Y, X), if it is on. flow_BTKCHW: packed flow in low-resolution
    pixels, if the data has it.
    """

    fake_BTCYX: Tensor
    real_BTCYX: Tensor
    scale: int
    returned_BTCYX: Tensor | None = None
    flow_BTKCHW: Tensor | None = None
    fake_features: Tensor | None = None
    real_features: Tensor | None = None
    features_rescale: float = 1.0


@dataclass(frozen=True)
class Term:
    """One term of the generator's loss: a function of the configuration and the inputs to a scalar.

    in_warmup: whether it acts before the adversarial part.
    needs_features: whether it reads the features of the perceptual network.
    """

    loss: Callable[[LossConfig, LossInputs], Tensor]
    in_warmup: bool = True
    needs_features: bool = False


def _image(config: LossConfig, inputs: LossInputs) -> Tensor:
    return PIXEL[config.pixel](inputs.fake_BTCYX, inputs.real_BTCYX)


def _perceptual(config: LossConfig, inputs: LossInputs) -> Tensor:
    del config
    assert inputs.fake_features is not None and inputs.real_features is not None
    return perceptual(inputs.fake_features, inputs.real_features, inputs.features_rescale)


def _tv(config: LossConfig, inputs: LossInputs) -> Tensor:
    return TV[config.tv_kind](inputs.fake_BTCYX)


def _temporal(config: LossConfig, inputs: LossInputs) -> Tensor:
    if config.temporal_kind == "ping_pong":
        assert inputs.returned_BTCYX is not None
        return temporal_ping_pong(inputs.fake_BTCYX, inputs.returned_BTCYX)
    if config.temporal_kind == "difference":
        return temporal_difference(inputs.fake_BTCYX, inputs.real_BTCYX)
    back_BT2YX = flow_back(config.temporal_flow, inputs.real_BTCYX, inputs.flow_BTKCHW, inputs.scale)
    return temporal_warped(inputs.fake_BTCYX, inputs.real_BTCYX, back_BT2YX)


# The name is the field of LossConfig with the weight, and the name in `loss_g/*` and `share_g/*`.
TERMS: dict[str, Term] = {
    "image": Term(_image),
    "perceptual": Term(_perceptual, in_warmup=False, needs_features=True),
    "tv": Term(_tv),
    "temporal": Term(_temporal),
}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """Each term (scalar) times its weight, added up; a weight that is a tensor carries no graph."""
    weighted = [weights[name] * term for name, term in terms.items()]
    total = weighted[0]
    for value in weighted[1:]:
        total = total + value
    return total
