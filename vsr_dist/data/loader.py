"""Batches on the device: training windows, prefetched by threads into preallocated memory, and fixed windows for
validation and for the drift monitor.

The loader is not passed to `Accelerator.prepare`: each rank computes its own slice of each global batch (`order`).

Axis letters: B batch, T time, C channels, H W LR rows and columns, Y X HR rows and columns, K the two directions of
flow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from typing import Any

import numpy as np
import torch

from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadConfigError, BadShardError
from vsr_dist.data.config import DataConfig
from vsr_dist.data.order import (
    BlockOrder,
    Order,
    Sample,
    SequentialOrder,
    ShuffleOrder,
    WindowTable,
    batch_positions,
    micro_batch_clips,
    spread_windows,
)
from vsr_dist.data.shards import ShardSet
from vsr_dist.data.windows import ClipArrays, SampleReader, center_crop, check_flow, check_sizes, open_split

# Positions planned per call: computing the order is much cheaper for many at once.
_POSITIONS_PER_CALL = 512
# `reference_batch` searches at most this many windows per window that it needs.
_SEARCHED_PER_WINDOW = 8
_CPU = torch.device("cpu")


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

    low_BTCHW and real_BTCYX: uint8 RGB. flow_BTKCHW: int16 in 1/32 px, or None; `[:, t, 0]` is the motion from frame
    t to t + 1, `[:, t, 1]` from t + 1 to t, components (dx, dy), see `sharding.flow`. `names`: sequence and first frame
    of each window. starts_B: bool on the CPU, True where the element begins a new sequence, so that a recurrent state
    must be reset before it; see `SequentialOrder`. Always True with the other orders.

    A batch of `TrainLoader` is valid until the next one is requested: its memory is then overwritten.
    """

    low_BTCHW: torch.Tensor
    real_BTCYX: torch.Tensor
    names: tuple[str, ...]
    starts_B: torch.Tensor
    flow_BTKCHW: torch.Tensor | None = None


class Slot:
    """The memory of one micro-batch: channels last, as in the shards; page-locked for a CUDA device."""

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
        """Start to copy the filled slot to the device, on a separate stream; does nothing on the CPU."""
        if stream is None or self._copied is not None:
            return
        with torch.cuda.stream(stream):
            self._copied = [field.to(self.device, non_blocking=True) for field in self._fields]
            self._copy_done = stream.record_event()

    def wait_until_free(self) -> None:
        """Wait until the slot can be filled again, that is until its copy to the device is complete."""
        if self._copy_done is not None:
            self._copy_done.synchronize()
        self._copied = self._copy_done = None

    def deliver(self, names: Sequence[str], starts: Sequence[bool]) -> ClipBatch:
        """The batch on the device: a view of this memory on the CPU, or the copy that was started on a GPU."""
        views = self._views
        if self._copied is not None and self._copy_done is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(self._copy_done)
            for field in self._copied:
                # The allocator must not reuse the memory before the training stream has finished with it.
                field.record_stream(current)
            views = _channels_first(self._copied)
        low_BTCHW, real_BTCYX, *flow = views
        starts_B = torch.tensor(starts, dtype=torch.bool)
        return ClipBatch(low_BTCHW, real_BTCYX, tuple(names), starts_B, flow[0] if flow else None)


def _channels_first(fields: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views with channels before rows and columns."""
    return [field.movedim(-1, -3) for field in fields]


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies to a CUDA device; None for other devices."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def make_order(config: DataConfig, windows: WindowTable, seed: int) -> Order:
    """The order selected by `data.order`."""
    if config.order == "ordered":
        return SequentialOrder(windows, seed, config.batch_clips)
    return ShuffleOrder(windows, seed) if config.order == "shuffle" else BlockOrder(windows, seed, config.block_shards)


@dataclass(frozen=True)
class _PendingBatch:
    """A micro-batch that is being read: its slot, and one task for each part of its clips."""

    slot: Slot
    parts: list[Future[list[Sample]]]

    def is_done(self) -> bool:
        """True if all parts have been read without an error."""
        return all(part.done() and part.exception() is None for part in self.parts)

    def samples(self) -> list[Sample]:
        """Wait for the samples, in order. Raises the errors of the reader threads."""
        return [sample for part in self.parts for sample in part.result()]


class _ShardPrefetcher:
    """Fetches the shards that the order reads next, in a thread."""

    def __init__(self, pool: ThreadPoolExecutor, shards: ShardSet, order: Order, rank: int) -> None:
        self._pool, self._shards, self._order, self._rank = pool, shards, order, rank
        self._names: list[str] = []
        self._tasks: list[Future[None]] = []

    def advance(self, position: int) -> None:
        """Reading has reached `position`. Raises the errors of finished fetches."""
        for task in self._tasks:
            if task.done():
                task.result()
        self._tasks = [task for task in self._tasks if not task.done()]
        names = [self._shards.index.shards[number].name for number in self._order.shards_ahead(position)]
        if names != self._names:
            self._names = names
            # The ranks of a node start with different shards, so that they do not all wait for the same one.
            first = self._rank % len(names)
            self._tasks += [self._pool.submit(self._shards.fetch, name) for name in names[first:] + names[:first]]


class TrainLoader:
    """An endless, resumable stream of micro-batches for one rank.

    Attributes:
        windows: all training windows, in the order of the index; `len` counts them.
        num_windows_left_out: windows across a clip border, for which no flow was packed; 0 without `data.flow`.
        num_replaced: number of damaged windows replaced so far in the batches that this rank has delivered.
    """

    def __init__(
        self,
        config: DataConfig,
        shards: ShardSet,
        seed: int,
        world: World,
        accumulation_steps: int,
    ) -> None:
        """Use the training split of an open data set. Raises BadConfigError for sizes that do not match the data."""
        self.config, self.shards, self.world = config, shards, world
        self.accumulation_steps = accumulation_steps
        self.num_clips = micro_batch_clips(config.batch_clips, world.size, accumulation_steps)
        self.windows_of = open_split(shards, config, config.train_split)
        check_sizes(self.windows_of, config.crop_px, config.clip_frames, "data.crop_px")
        if config.flow:
            check_flow(self.windows_of, config.clip_frames)
        self.windows = WindowTable(self.windows_of.runs(inside_clips=config.flow), config.clip_frames)
        all_windows = WindowTable(self.windows_of.runs(), config.clip_frames)
        self.num_windows_left_out = len(all_windows) - len(self.windows)
        self.order = make_order(config, self.windows, seed)
        self.reader = SampleReader(config, self.windows_of, self.order)
        self.num_replaced = 0

    def batches(self, first_step: int, device: torch.device = _CPU) -> Generator[ClipBatch, None, None]:
        """Micro-batches of steps `first_step`, `first_step + 1`, ... on `device`, prefetched in threads.

        Each is valid until the next one is requested. Nothing is read for the steps before `first_step`.
        """
        config = self.config
        shape = BatchShape(self.num_clips, config.clip_frames, config.crop_px, self.windows_of.scale, config.flow)
        free = deque(Slot(shape, device) for _ in range(config.read_ahead_batches + 1))
        stream = copy_stream(device)
        pending: deque[_PendingBatch] = deque()
        plan = self._plan(first_step)
        with ExitStack() as stack:
            readers = ThreadPoolExecutor(config.reader_threads, "clip-reader")
            fetchers = ThreadPoolExecutor(1, "shard-fetcher")
            for pool in (readers, fetchers):
                stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            prefetcher = _ShardPrefetcher(fetchers, self.shards, self.order, self.world.rank)
            while True:
                # There is one slot more than batches are prefetched: the one of the batch that the consumer uses.
                while free:
                    slot, samples = free.popleft(), next(plan)
                    slot.wait_until_free()
                    prefetcher.advance(samples[0].position)
                    pending.append(_PendingBatch(slot, self._submit(readers, slot, samples)))
                ready = pending.popleft()
                batch = self._deliver(ready, stream)
                if pending and pending[0].is_done():
                    # Copied while the consumer computes on this batch.
                    pending[0].slot.start_copy(stream)
                yield batch
                free.append(ready.slot)

    def _plan(self, first_step: int) -> Iterator[list[Sample]]:
        """The samples of each micro-batch."""
        steps = self.accumulation_steps
        ranges = (
            batch_positions(
                number // steps,
                number % steps,
                self.world.rank,
                batch_clips=self.config.batch_clips,
                world_size=self.world.size,
                accumulation_steps=steps,
            )
            for number in count(first_step * steps)
        )
        while True:
            batches = islice(ranges, max(1, _POSITIONS_PER_CALL // self.num_clips))
            samples = self.order.samples([position for positions in batches for position in positions])
            for first in range(0, len(samples), self.num_clips):
                yield samples[first : first + self.num_clips]

    def _submit(self, pool: ThreadPoolExecutor, slot: Slot, samples: list[Sample]) -> list[Future[list[Sample]]]:
        """Give a micro-batch to the threads: as a whole, or in parts if there are more threads than slots to fill."""
        num_parts = min(-(-self.config.reader_threads // self.config.read_ahead_batches), len(samples))
        cuts = [len(samples) * part // num_parts for part in range(num_parts + 1)]
        return [pool.submit(self._read_part, slot, first, samples[first:end]) for first, end in pairwise(cuts)]

    def _read_part(self, slot: Slot, first: int, samples: list[Sample]) -> list[Sample]:
        return [self.reader.read(sample, slot.clips[first + i]) for i, sample in enumerate(samples)]

    def _deliver(self, pending: _PendingBatch, stream: torch.cuda.Stream | None) -> ClipBatch:
        """Wait for a micro-batch."""
        samples = pending.samples()
        self.num_replaced += sum(sample.is_replacement for sample in samples)
        check_replaced(self.num_replaced, self.config)
        pending.slot.start_copy(stream)
        names = [self.reader.name(sample.window) for sample in samples]
        return pending.slot.deliver(names, [sample.starts for sample in samples])


def check_replaced(num_replaced: int, config: DataConfig) -> None:
    """Raise BadShardError if more windows were replaced than `data.max_bad_samples`."""
    if num_replaced > config.max_bad_samples:
        raise BadShardError(
            f"{num_replaced} windows of {config.root} were damaged and replaced, more than data.max_bad_samples "
            f"{config.max_bad_samples}; run 'vsr-dist verify' on the data set and pack it again, or raise the limit"
        )


def validation_batch(config: DataConfig, shards: ShardSet, clip_frames: int) -> ClipBatch:
    """The fixed validation windows, the same for every rank, step and run: spread over sequences, centred crops.

    On the CPU and always valid. They have no flow, so that they are the same with and without `data.flow`; a generator
    that uses flow estimates it from their frames.
    """
    windows_of = open_split(shards, config, config.val_split)
    check_sizes(windows_of, config.val_crop_px, clip_frames, "data.val_crop_px")
    windows = spread_windows(windows_of.sequence_num_frames, clip_frames, config.val_clips)
    slot = Slot(BatchShape(len(windows), clip_frames, config.val_crop_px, windows_of.scale), _CPU)
    names = []
    for window, out in zip(windows, slot.clips, strict=True):
        info = windows_of.sequences[window.sequence]
        windows_of.read(window, center_crop(info.low_height_px, info.low_width_px, config.val_crop_px), out)
        names.append(f"{info.name}-{window.start:08d}")
    return slot.deliver(names, [True] * len(windows))


def reference_batch(loader: TrainLoader) -> ClipBatch:
    """`data.val_clips` training windows, cropped to `data.val_crop_px`, the same on every rank and at every step.

    The drift monitor compares them with the validation windows. They are the first ones that training reads (so that no
    other shard is fetched for them) whose frames are at least as large as the crop, augmented as in training. Fewer
    only if there are fewer different ones. On the CPU, without flow.
    """
    config, windows_of = loader.config, loader.windows_of
    reader = SampleReader(replace(config, crop_px=config.val_crop_px), windows_of, loader.order)
    num_searched = min(len(loader.windows), _SEARCHED_PER_WINDOW * config.val_clips)
    large = {
        sample.window: sample
        for sample in reversed(loader.order.samples(range(num_searched)))
        if min(_low_size(loader, sample.window.sequence)) >= config.val_crop_px
    }
    samples = sorted(large.values(), key=lambda sample: sample.position)[: config.val_clips]
    if not samples:
        raise BadConfigError(
            f"data.val_crop_px is {config.val_crop_px}, larger than the low-resolution frames of the first training "
            f"windows of {windows_of.root}; the drift monitor compares training and validation crops of one size: "
            "choose a smaller data.val_crop_px"
        )
    slot = Slot(BatchShape(len(samples), config.clip_frames, config.val_crop_px, windows_of.scale), _CPU)
    read = [reader.read(sample, out) for sample, out in zip(samples, slot.clips, strict=True)]
    return slot.deliver([reader.name(sample.window) for sample in read], [True] * len(read))


def _low_size(loader: TrainLoader, sequence: int) -> tuple[int, int]:
    info = loader.windows_of.sequences[sequence]
    return info.low_height_px, info.low_width_px
