"""What networks share: blocks of generators; normalisation of discriminators, and how their networks are run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
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


# EDSR scales each residual branch by 0.1; here its last convolution starts that small, at no cost per step.
RESIDUAL_INIT = 0.1


class ResidualBlock(nn.Module):
    """conv, ReLU, conv, plus the input (EDSR's block, Lim et al. 2017); (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(RESIDUAL_INIT)
            if self.second.bias is not None:
                self.second.bias.zero_()

    def forward(self, features_NCHW: Tensor) -> Tensor:
        """Add the block's correction to its input."""
        correction: Tensor = self.second(F.relu(self.first(features_NCHW)))
        return features_NCHW + correction


def zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution whose weights and bias start at zero."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
