"""Windows of frames, and which places of the training stream a rank reads: pure functions of plain integers.

Step k of global batch G covers the positions [k G, (k + 1) G) of an infinite stream; ranks and accumulated
micro-batches take contiguous slices of them. So the global batches are the same for any number of ranks, threads
and micro-batches, every rank has the same number of batches, and a run resumes anywhere without reading data.
Which window stands at a position is said in `order.py`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import NamedTuple

from vsr_dist.core.errors import BadConfigError


class Window(NamedTuple):
    """`num_frames` consecutive frames of one sequence, from frame `start` (counted within the sequence)."""

    sequence: int
    start: int
    num_frames: int


@dataclass(frozen=True)
class Run:
    """Consecutive frames that a window may be cut from: a whole sequence or, where flow is needed, one clip.

    `start` counts within the sequence; `shard` is the number of the shard that holds all of it.
    """

    sequence: int
    start: int
    num_frames: int
    shard: int = 0


class WindowTable:
    """All windows of `window_frames` consecutive frames in a list of runs, numbered in order.

    A window is found by arithmetic: memory grows with the runs, not with the windows. Short runs have none.
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


def spread_windows(sequence_num_frames: Sequence[int], num_frames: int, num_windows: int) -> list[Window]:
    """A fixed choice of `num_windows` windows: sequences in turn, evenly spaced inside each, first to last.

    Fewer are returned only if there are fewer different windows.
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
    """Clips per rank and micro-batch; a global batch that cannot be cut into equal parts is refused.

    Equal parts are needed because gradients are averaged over ranks and micro-batches: with unequal parts the
    mean of means is not the mean of the batch.
    """
    parts = world_size * accumulation_steps
    if batch_clips % parts:
        raise BadConfigError(
            f"data.batch_clips is {batch_clips}; expected a multiple of processes x accumulation steps = "
            f"{world_size} x {accumulation_steps} = {parts}, so that every rank gets equal micro-batches"
        )
    return batch_clips // parts


def batch_positions(
    step: int, micro: int, rank: int, *, batch_clips: int, world_size: int, accumulation_steps: int
) -> range:
    """Positions that rank `rank` reads for micro-batch `micro` of step `step` (all counted from 0)."""
    size = micro_batch_clips(batch_clips, world_size, accumulation_steps)
    first = step * batch_clips + (rank * accumulation_steps + micro) * size
    return range(first, first + size)
