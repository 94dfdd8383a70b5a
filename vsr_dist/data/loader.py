"""Batches of training windows, read ahead by threads into a ring, and the fixed windows that validation uses.

The loader is never given to `Accelerator.prepare`: every rank asks the pure plan for its own slice of each global
batch, so there is nothing to shard again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice, pairwise

import torch

from vsr_dist.core.world import World
from vsr_dist.data.augment import center
from vsr_dist.data.config import DataConfig
from vsr_dist.data.order import BlockOrder, Order, Sample, ShuffleOrder, WalkOrder
from vsr_dist.data.plan import WindowTable, batch_positions, micro_batch_clips, spread_windows
from vsr_dist.data.reader import SampleReader, check_flow, check_replaced, check_sizes, open_split
from vsr_dist.data.ring import BatchShape, ClipBatch, Slot, copy_stream
from vsr_dist.data.shards import ShardSet

# Positions that are planned together: the arithmetic of the order costs far less for many at once.
_PLANNED_TOGETHER = 512
_CPU = torch.device("cpu")


def make_order(config: DataConfig, windows: WindowTable, seed: int) -> Order:
    """The order that `data.order` names."""
    if config.order == "ordered":
        return WalkOrder(windows, seed, config.batch_clips)
    return ShuffleOrder(windows, seed) if config.order == "shuffle" else BlockOrder(windows, seed, config.block_shards)


@dataclass(frozen=True)
class _Filling:
    """A micro-batch being read: its slot, and one task for each part of its clips."""

    slot: Slot
    parts: list[Future[list[Sample]]]

    def is_done(self) -> bool:
        """True if every part has been read without an error."""
        return all(part.done() and part.exception() is None for part in self.parts)

    def samples(self) -> list[Sample]:
        """What was read, in order, once it has been; an error of a reader thread is raised here."""
        return [sample for part in self.parts for sample in part.result()]


class _FetchAhead:
    """Brings the shards that the order turns to next onto this machine, in a thread."""

    def __init__(self, pool: ThreadPoolExecutor, shards: ShardSet, order: Order, rank: int) -> None:
        self._pool, self._shards, self._order, self._rank = pool, shards, order, rank
        self._names: list[str] = []
        self._tasks: list[Future[None]] = []

    def follow(self, position: int) -> None:
        """Say that reading has come to `position`. A fetch that failed is raised here."""
        for task in self._tasks:
            if task.done():
                task.result()
        self._tasks = [task for task in self._tasks if not task.done()]
        names = [self._shards.index.shards[number].name for number in self._order.shards_ahead(position)]
        if names != self._names:
            self._names = names
            # The ranks of a node begin at different shards, so that they do not all wait for the first.
            turn = self._rank % len(names)
            self._tasks += [self._pool.submit(self._shards.fetch, name) for name in names[turn:] + names[:turn]]


class TrainLoader:
    """An endless, resumable stream of micro-batches for one rank.

    Attributes:
        windows: all training windows, in the order of the index; `len` counts them.
        num_windows_left_out: windows that run over a clip border, where no flow was packed; 0 without `data.flow`.
        num_replaced: damaged windows replaced so far in the batches that this rank has delivered.
    """

    def __init__(
        self,
        config: DataConfig,
        shards: ShardSet,
        seed: int,
        world: World,
        accumulation_steps: int,
    ) -> None:
        """Take the training split of an open set; what cannot be honoured (sizes, batch cut) is an error here."""
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
        """Micro-batches of `first_step`, `first_step + 1`, ... in order, read ahead in threads, on `device`.

        Each is valid until the next one is asked for. Nothing of the steps before `first_step` is read.
        """
        config = self.config
        shape = BatchShape(self.num_clips, config.clip_frames, config.crop_px, self.windows_of.scale, config.flow)
        free = deque(Slot(shape, device) for _ in range(config.read_ahead_batches + 1))
        stream = copy_stream(device)
        pending: deque[_Filling] = deque()
        plan = self._plan(first_step)
        with ExitStack() as stack:
            readers = ThreadPoolExecutor(config.reader_threads, "clip-reader")
            fetchers = ThreadPoolExecutor(1, "shard-fetcher")
            for pool in (readers, fetchers):
                stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            ahead = _FetchAhead(fetchers, self.shards, self.order, self.world.rank)
            while True:
                # There is one slot more than batches are read ahead: that of the batch in the consumer's hands.
                while free:
                    slot, samples = free.popleft(), next(plan)
                    slot.wait_until_free()
                    ahead.follow(samples[0].position)
                    pending.append(_Filling(slot, self._submit(readers, slot, samples)))
                filling = pending.popleft()
                batch = self._deliver(filling, stream)
                if pending and pending[0].is_done():
                    # Travels while this batch is computed on.
                    pending[0].slot.start_copy(stream)
                yield batch
                free.append(filling.slot)

    def _plan(self, first_step: int) -> Iterator[list[Sample]]:
        """The samples of each micro-batch in turn."""
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
            together = islice(ranges, max(1, _PLANNED_TOGETHER // self.num_clips))
            samples = self.order.samples([position for positions in together for position in positions])
            for first in range(0, len(samples), self.num_clips):
                yield samples[first : first + self.num_clips]

    def _submit(self, pool: ThreadPoolExecutor, slot: Slot, samples: list[Sample]) -> list[Future[list[Sample]]]:
        """Hand a micro-batch to the threads: whole, or in parts where threads outnumber the batches read ahead."""
        num_parts = min(-(-self.config.reader_threads // self.config.read_ahead_batches), len(samples))
        cuts = [len(samples) * part // num_parts for part in range(num_parts + 1)]
        return [pool.submit(self._read_part, slot, first, samples[first:end]) for first, end in pairwise(cuts)]

    def _read_part(self, slot: Slot, first: int, samples: list[Sample]) -> list[Sample]:
        return [self.reader.read(sample, slot.clips[first + i]) for i, sample in enumerate(samples)]

    def _deliver(self, filling: _Filling, stream: torch.cuda.Stream | None) -> ClipBatch:
        """Wait for a micro-batch and hand it out."""
        samples = filling.samples()
        self.num_replaced += sum(sample.is_replacement for sample in samples)
        check_replaced(self.num_replaced, self.config)
        filling.slot.start_copy(stream)
        names = [self.reader.name(sample.window) for sample in samples]
        return filling.slot.deliver(names, [sample.starts for sample in samples])


def validation_batch(config: DataConfig, shards: ShardSet, clip_frames: int) -> ClipBatch:
    """The fixed held-out windows, the same for every rank, step and run: spread over sequences, centred crops.

    They stay valid; all are on the CPU. They carry no flow, so that they are the same with and without `data.flow`; a
    generator that uses flow estimates it from their frames.
    """
    windows_of = open_split(shards, config, config.val_split)
    check_sizes(windows_of, config.val_crop_px, clip_frames, "data.val_crop_px")
    windows = spread_windows(windows_of.sequence_num_frames, clip_frames, config.val_clips)
    slot = Slot(BatchShape(len(windows), clip_frames, config.val_crop_px, windows_of.scale), _CPU)
    names = []
    for window, out in zip(windows, slot.clips, strict=True):
        info = windows_of.sequences[window.sequence]
        windows_of.read(window, center(info.low_height_px, info.low_width_px, config.val_crop_px), out)
        names.append(f"{info.name}-{window.start:08d}")
    return slot.deliver(names, [True] * len(windows))
