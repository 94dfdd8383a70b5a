"""A small recurrent generator that corrects the bicubic image.

Convolutional trunk without normalisation (EDSR's blocks, Lim et al. 2017), a ConvGRU in its middle, and a
residual that is added to the bicubic enlargement. Two projections start at zero, so that training starts from
known ground: the untrained network *is* bicubic enlargement, and its recurrence starts switched off.

Only the GRU's state update runs frame by frame; everything else runs on all frames of all clips at once.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution; N is B * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_dist.models.base import RecurrentGenerator, check_clip, check_positive, check_scale
from vsr_dist.ops.resample import bicubic_upsample

SCALES = (1, 2, 3, 4)
# EDSR scales each residual branch by 0.1; here its last convolution starts that small, at no cost per step.
RESIDUAL_INIT = 0.1


@dataclass(frozen=True)
class RecurrentConfig:
    """Sizes of the recurrent generator. recurrence `none` gives the single-frame trunk alone."""

    kind: Literal["recurrent"] = "recurrent"
    channels: int = 32
    num_blocks: int = 5
    recurrence: Literal["none", "convgru"] = "convgru"

    def __post_init__(self) -> None:
        check_positive(self.kind, channels=self.channels, num_blocks=self.num_blocks)


class ResidualBlock(nn.Module):
    """conv, ReLU, conv, plus the input; (N, C, H, W) to the same shape."""

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


class ConvGru(nn.Module):
    """A gated recurrent unit on feature maps, with 3 x 3 convolutions for matrices.

    Equations of `torch.nn.GRU` (Cho et al. 2014, reset gate after the matrix): r, z = sigmoid(W x + U h),
    n = tanh(W x + r * (U h)), h' = (1 - z) n + z h. A projection of h', zero at the start, is added to x.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.from_input = nn.Conv2d(channels, 3 * channels, 3, padding=1)
        self.from_state = nn.Conv2d(channels, 3 * channels, 3, padding=1)
        self.project = zero_conv(channels, channels)

    def forward(self, features_NCHW: Tensor, num_frames: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features of B clips of `num_frames` frames and the state before, to features and state after."""
        gates_BTGHW = torch.unflatten(self.from_input(features_NCHW), 0, (-1, num_frames))
        state_BCHW = torch.zeros_like(features_NCHW[: len(gates_BTGHW)]) if state is None else state
        states = []
        for gates_BGHW in gates_BTGHW.unbind(dim=1):
            state_BCHW = self._update(gates_BGHW, state_BCHW)
            states.append(state_BCHW)
        history_NCHW = torch.stack(states, dim=1).flatten(0, 1)
        projected: Tensor = self.project(history_NCHW)
        return features_NCHW + projected, state_BCHW

    def _update(self, gates_BGHW: Tensor, state_BCHW: Tensor) -> Tensor:
        reset_x, update_x, new_x = gates_BGHW.chunk(3, dim=1)
        reset_h, update_h, new_h = self.from_state(state_BCHW).chunk(3, dim=1)
        update = torch.sigmoid(update_x + update_h)
        candidate = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return torch.lerp(candidate, state_BCHW.to(candidate.dtype), update)


def zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution whose weights and bias start at zero."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class Recurrent(RecurrentGenerator):
    """Bicubic enlargement plus a learnt, recurrent residual; any size, any number of frames."""

    def __init__(self, config: RecurrentConfig, scale: int) -> None:
        check_scale(config.kind, scale, SCALES)
        super().__init__()
        self.scale = scale
        width = config.channels
        num_after = config.num_blocks // 2
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.before = nn.Sequential(*[ResidualBlock(width) for _ in range(config.num_blocks - num_after)])
        self.memory = ConvGru(width) if config.recurrence == "convgru" else None
        self.after = nn.Sequential(*[ResidualBlock(width) for _ in range(num_after)])
        self.tail = nn.Sequential(zero_conv(width, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, low_BTCHW: Tensor) -> Tensor:
        """Clip (B, T, 3, H, W) in [0, 1] to (B, T, 3, H * scale, W * scale), not clamped."""
        check_clip(low_BTCHW)
        fake_NCYX, _ = self._run(low_BTCHW.flatten(0, 1), low_BTCHW.shape[1], None)
        return torch.unflatten(fake_NCYX, 0, low_BTCHW.shape[:2])

    def step(self, low_BCHW: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One frame (B, 3, H, W) to its image and the next state; None starts a shot; `none` keeps None."""
        return self._run(low_BCHW, 1, state)

    def _run(self, low_NCHW: Tensor, num_frames: int, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        features: Tensor = self.before(self.head(low_NCHW))
        if self.memory is not None:
            features, state = self.memory(features, num_frames, state)
        residual: Tensor = self.tail(self.after(features))
        return bicubic_upsample(low_NCHW, self.scale) + residual, state
