"""Frames under every treatment, and what all pictures of an evaluation are made with.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vsr_dist.core.files import write_whole
from vsr_dist.inference.encode import VideoWriter
from vsr_dist.ops.picture import Picture, side_by_side, with_titles

TRUTH = "ground truth"
ErrorMap = NDArray[np.float32]
_VIDEO_PANEL_PX = 480


@dataclass(frozen=True)
class FrameSet:
    """One frame under every treatment, uint8 RGB: the input (H, W, 3), the others (Y, X, 3).

    `fake_YXC` is None where only bicubic is measured. `names`: of the two methods, where they are others.
    """

    low_HWC: Picture
    bicubic_YXC: Picture
    fake_YXC: Picture | None
    real_YXC: Picture
    names: tuple[str, str] = ("bicubic", "ours")

    @property
    def scale(self) -> int:
        """Enlargement."""
        return int(self.real_YXC.shape[0] // self.low_HWC.shape[0])

    def methods(self) -> dict[str, Picture]:
        """Title -> picture of what is judged: bicubic, and the network if there is one."""
        first, second = self.names
        ours = {} if self.fake_YXC is None else {second: self.fake_YXC}
        return {first: self.bicubic_YXC, **ours}

    def treatments(self) -> dict[str, Picture]:
        """Title -> picture, what is compared from left to right; without a network there are two."""
        return {**self.methods(), TRUTH: self.real_YXC}

    def differences(self) -> dict[str, Picture]:
        """Title of a method -> absolute difference from the truth in each channel, uint8 (Y, X, 3)."""
        return {title: cv2.absdiff(picture, self.real_YXC) for title, picture in self.methods().items()}


def stack_rows(rows: list[Picture]) -> Picture:
    """Rows of different widths under one another on white."""
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack(padded)


def write_png(path: Path, picture_YXC: Picture) -> None:
    """Write uint8 RGB as PNG; the file appears whole."""
    write_whole(path, cv2.imencode(".png", cv2.cvtColor(picture_YXC, cv2.COLOR_RGB2BGR))[1].tobytes())


class SideBySideVideo:
    """An mp4 of bicubic, the network and the truth, a centred crop of each side by side, opened at its first frame."""

    def __init__(self, path: Path, fps: Fraction) -> None:
        self._writer = VideoWriter(path, fps)

    def write(self, frame: FrameSet) -> None:
        """Append one frame."""
        pictures = {title: _centre(picture) for title, picture in frame.treatments().items()}
        row = side_by_side(list(pictures.values()), next(iter(pictures.values())).shape[0])
        self._writer.write(with_titles(row, list(pictures)))

    def __enter__(self) -> SideBySideVideo:
        self._writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)  # type: ignore[arg-type]


def _centre(picture_YXC: NDArray[np.uint8]) -> Picture:
    """The centred part of at most `_VIDEO_PANEL_PX` in both directions."""
    height, width = picture_YXC.shape[:2]
    rows, columns = min(height, _VIDEO_PANEL_PX), min(width, _VIDEO_PANEL_PX)
    top, left = (height - rows) // 2, (width - columns) // 2
    return picture_YXC[top : top + rows, left : left + columns]
