"""All pictures and videos of one sequence of an evaluation, made while its frames go by."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

from vsr_dist.core.files import write_whole
from vsr_dist.inference.difference_maps import DifferenceMaps
from vsr_dist.inference.showcase import FrameSet, SideBySideVideo, write_png
from vsr_dist.inference.telling_crops import CropPicker
from vsr_dist.inference.time_profile import TimeProfile
from vsr_dist.inference.wipe import WipeVideo
from vsr_dist.ops.picture import Picture

FOLDERS = ("videos", "profiles", "differences")
# For the report of an evaluation, and for the line that ends it.
FILES_TEXT = "comparison.png, profiles/, differences/, videos/"
SHOW_TEXT = (
    "Pictures: `comparison.png` shows, of each sequence, the squares that do not overlap in which the mean squared "
    "error is highest, averaged over the methods that are compared, so that the choice favours none; the PSNR (RGB) "
    "above each crop is of that crop. `profiles/` shows one row over time, chosen where the truth moves most; "
    "`differences/` the absolute difference from the truth on one common scale; `videos/` the methods side by side, "
    "and with a moving divider (`-wipe`)."
)


def clear_pictures(out: Path) -> None:
    """Make the folders of the pictures, without those of an earlier evaluation, which would pass for this one's."""
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)


class SequenceShow:
    """Writes `videos/NAME.mp4`, `videos/NAME-wipe.mp4`, `profiles/NAME.png` and `differences/NAME.png` under `out`.

    Use as a context manager, and `add` every frame in the order of time. Memory does not grow with the number of
    frames. After the end `picture` holds the rows of `comparison.png`; after an exception nothing is left on disk.
    """

    def __init__(self, out: Path, sequence: str, fps: Fraction) -> None:
        self._out, self._sequence = out, sequence
        self._videos = (
            SideBySideVideo(out / "videos" / f"{sequence}.mp4", fps),
            WipeVideo(out / "videos" / f"{sequence}-wipe.mp4", fps),
        )
        self._crops, self._profile, self._maps = CropPicker(), TimeProfile(), DifferenceMaps()
        self._num_frames = 0
        self._stack = ExitStack()
        self._picture: Picture | None = None

    @property
    def picture(self) -> Picture:
        """The sequence's rows of `comparison.png`, uint8 RGB; there once the sequence has ended."""
        assert self._picture is not None
        return self._picture

    def add(self, frame: FrameSet, number: int) -> None:
        """Show one frame, with its number in the source."""
        differences = frame.differences()
        self._crops.add(frame, number, differences)
        self._maps.add(frame, number, differences)
        self._profile.add(frame, number)
        for video in self._videos:
            video.write(frame)
        self._num_frames += 1

    def __enter__(self) -> SequenceShow:
        for video in self._videos:
            self._stack.enter_context(video)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None and self._num_frames:
            self._picture = self._crops.picture(self._sequence)
            write_png(self._out / "profiles" / f"{self._sequence}.png", self._profile.picture(self._sequence))
            write_whole(self._out / "differences" / f"{self._sequence}.png", self._maps.png(self._sequence))
        # A sequence that is done holds its picture and nothing else.
        self._crops, self._profile, self._maps = CropPicker(), TimeProfile(), DifferenceMaps()
