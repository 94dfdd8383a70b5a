"""Which window stands at which position of the training stream: three orders, each a pure function.

The stream is infinite and stateless: position p belongs to an epoch, its window is decided by (index, seed, epoch,
place in the epoch), and whatever is random about the sample is drawn from a number made of (seed, position).

`shuffle` and `block` meet every window exactly once per epoch; nothing is dropped or repeated at its end, and a
batch may span two epochs. `ordered` cuts each run of frames into windows that follow one another without overlap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy as np

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.rng import Numbers, mix, mix_many, purpose
from vsr_dist.data.plan import Run, Window, WindowTable

_NUM_ROUNDS = 6
_ORDER, _AUGMENT, _REPLACE = purpose("order"), purpose("augment"), purpose("replace")
_PHASE = purpose("phase")


class Sample(NamedTuple):
    """One element of the stream.

    `augment_seed` is what its augmentation is drawn from. `starts` says that a recurrent state must start anew here:
    always, unless the window goes on where that of the same place of the last step ended.
    """

    position: int
    window: Window
    augment_seed: int
    starts: bool = True
    is_replacement: bool = False


def permute(indices: Numbers, size: int, key: int) -> Numbers:
    """The images of `indices` under a pseudo-random permutation of range(size) chosen by `key`.

    A balanced Feistel network on the next power of four with cycle walking (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains", section 4): constant memory, and any element without computing the others.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    values = indices.astype(np.uint64)
    left_out = np.ones(values.shape, dtype=bool)
    while left_out.any():
        left, right = values[left_out] >> half_bits, values[left_out] & mask
        for round_number in range(_NUM_ROUNDS):
            left, right = right, left ^ (mix_many((key, round_number), right) & mask)
        values[left_out] = (left << half_bits) | right
        left_out = values >= size
    return values


class Order(ABC):
    """The samples of the stream for one split, window length and seed."""

    def __init__(self, windows: WindowTable, seed: int) -> None:
        self.windows, self.seed = windows, seed

    @abstractmethod
    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The samples at the given positions, in their order; many at once are much cheaper than one by one."""

    def replacement(self, sample: Sample, attempt: int) -> Sample:
        """The sample read in place of a damaged one, at the `attempt`-th try (from 1): the same on every rank."""
        number = mix(_REPLACE, self.seed, sample.position, attempt) % len(self.windows)
        return Sample(sample.position, self.windows[number], sample.augment_seed, is_replacement=True)

    def shards_ahead(self, position: int) -> tuple[int, ...]:
        """Numbers of the shards that the stream will turn to after those around `position`, if that can be said."""
        return ()


class ShuffleOrder(Order):
    """All windows of an epoch permuted."""

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """See `Order`."""
        seeds = self.augment_seeds(positions)
        return [
            Sample(position, self.windows[number], seed)
            for position, number, seed in zip(positions, self.window_numbers(positions), seeds, strict=True)
        ]

    def augment_seeds(self, positions: Sequence[int]) -> list[int]:
        """A number for each position that depends on it and on the seed only."""
        seeds: list[int] = mix_many((_AUGMENT, self.seed), np.array(positions, dtype=np.uint64)).tolist()
        return seeds

    def window_numbers(self, positions: Sequence[int]) -> list[int]:
        """The window of each position, by its number."""
        size = len(self.windows)
        numbers: list[int] = []
        for epoch, group in groupby(positions, key=lambda position: position // size):
            numbers += self.epoch_windows(epoch, [position % size for position in group])
        return numbers

    def epoch_windows(self, epoch: int, places: Sequence[int]) -> list[int]:
        """The windows at some places of an epoch."""
        key = mix(_ORDER, self.seed, epoch)
        numbers: list[int] = permute(np.array(places, dtype=np.uint64), len(self.windows), key).tolist()
        return numbers


@dataclass(frozen=True)
class _Blocks:
    """One epoch of a block order: the groups of each block, and the first place of each block (and the end)."""

    groups: tuple[tuple[int, ...], ...]
    first_places: tuple[int, ...]


class BlockOrder(ShuffleOrder):
    """Shards permuted, cut into blocks of `block_shards`, and the windows of each block permuted."""

    def __init__(self, windows: WindowTable, seed: int, block_shards: int) -> None:
        super().__init__(windows, seed)
        self.block_shards = block_shards
        first_runs: list[int] = []
        self._group_shards: list[int] = []
        for shard, group in groupby(enumerate(windows.runs), key=lambda item: item[1].shard):
            first_runs.append(next(group)[0])
            self._group_shards.append(shard)
        # A group is the windows of one shard, which stand one behind the other.
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
        turns = permute(np.arange(len(filled), dtype=np.uint64), len(filled), mix(_ORDER, self.seed, epoch))
        order = [filled[turn] for turn in turns.tolist()]
        groups = tuple(tuple(order[i : i + self.block_shards]) for i in range(0, len(order), self.block_shards))
        sizes = [sum(bounds[group + 1] - bounds[group] for group in block) for block in groups]
        return _Blocks(groups, (0, *accumulate(sizes)))

    def _windows_of(self, groups: tuple[int, ...], places: Iterable[int]) -> list[int]:
        """Window numbers of places in the windows of some groups, laid one behind the other."""
        bounds = self._group_bounds
        firsts = (0, *accumulate(bounds[group + 1] - bounds[group] for group in groups))
        numbers = []
        for place in places:
            turn = bisect_right(firsts, place) - 1
            numbers.append(bounds[groups[turn]] + place - firsts[turn])
        return numbers


@dataclass(frozen=True)
class _Tape:
    """One epoch of an ordered stream: runs in their turn, the first frame used and the first piece of each, the end."""

    runs: tuple[Run, ...]
    phases: tuple[int, ...]
    first_pieces: tuple[int, ...]


class WalkOrder(Order):
    """Each of `num_lanes` places of the global batch walks runs of frames front to back.

    In an epoch the runs are permuted and laid one behind the other, each cut into `num_frames // window_frames`
    pieces without overlap; this tape is cut into `num_lanes` parts of equal length, so a run may be shared by two
    lanes. Tail: fewer than `num_lanes` pieces at the end of the tape, and in each run the frames beyond its last
    piece, are left out of that epoch; which ones changes with the epoch, since the order of the runs and the first
    frame used of each (0 to `num_frames % window_frames`) are drawn anew.
    """

    def __init__(self, windows: WindowTable, seed: int, num_lanes: int) -> None:
        super().__init__(windows, seed)
        self.num_lanes = num_lanes
        num_pieces = sum(run.num_frames // windows.window_frames for run in windows.runs)
        self.lane_pieces = num_pieces // num_lanes
        if self.lane_pieces == 0:
            raise BadConfigError(
                f"data.order is ordered and data.batch_clips {num_lanes}, but the training split holds only "
                f"{num_pieces} windows of {windows.window_frames} frames that follow one another; lower "
                "data.batch_clips or data.clip_frames, or pack more video"
            )
        self._tape = lru_cache(4)(self._make_tape)

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """See `Order`; `starts` is true where a lane turns to another run, and at the start of an epoch."""
        return [self._sample(position) for position in positions]

    def _sample(self, position: int) -> Sample:
        step, lane = divmod(position, self.num_lanes)
        epoch, place = divmod(step, self.lane_pieces)
        tape = self._tape(epoch)
        lane_first = lane * self.lane_pieces
        piece = lane_first + place
        turn = bisect_right(tape.first_pieces, piece) - 1
        run, first_piece = tape.runs[turn], tape.first_pieces[turn]
        start = run.start + tape.phases[turn] + (piece - first_piece) * self.windows.window_frames
        # One augmentation for a whole walk: a state carried over must see the same place, the same way round.
        walk_first = max(first_piece, lane_first)
        walk_position = (epoch * self.lane_pieces + walk_first - lane_first) * self.num_lanes + lane
        window = Window(run.sequence, start, self.windows.window_frames)
        return Sample(position, window, mix(_AUGMENT, self.seed, walk_position), piece == walk_first)

    def _make_tape(self, epoch: int) -> _Tape:
        size = self.windows.window_frames
        usable = [run for run in self.windows.runs if run.num_frames >= size]
        turns = permute(np.arange(len(usable), dtype=np.uint64), len(usable), mix(_ORDER, self.seed, epoch))
        runs = tuple(usable[turn] for turn in turns.tolist())
        phases = tuple(
            mix(_PHASE, self.seed, epoch, run.sequence, run.start) % (run.num_frames % size + 1) for run in runs
        )
        return _Tape(runs, phases, (0, *accumulate(run.num_frames // size for run in runs)))
