"""What every generator and every discriminator offers.

Axes: B batch, T time, C channels, H W low-resolution, Y X high-resolution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from torch import Tensor, nn

from vsr_dist.core.errors import BadConfigError, BadInputError


class Generator(nn.Module, ABC):
    """Maps a low-resolution clip to a high-resolution one.

    scale: enlargement in both directions. input_px: side of the only square input that the network accepts,
    or None for any size.
    """

    scale: int
    input_px: int | None = None

    @abstractmethod
    def forward(self, low_BTCHW: Tensor) -> Tensor:
        """Float RGB in [0, 1] in, float RGB (B, T, C, H * scale, W * scale) out, not clamped."""


class RecurrentGenerator(Generator):
    """A generator that can also run frame by frame; stepping through a clip equals one call on the whole."""

    @abstractmethod
    def step(self, low_BCHW: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One frame and the state before it (None at the start of a shot) to its image and state."""


class Discriminator(nn.Module, ABC):
    """Scores high-resolution clips: logits, high for real. min_frames, min_px: the smallest clip it accepts."""

    min_frames: int = 1
    min_px: int = 1

    @abstractmethod
    def forward(self, clip_BTCYX: Tensor, bicubic_BTCYX: Tensor) -> Tensor:
        """A clip, real or fake, and its enlarged input, both float RGB in [0, 1], to logits with B first."""


def check_scale(kind: str, scale: int, allowed: Collection[int]) -> None:
    """Raise BadConfigError unless `scale` is one that the generator `kind` can build."""
    if scale not in allowed:
        choices = ", ".join(str(value) for value in sorted(allowed))
        raise BadConfigError(
            f"generator {kind!r}: expected a scale of {choices}, found {scale}; pack the data at another "
            "scale or choose another generator"
        )


def check_clip(clip: Tensor, min_frames: int = 1) -> None:
    """Raise BadInputError unless `clip` is (B, T, 3, rows, columns) with at least `min_frames` frames."""
    if clip.dim() != 5 or clip.shape[2] != 3:
        raise BadInputError(f"expected a clip (batch, time, 3, rows, columns), found {tuple(clip.shape)}")
    if clip.shape[1] < min_frames:
        raise BadInputError(
            f"expected clips of at least {min_frames} frames, found {clip.shape[1]}; raise the number of "
            "frames per clip or choose a discriminator that scores single frames"
        )


def check_positive(kind: str, **numbers: int) -> None:
    """Raise BadConfigError naming every number below 1."""
    bad = [f"{name} {value}" for name, value in numbers.items() if value < 1]
    if bad:
        raise BadConfigError(f"model {kind!r}: expected numbers of at least 1, found {', '.join(bad)}")


def check_dropout(kind: str, dropout: float) -> None:
    """Raise BadConfigError unless `dropout` is a probability below 1."""
    if not 0.0 <= dropout < 1.0:
        raise BadConfigError(f"model {kind!r}: expected a dropout from 0 to below 1, found {dropout}")
