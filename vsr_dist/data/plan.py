"""Which window stands at which place of the training stream: pure functions of plain integers.

The stream is infinite and stateless: position p belongs to epoch p // N, its window is the image of p mod N under
a permutation of the N windows that depends on (seed, epoch), and whatever is random about the sample is drawn from
a number made of (seed, p). Step k of global batch G covers the positions [k G, (k + 1) G); ranks and accumulated
micro-batches take contiguous slices of them. So the global batches are the same for any number of ranks, threads
and micro-batches, every window comes exactly once per epoch, every rank has the same number of batches, and a run
resumes anywhere without reading data. Nothing is dropped or repeated at the end of an epoch: a batch may span two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from vsr_dist.core.errors import BadConfigError
from vsr_dist.core.rng import mix, purpose

_NUM_ROUNDS = 6


@dataclass(frozen=True)
class Window:
    """`num_frames` consecutive frames of one sequence, from frame `start` (counted within the sequence)."""

    sequence: int
    start: int
    num_frames: int


@dataclass(frozen=True)
class Sample:
    """One element of the stream: window number, and the number that its augmentation is drawn from."""

    position: int
    window: int
    augment_seed: int


def list_windows(sequence_num_frames: Sequence[int], num_frames: int) -> list[Window]:
    """Every window of `num_frames` consecutive frames, of each sequence in order; short sequences have none."""
    return [
        Window(sequence, start, num_frames)
        for sequence, length in enumerate(sequence_num_frames)
        for start in range(length - num_frames + 1)
    ]


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


def permute(index: int, size: int, key: int) -> int:
    """The image of `index` under a pseudo-random permutation of range(size) chosen by `key`.

    A balanced Feistel network on the next power of four with cycle walking (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains", section 4): constant memory, and any element without computing the others.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    value = index
    while True:
        left, right = value >> half_bits, value & mask
        for round_number in range(_NUM_ROUNDS):
            left, right = right, left ^ (mix(key, round_number, right) & mask)
        value = (left << half_bits) | right
        if value < size:
            return value


def sample_at(position: int, num_windows: int, seed: int, shuffle: bool = True) -> Sample:
    """The sample at a position of the stream; without `shuffle`, windows follow one another in index order."""
    epoch, place = divmod(position, num_windows)
    window = permute(place, num_windows, mix(purpose("order"), seed, epoch)) if shuffle else place
    return Sample(position, window, mix(purpose("augment"), seed, position))


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
