"""A video of two treatments in one picture, with a divider that wanders over it."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from vsr_dist.inference.encode import VideoWriter
from vsr_dist.inference.pictures.showcase import FrameSet
from vsr_dist.ops.picture import Picture, draw_text, side_by_side

_SECONDS_THERE_AND_BACK = 4.0
# Share of the width on each side of the middle that the divider wanders over.
_REACH = 0.45
_HEIGHT_PX = 480
_BAR_PX = 28


class WipeVideo:
    """An mp4 with the first treatment left of the divider and the second right of it: bicubic and the network.

    Without a network the second one is the truth. The divider starts in the middle, goes right, and comes back after
    four seconds. Small frames are enlarged without smoothing; nothing is cut off.
    """

    def __init__(self, path: Path, fps: Fraction) -> None:
        self._writer = VideoWriter(path, fps)
        self._period_frames = max(2.0, _SECONDS_THERE_AND_BACK * float(fps))
        self._num_frames = 0

    def write(self, frame: FrameSet) -> None:
        """Append one frame."""
        self._writer.write(wipe_picture(frame, divider_at(self._num_frames / self._period_frames)))
        self._num_frames += 1

    def __enter__(self) -> WipeVideo:
        self._writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)  # type: ignore[arg-type]


def divider_at(turns: float) -> float:
    """Place of the divider as a share of the width, after so many turns there and back."""
    return 0.5 + _REACH * math.sin(2 * math.pi * turns)


def wipe_picture(frame: FrameSet, share: float) -> Picture:
    """uint8 RGB: the first treatment up to `share` of the width, then a white line, then the second, under a title."""
    (left_title, left_YXC), (right_title, right_YXC) = list(frame.treatments().items())[:2]
    column = round(share * left_YXC.shape[1])
    joined = right_YXC.copy()
    joined[:, :column] = left_YXC[:, :column]
    picture = side_by_side([joined], _HEIGHT_PX)
    width = picture.shape[1]
    line = min(max(round(column * width / left_YXC.shape[1]), 2), width - 2)
    # Dark beside the white, or the line is lost on a bright picture.
    picture[:, line - 2 : line + 2] = 0
    picture[:, line - 1 : line + 1] = 255
    bar = np.full((_BAR_PX, width, 3), 255, np.uint8)
    draw_text(bar, f"left: {left_title}", 4, width / 2 - 8)
    draw_text(bar, f"right: {right_title}", width // 2 + 4, width / 2 - 8, align="right")
    return np.vstack([bar, picture])
