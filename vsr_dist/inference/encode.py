"""Encoding frames to a video file that appears under its name only when it is whole."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from sharding.video import EXACT

_YUV = Interpolation.BICUBIC | EXACT


class VideoWriter:
    """Writes uint8 RGB frames (Y, X, 3) of one size as H.264 in an mp4; without a frame no file appears.

    Odd sizes lose their last row or column, since 4:2:0 chroma needs even ones. Use as a context manager: the file
    is written under a temporary name and renamed at the end; after an exception nothing is left.
    """

    def __init__(self, path: Path, fps: Fraction, *, crf: int = 16) -> None:
        """`crf`: x264's constant rate factor, 0 (lossless) to 51; 16 is visually lossless for comparisons."""
        self.path, self._fps, self._crf = path, fps, crf
        self._temporary = path.with_name(f".{path.stem}.part{path.suffix}")
        self._container = av.open(str(self._temporary), "w")
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
        # In the exact mode rounding does not depend on where in memory the frame happens to lie.
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
