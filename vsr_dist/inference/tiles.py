"""Large frames piece by piece: overlapping tiles of one shape, as large as the free memory allows.

A network whose result at a pixel depends on its surroundings up to `context_px` gives the same result there whether it
sees the whole frame or a tile whose cut edge is at least that far away. So each tile gets `context_px` more than it
contributes at each cut edge, and its weight rises from 0 to 1 over the `blend_px` behind that; at the frame's own
border nothing is discarded. The state of a recurrent generator is put together in the same way after every frame and
cut into tiles again before the next, so the tiles cannot drift apart.

Axis letters: H W low-resolution, Y X high-resolution rows and columns; L pixels in one direction.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vsr_dist.core.errors import UserError

NetworkFunction = Callable[..., Sequence[Tensor]]

# Tiles begin at multiples of this: networks that halve the image (a pyramid of three levels) then halve it alike.
ALIGN_PX = 4
BLEND_PX = 8
# What a tile must have beyond the overlap, so that it contributes something.
MIN_CORE_PX = 16
# A piece large enough that what does not grow with the frame counts for little.
_PROBE_PX = 96
# Share of the free memory that may be used: the rest is for decoding, encoding and the allocator's gaps.
_CUDA_SHARE, _CPU_SHARE = 0.8, 0.5
# oneDNN's own buffers (reordered inputs, weights, scratch) are not allocated by PyTorch and so not counted.
_CPU_FACTOR, _CUDA_FACTOR = 1.5, 1.1
# More does not make it faster, and other processes need memory too.
_CPU_CAP_BYTES = 4 * 2**30
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "could not create a memory object")


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
            raise ValueError(
                f"tiles of {tile_px} px with an overlap of {overlap.shared_px} px have no pixels of their own"
            )
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


class TooLittleMemoryError(UserError):
    """Even the smallest tile does not fit."""


class TiledNetwork:
    """Calls a function of frames (..., H, W) whole, or in tiles where it would not fit into memory.

    tile_px: the largest side of what the function sees at once; None takes what fits into the free memory, measured
    at the first frame of each size. measure_overlap: called once, if there are tiles at all. fixed_px: the function
    takes no other size, so frames must be at least as large and the tile is never changed. After an out-of-memory
    error the tile is halved and the same frame is tried again: a function must not change anything before it returns.
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
        self._frame_size: tuple[int, int] | None = None

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
        if self._frame_size not in (None, (height, width)):
            self.set_tile(None)  # another video: what fits is another tile
        self._frame_size = (height, width)
        while True:
            try:
                if self.tile_px is None:
                    self.tile_px = self._choose_tile(inputs, function)
                return run_in_tiles(self._grid_of(height, width), self.scale, inputs, function)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).partition("\n")[0]
            # Outside the handler: the error no longer holds the tensors of the failed attempt.
            self._halve_tile(height, width, message)

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

    def _choose_tile(self, inputs: Sequence[Tensor], function: NetworkFunction) -> int:
        """The tile's side: as asked for, or the largest whose memory, by what a small piece takes, is free."""
        height, width = inputs[0].shape[-2:]
        if self.asked_px is not None:
            return self.asked_px if self.asked_px >= max(height, width) else max(self.asked_px, self.min_tile_px)
        cut = (..., slice(0, _PROBE_PX), slice(0, _PROBE_PX))
        pieces = [image[cut] if image.shape[-2:] == (height, width) else image for image in inputs]
        need = peak_bytes_per_px(lambda: function(*pieces), pieces[0].shape[-2] * pieces[0].shape[-1], self.device)
        free = free_bytes(self.device)
        if need.peak * height * width <= free:
            return max(height, width)
        # With tiles the results of the whole frame are held as well: the old ones and the new ones.
        left = max(0.0, free - 2 * need.results * height * width)
        side_px = int((left / need.peak) ** 0.5) // 8 * 8
        return max(side_px, self.min_tile_px)

    def _halve_tile(self, height: int, width: int, message: str) -> None:
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
                f"this generator can use ({message}); free memory, or use precision bf16, a smaller generator or "
                "another device"
            )
        self.tile_px = max(current_px // 2, smallest_px)
        self._grid = None
        self.num_retries += 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def set_tile(self, tile_px: int | None) -> None:
        """Use the tile that was chosen before; None chooses at the next frame."""
        self.tile_px, self._grid, self._frame_size = self.fixed_px or tile_px, None, None

    def facts(self) -> dict[str, Any]:
        """Tile, overlap and retries so far, in low-resolution pixels."""
        tiled = self._grid is not None and self._grid.num_tiles > 1
        return {
            "tile_px": self.tile_px,
            "num_tiles": self._grid.num_tiles if self._grid is not None else None,
            "overlap_px": self.overlap.shared_px if tiled else 0,
            "out_of_memory_retries": self.num_retries,
        }


@dataclass(frozen=True)
class Need:
    """Bytes per pixel of the input: at the worst moment, and of the results that stay."""

    peak: float
    results: float


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the tensors that exist at the same time, from the operators that make them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(  # PyTorch calls it with whatever an operator takes
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # A view shares the storage of its base; the Python object is the same as long as it lives.
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def peak_bytes_per_px(call: Callable[[], Sequence[Tensor]], num_px: int, device: torch.device) -> Need:
    """What one call needs for each of the `num_px` pixels of its input.

    On CUDA by the allocator's own peak, workspaces of convolutions included; elsewhere by adding up the tensors that
    live at the same time, and a margin for the buffers of the libraries.
    """
    if device.type == "cuda":
        call()  # the first call also loads kernels
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        results = call()
        peak = (torch.cuda.max_memory_allocated(device) - before) * _CUDA_FACTOR
    else:
        with _LiveBytes() as live:
            results = call()
        peak = live.peak * _CPU_FACTOR
    kept = sum(tensor.numel() * tensor.element_size() for tensor in results)
    return Need(peak / num_px, kept / num_px)


def free_bytes(device: torch.device) -> float:
    """Memory that one of this machine's processes may use on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that PyTorch has reserved and does not use counts as free.
        return _CUDA_SHARE * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    available = min(psutil.virtual_memory().available, _cgroup_memory_left())
    room: float = min(_CPU_SHARE * available / int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _CPU_CAP_BYTES)
    return room


def _cgroup_memory_left() -> float:
    """Memory that the limit of the control group (version 2) leaves; infinite without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        used = float((folder / "memory.current").read_text())
        parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # The page cache is freed when memory is needed.
        return float((folder / "memory.max").read_text()) - used + float(parts.get("file", 0))
    except (OSError, ValueError):
        # No control group, or the limit "max".
        return float("inf")


def is_out_of_memory(error: BaseException) -> bool:
    """True for what PyTorch raises when a device or the machine has no memory left."""
    # On a CPU it is a plain RuntimeError, recognised by its message.
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
