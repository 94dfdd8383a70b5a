"""What keeps a step from going wrong unseen: numbers that are not finite, and a DDP that cannot train this pair."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vsr_dist.core.collectives import gather_lists
from vsr_dist.core.errors import BadConfigError


def spread_non_finite(loss: Tensor) -> Tensor:
    """The loss itself (0-d, float), whose gradient is NaN if it is not finite and else the same to the last bit.

    A loss can overflow while its gradient does not. As NaN it is in every rank's averaged gradient, where the check
    sees it on all of them with no exchange of its own.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


def refuse_static_graph(*networks: nn.Module) -> None:
    """DDP's static graph takes the first step for the rule: with D frozen for G's turn the ranks would drift apart."""
    if any(isinstance(network, DistributedDataParallel) and network.static_graph for network in networks):
        raise BadConfigError(
            "DistributedDataParallel(static_graph=True) trains this pair wrongly without a word: the discriminator is "
            "frozen in the generator's turn, so its graph changes; leave static_graph off"
        )


def describe_non_finite(terms: Mapping[str, list[float]], group: str) -> str:
    """Which terms were NaN or infinite on any rank and micro-batch, from this rank's values; a collective call."""
    mine = [name for name, values in terms.items() if not all(map(math.isfinite, values))]
    names = sorted(set(gather_lists(mine)))
    what = f"the term(s) {', '.join(names)}" if names else "the gradient (every loss term is finite)"
    player = "generator" if group == "loss_g" else "discriminator"
    return (
        f"not finite: {what}; training stopped before the {player} moved. Lower the learning rate or the weight of "
        "that term, or resume from the last checkpoint"
    )


def with_gradient_norm(image_BTCYX: Tensor, name: str, norms: dict[str, Tensor]) -> Tensor:
    """The same image, whose backward pass puts the L2 norm of the gradient that arrives (0-d) into `norms[name]`."""
    seen_BTCYX = image_BTCYX.view_as(image_BTCYX)

    def note(gradient_BTCYX: Tensor) -> None:
        norms[name] = torch.linalg.vector_norm(gradient_BTCYX.detach().float())

    seen_BTCYX.register_hook(note)  # type: ignore[no-untyped-call]
    return seen_BTCYX
