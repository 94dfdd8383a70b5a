"""Preallocated batches that reader threads fill in turn, and the copy of a filled one to the device.

Axis letters: B batch, T time, C channels, H W low-resolution, Y X high-resolution rows and columns, K the two
directions of flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vsr_dist.data.windows import ClipArrays


@dataclass(frozen=True)
class BatchShape:
    """Sizes of one micro-batch."""

    num_clips: int
    num_frames: int
    crop_px: int
    scale: int
    flow: bool = False


@dataclass(frozen=True)
class ClipBatch:
    """One micro-batch.

    low_BTCHW and real_BTCYX: uint8 RGB. flow_BTKCHW: int16 in 1/32 px, or None; `[:, t, 0]` leads from frame t to
    t + 1, `[:, t, 1]` back, components (dx, dy), see `sharding.flow`. `names` says which window each element is.
    starts_B: bool on the CPU, true where a recurrent state must start anew, see `order.py`.

    A batch of `TrainLoader` is valid until the next one is asked for: its memory is then filled again.
    """

    low_BTCHW: torch.Tensor
    real_BTCYX: torch.Tensor
    names: tuple[str, ...]
    starts_B: torch.Tensor
    flow_BTKCHW: torch.Tensor | None = None


class Slot:
    """The memory of one micro-batch: channels last, as it lies in the shards; page-locked for a CUDA device."""

    def __init__(self, shape: BatchShape, device: torch.device) -> None:
        self.device = device
        low_px, real_px = shape.crop_px, shape.crop_px * shape.scale
        clips, frames = shape.num_clips, shape.num_frames
        self._fields = [
            self._empty((clips, frames, low_px, low_px, 3), torch.uint8),
            self._empty((clips, frames, real_px, real_px, 3), torch.uint8),
        ]
        if shape.flow:
            self._fields.append(self._empty((clips, frames - 1, 2, low_px, low_px, 2), torch.int16))
        self._views = _channels_first(self._fields)
        arrays: list[np.ndarray[Any, Any]] = [field.numpy() for field in self._fields]
        self.clips = [ClipArrays(*(array[number] for array in arrays)) for number in range(clips)]
        self._copied: list[torch.Tensor] | None = None
        self._copy_done: torch.cuda.Event | None = None

    def _empty(self, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=self.device.type == "cuda")

    def start_copy(self, stream: torch.cuda.Stream | None) -> None:
        """Begin to copy the filled slot to the device on a stream of its own; nothing to do on the CPU."""
        if stream is None or self._copied is not None:
            return
        with torch.cuda.stream(stream):
            self._copied = [field.to(self.device, non_blocking=True) for field in self._fields]
            self._copy_done = stream.record_event()

    def wait_until_free(self) -> None:
        """Return when the slot may be filled again: its copy to the device, if there was one, has ended."""
        if self._copy_done is not None:
            self._copy_done.synchronize()
        self._copied = self._copy_done = None

    def deliver(self, names: Sequence[str], starts: Sequence[bool]) -> ClipBatch:
        """The batch, on the device: a view of this memory on the CPU, the copy that was started on a GPU."""
        views = self._views
        if self._copied is not None and self._copy_done is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(self._copy_done)
            for field in self._copied:
                # The allocator must not hand the memory out again before the training stream is through with it.
                field.record_stream(current)
            views = _channels_first(self._copied)
        low_BTCHW, real_BTCYX, *flow = views
        starts_B = torch.tensor(starts, dtype=torch.bool)
        return ClipBatch(low_BTCHW, real_BTCYX, tuple(names), starts_B, flow[0] if flow else None)


def _channels_first(fields: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same memory, channels before rows and columns."""
    return [field.movedim(-1, -3) for field in fields]


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies to a CUDA device; None for other devices."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
