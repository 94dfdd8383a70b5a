"""The crops of `comparison.png`: where, and when, what is compared is farthest from the truth.

Axis letters: H W low-resolution rows and columns, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vsr_dist.inference.pictures.showcase import ErrorMap, FrameSet
from vsr_dist.ops.picture import Picture, side_by_side, with_caption, with_titles

CROP_PX = 128
NUM_CROPS = 3
_PANEL_PX = 256
_MEAN_OF_CHANNELS = np.full((1, 3), 1 / 3, np.float32)
_PEAK = 255.0
_MAX_DB = 100.0


@dataclass(frozen=True)
class Place:
    """A square of `side_px` at (top, left) of a frame; `error` is what it was chosen for."""

    error: float
    top: int
    left: int
    side_px: int

    def overlaps(self, other: Place) -> bool:
        """True if a pixel belongs to both."""
        apart_px = max(self.side_px, other.side_px)
        return abs(self.top - other.top) < apart_px and abs(self.left - other.left) < apart_px

    def cut(self, picture_YXC: Picture) -> Picture:
        """A copy of the square, so that the frame need not be kept."""
        return picture_YXC[self.top : self.top + self.side_px, self.left : self.left + self.side_px].copy()


@dataclass(frozen=True)
class _Crop:
    place: Place
    number: int
    panels: dict[str, Picture]


class CropPicker:
    """Keeps the most telling crops of a sequence while its frames go by, in memory that does not grow.

    A place is scored by the mean squared error (RGB, 8-bit levels) of its square, averaged over the methods that are
    compared, each with the same weight: exchanging bicubic and the network changes nothing, and what the network
    spoils is shown as surely as what it improves. Of each frame the best squares that do not overlap are
    candidates. One that overlaps squares of earlier frames takes their place if its score is higher than all of
    theirs; the `num_crops` best are kept.
    """

    def __init__(self, num_crops: int = NUM_CROPS) -> None:
        self._num_crops = num_crops
        self._kept: list[_Crop] = []

    def add(self, frame: FrameSet, number: int, differences: Mapping[str, Picture]) -> None:
        """Look at one frame; `differences` are its `FrameSet.differences`, which others need as well."""
        errors_HW = block_errors(differences, frame.scale)
        for place in telling_places(errors_HW, crop_side_px(frame), frame.scale, self._num_crops):
            rivals = [crop for crop in self._kept if crop.place.overlaps(place)]
            pool = rivals or (self._kept if len(self._kept) == self._num_crops else [])
            least = max if rivals else min
            if pool and place.error <= least(crop.place.error for crop in pool):
                continue
            scale = frame.scale
            nearest_YXC = frame.low_HWC.repeat(scale, axis=0).repeat(scale, axis=1)
            panels = {title: place.cut(picture) for title, picture in frame.treatments().items()}
            kept = [crop for crop in self._kept if crop not in rivals]
            kept.append(_Crop(place, number, {"input": place.cut(nearest_YXC), **panels}))
            self._kept = sorted(kept, key=lambda crop: -crop.place.error)[: self._num_crops]

    @property
    def places(self) -> list[tuple[int, Place]]:
        """(Frame number, place) of the crops that are kept, the highest score first."""
        return [(crop.number, crop.place) for crop in self._kept]

    def picture(self, heading: str, num_crops: int = NUM_CROPS) -> Picture:
        """A row for each of the best crops: input, bicubic, the network and the truth, with their PSNR."""
        rows = []
        for crop in self._kept[:num_crops]:
            titles = [_title(name, crop) for name in crop.panels]
            rows.append(with_titles(side_by_side(list(crop.panels.values()), _PANEL_PX), titles))
        return with_caption(np.vstack(rows), heading, above=True)


def crop_side_px(frame: FrameSet) -> int:
    """128 high-resolution pixels, but at most a third of the frame's shorter side; a multiple of the scale."""
    side_px = min(CROP_PX, int(min(frame.real_YXC.shape[:2])) // 3)
    return max(side_px // frame.scale, 1) * frame.scale


def block_errors(differences: Mapping[str, Picture], scale: int) -> ErrorMap:
    """(H, W) squared difference from the truth in the square of each input pixel, mean over channels and methods."""
    squares: NDArray[np.float32] = np.zeros(next(iter(differences.values())).shape, np.float32)
    for picture in differences.values():
        cv2.accumulateSquare(picture, squares)
    height, width = squares.shape[0] // scale, squares.shape[1] // scale
    blocks = cv2.resize(squares[: height * scale, : width * scale], (width, height), interpolation=cv2.INTER_AREA)
    mean: ErrorMap = cv2.transform(blocks, _MEAN_OF_CHANNELS) / np.float32(len(differences))
    return mean


def telling_places(errors_HW: ErrorMap, side_px: int, scale: int, num_places: int) -> list[Place]:
    """Up to `num_places` squares with the highest mean of `block_errors` that do not overlap, best first.

    Corners are multiples of the scale, so that a square holds whole input pixels.
    """
    height, width = errors_HW.shape
    side = side_px // scale
    means = cv2.boxFilter(errors_HW, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    means = means[: height - side + 1, : width - side + 1].copy()
    places: list[Place] = []
    while len(places) < num_places and np.isfinite(means).any():
        row, column = (int(index) for index in np.unravel_index(int(means.argmax()), means.shape))
        places.append(Place(float(means[row, column]), row * scale, column * scale, side_px))
        means[max(row - side + 1, 0) : row + side, max(column - side + 1, 0) : column + side] = -np.inf
    return places


def _title(name: str, crop: _Crop) -> str:
    if name == "input":
        return f"frame {crop.number}: input"
    real_YXC = list(crop.panels.values())[-1]
    if crop.panels[name] is real_YXC:
        return name
    error = float(np.mean((crop.panels[name].astype(np.float64) - real_YXC) ** 2))
    decibel = min(_MAX_DB, 10 * np.log10(_PEAK**2 / error)) if error else _MAX_DB
    return f"{name} {decibel:.1f} dB"
