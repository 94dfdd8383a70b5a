"""Adversarial objectives on logits, in one table.

Each objective states `chance`, the discriminator loss of one that cannot tell real from fake (it gives every
input the same, best constant). Loss / chance is then 1 at chance and 0 for perfect separation in every
formula (`bce`, `ragan` and `rpgan` only approach 0).

Logits have any shape with the batch first; the means run over all of them, so every patch counts the same.
Half precision logits are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vsr_dist.core.collectives import differentiable_mean_over_ranks
from vsr_dist.losses.penalties import full_precision

AdversarialName = Literal["paper", "bce", "lsgan", "hinge", "ragan", "rpgan"]


@dataclass(frozen=True)
class AdversarialObjective:
    """The losses of both players.

    discriminator_loss(real_logits, fake_logits) and generator_loss(real_logits, fake_logits) return scalars
    to minimise. `uses_real_in_generator` says whether the generator's loss reads the real logits; the others
    accept None for them.
    """

    name: AdversarialName
    chance: float
    uses_real_in_generator: bool
    discriminator_loss: Callable[[Tensor, Tensor], Tensor]
    generator_loss: Callable[[Tensor | None, Tensor], Tensor]


def paper_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """`1 - mean D(real) + mean D(fake)`, D = sigmoid(logit): github.com/leftthomas/SRGAN, train.py.

    Its gradient carries the factor D (1 - D) and dies once the logits of both classes lie on one far side.
    """
    return 1.0 - torch.sigmoid(full_precision(real)).mean() + torch.sigmoid(full_precision(fake)).mean()


def paper_generator(_real: Tensor | None, fake: Tensor) -> Tensor:
    """`mean(1 - D(fake))`, D = sigmoid(logit): listing 3 of the paper."""
    return torch.mean(1.0 - torch.sigmoid(full_precision(fake)))


def bce_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """`-mean log D(real) - mean log(1 - D(fake))`: Goodfellow et al. 2014, equation 1."""
    return F.softplus(-full_precision(real)).mean() + F.softplus(full_precision(fake)).mean()


def bce_generator(_real: Tensor | None, fake: Tensor) -> Tensor:
    """`-mean log D(fake)`: the non-saturating form, Goodfellow et al. 2014, section 3."""
    return F.softplus(-full_precision(fake)).mean()


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """`mean (real - 1)^2 + mean fake^2`: Mao et al. 2017 (arXiv:1611.04076), without its halves."""
    return (full_precision(real) - 1.0).pow(2).mean() + full_precision(fake).pow(2).mean()


def lsgan_generator(_real: Tensor | None, fake: Tensor) -> Tensor:
    """`mean (fake - 1)^2`: Mao et al. 2017."""
    return (full_precision(fake) - 1.0).pow(2).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """`mean max(0, 1 - real) + mean max(0, 1 + fake)`: Lim and Ye 2017 (arXiv:1705.02894)."""
    return F.relu(1.0 - full_precision(real)).mean() + F.relu(1.0 + full_precision(fake)).mean()


def hinge_generator(_real: Tensor | None, fake: Tensor) -> Tensor:
    """`-mean fake`: Lim and Ye 2017. Not bounded below."""
    return -full_precision(fake).mean()


def ragan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """`mean softplus(m_fake - real) + mean softplus(fake - m_real)`, m the means over the global batch.

    Relativistic average: Jolicoeur-Martineau 2018 (arXiv:1807.00734), as in ESRGAN (Wang et al. 2018,
    arXiv:1809.00219, equation 1), without the half of its code. The means run over the logits of all ranks, which
    must hold equally many, and carry the gradient, so that N processes learn what one process does on the whole
    batch. With accumulated micro-batches they run over one micro-batch of every rank, not over all of them.
    """
    mean_real, mean_fake = _global_means(real, fake)
    return F.softplus(mean_fake - full_precision(real)).mean() + F.softplus(full_precision(fake) - mean_real).mean()


def ragan_generator(real: Tensor | None, fake: Tensor) -> Tensor:
    """`mean softplus(real - m_fake) + mean softplus(m_real - fake)`: ESRGAN, equation 2. Means as above."""
    if real is None:
        raise ValueError("ragan: the generator's loss needs the real logits, found None")
    mean_real, mean_fake = _global_means(real, fake)
    return F.softplus(full_precision(real) - mean_fake).mean() + F.softplus(mean_real - full_precision(fake)).mean()


def _global_means(real: Tensor, fake: Tensor) -> Tensor:
    """(mean real, mean fake) over all ranks, in one collective call forward and one backward."""
    return differentiable_mean_over_ranks(torch.stack((full_precision(real).mean(), full_precision(fake).mean())))


def rpgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """`mean softplus(fake - real)` per pair: relativistic pairing, Huang et al. 2024 (arXiv:2501.05441).

    real and fake must be logits of the same clips, so that each reconstruction meets its own ground truth.
    """
    return F.softplus(_paired(fake, real)).mean()


def rpgan_generator(real: Tensor | None, fake: Tensor) -> Tensor:
    """`mean softplus(real - fake)` per pair: Huang et al. 2024 (arXiv:2501.05441)."""
    if real is None:
        raise ValueError("rpgan: the generator's loss needs the real logits of the same clips, found None")
    return F.softplus(_paired(real, fake)).mean()


def paper_formula(objective: AdversarialObjective, real: Tensor, fake: Tensor) -> Tensor:
    """The paper's discriminator loss of logits that any objective trained, so that all can be compared. Scalar.

    `1 - mean p(real) + mean p(fake)`, 1 at chance and 0 for perfect separation. p is the probability of being real
    that the objective gives a logit: sigmoid(logit) for `paper`, `bce`, `hinge` and `lsgan`. Relativistic objectives
    leave the offset of the logits free, so p is taken of differences: for `rpgan` of pairs,
    p(real) = sigmoid(real - fake) and p(fake) = 1 - p(real), which makes it
    `2 (1 - mean sigmoid(real - fake))`; for `ragan` of differences to the other kind's mean over these logits.
    """
    real, fake = full_precision(real), full_precision(fake)
    if objective.name == "rpgan":
        return 2.0 * (1.0 - torch.sigmoid(_paired(real, fake)).mean())
    if objective.name == "ragan":
        real, fake = real - fake.mean(), fake - real.mean()
    return paper_discriminator(real, fake)


def _paired(first: Tensor, second: Tensor) -> Tensor:
    if first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"rpgan pairs logits one to one: expected equal shapes, found {shapes}")
    return full_precision(first) - full_precision(second)


ADVERSARIAL: dict[AdversarialName, AdversarialObjective] = {
    "paper": AdversarialObjective("paper", 1.0, False, paper_discriminator, paper_generator),
    "bce": AdversarialObjective("bce", 2.0 * math.log(2.0), False, bce_discriminator, bce_generator),
    "lsgan": AdversarialObjective("lsgan", 0.5, False, lsgan_discriminator, lsgan_generator),
    "hinge": AdversarialObjective("hinge", 2.0, False, hinge_discriminator, hinge_generator),
    "ragan": AdversarialObjective("ragan", 2.0 * math.log(2.0), True, ragan_discriminator, ragan_generator),
    "rpgan": AdversarialObjective("rpgan", math.log(2.0), True, rpgan_discriminator, rpgan_generator),
}
