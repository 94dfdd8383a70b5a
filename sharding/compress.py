"""Frames through a lossy video codec and back: H.264 at a constant rate factor, over a sequence as a whole.

Bytes are the same on every processor and for every number of threads. x264 takes other decisions with SSSE3 and
later units than in plain C, so it is held to instructions whose result equals that of C.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import Interpolation, VideoReformatter

from sharding.codec import Frame
from sharding.errors import MissingExtraError
from sharding.video import EXACT, to_rgb

DEFAULT_CRF = 25
MAX_CRF = 51
_RATE = 25
# Frames that x264 looks ahead; as many HR frames wait for their LR partner.
_LOOKAHEAD_FRAMES = 10
_YUV = Interpolation.BICUBIC | EXACT


@dataclass(frozen=True)
class H264:
    """H.264 in 4:2:0 by libx264 at constant rate factor `crf` (0 to 51, more is worse), 25 frames/s."""

    crf: int = DEFAULT_CRF
    preset: str = "medium"

    def parameters(self) -> dict[str, Any]:
        """What the index records."""
        return {
            "encoder": "libx264",
            "crf": self.crf,
            "preset": self.preset,
            "pixels": "yuv420p",
            "rate": _RATE,
            "lookahead_frames": _LOOKAHEAD_FRAMES,
        }

    def round_trip(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Decoded frames, as many and in the order of `frames`, uint8 RGB of one shape (H, W, 3).

        Streamed: about `_LOOKAHEAD_FRAMES` more are taken from `frames` than are given out. Odd sides are
        continued by a row or column for the codec.
        """
        first = next(frames, None)
        if first is None:
            return
        height, width = first.shape[:2]
        encoder, decoder = self._encoder(height + height % 2, width + width % 2), _decoder()
        back = VideoReformatter()
        there = VideoReformatter()
        for frame in _followed_by_none(first, frames):
            packets = encoder.encode(None if frame is None else _to_yuv(frame, there))
            for decoded in _decode(decoder, packets, last=frame is None):
                yield np.ascontiguousarray(to_rgb(decoded, back)[:height, :width])

    def _encoder(self, height: int, width: int) -> VideoCodecContext:
        try:
            encoder: VideoCodecContext = av.CodecContext.create("libx264", "w")
        except (av.error.FFmpegError, ValueError) as error:
            raise MissingExtraError(
                "this build of PyAV has no libx264, which video_compression needs; install PyAV from PyPI (pip "
                "install av), or choose another --degradation"
            ) from error
        encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, _RATE), Fraction(_RATE)
        encoder.thread_count = 1
        # SSE2 is in every x86-64 processor, and its result equals that of plain C.
        units = "MMX2,SSE2" if platform.machine().lower() in ("x86_64", "amd64") else "0"
        private = f"threads=1:lookahead-threads=1:rc-lookahead={_LOOKAHEAD_FRAMES}:sync-lookahead=0:asm={units}"
        encoder.options = {"preset": self.preset, "crf": str(self.crf), "x264-params": private}
        return encoder


def _decoder() -> VideoCodecContext:
    decoder: VideoCodecContext = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    return decoder


def _followed_by_none(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame | None]:
    """All frames, then None, which flushes the codec."""
    yield first
    yield from rest
    yield None


def _to_yuv(frame: Frame, reformatter: VideoReformatter) -> av.VideoFrame:
    even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
    return reformatter.reformat(
        av.VideoFrame.from_ndarray(even, format="rgb24"), format="yuv420p", interpolation=_YUV, threads=1
    )


def _decode(decoder: VideoCodecContext, packets: list[av.Packet], last: bool) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from decoder.decode(packet)
    if last:
        yield from decoder.decode(None)
