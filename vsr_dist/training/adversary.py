"""The discriminator's side of the game: its penalties, and the forward passes that they need.

Axis letters: B batch, T time, C channels, Y X high-resolution rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError
from vsr_dist.losses.regularise import PenaltyName, finite_difference_penalty, gradient_penalty


@dataclass(frozen=True)
class Scored:
    """A clip, its logits, the weight of its penalty, and the logits of the clip plus and minus noise, if wanted."""

    clip_BTCYX: Tensor
    logits: Tensor
    gamma: float
    moved_logits: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class AdversaryConfig:
    """The discriminator's side of the game.

    Attributes:
        r1_gamma: weight of the gradient penalty on real clips; 0 switches it off.
        r2_gamma: the same on generated clips.
        penalty: `exact` differentiates twice; `finite_difference` estimates the same quantity from the logits of the
            clip plus and minus noise (`vsr_dist.losses.regularise`): no second derivative, three forwards in one; takes
            no dropout.
        sigma: standard deviation of that noise, for images in [0, 1]; the difference drowns in bfloat16 below 0.03.
        penalty_precision: `float32` takes the discriminator's step out of autocast while a penalty is on, `autocast`
            leaves it there: faster, and in bfloat16 about 1 % off with `exact`, 17 % with `finite_difference`.
    """

    r1_gamma: float = 0.0
    r2_gamma: float = 0.0
    penalty: PenaltyName = "exact"
    sigma: float = 0.03
    penalty_precision: Literal["float32", "autocast"] = "float32"

    def __post_init__(self) -> None:
        """Refuse penalties that reward steepness, and noise that is none."""
        if not (0 <= self.r1_gamma < math.inf and 0 <= self.r2_gamma < math.inf):
            raise BadConfigError(
                f"adversary: r1_gamma is {self.r1_gamma} and r2_gamma {self.r2_gamma}; expected finite numbers from 0"
            )
        if not 0 < self.sigma < math.inf:
            raise BadConfigError(f"adversary: sigma is {self.sigma}; expected a finite number above 0")

    def scored(self, discriminator: nn.Module, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor, gamma: float) -> Scored:
        """Run the discriminator on a clip (a leaf, float RGB in [0, 1]) as a penalty of weight `gamma` needs it.

        The clips with noise go through the same forward: a change of the network between two, over sigma, would be
        taken for steepness. The noise is of torch's generator, so every rank draws its own.
        """
        full = self.penalty_precision == "float32" and max(self.r1_gamma, self.r2_gamma) > 0
        if gamma == 0 or self.penalty == "exact":
            clip_BTCYX = clip_BTCYX.requires_grad_(gamma > 0)
            logits: Tensor = discriminator(clip_BTCYX, bicubic_BTCYX, full_precision=full)
            return Scored(clip_BTCYX, logits, gamma)
        noise_BTCYX = self.sigma * torch.randn_like(clip_BTCYX)
        clips = torch.cat((clip_BTCYX, clip_BTCYX + noise_BTCYX, clip_BTCYX - noise_BTCYX))
        logits, plus, minus = discriminator(clips, torch.cat(3 * (bicubic_BTCYX,)), full_precision=full).chunk(3)
        return Scored(clip_BTCYX, logits, gamma, (plus, minus))

    def penalty_of(self, scored: Scored) -> Tensor:
        """R1 or R2 of what `scored` returned, weighted; scalar."""
        if scored.moved_logits is None:
            return gradient_penalty(scored.logits, scored.clip_BTCYX, scored.gamma)
        return finite_difference_penalty(*scored.moved_logits, self.sigma, scored.gamma)
