"""What discriminators share: normalisation of their convolutions, and how their networks are run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

NormName = Literal["batch", "none", "group", "spectral"]
# Wu and He 2018 group by 8 to 32 channels; narrow layers get the largest group count that divides them.
MAX_GROUPS = 8


def norm_layers(conv: nn.Conv2d, norm: NormName) -> list[nn.Module]:
    """The convolution and what follows it: nothing, batch or group norm; `spectral` wraps the convolution."""
    if norm == "spectral":
        return [spectral_norm(conv)]
    if norm == "batch":
        return [conv, nn.BatchNorm2d(conv.out_channels)]
    if norm == "group":
        return [conv, nn.GroupNorm(math.gcd(MAX_GROUPS, conv.out_channels), conv.out_channels)]
    return [conv]


def rest_spectral_norm(network: nn.Module) -> None:
    """Let every spectral norm in it keep its singular vectors in the forward passes, though the network trains.

    torch's takes one power iteration in each forward in training. A step of a GAN has several, and twice as many with
    two micro-batches as on two processes, so that the two would train differently. `train()` undoes it.
    """
    for module in _parametrized(network):
        module.parametrizations.train(False)  # type: ignore[union-attr]


def advance_spectral_norm(network: nn.Module) -> None:
    """One power iteration of every spectral norm in it (Miyato et al. 2018, arXiv:1802.05957), then rest."""
    for module in _parametrized(network):
        module.parametrizations.train(True)  # type: ignore[union-attr]
        with torch.no_grad():
            _ = module.weight
    rest_spectral_norm(network)


def _parametrized(network: nn.Module) -> Iterator[nn.Module]:
    return (module for module in network.modules() if is_parametrized(module))


def score(net: nn.Module, inputs: Tensor, full_precision: bool) -> Tensor:
    """`net(inputs)` in the surrounding precision, or with autocast off in float32, whatever surrounds it."""
    if not full_precision:
        logits: Tensor = net(inputs)
        return logits
    with torch.autocast(inputs.device.type, enabled=False):
        full: Tensor = net(inputs.float() if inputs.dtype in (torch.bfloat16, torch.float16) else inputs)
    return full
