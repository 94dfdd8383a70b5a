"""Running any generator over a sequence of any length and size, one piece at a time.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vsr_dist.models.base import Generator, RecurrentGenerator, State
from vsr_dist.ops.resample import bicubic_upsample


class SequenceUpscaler(Protocol):
    """Takes the consecutive pieces of one sequence in time order."""

    scale: int

    def upscale(self, low_TCHW: Tensor) -> Tensor:
        """The next frames of the sequence, float RGB in [0, 1], enlarged to (T, C, Y, X), clamped to [0, 1]."""
        ...

    def reset(self) -> None:
        """Forget the past: the next frames begin another sequence."""
        ...


class BicubicUpscaler:
    """The baseline: every frame by itself."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def upscale(self, low_TCHW: Tensor) -> Tensor:
        """See `SequenceUpscaler`."""
        return bicubic_upsample(low_TCHW, self.scale).clamp(0.0, 1.0)

    def reset(self) -> None:
        """Nothing is remembered."""


class GeneratorUpscaler:
    """A generator in eval mode. A recurrent one carries its state from piece to piece, so that the result does not
    depend on where the pieces are cut. Any other runs on each piece by itself, one with a fixed input size on tiles:
    give a bidirectional one, which looks ahead, pieces as long as memory allows.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator, self.scale = generator, generator.scale
        self._state: State | None = None

    @torch.no_grad()
    def upscale(self, low_TCHW: Tensor) -> Tensor:
        """See `SequenceUpscaler`."""
        if isinstance(self.generator, RecurrentGenerator):
            frames = []
            for low_CHW in low_TCHW:
                fake_BCYX, self._state = self.generator.step(low_CHW[None], self._state)
                frames.append(fake_BCYX[0])
            fake_TCYX = torch.stack(frames)
        elif self.generator.input_px is None:
            fake_TCYX = self.generator(low_TCHW[None])[0]
        else:
            fake_TCYX = upscale_in_tiles(self.generator, low_TCHW, self.generator.input_px)
        return fake_TCYX.clamp(0.0, 1.0)

    def reset(self) -> None:
        """Start the recurrent state from nothing."""
        self._state = None


def upscale_in_tiles(generator: Generator, low_TCHW: Tensor, tile_px: int) -> Tensor:
    """Cut a clip into square tiles side by side, run them as a batch, and put the results together.

    The last row and column are filled up by repeating the border pixels; the filling is cut off again. Tiles do
    not overlap, so their seams show: that is what a network of fixed input size gives.
    """
    frames, channels, height, width = low_TCHW.shape
    rows, columns = -(-height // tile_px), -(-width // tile_px)
    padding = (0, columns * tile_px - width, 0, rows * tile_px - height)
    padded = F.pad(low_TCHW, padding, mode="replicate")
    tiles = padded.reshape(frames, channels, rows, tile_px, columns, tile_px)
    tiles_BTCHW = tiles.permute(2, 4, 0, 1, 3, 5).reshape(rows * columns, frames, channels, tile_px, tile_px)
    fake_BTCYX = torch.cat([generator(tile_TCHW[None]) for tile_TCHW in tiles_BTCHW])
    out_px = tile_px * generator.scale
    fakes = fake_BTCYX.reshape(rows, columns, frames, channels, out_px, out_px).permute(2, 3, 0, 4, 1, 5)
    whole = fakes.reshape(frames, channels, rows * out_px, columns * out_px)
    return whole[:, :, : height * generator.scale, : width * generator.scale]
