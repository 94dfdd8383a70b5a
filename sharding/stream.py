"""A sequence as a stream of frame pairs, HR and LR, made or read one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from sharding.codec import Frame
from sharding.degrade import Recipe, crop_to_multiple, get_recipe
from sharding.errors import BadInputError
from sharding.plan import PackOptions, SequencePlan
from sharding.sources import ScannedSource
from sharding.video import TimedFrame, iter_timed_frames


@dataclass(frozen=True)
class FramePair:
    """HR and LR of one moment, uint8 RGB (H, W, 3), and its time in s, None where the source has none."""

    high: Frame
    low: Frame
    time_s: float | None


def iter_pairs(source: ScannedSource, sequence: SequencePlan, options: PackOptions) -> Iterator[FramePair]:
    """The pairs of a sequence in time order. Raises BadInputError if the source is not what was scanned."""
    high = _cropped(source, sequence, options.scale)
    low_path = source.source.low_path
    if low_path is None:
        yield from _degraded(high, get_recipe(options.degradation, options.crf), options.scale)
        return
    low_frames = islice(iter_timed_frames(low_path, sequence.first_frame), sequence.num_frames)
    low: Iterator[Frame] = (frame.rgb for frame in low_frames)
    if options.shrink_pairs:
        recipe = get_recipe(options.degradation, options.crf)
        cropped = (np.ascontiguousarray(crop_to_multiple(frame, options.scale)) for frame in low)
        low = recipe.stream(cropped, options.scale)
    for high_frame, low_frame in zip(high, low, strict=True):
        yield FramePair(high_frame.rgb, low_frame, None)


def _cropped(source: ScannedSource, sequence: SequencePlan, scale: int) -> Iterator[TimedFrame]:
    """The HR frames of a sequence, sides cut to multiples of the scale."""
    frames = iter_timed_frames(source.source.path, sequence.first_frame, sequence.start_pts)
    # Times that do not rise are no times; the scan has told.
    timed = sequence.start_pts is not None
    for number in range(sequence.num_frames):
        frame = next(frames, None)
        if frame is None or frame.rgb.shape[:2] != (source.height, source.width):
            raise BadInputError(
                f"{source.source.path} has another end or size at frame {sequence.first_frame + number} than a moment "
                "ago; expected a source that does not change while it is packed: run pack again"
            )
        rgb = np.ascontiguousarray(crop_to_multiple(frame.rgb, scale))
        yield TimedFrame(rgb, frame.time_s if timed else None, frame.pts)


def _degraded(frames: Iterator[TimedFrame], recipe: Recipe, scale: int) -> Iterator[FramePair]:
    """HR frames with the LR made of them; HR waits as long as the recipe looks ahead."""
    waiting: deque[TimedFrame] = deque()

    def passing() -> Iterator[Frame]:
        for frame in frames:
            waiting.append(frame)
            yield frame.rgb

    for low in recipe.stream(passing(), scale):
        frame = waiting.popleft()
        yield FramePair(frame.rgb, low, frame.time_s)
