"""Running a network on frames of any size in the memory that there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vsr_dist.core.errors import UserError
from vsr_dist.inference.streaming.memory import free_bytes, is_out_of_memory, peak_bytes_per_px
from vsr_dist.inference.streaming.tiles import ALIGN_PX, Grid, Overlap, run_in_tiles

NetworkFunction = Callable[..., Sequence[Tensor]]
# A piece large enough that what does not grow with the frame counts for little.
_PROBE_PX = 96


class TooLittleMemoryError(UserError):
    """Even the smallest tile does not fit."""


class TiledNetwork:
    """Calls a function of frames (..., H, W) whole, or in tiles where it would not fit into memory.

    tile_px: the largest side of what the function sees at once; None takes what fits into the free memory, measured
    at the first frame. measure_overlap: called once, if there are tiles at all. fixed_px: the function takes no other
    size, so frames must be at least as large and the tile is never changed. After an out-of-memory error the tile
    is halved and the same frame is tried again: a function must not change anything before it returns.
    """

    def __init__(
        self, scale: int, device: torch.device, tile_px: int | None, measure_overlap: Callable[[], Overlap],
        *, fixed_px: int | None = None, min_px: int = 1,
    ) -> None:  # fmt: skip
        self.scale, self.device = scale, device
        self.asked_px, self.fixed_px, self._min_px = tile_px, fixed_px, min_px
        self.tile_px = fixed_px
        self.num_retries = 0
        self._measure_overlap = measure_overlap
        self._overlap: Overlap | None = None
        self._grid: Grid | None = None

    @property
    def overlap(self) -> Overlap:
        """What neighbouring tiles share."""
        if self._overlap is None:
            self._overlap = self._measure_overlap()
        return self._overlap

    @property
    def min_tile_px(self) -> int:
        """The smallest tile that is tried."""
        return self.fixed_px or max(self.overlap.min_tile_px, self._min_px + ALIGN_PX)

    def run(self, inputs: Sequence[Tensor], function: NetworkFunction) -> list[Tensor]:
        """`function(*inputs)`; the first input is laid out over the frame. See `run_in_tiles`."""
        height, width = inputs[0].shape[-2:]
        while True:
            try:
                if self.tile_px is None:
                    self.tile_px = self._choose(inputs, function)
                return run_in_tiles(self._grid_of(height, width), self.scale, inputs, function)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).partition("\n")[0]
            # Outside the handler: the error no longer holds the tensors of the failed attempt.
            self._halve(height, width, message)

    def _grid_of(self, height: int, width: int) -> Grid:
        assert self.tile_px is not None, "chosen before the first frame"
        grid, size = self._grid, (height, width)
        if grid is None or (grid.rows.size_px, grid.columns.size_px) != size:
            # A frame that fits needs no overlap, whose measurement costs time.
            fits = self.tile_px >= max(size)
            overlap = Overlap(0, 0) if fits else self.overlap
            exact = self.fixed_px is not None
            grid = self._grid = Grid(height, width, self.tile_px, overlap, exact=exact)
        return grid

    def _choose(self, inputs: Sequence[Tensor], function: NetworkFunction) -> int:
        """The tile's side: as asked for, or the largest whose memory, by what a small piece takes, is free."""
        height, width = inputs[0].shape[-2:]
        if self.asked_px is not None:
            return self.asked_px if self.asked_px >= max(height, width) else max(self.asked_px, self.min_tile_px)
        cut = (..., slice(0, _PROBE_PX), slice(0, _PROBE_PX))
        pieces = [image[cut] if image.shape[-2:] == (height, width) else image for image in inputs]
        need = peak_bytes_per_px(lambda: function(*pieces), pieces[0].shape[-2] * pieces[0].shape[-1], self.device)
        room = free_bytes(self.device)
        if need.peak * height * width <= room:
            return max(height, width)
        # With tiles the whole frame's results are held as well: the old ones and those in the making.
        left = max(0.0, room - 2 * need.results * height * width)
        side_px = int((left / need.peak) ** 0.5) // 8 * 8
        return max(side_px, self.min_tile_px)

    def _halve(self, height: int, width: int, message: str) -> None:
        current_px = min(self.tile_px or max(height, width), max(height, width))
        try:
            smallest_px = self.min_tile_px
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Not even the measurement of the overlap fits, on a frame smaller than most.
            smallest_px = current_px
        if self.fixed_px is not None or current_px <= smallest_px:
            raise TooLittleMemoryError(
                f"{self.device} has too little memory for a tile of {current_px} x {current_px} px, the smallest that "
                f"this generator can use ({message}); free memory, take precision bf16, a smaller generator or "
                "another device"
            )
        self.tile_px = max(current_px // 2, smallest_px)
        self._grid = None
        self.num_retries += 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def set_tile(self, tile_px: int | None) -> None:
        """Go on with the tile that was chosen before; None chooses at the next frame."""
        self.tile_px, self._grid = self.fixed_px or tile_px, None

    def facts(self) -> dict[str, Any]:
        """Tile, overlap and retries so far, in low-resolution pixels."""
        tiled = self._grid is not None and self._grid.num_tiles > 1
        return {
            "tile_px": self.tile_px,
            "num_tiles": self._grid.num_tiles if self._grid is not None else None,
            "overlap_px": self.overlap.shared_px if tiled else 0,
            "out_of_memory_retries": self.num_retries,
        }
