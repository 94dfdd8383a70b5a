"""All pictures and videos of one sequence of an evaluation, made while its frames go by."""

from __future__ import annotations

import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

from vsr_dist.core.files import write_whole
from vsr_dist.inference.pictures.difference_maps import DifferenceMaps
from vsr_dist.inference.pictures.showcase import FrameSet, SideBySideVideo, write_png
from vsr_dist.inference.pictures.telling_crops import CropPicker
from vsr_dist.inference.pictures.time_profile import TimeProfile
from vsr_dist.inference.pictures.wipe import WipeVideo
from vsr_dist.ops.picture import Picture

# Frames wait in memory for the threads: not more than these.
_MAX_PENDING_FRAMES = 4
FOLDERS = ("crops", "profiles", "differences", "videos")
# For the report of an evaluation, and for the line that ends it.
FILES_TEXT = ", ".join(["comparison.png", *(f"{name}/" for name in FOLDERS)])
SHOW_TEXT = (
    "Pictures: `comparison.png` shows, of each sequence, the square in which the mean squared error is highest, "
    "averaged over the methods that are compared, so that the choice favours none; `crops/` shows the next ones, too, "
    "which do not overlap. The PSNR (RGB) above a crop is of that crop. `profiles/` shows one row over time, chosen "
    "where the truth moves most; `differences/` the absolute difference from the truth on one common scale; `videos/` "
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
        self._side_by_side = SideBySideVideo(out / "videos" / f"{sequence}.mp4", fps)
        self._wipe = WipeVideo(out / "videos" / f"{sequence}-wipe.mp4", fps)
        self._crops, self._profile, self._maps = CropPicker(), TimeProfile(), DifferenceMaps()
        # A thread for each video and one for the stills, each of which sees the frames in order: coding and drawing
        # leave Python, and the caller goes on meanwhile.
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
        side_by_side, wipe, stills = self._lanes
        tasks = [side_by_side.submit(self._side_by_side.write, frame), wipe.submit(self._wipe.write, frame)]
        self._pending.append([*tasks, stills.submit(self._add_stills, frame, number)])
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
        # A sequence that is done holds its picture and nothing else.
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
