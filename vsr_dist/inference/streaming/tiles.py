"""Large frames piece by piece: overlapping tiles of one shape, put together with weights that sum to one.

A network whose result at a pixel depends on its surroundings up to `context_px` gives the same there whether it sees
the whole frame or a tile whose cut edge is at least that far away. So each tile is given `context_px` more than it
contributes at each cut edge, and its weight rises from 0 to 1 over the `blend_px` behind that; at the frame's own
border there is nothing to discard. What recurs, the state of a generator, is put together in the same way after every
frame and cut into tiles again before the next: the pieces never drift apart.

Axis letters: H W low-resolution, Y X high-resolution rows and columns; L pixels in one direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Tiles begin at multiples of this: networks that halve the image (a pyramid of three levels) then halve it alike.
ALIGN_PX = 4
BLEND_PX = 8
# What a tile must have beyond the overlap, so that it contributes something.
MIN_CORE_PX = 16


@dataclass(frozen=True)
class Overlap:
    """What neighbouring tiles share, in low-resolution pixels: twice the context, and between that the blend."""

    context_px: int
    blend_px: int

    @property
    def shared_px(self) -> int:
        """Pixels that two neighbours have in common, at least."""
        return 2 * self.context_px + self.blend_px

    @classmethod
    def of(cls, shared_px: int) -> Overlap:
        """The overlap that shares so many pixels."""
        blend_px = min(BLEND_PX, shared_px)
        return cls((shared_px - blend_px) // 2, blend_px)

    @property
    def min_tile_px(self) -> int:
        """The smallest useful tile."""
        return self.shared_px + MIN_CORE_PX


@dataclass(frozen=True)
class Axis:
    """The tiles in one direction: where they begin, how long each is, and how long the frame is."""

    starts: tuple[int, ...]
    length_px: int
    size_px: int

    @classmethod
    def cover(cls, size_px: int, tile_px: int, overlap: Overlap, align_px: int = ALIGN_PX) -> Axis:
        """The fewest tiles of at most `tile_px` that cover `size_px`, evenly spread; one if the frame fits."""
        if tile_px >= size_px:
            return cls((0,), size_px, size_px)
        # The last tile ends with the frame and begins, as every other, at a multiple of align_px.
        length_px = tile_px - (tile_px - size_px) % align_px
        stride_px = (length_px - overlap.shared_px) // align_px * align_px
        if stride_px < align_px:
            raise ValueError(f"tiles of {tile_px} px with {overlap.shared_px} px shared leave nothing to contribute")
        last_start = size_px - length_px
        num_gaps = -(-last_start // stride_px)
        starts = (last_start * number // num_gaps // align_px * align_px for number in range(num_gaps + 1))
        return cls(tuple(starts), length_px, size_px)

    def weights(self, scale: int, overlap: Overlap) -> list[Tensor]:
        """Of each tile (length_px * scale,), on pixels `scale` times as fine; over all tiles they sum to 1."""
        total_L = torch.zeros(self.size_px * scale)
        raw = []
        for start in self.starts:
            centre_L = (torch.arange(self.length_px * scale) + 0.5) / scale
            weight_L = torch.ones_like(centre_L)
            if start > 0:
                weight_L *= _rise(centre_L, overlap)
            if start + self.length_px < self.size_px:
                weight_L *= _rise(self.length_px - centre_L, overlap)
            raw.append(weight_L)
            total_L[start * scale : (start + self.length_px) * scale] += weight_L
        spans = (slice(start * scale, (start + self.length_px) * scale) for start in self.starts)
        return [weight_L / total_L[span] for weight_L, span in zip(raw, spans, strict=True)]


def _rise(distance_L: Tensor, overlap: Overlap) -> Tensor:
    """0 within the context of a cut edge, 1 behind the blend, between them `3 t^2 - 2 t^3`: no kink at either end."""
    step_L = ((distance_L - overlap.context_px) / max(overlap.blend_px, 1e-6)).clamp(0.0, 1.0)
    return step_L * step_L * (3.0 - 2.0 * step_L)


class Grid:
    """All tiles of a frame (H, W), row by row; with `exact` each has `tile_px`, wherever it then begins."""

    def __init__(self, height: int, width: int, tile_px: int, overlap: Overlap, *, exact: bool = False) -> None:
        align_px = 1 if exact else ALIGN_PX
        self.rows = Axis.cover(height, tile_px, overlap, align_px)
        self.columns = Axis.cover(width, tile_px, overlap, align_px)
        self.overlap = overlap
        self._weights: dict[tuple[int, torch.device], tuple[list[Tensor], list[Tensor]]] = {}

    @property
    def num_tiles(self) -> int:
        """1 if the frame is not cut."""
        return len(self.rows.starts) * len(self.columns.starts)

    def weights(self, scale: int, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
        """The rows' weights (L, 1) and the columns' (L,), whose products are those of the tiles."""
        if (scale, device) not in self._weights:
            rows = [weight_L.to(device)[:, None] for weight_L in self.rows.weights(scale, self.overlap)]
            columns = [weight_L.to(device) for weight_L in self.columns.weights(scale, self.overlap)]
            self._weights[scale, device] = (rows, columns)
        return self._weights[scale, device]


def run_in_tiles(
    grid: Grid, scale: int, inputs: Sequence[Tensor], function: Callable[..., Sequence[Tensor]]
) -> list[Tensor]:
    """`function(*inputs)` piece by piece.

    Inputs whose last two axes are the frame's (H, W) are cut; others are given whole. Of the results, those as large
    as a tile, or `scale` times that, are put together; of others the last tile's counts, since such do not depend
    on the place.
    """
    if grid.num_tiles == 1:
        return list(function(*inputs))
    frame_shape = (grid.rows.size_px, grid.columns.size_px)
    whole: list[Tensor] = []
    dtypes: list[torch.dtype] = []
    for row, top in enumerate(grid.rows.starts):
        for column, left in enumerate(grid.columns.starts):
            cut = (..., slice(top, top + grid.rows.length_px), slice(left, left + grid.columns.length_px))
            pieces = [image[cut] if image.shape[-2:] == frame_shape else image for image in inputs]
            results = function(*pieces)
            if not whole:
                whole = [_canvas(result, grid, scale) for result in results]
                dtypes = [result.dtype for result in results]
            for number, result in enumerate(results):
                factor = _factor(result, grid, scale)
                if factor is None:
                    whole[number] = result
                    continue
                rows, columns = grid.weights(factor, result.device)
                height, width = result.shape[-2:]
                y, x = top * factor, left * factor
                whole[number][..., y : y + height, x : x + width] += result * rows[row] * columns[column]
    return [image.to(dtype) for image, dtype in zip(whole, dtypes, strict=True)]


def _factor(result: Tensor, grid: Grid, scale: int) -> int | None:
    """How many times finer than the input a result is; None if it is not laid out over the tile."""
    for factor in (1, scale):
        if tuple(result.shape[-2:]) == (grid.rows.length_px * factor, grid.columns.length_px * factor):
            return factor
    return None


def _canvas(result: Tensor, grid: Grid, scale: int) -> Tensor:
    factor = _factor(result, grid, scale)
    if factor is None:
        return result
    shape = (*result.shape[:-2], grid.rows.size_px * factor, grid.columns.size_px * factor)
    # float32 whatever the tile has: small weights in bfloat16 would not sum to one.
    return torch.zeros(shape, dtype=torch.float32, device=result.device)
