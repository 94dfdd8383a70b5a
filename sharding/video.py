"""Decode a source, a video file or a folder of numbered images, to uint8 RGB frames in one stable order.

Everything is streamed: one frame is held at a time. Frames are (H, W, 3), in the orientation in which a
player shows them (rotation metadata is applied). Their bytes do not depend on the processor: FFmpeg's
decoders are exact, and the conversion to RGB runs in its exact mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from sharding.codec import Frame
from sharding.damage import DamageWatch
from sharding.errors import BadInputError
from sharding.images import is_folder, list_images, read_image
from sharding.shots import THUMBNAIL_SIZE_PX

# FFmpeg "plays" any text file as an ANSI terminal film, and a single picture as a film of one frame.
_REFUSED_FORMATS = ("tty", "image2", "_pipe")
# Without these flags the conversion's rounding depends on the SIMD units of the processor, and darkens by one level.
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
_RGB = Interpolation.BILINEAR | EXACT
_SMALL = Interpolation.AREA | EXACT


@dataclass(frozen=True)
class SourceInfo:
    """What a source says of itself before it is decoded.

    `num_frames` is None where the container does not say, `fps` is None for a folder or a stream without a
    rate; `width` and `height` are in pixels, in the orientation in which frames are given out.
    """

    name: str
    num_frames: int | None
    fps: Fraction | None
    width: int
    height: int


@dataclass(frozen=True)
class TimedFrame:
    """One decoded frame with its time: `time_s` and the container's own `pts`, None where there is none."""

    rgb: Frame
    time_s: float | None
    pts: int | None


@dataclass(frozen=True)
class Thumbnail:
    """A frame of `THUMBNAIL_SIZE_PX`, not turned upright, with the upright `height` and `width` of the whole frame."""

    rgb: Frame
    height: int
    width: int
    pts: int | None


def probe(source: Path) -> SourceInfo:
    """Name, size and rate of a source. Raises BadInputError if it is no video and no folder of images."""
    source = Path(source)
    if is_folder(source):
        paths = list_images(source)
        height, width = read_image(paths[0]).shape[:2]
        return SourceInfo(source.name, len(paths), None, width, height)
    with open_video(source) as container:
        stream = film_stream(container)
        first = next(_decoded(container, source, 1), None)
        if first is None:
            raise BadInputError(f"{source} is not a video that can be decoded: it holds no frame")
        height, width = _upright_size(first)
        return SourceInfo(source.name, _count(stream), stream.average_rate, width, height)


def iter_frames(source: Path) -> Iterator[Frame]:
    """All frames of a video file or image folder in time order. Raises BadInputError, also half-way."""
    for frame in iter_timed_frames(source):
        yield frame.rgb


def iter_timed_frames(
    source: Path, first_frame: int = 0, start_pts: int | None = None, num_threads: int = 1
) -> Iterator[TimedFrame]:
    """Frames from number `first_frame` on.

    With `start_pts`, the pts of that frame as an earlier full pass saw it, a video is entered at the key
    frame before it; if that does not lead to exactly this pts, it is decoded from its beginning.
    """
    source = Path(source)
    if is_folder(source):
        return _folder_frames(source, first_frame)
    return _video_frames(source, first_frame, start_pts, num_threads)


def iter_thumbnails(source: Path, num_threads: int = 1) -> Iterator[Thumbnail]:
    """All frames of a source, small: several times cheaper than `iter_frames`, with the same checks."""
    if is_folder(source):
        for frame in _folder_frames(source, 0):
            height, width = frame.rgb.shape[:2]
            small = cv2.resize(frame.rgb, THUMBNAIL_SIZE_PX, interpolation=cv2.INTER_AREA)
            yield Thumbnail(np.asarray(small, np.uint8), height, width, None)
        return
    reformatter = VideoReformatter()
    width, height = THUMBNAIL_SIZE_PX
    with open_video(source) as container:
        for frame in _decoded(container, source, num_threads):
            small = reformatter.reformat(frame, width, height, "rgb24", interpolation=_SMALL, threads=1).to_ndarray()
            yield Thumbnail(np.asarray(small, np.uint8), *_upright_size(frame), frame.pts)


def _folder_frames(folder: Path, first_frame: int) -> Iterator[TimedFrame]:
    expected: tuple[int, ...] | None = None
    for path in list_images(folder)[first_frame:]:
        image = read_image(path)
        if expected is not None and image.shape != expected:
            raise BadInputError(
                f"{path} is {image.shape[1]} x {image.shape[0]} px, the images before it are "
                f"{expected[1]} x {expected[0]}; expected one size: put each size in its own folder"
            )
        expected = image.shape
        yield TimedFrame(image, None, None)


def open_video(source: Path) -> InputContainer:
    """An open PyAV container with a video stream."""
    if not source.exists():
        raise BadInputError(f"{source} does not exist; expected a video file or a folder of images")
    try:
        container: InputContainer = av.open(str(source), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _no_video(source, getattr(error, "strerror", None) or str(error)) from error
    name = container.format.name
    if any(refused in name for refused in _REFUSED_FORMATS):
        container.close()
        raise _no_video(source, f"FFmpeg takes it for '{name}', a text or a single picture")
    if not any(_is_film(stream) for stream in container.streams.video):
        container.close()
        raise _no_video(source, "it has no video stream")
    return container


def _is_film(stream: VideoStream) -> bool:
    """False for the cover picture of a sound file."""
    return not stream.disposition & Disposition.attached_pic


def film_stream(container: InputContainer) -> VideoStream:
    """The video stream that is decoded: the first that is no cover picture."""
    return next(stream for stream in container.streams.video if _is_film(stream))


def _count(stream: VideoStream) -> int | None:
    """The number of frames that the container states, or that its length in time makes likely."""
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base and stream.average_rate:
        return round(stream.duration * stream.time_base * stream.average_rate)
    return None


def _no_video(source: Path, reason: str) -> BadInputError:
    return BadInputError(
        f"{source} is not a video that can be decoded: {reason}; expected a file that FFmpeg opens, or a "
        "folder of images"
    )


def _decoded(container: InputContainer, source: Path, num_threads: int) -> Iterator[av.VideoFrame]:
    """All frames of a container just opened. FFmpeg's errors, and damage that it passes over, are BadInputError."""
    stream = _set_threads(container, num_threads)
    watch = DamageWatch(source, stream)
    try:
        for frame in container.decode(stream):
            watch.see(frame)
            yield frame
    except av.error.FFmpegError as error:
        raise watch.broken_off(error.strerror) from error
    watch.check_end(container)


def _set_threads(container: InputContainer, num_threads: int) -> VideoStream:
    stream = film_stream(container)
    stream.codec_context.thread_type = "AUTO" if num_threads > 1 else "NONE"
    stream.codec_context.thread_count = num_threads
    return stream


def _video_frames(source: Path, first_frame: int, start_pts: int | None, num_threads: int) -> Iterator[TimedFrame]:
    reformatter = VideoReformatter()
    with open_video(source) as container:
        frames = None if start_pts is None else _entered_at(container, start_pts, num_threads)
        if frames is not None:
            try:
                yield from (_timed(frame, reformatter) for frame in frames)
            except av.error.FFmpegError as error:
                raise BadInputError(
                    f"{source} cannot be read on behind frame {first_frame}: {error.strerror}; expected a source "
                    "that does not change while it is packed: run pack again"
                ) from error
            return
    with open_video(source) as container:
        for number, frame in enumerate(_decoded(container, source, num_threads)):
            if number >= first_frame:
                yield _timed(frame, reformatter)


def _entered_at(container: InputContainer, start_pts: int, num_threads: int) -> Iterator[av.VideoFrame] | None:
    """Frames from the one with `start_pts`, reached by seeking; None if seeking does not lead there.

    Frames before it may lack what they refer to; they are not looked at.
    """
    stream = _set_threads(container, num_threads)
    try:
        container.seek(start_pts, stream=stream, backward=True)
        frames = container.decode(stream)
        for frame in frames:
            if frame.pts == start_pts and not frame.is_corrupt:
                return chain([frame], frames)
            if frame.pts is None or frame.pts >= start_pts:
                return None
    except av.error.FFmpegError:
        return None
    return None


def _timed(frame: av.VideoFrame, reformatter: VideoReformatter) -> TimedFrame:
    return TimedFrame(to_rgb(frame, reformatter), frame.time, frame.pts)


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) as shown."""
    turned = frame.rotation % 180 == 90
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> Frame:
    """uint8 RGB (H, W, 3) of a PyAV frame, turned upright; the same bytes on every processor."""
    plain = reformatter.reformat(frame, format="rgb24", interpolation=_RGB, threads=1)
    rgb = np.asarray(plain.to_ndarray(), dtype=np.uint8)
    quarter_turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise BadInputError(f"a video asks for a turn by {frame.rotation} degrees; only quarter turns are known")
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb
