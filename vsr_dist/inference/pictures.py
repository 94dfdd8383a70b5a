"""The pictures and videos of an evaluation: crops, profiles over time, difference maps, and side-by-side videos.

All are made while the frames go by, in memory that does not grow with their number.

Axis letters: T time, R candidate rows, H W low-resolution, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import io
import math
import os
import shutil
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from sharding.video import EXACT
from vsr_dist.core.files import write_whole
from vsr_dist.ops.picture import Picture, draw_text, side_by_side, with_caption, with_titles

_YUV = Interpolation.BICUBIC | EXACT


class VideoWriter:
    """Writes uint8 RGB frames (Y, X, 3) of one size as H.264 in an mp4; without a frame there is no file.

    Odd sizes lose their last row or column, since 4:2:0 chroma needs even ones. Use as a context manager: the file
    is written under a temporary name and renamed at the end; after an exception nothing is left.
    """

    def __init__(self, path: Path, fps: Fraction, *, crf: int = 16) -> None:
        """`crf`: x264's constant rate factor, 0 (lossless) to 51; 16 is visually lossless for comparisons."""
        self.path, self._fps, self._crf = path, fps, crf
        self._temporary = path.with_name(f".{path.stem}.part{path.suffix}")
        # Absolute, since FFmpeg takes what stands before a colon for a protocol.
        self._container = av.open(str(self._temporary.absolute()), "w")
        self._stream: av.VideoStream | None = None
        self._reformatter = VideoReformatter()

    def write(self, frame_YXC: NDArray[np.uint8]) -> None:
        """Append one frame."""
        height, width = frame_YXC.shape[0] // 2 * 2, frame_YXC.shape[1] // 2 * 2
        if self._stream is not None and (height, width) != (self._stream.height, self._stream.width):
            raise ValueError(f"a frame of {width}x{height} in a video of {self._stream.width}x{self._stream.height}")
        if self._stream is None:
            options = {"crf": str(self._crf), "preset": "veryfast"}
            self._stream = self._container.add_stream("libx264", rate=self._fps, options=options)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_YXC[:height, :width]), format="rgb24")
        # In the exact mode rounding does not depend on the alignment of the frame in memory.
        yuv = self._reformatter.reformat(frame, format="yuv420p", interpolation=_YUV, threads=1)
        self._container.mux(self._stream.encode(yuv))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        if kind is None and self._stream is not None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)


TRUTH = "ground truth"
ErrorMap = NDArray[np.float32]
_VIDEO_PANEL_PX = 480


@dataclass(frozen=True)
class FrameSet:
    """One frame under every treatment, uint8 RGB: the input (H, W, 3), the others (Y, X, 3).

    `fake_YXC` is None where only the baseline is measured. `names`: of baseline and network.
    """

    low_HWC: Picture
    baseline_YXC: Picture
    fake_YXC: Picture | None
    real_YXC: Picture
    names: tuple[str, str] = ("bicubic", "ours")

    @property
    def scale(self) -> int:
        """Enlargement."""
        return int(self.real_YXC.shape[0] // self.low_HWC.shape[0])

    def methods(self) -> dict[str, Picture]:
        """Title -> picture of what is measured: the baseline, and the network if there is one."""
        first, second = self.names
        ours = {} if self.fake_YXC is None else {second: self.fake_YXC}
        return {first: self.baseline_YXC, **ours}

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


def side_by_side_picture(frame: FrameSet) -> Picture:
    """uint8 RGB: baseline, network and truth in a row under their titles, a centred crop of each."""
    pictures = {title: _centre(picture) for title, picture in frame.treatments().items()}
    row = side_by_side(list(pictures.values()), next(iter(pictures.values())).shape[0])
    return with_titles(row, list(pictures))


def _centre(picture_YXC: NDArray[np.uint8]) -> Picture:
    """The centred part of at most `_VIDEO_PANEL_PX` in both directions."""
    height, width = picture_YXC.shape[:2]
    rows, columns = min(height, _VIDEO_PANEL_PX), min(width, _VIDEO_PANEL_PX)
    top, left = (height - rows) // 2, (width - columns) // 2
    return picture_YXC[top : top + rows, left : left + columns]


_WIPE_PERIOD_S = 4.0
# Share of the width on each side of the middle over which the divider moves.
_WIPE_REACH = 0.45
_WIPE_HEIGHT_PX = 480
_WIPE_BAR_PX = 28


def divider_at(frame_number: int, fps: float) -> float:
    """Place of the divider as a share of the width: from the middle to the right, and back after four seconds."""
    return 0.5 + _WIPE_REACH * math.sin(2 * math.pi * frame_number / max(2.0, _WIPE_PERIOD_S * fps))


def wipe_picture(frame: FrameSet, share: float) -> Picture:
    """uint8 RGB: the first treatment up to `share` of the width, then a white line, then the second, under titles.

    The first two of baseline, network and truth. Small frames are enlarged without smoothing; nothing is cut off.
    """
    (left_title, left_YXC), (right_title, right_YXC) = list(frame.treatments().items())[:2]
    column = round(share * left_YXC.shape[1])
    joined = right_YXC.copy()
    joined[:, :column] = left_YXC[:, :column]
    picture = side_by_side([joined], _WIPE_HEIGHT_PX)
    width = picture.shape[1]
    line = min(max(round(column * width / left_YXC.shape[1]), 2), width - 2)
    # Dark beside the white, or the line is lost on a bright picture.
    picture[:, line - 2 : line + 2] = 0
    picture[:, line - 1 : line + 1] = 255
    bar = np.full((_WIPE_BAR_PX, width, 3), 255, np.uint8)
    draw_text(bar, f"left: {left_title}", 4, width / 2 - 8)
    draw_text(bar, f"right: {right_title}", width // 2 + 4, width / 2 - 8, align="right")
    return np.vstack([bar, picture])


CROP_PX = 128
NUM_CROPS = 3
_CROP_PANEL_PX = 256
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
    """Keeps the crops of a sequence with the highest error while its frames go by, in memory that does not grow.

    A place is scored by the mean squared error (RGB, 8-bit levels) of its square, averaged over the methods that are
    compared, each with the same weight, so that the choice favours no method. Of each frame the best squares that do
    not overlap are candidates. One that overlaps squares of earlier frames replaces them if its score is higher than
    all of theirs; the `num_crops` best are kept.
    """

    def __init__(self, num_crops: int = NUM_CROPS) -> None:
        self._num_crops = num_crops
        self._kept: list[_Crop] = []

    def add(self, frame: FrameSet, number: int, differences: Mapping[str, Picture]) -> None:
        """Look at one frame; `differences` are its `FrameSet.differences`, which others need as well."""
        errors_HW = block_errors(differences, frame.scale)
        for place in worst_places(errors_HW, crop_side_px(frame), frame.scale, self._num_crops):
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
            rows.append(with_titles(side_by_side(list(crop.panels.values()), _CROP_PANEL_PX), titles))
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


def worst_places(errors_HW: ErrorMap, side_px: int, scale: int, num_places: int) -> list[Place]:
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


# Memory stays bounded: rows of the first frames only; of the first few of them every eighth row, until one is chosen.
PROFILE_MAX_FRAMES = 480
PROFILE_MAX_COLUMNS = 480
PROFILE_CHOICE_FRAMES = 16
PROFILE_ROW_STEP_PX = 8
_PROFILE_PANEL_PX = 320


class TimeProfile:
    """Collects one row of each frame under every treatment, up to the first `PROFILE_MAX_FRAMES` frames.

    The row is chosen from the first `PROFILE_CHOICE_FRAMES` frames of the truth alone, so that it favours no method:
    of every eighth row the one that changes most from frame to frame (mean absolute difference), the one nearest to
    the middle if several do. Of frames wider than `PROFILE_MAX_COLUMNS` the columns that change most in that row are
    shown.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[NDArray[np.uint8]]] = {}
        self._numbers: list[int] = []
        self._candidates: NDArray[np.int64] | None = None
        self.row: int | None = None
        self.first_column = 0

    def add(self, frame: FrameSet, number: int) -> None:
        """Take the rows of one frame."""
        if len(self._numbers) == PROFILE_MAX_FRAMES:
            return
        if self._candidates is None:
            height = frame.real_YXC.shape[0]
            self._candidates = np.arange(min(PROFILE_ROW_STEP_PX // 2, height - 1), height, PROFILE_ROW_STEP_PX)
        self._numbers.append(number)
        for title, picture in frame.treatments().items():
            rows = picture[self._candidates] if self.row is None else self._columns(picture[self.row : self.row + 1])
            self._rows.setdefault(title, []).append(rows.copy())
        if len(self._numbers) == PROFILE_CHOICE_FRAMES:
            self._choose()

    def profiles(self) -> dict[str, Picture]:
        """Title -> (T, X, 3) uint8: the chosen row of every frame, one under the other."""
        if self.row is None:
            self._choose()
        return {title: np.concatenate(rows) for title, rows in self._rows.items()}

    def picture(self, heading: str) -> Picture:
        """The profiles side by side, enlarged by whole factors, time running down."""
        profiles = self.profiles()
        num_frames, num_columns = next(iter(profiles.values())).shape[:2]
        wide, high = max(1, round(_PROFILE_PANEL_PX / num_columns)), max(1, round(_PROFILE_PANEL_PX / num_frames))
        panels = [panel.repeat(high, axis=0).repeat(wide, axis=1) for panel in profiles.values()]
        row = with_titles(side_by_side(panels, panels[0].shape[0]), list(profiles))
        last_column = self.first_column + num_columns - 1
        caption = (
            f"row {self.row} over time: right is x (columns {self.first_column} to {last_column}), "
            f"down is time (frames {self._numbers[0]} to {self._numbers[-1]})"
        )
        return with_caption(with_caption(row, heading, above=True), caption)

    def _choose(self) -> None:
        """Fix row and columns, and keep nothing else of the frames so far."""
        assert self._candidates is not None
        real_TRXC = np.stack(self._rows[TRUTH]).astype(np.float32)
        activity_RX = np.abs(np.diff(real_TRXC, axis=0)).mean(axis=3).sum(axis=0)
        middle = (len(self._candidates) - 1) / 2
        by_nearness = sorted(range(len(self._candidates)), key=lambda place: abs(place - middle))
        chosen = max(by_nearness, key=lambda place: float(activity_RX[place].sum()))
        self.row = int(self._candidates[chosen])
        num_columns = activity_RX.shape[1]
        if num_columns > PROFILE_MAX_COLUMNS:
            sums = np.convolve(activity_RX[chosen], np.ones(PROFILE_MAX_COLUMNS), mode="valid")
            self.first_column = int(sums.argmax())
        self._rows = {
            title: [self._columns(rows[chosen : chosen + 1]).copy() for rows in kept]
            for title, kept in self._rows.items()
        }

    def _columns(self, rows_RXC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return rows_RXC[:, self.first_column : self.first_column + PROFILE_MAX_COLUMNS]


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
        # The import takes half a second.
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


# Frames wait in memory for the threads: not more than these.
_MAX_PENDING_FRAMES = 4
FOLDERS = ("crops", "profiles", "differences", "videos")
# For the report of an evaluation, and for the line that ends it.
FILES_TEXT = ", ".join(["comparison.png", *(f"{name}/" for name in FOLDERS)])
SHOW_TEXT = (
    "Pictures: `comparison.png` shows for each sequence the square with the highest mean squared error, averaged "
    "over the compared methods, so that the choice favours none; `crops/` also shows the next ones, which do not "
    "overlap. The PSNR (RGB) above a crop is of that crop. `profiles/` shows one row over time, where the ground "
    "truth changes most; `differences/` the absolute difference from the ground truth on a common scale; `videos/` "
    "the methods side by side, and with a moving divider (`-wipe`)."
)


def clear_pictures(out: Path) -> None:
    """Make the folders of the pictures, without those of an earlier evaluation, which would pass for this one's."""
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)


class SequenceShow:
    """Writes `videos/NAME.mp4`, `videos/NAME-wipe.mp4`, and `NAME.png` in `crops`, `profiles` and `differences`.

    Use as a context manager, and `add` every frame in the order of time. Memory does not grow with the number of
    frames. After the end `picture` holds its row of `comparison.png`; after an exception nothing is left on disk.
    """

    def __init__(self, out: Path, sequence: str, fps: Fraction) -> None:
        self._out, self._sequence = out, sequence
        self._side_by_side = VideoWriter(out / "videos" / f"{sequence}.mp4", fps)
        self._wipe = VideoWriter(out / "videos" / f"{sequence}-wipe.mp4", fps)
        self._fps = float(fps)
        self._crops, self._profile, self._maps = CropPicker(), TimeProfile(), DifferenceMaps()
        # A thread for each video and one for the stills, each of which gets the frames in order: encoding and drawing
        # release the interpreter, so the caller continues meanwhile.
        self._lanes = [ThreadPoolExecutor(1) for _ in range(3)]
        self._pending: deque[list[Future[None]]] = deque()
        self._num_frames = 0
        self._stack = ExitStack()
        self._picture: Picture | None = None

    @property
    def picture(self) -> Picture:
        """The sequence's row of `comparison.png`, uint8 RGB; there once the sequence has ended."""
        assert self._picture is not None
        return self._picture

    def add(self, frame: FrameSet, number: int) -> None:
        """Show one frame, with its number in the source. Its pictures must not change afterwards."""
        row, wipe, stills = self._lanes
        divider = divider_at(self._num_frames, self._fps)
        self._pending.append(
            [
                row.submit(lambda: self._side_by_side.write(side_by_side_picture(frame))),
                wipe.submit(lambda: self._wipe.write(wipe_picture(frame, divider))),
                stills.submit(self._add_stills, frame, number),
            ]
        )
        self._num_frames += 1
        self._wait(_MAX_PENDING_FRAMES)

    def __enter__(self) -> SequenceShow:
        self._stack.enter_context(self._side_by_side)
        self._stack.enter_context(self._wipe)
        for lane in self._lanes:
            self._stack.callback(lane.shutdown, wait=True, cancel_futures=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait(0)
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)
        if kind is None and self._num_frames:
            self._write_stills()
        # Of a finished sequence only its picture is kept.
        self._crops, self._profile, self._maps = CropPicker(), TimeProfile(), DifferenceMaps()

    def _wait(self, num_left: int) -> None:
        """Wait until so many frames are left to be shown; an error of a thread is raised here."""
        while len(self._pending) > num_left:
            for future in self._pending.popleft():
                future.result()

    def _add_stills(self, frame: FrameSet, number: int) -> None:
        differences = frame.differences()
        self._crops.add(frame, number, differences)
        self._maps.add(frame, number, differences)
        self._profile.add(frame, number)

    def _write_stills(self) -> None:
        self._picture = self._crops.picture(self._sequence, num_crops=1)
        write_png(self._out / "crops" / f"{self._sequence}.png", self._crops.picture(self._sequence))
        write_png(self._out / "profiles" / f"{self._sequence}.png", self._profile.picture(self._sequence))
        write_whole(self._out / "differences" / f"{self._sequence}.png", self._maps.png(self._sequence))
