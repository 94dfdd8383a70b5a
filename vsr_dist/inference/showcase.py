"""Pictures and videos that let a person judge: the same crop from the input, bicubic, the network and the truth.

Axis letters: T time, H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vsr_dist.inference.encode import VideoWriter
from vsr_dist.ops.picture import Picture, side_by_side, with_titles

CROP_PX = 128
_PANEL_PX = 256
_VIDEO_PANEL_PX = 480


@dataclass(frozen=True)
class FrameSet:
    """One frame under every treatment, uint8 RGB: the input (H, W, 3), the others (Y, X, 3).

    `fake_YXC` is None where only bicubic is measured.
    """

    low_HWC: Picture
    bicubic_YXC: Picture
    fake_YXC: Picture | None
    real_YXC: Picture

    def treatments(self) -> dict[str, Picture]:
        """Title -> picture, what is compared from left to right; without a network there are two."""
        ours = {} if self.fake_YXC is None else {"ours": self.fake_YXC}
        return {"bicubic": self.bicubic_YXC, **ours, "ground truth": self.real_YXC}


def most_telling_crop(frame: FrameSet, crop_px: int) -> tuple[int, int]:
    """(top, left) of the square crop where bicubic misses most of the truth; multiples of the scale.

    The mean squared error of bicubic is averaged over every crop position by a box filter. The choice does not
    look at the network's output, so it favours neither method.
    """
    scale = frame.real_YXC.shape[0] // frame.low_HWC.shape[0]
    error = ((frame.bicubic_YXC.astype(np.float32) - frame.real_YXC) ** 2).mean(axis=2)
    means = cv2.boxFilter(error, -1, (crop_px, crop_px), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    inside = means[: error.shape[0] - crop_px + 1 : scale, : error.shape[1] - crop_px + 1 : scale]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(row) * scale, int(column) * scale


def comparison_row(frame: FrameSet, label: str) -> Picture:
    """Input, bicubic, the network and the truth at the most telling crop, with titles."""
    scale = frame.real_YXC.shape[0] // frame.low_HWC.shape[0]
    crop_px = min(CROP_PX, *frame.real_YXC.shape[:2]) // scale * scale
    top, left = most_telling_crop(frame, crop_px)
    nearest_YXC = frame.low_HWC.repeat(scale, axis=0).repeat(scale, axis=1)
    pictures = {f"{label}: input": nearest_YXC, **frame.treatments()}
    panels = [picture[top : top + crop_px, left : left + crop_px] for picture in pictures.values()]
    return with_titles(side_by_side(panels, _PANEL_PX), list(pictures))


def stack_rows(rows: list[Picture]) -> Picture:
    """Rows of different widths under one another on white."""
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack(padded)


def write_png(path: Path, picture_YXC: Picture) -> None:
    """Write uint8 RGB as PNG."""
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture_YXC, cv2.COLOR_RGB2BGR))[1].tobytes())


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
