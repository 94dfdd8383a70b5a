"""Finished frames to segments: encoded packets that `join` puts together, or PNG files.

A segment begins with a key frame and needs none but its own packets, since each has an encoder of its own. So the
result does not depend on where a job was stopped.

Axis letters: Y X rows and columns of the result, C channels.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import av
import cv2
import numpy as np
from av.codec.context import Flags

from vsr_dist.core.errors import BadConfigError
from vsr_dist.inference.streaming.stream import Frame
from vsr_dist.inference.video.codecs import EncoderSettings, set_up
from vsr_dist.inference.video.colour import FromRgb
from vsr_dist.inference.video.work_folder import Part, SegmentRecord

_PNG_THREADS = 4
# Of zlib, 0 to 9: level 1 is within a few percent of the others' size on photographs and several times faster.
_PNG_LEVEL = 1


class SegmentSink(Protocol):
    """Takes the frames of one segment after another."""

    def write(self, frame_YXC: Frame, pts: int) -> None:
        """The next frame."""
        ...

    def finish(self, record: SegmentRecord) -> None:
        """Put what was written in place, and into the record what it is."""
        ...

    def abandon(self) -> None:
        """Let go of what was begun."""
        ...


class PacketSink:
    """Encodes. The packets lie one behind the other in a file; the record says where each begins."""

    def __init__(self, part: Part, first_segment: int, settings: EncoderSettings) -> None:
        self._part, self._number, self._settings = part, first_segment, settings
        self._to_yuv = FromRgb(settings.pixel_format, settings.tags)
        self._begin()

    def _begin(self) -> None:
        self._context = new_encoder(self._settings)
        self._path = self._part.packets_path(self._number)
        self._file = self._path.with_suffix(".tmp").open("wb")
        self._pts: list[int] = []
        self._sizes: list[int] = []
        self._keys: list[int] = []

    def write(self, frame_YXC: Frame, pts: int) -> None:
        """See `SegmentSink`."""
        frame = self._to_yuv(frame_YXC)
        frame.pts, frame.time_base = pts, self._settings.time_base
        # The encoder decides which are key frames, whatever the input's were.
        frame.pict_type = 0
        self._take(self._context.encode(frame))

    def _take(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            self._file.write(bytes(packet))
            self._pts.append(int(packet.pts))
            self._sizes.append(int(packet.size))
            self._keys.append(int(packet.is_keyframe))

    def finish(self, record: SegmentRecord) -> None:
        """See `SegmentSink`."""
        if self._pts or record.num_frames:
            self._take(self._context.encode(None))
        self._file.close()
        os.replace(self._path.with_suffix(".tmp"), self._path)
        record.pts, record.sizes, record.keys = self._pts, self._sizes, self._keys
        record.extradata = (self._context.extradata or b"").hex()
        self._number += 1
        if not record.last:
            self._begin()

    def abandon(self) -> None:
        """See `SegmentSink`."""
        self._file.close()


def new_encoder(settings: EncoderSettings) -> av.VideoCodecContext:
    """An open encoder with its headers beside the packets. Raises BadConfigError if it does not take the settings."""
    context = av.CodecContext.create(settings.codec, "w")
    set_up(context, settings)
    context.flags |= Flags.global_header
    try:
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        raise BadConfigError(
            f"{settings.codec} does not take {settings.width} x {settings.height} px of {settings.pixel_format} with "
            f"{settings.options}: {getattr(error, 'strerror', None) or error}; choose another --codec or other options"
        ) from error
    return context


class PngSink:
    """Writes numbered PNG files, several at a time."""

    def __init__(self, part: Part, first_segment: int, first_frame: int) -> None:
        self._part, self._number, self._next = part, first_segment, first_frame
        self._pool = ThreadPoolExecutor(_PNG_THREADS)
        self._running: deque[Future[None]] = deque()
        self._begin()

    def _begin(self) -> None:
        self._folder = self._part.frames_path(self._number)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pts: list[int] = []

    def write(self, frame_YXC: Frame, pts: int) -> None:
        """See `SegmentSink`."""
        if len(self._running) >= _PNG_THREADS:
            self._running.popleft().result()
        self._running.append(self._pool.submit(_write_png, self._folder / f"{self._next:08d}.png", frame_YXC))
        self._pts.append(pts)
        self._next += 1

    def finish(self, record: SegmentRecord) -> None:
        """See `SegmentSink`."""
        while self._running:
            self._running.popleft().result()
        record.pts = self._pts
        self._number += 1
        if record.last:
            self._pool.shutdown()
        else:
            self._begin()

    def abandon(self) -> None:
        """See `SegmentSink`."""
        self._pool.shutdown(cancel_futures=True)


def _write_png(path: Path, frame_YXC: Frame) -> None:
    picture = cv2.cvtColor(np.ascontiguousarray(frame_YXC), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    if not done:
        raise RuntimeError(f"OpenCV did not encode {path.name}")
    path.write_bytes(data.tobytes())
