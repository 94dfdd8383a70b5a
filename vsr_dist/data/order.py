"""The order of training samples: which window is at which position of the stream, and which positions a rank reads.

Everything here is a pure function of plain numbers. The stream of samples is infinite and has no state: the window at
position p depends on (index, seed, epoch, place in the epoch), and all random choices for a sample on (seed, p).

Step k with a global batch of G samples has the positions [k G, (k + 1) G); ranks and accumulated micro-batches take
contiguous slices of them. The global batches are therefore the same for any number of ranks, threads and micro-batches,
every rank has the same number of batches, and a run can resume at any step without reading data.

`shuffle` and `block` visit every window exactly once per epoch; nothing is dropped or repeated at the end, and a batch
may span two epochs. `ordered` reads each sequence in time order, in windows that do not overlap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, islice
from typing import NamedTuple

import numpy as np

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.rng import Numbers, mix, mix_many, purpose

_NUM_ROUNDS = 6
_ORDER, _AUGMENT, _REPLACE = purpose("order"), purpose("augment"), purpose("replace")
_PHASE = purpose("phase")


class Window(NamedTuple):
    """`num_frames` consecutive frames of a sequence, starting at frame `start` of the sequence."""

    sequence: int
    start: int
    num_frames: int


@dataclass(frozen=True)
class Run:
    """Consecutive frames from which windows are taken: a whole sequence or, if flow is needed, one clip.

    It starts at frame `start` of the sequence; `shard` is the number of the shard that contains it.
    """

    sequence: int
    start: int
    num_frames: int
    shard: int = 0


class WindowTable:
    """All windows of `window_frames` consecutive frames in a list of runs, numbered in order.

    Windows are computed, not stored: memory grows with the number of runs. Runs that are too short have no window.
    """

    def __init__(self, runs: Sequence[Run], window_frames: int) -> None:
        self.runs = tuple(runs)
        self.window_frames = window_frames
        counts = [max(0, run.num_frames - window_frames + 1) for run in runs]
        self.first_windows = (0, *accumulate(counts))

    def __len__(self) -> int:
        return self.first_windows[-1]

    def __getitem__(self, number: int) -> Window:
        if not 0 <= number < len(self):
            raise IndexError(number)
        place = bisect_right(self.first_windows, number) - 1
        run = self.runs[place]
        return Window(run.sequence, run.start + number - self.first_windows[place], self.window_frames)


class Sample(NamedTuple):
    """One element of the stream.

    Its augmentation is drawn from `augment_seed`. `starts` is True if a recurrent state must be reset before this
    sample. It is False only if the window continues, with the same augmentation, where the window of the same place in
    the global batch of the previous step ended.
    """

    position: int
    window: Window
    augment_seed: int
    starts: bool = True
    is_replacement: bool = False


def permute(indices: Numbers, size: int, key: int) -> Numbers:
    """`indices` mapped by a pseudo-random permutation of range(size), selected by `key`.

    A balanced Feistel network on the next power of four with cycle walking (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains", section 4): constant memory, and each element is computed without the others.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    values = indices.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        left, right = values[outside] >> half_bits, values[outside] & mask
        for round_number in range(_NUM_ROUNDS):
            left, right = right, left ^ (mix_many((key, round_number), right) & mask)
        values[outside] = (left << half_bits) | right
        outside = values >= size
    return values


class Order(ABC):
    """The stream of samples for one split, window length and seed."""

    def __init__(self, windows: WindowTable, seed: int) -> None:
        self.windows, self.seed = windows, seed

    @abstractmethod
    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The samples at the given positions, in the same order; one call for many is much faster than many calls."""

    def replacement(self, sample: Sample, attempt: int) -> Sample:
        """The sample that replaces a damaged one, at attempt `attempt` (from 1); the same on every rank."""
        number = mix(_REPLACE, self.seed, sample.position, attempt) % len(self.windows)
        return Sample(sample.position, self.windows[number], sample.augment_seed, is_replacement=True)

    def shards_ahead(self, position: int) -> tuple[int, ...]:
        """Numbers of the shards that are read after the ones around `position`; empty if that is not known."""
        return ()


class ShuffleOrder(Order):
    """A permutation of all windows per epoch."""

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """See `Order`."""
        seeds = self.augment_seeds(positions)
        return [
            Sample(position, self.windows[number], seed)
            for position, number, seed in zip(positions, self.window_numbers(positions), seeds, strict=True)
        ]

    def augment_seeds(self, positions: Sequence[int]) -> list[int]:
        """A random number for each position, which depends on the position and the seed only."""
        seeds: list[int] = mix_many((_AUGMENT, self.seed), np.array(positions, dtype=np.uint64)).tolist()
        return seeds

    def window_numbers(self, positions: Sequence[int]) -> list[int]:
        """The number of the window at each position."""
        size = len(self.windows)
        numbers: list[int] = []
        for epoch, group in groupby(positions, key=lambda position: position // size):
            numbers += self.epoch_windows(epoch, [position % size for position in group])
        return numbers

    def epoch_windows(self, epoch: int, places: Sequence[int]) -> list[int]:
        """The numbers of the windows at some places of an epoch."""
        key = mix(_ORDER, self.seed, epoch)
        numbers: list[int] = permute(np.array(places, dtype=np.uint64), len(self.windows), key).tolist()
        return numbers


@dataclass(frozen=True)
class _Blocks:
    """One epoch of a block order: the groups of each block, and the first place of each block, then the end."""

    groups: tuple[tuple[int, ...], ...]
    first_places: tuple[int, ...]


class BlockOrder(ShuffleOrder):
    """A permutation of the shards, split into blocks of `block_shards`, with the windows of each block permuted."""

    def __init__(self, windows: WindowTable, seed: int, block_shards: int) -> None:
        super().__init__(windows, seed)
        self.block_shards = block_shards
        first_runs: list[int] = []
        self._group_shards: list[int] = []
        for shard, group in groupby(enumerate(windows.runs), key=lambda item: item[1].shard):
            first_runs.append(next(group)[0])
            self._group_shards.append(shard)
        # A group is the windows of one shard, which have consecutive numbers.
        self._group_bounds = [windows.first_windows[run] for run in first_runs] + [len(windows)]
        self._blocks = lru_cache(4)(self._make_blocks)

    def epoch_windows(self, epoch: int, places: Sequence[int]) -> list[int]:
        """See `ShuffleOrder`."""
        blocks = self._blocks(epoch)
        numbers: list[int] = []
        for block, group in groupby(places, key=lambda place: bisect_right(blocks.first_places, place) - 1):
            first, end = blocks.first_places[block : block + 2]
            inside = np.array([place - first for place in group], dtype=np.uint64)
            key = mix(_ORDER, self.seed, epoch, block + 1)
            numbers += self._windows_of(blocks.groups[block], permute(inside, end - first, key).tolist())
        return numbers

    def shards_ahead(self, position: int) -> tuple[int, ...]:
        """The shards of the next block."""
        epoch, place = divmod(position, len(self.windows))
        blocks = self._blocks(epoch)
        block = bisect_right(blocks.first_places, place)
        groups = blocks.groups[block] if block < len(blocks.groups) else self._blocks(epoch + 1).groups[0]
        return tuple(self._group_shards[group] for group in groups)

    def _make_blocks(self, epoch: int) -> _Blocks:
        bounds = self._group_bounds
        filled = [group for group in range(len(bounds) - 1) if bounds[group + 1] > bounds[group]]
        shuffled = permute(np.arange(len(filled), dtype=np.uint64), len(filled), mix(_ORDER, self.seed, epoch))
        order = [filled[number] for number in shuffled.tolist()]
        groups = tuple(tuple(order[i : i + self.block_shards]) for i in range(0, len(order), self.block_shards))
        sizes = [sum(bounds[group + 1] - bounds[group] for group in block) for block in groups]
        return _Blocks(groups, (0, *accumulate(sizes)))

    def _windows_of(self, groups: tuple[int, ...], places: Iterable[int]) -> list[int]:
        """The numbers of the windows at some places in the concatenation of some groups."""
        bounds = self._group_bounds
        firsts = (0, *accumulate(bounds[group + 1] - bounds[group] for group in groups))
        numbers = []
        for place in places:
            i = bisect_right(firsts, place) - 1
            numbers.append(bounds[groups[i]] + place - firsts[i])
        return numbers


@dataclass(frozen=True)
class _Concatenation:
    """One epoch of a sequential order: the permuted runs, the first frame used of each, and the number of its first
    window; then the number of windows.
    """

    runs: tuple[Run, ...]
    first_frames: tuple[int, ...]
    first_windows: tuple[int, ...]


class SequentialOrder(Order):
    """Each of the `num_lanes` places of the global batch (a lane) reads sequences in time order.

    In each epoch the runs are permuted and concatenated, each split into `num_frames // window_frames` windows without
    overlap. The result is split into `num_lanes` equal parts, one per lane, so that two lanes may share a run. `starts`
    is True where a lane begins a run or the epoch begins, and only there.

    Left out of an epoch: fewer than `num_lanes` windows at the end, and the frames of each run beyond its last window.
    The order of the runs, and the first frame used of each (0 to `num_frames % window_frames`), are drawn again in each
    epoch, so other frames are left out.
    """

    def __init__(self, windows: WindowTable, seed: int, num_lanes: int) -> None:
        super().__init__(windows, seed)
        self.num_lanes = num_lanes
        num_windows = sum(run.num_frames // windows.window_frames for run in windows.runs)
        self.lane_windows = num_windows // num_lanes
        if self.lane_windows == 0:
            raise BadConfigError(
                f"data.order is ordered and data.batch_clips is {num_lanes}, but the training split has only "
                f"{num_windows} consecutive windows of {windows.window_frames} frames; lower data.batch_clips or "
                "data.clip_frames, or pack more video"
            )
        self._concatenation = lru_cache(4)(self._concatenate)

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """See `Order`."""
        return [self._sample(position) for position in positions]

    def _sample(self, position: int) -> Sample:
        step, lane = divmod(position, self.num_lanes)
        epoch, place = divmod(step, self.lane_windows)
        epoch_runs = self._concatenation(epoch)
        lane_first = lane * self.lane_windows
        number = lane_first + place
        i = bisect_right(epoch_runs.first_windows, number) - 1
        run, run_first = epoch_runs.runs[i], epoch_runs.first_windows[i]
        start = run.start + epoch_runs.first_frames[i] + (number - run_first) * self.windows.window_frames
        # One augmentation from a start to the next one: the carried state belongs to the same crop and symmetries.
        first = max(run_first, lane_first)
        first_position = (epoch * self.lane_windows + first - lane_first) * self.num_lanes + lane
        window = Window(run.sequence, start, self.windows.window_frames)
        return Sample(position, window, mix(_AUGMENT, self.seed, first_position), number == first)

    def _concatenate(self, epoch: int) -> _Concatenation:
        size = self.windows.window_frames
        usable = [run for run in self.windows.runs if run.num_frames >= size]
        shuffled = permute(np.arange(len(usable), dtype=np.uint64), len(usable), mix(_ORDER, self.seed, epoch))
        runs = tuple(usable[number] for number in shuffled.tolist())
        first_frames = tuple(
            mix(_PHASE, self.seed, epoch, run.sequence, run.start) % (run.num_frames % size + 1) for run in runs
        )
        return _Concatenation(runs, first_frames, (0, *accumulate(run.num_frames // size for run in runs)))


def spread_windows(sequence_num_frames: Sequence[int], num_frames: int, num_windows: int) -> list[Window]:
    """`num_windows` fixed windows, distributed over the sequences and evenly spaced within each one.

    Returns fewer only if there are fewer different windows.
    """
    usable = [(sequence, length) for sequence, length in enumerate(sequence_num_frames) if length >= num_frames]
    turns = (sequence for turn in range(num_windows) for sequence, length in usable if turn <= length - num_frames)
    shares = Counter(islice(turns, num_windows))
    chosen: list[Window] = []
    for sequence, length in usable:
        last, share = length - num_frames, shares[sequence]
        starts = [round(i * last / max(share - 1, 1)) for i in range(share)]
        chosen += [Window(sequence, start, num_frames) for start in starts]
    return chosen


def micro_batch_clips(batch_clips: int, world_size: int, accumulation_steps: int) -> int:
    """Clips per rank and micro-batch. Raises BadConfigError if the global batch cannot be split into equal parts.

    Gradients are averaged over ranks and micro-batches: with unequal parts, the mean of the means would not be the
    mean over the batch.
    """
    parts = world_size * accumulation_steps
    if batch_clips % parts:
        raise BadConfigError(
            f"data.batch_clips is {batch_clips}; expected a multiple of processes x accumulation steps = "
            f"{world_size} x {accumulation_steps} = {parts}, so that all micro-batches have equal size"
        )
    return batch_clips // parts


def batch_positions(
    step: int, micro: int, rank: int, *, batch_clips: int, world_size: int, accumulation_steps: int
) -> range:
    """Positions that rank `rank` reads for micro-batch `micro` of step `step` (all numbered from 0)."""
    size = micro_batch_clips(batch_clips, world_size, accumulation_steps)
    first = step * batch_clips + (rank * accumulation_steps + micro) * size
    return range(first, first + size)
