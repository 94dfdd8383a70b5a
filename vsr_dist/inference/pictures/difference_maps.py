"""Difference maps: how far each method is from the truth at every pixel, all on one scale.

Axis letters: Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vsr_dist.inference.pictures.showcase import TRUTH, ErrorMap, FrameSet
from vsr_dist.ops.picture import Picture

_MEAN_OF_CHANNELS = np.full((1, 3), 1 / 3, np.float32)
# The brightest few pixels would make everything else black.
_TOP_PERCENT = 99.5
_COLOURS = "inferno"
_UNIT = "|difference from the truth|\n8-bit levels, mean of R, G, B"


@dataclass(frozen=True)
class _Worst:
    error: float
    number: int
    real_YXC: Picture
    maps: dict[str, ErrorMap]


class DifferenceMaps:
    """Keeps the frame that is farthest from the truth, and the mean over all frames, in memory that does not grow.

    The frame is chosen by its mean absolute difference, averaged over the methods with the same weight.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float32]] = {}
        self._num_frames = 0
        self._worst: _Worst | None = None

    def add(self, frame: FrameSet, number: int, differences: Mapping[str, Picture]) -> None:
        """Look at one frame; `differences` are its `FrameSet.differences`."""
        for title, picture in differences.items():
            if title not in self._sums:
                self._sums[title] = np.zeros(picture.shape, np.float32)
            cv2.accumulate(picture, self._sums[title])
        self._num_frames += 1
        error = float(np.mean([cv2.mean(picture)[:3] for picture in differences.values()]))
        if self._worst is None or error > self._worst.error:
            maps = {title: _mean_of_channels(picture) for title, picture in differences.items()}
            self._worst = _Worst(error, number, frame.real_YXC.copy(), maps)

    @property
    def frame_number(self) -> int:
        """Number of the frame that is farthest from the truth."""
        return self._kept.number

    def worst(self) -> dict[str, ErrorMap]:
        """Title of a method -> (Y, X) absolute difference of that frame, mean over the channels, 0 to 255."""
        return self._kept.maps

    def mean(self) -> dict[str, ErrorMap]:
        """Title of a method -> (Y, X) absolute difference, mean over the channels and over all frames."""
        return {title: _mean_of_channels(total) / np.float32(self._num_frames) for title, total in self._sums.items()}

    def top(self) -> float:
        """The upper end of the scale that all maps share, in 8-bit levels; at least 1."""
        return max(1.0, float(np.percentile(np.stack(list(self.worst().values())), _TOP_PERCENT)))

    def png(self, heading: str) -> bytes:
        """The picture: above the chosen frame, below the mean over all frames, and one colour bar."""
        # Half a second of import that training, which shares this package, need not pay.
        from matplotlib.figure import Figure  # noqa: PLC0415

        rows = {f"frame {self.frame_number}": self.worst(), f"mean of {self._num_frames} frames": self.mean()}
        height, width = self._kept.real_YXC.shape[:2]
        num_columns = 1 + len(self._kept.maps)
        panel = 3.6
        size = (panel * num_columns + 1.0, 2 * (panel * height / width + 0.35) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(2, num_columns, squeeze=False)
        top = self.top()
        for row, (label, maps) in zip(grid, rows.items(), strict=True):
            for axes, (title, map_YX) in zip(row[1:], maps.items(), strict=True):
                image = axes.imshow(map_YX, cmap=_COLOURS, vmin=0, vmax=top, interpolation="antialiased")
                axes.set_title(f"{title}, {label}: mean {map_YX.mean():.2f}", fontsize=10)
            for axes in row:
                axes.set_axis_off()
        grid[0, 0].imshow(self._kept.real_YXC)
        grid[0, 0].set_title(f"{TRUTH}, frame {self.frame_number}", fontsize=10)
        note = f"brighter is farther from the truth\none scale for all maps: 0 to {top:.0f} levels"
        grid[1, 0].text(0.5, 0.5, note, ha="center", va="center", fontsize=9, transform=grid[1, 0].transAxes)
        figure.suptitle(heading, fontsize=11)
        bar = figure.colorbar(image, ax=grid, extend="max", shrink=0.9, pad=0.01)
        bar.set_label(_UNIT, fontsize=9)
        data = io.BytesIO()
        # Without matplotlib's version in it: the same frames give the same bytes.
        figure.savefig(data, format="png", dpi=100, metadata={"Software": None})
        return data.getvalue()

    @property
    def _kept(self) -> _Worst:
        assert self._worst is not None  # a sequence has a frame
        return self._worst


def _mean_of_channels(values_YXC: NDArray[np.uint8] | NDArray[np.float32]) -> ErrorMap:
    mean: ErrorMap = cv2.transform(values_YXC.astype(np.float32, copy=False), _MEAN_OF_CHANNELS)
    return mean
