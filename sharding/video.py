"""Decode a video file or a folder of numbered images to uint8 RGB frames, in time order.

Frames are streamed, one at a time. They are (H, W, 3), in display orientation (rotation metadata is applied). Their
bytes do not depend on the processor: FFmpeg's decoders are bit-exact, and the conversion to RGB uses its bit-exact
mode. A full pass over a video also detects interlacing and damage (`DamageDetector`).
"""

from __future__ import annotations

import re
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
from sharding.errors import BadInputError
from sharding.images import is_folder, list_images, read_image
from sharding.shots import THUMBNAIL_SIZE_PX

# FFmpeg opens any text file as an ANSI animation, and a single image as a video of one frame.
_REFUSED_FORMATS = ("tty", "image2", "_pipe")
# Without these flags the rounding depends on the SIMD instructions of the processor, and frames get one level darker.
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
_RGB = Interpolation.BILINEAR | EXACT
_SMALL = Interpolation.AREA | EXACT
# Containers round timestamps, and some count the time before the first frame: smaller differences are not damage.
END_TOLERANCE_S = 1.0
# Containers with durations in their headers; for others FFmpeg estimates the duration from the file size.
_FORMATS_WITH_DURATION = ("mov", "matroska", "avi", "asf")


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before it is decoded.

    `num_frames` is None if the container does not state it, `fps` is None for a folder or a stream without a
    frame rate; `width` and `height` are in pixels, in display orientation.
    """

    name: str
    num_frames: int | None
    fps: Fraction | None
    width: int
    height: int


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame with its time in s and its presentation timestamp; both None for a folder of images."""

    rgb: Frame
    time_s: float | None
    pts: int | None


@dataclass(frozen=True)
class Thumbnail:
    """A frame resized to `THUMBNAIL_SIZE_PX`, not rotated; `height` and `width` are of the full frame as displayed."""

    rgb: Frame
    height: int
    width: int
    pts: int | None


def probe(source: Path) -> SourceInfo:
    """Name, size and frame rate of a source. Raises BadInputError if it is neither a video nor a folder of images."""
    source = Path(source)
    if is_folder(source):
        paths = list_images(source)
        height, width = read_image(paths[0]).shape[:2]
        return SourceInfo(source.name, len(paths), None, width, height)
    with open_video(source) as container:
        stream = video_stream(container)
        first = next(_decoded(container, source, 1), None)
        if first is None:
            raise BadInputError(f"{source} is not a video that can be decoded: it has no frames")
        height, width = _display_size(first)
        return SourceInfo(source.name, _estimate_num_frames(stream), stream.average_rate, width, height)


def iter_frames(source: Path) -> Iterator[Frame]:
    """All frames of a video file or a folder of images in time order. Raises BadInputError while iterating."""
    for frame in iter_timed_frames(source):
        yield frame.rgb


def iter_timed_frames(
    source: Path, first_frame: int = 0, start_pts: int | None = None, num_threads: int = 1
) -> Iterator[TimedFrame]:
    """Frames starting at number `first_frame`.

    With `start_pts`, the pts of that frame from an earlier full pass, decoding starts at the key frame before it. If
    seeking does not lead to exactly that pts, the video is decoded from its first frame.
    """
    source = Path(source)
    if is_folder(source):
        return _folder_frames(source, first_frame)
    return _video_frames(source, first_frame, start_pts, num_threads)


def iter_thumbnails(source: Path, num_threads: int = 1) -> Iterator[Thumbnail]:
    """Thumbnails of all frames: several times cheaper than `iter_frames`, with the same checks."""
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
            yield Thumbnail(np.asarray(small, np.uint8), *_display_size(frame), frame.pts)


def _folder_frames(folder: Path, first_frame: int) -> Iterator[TimedFrame]:
    expected: tuple[int, ...] | None = None
    for path in list_images(folder)[first_frame:]:
        image = read_image(path)
        if expected is not None and image.shape != expected:
            raise BadInputError(
                f"{path} is {image.shape[1]} x {image.shape[0]} px, the images before it are "
                f"{expected[1]} x {expected[0]}; expected images of one size: use a separate folder for each size"
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
        raise _not_a_video(source, getattr(error, "strerror", None) or str(error)) from error
    name = container.format.name
    if any(refused in name for refused in _REFUSED_FORMATS):
        container.close()
        raise _not_a_video(source, f"FFmpeg detects it as '{name}', a text or a single image")
    if not any(_is_video(stream) for stream in container.streams.video):
        container.close()
        raise _not_a_video(source, "it has no video stream")
    return container


def _is_video(stream: VideoStream) -> bool:
    """False for the cover image of an audio file."""
    return not stream.disposition & Disposition.attached_pic


def video_stream(container: InputContainer) -> VideoStream:
    """The video stream that is decoded: the first one that is not a cover image."""
    return next(stream for stream in container.streams.video if _is_video(stream))


def _estimate_num_frames(stream: VideoStream) -> int | None:
    """The number of frames from the container's header, or estimated from the duration; None if both are missing."""
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base and stream.average_rate:
        return round(stream.duration * stream.time_base * stream.average_rate)
    return None


def _not_a_video(source: Path, reason: str) -> BadInputError:
    return BadInputError(
        f"{source} is not a video that can be decoded: {reason}; expected a video file that FFmpeg can open, or a "
        "folder of images"
    )


def _decoded(container: InputContainer, source: Path, num_threads: int) -> Iterator[av.VideoFrame]:
    """All frames of a newly opened container. Raises BadInputError for FFmpeg's errors and for detected damage."""
    stream = _set_threads(container, num_threads)
    detector = DamageDetector(source, stream)
    try:
        for frame in container.decode(stream):
            detector.check(frame)
            yield frame
    except av.error.FFmpegError as error:
        raise detector.truncation_error(error.strerror) from error
    detector.check_end(container)


class DamageDetector:
    """Checks the frames of one full pass over a video stream, in order; raises BadInputError.

    Refuses interlaced video, and damage that FFmpeg decodes without an error.
    """

    def __init__(self, source: Path, stream: VideoStream) -> None:
        self._source = source
        self._stream = stream
        self._num_frames = 0
        self._end_s: float | None = None

    def check(self, frame: av.VideoFrame) -> None:
        """Check the next frame."""
        if frame.interlaced_frame:
            raise BadInputError(
                f"{self._source} is interlaced (flag of frame {self._num_frames}): its odd and even rows were recorded "
                f"at different times; expected a progressive video: convert it, for example with ffmpeg -i "
                f"{self._source} -vf bwdif=mode=send_frame -c:v ffv1 {self._output_name('progressive')}"
            )
        if frame.is_corrupt:
            raise BadInputError(
                f"{self._source} is damaged at frame {self._num_frames}; expected an undamaged video file: download "
                f"or copy it again, or keep the frames before, for example with ffmpeg -i {self._source} "
                f"-frames:v {self._num_frames} -c:v ffv1 {self._output_name('part')}"
            )
        self._num_frames += 1
        if frame.time is not None and frame.time_base is not None:
            self._end_s = frame.time + float((frame.duration or 0) * frame.time_base)

    def truncation_error(self, reason: str) -> BadInputError:
        """The error for a stream that ends too early."""
        return BadInputError(
            f"{self._source} is truncated after {self._num_frames} frames: {reason}; expected a complete video file: "
            f"download or copy it again, or keep the first part, for example with ffmpeg -i {self._source} -frames:v "
            f"{max(self._num_frames - 1, 1)} -c:v ffv1 {self._output_name('part')}"
        )

    def check_end(self, container: InputContainer) -> None:
        """Compare the end of the last frame with the duration in the container's header."""
        stated_s = stated_end_s(self._stream, container)
        if stated_s is not None and self._end_s is not None and self._end_s < stated_s - END_TOLERANCE_S:
            raise self.truncation_error(f"it ends at {self._end_s:.2f} s, its header says {stated_s:.2f} s")

    def _output_name(self, suffix: str) -> str:
        return f"{self._source.stem}_{suffix}.mkv"


def stated_end_s(stream: VideoStream, container: InputContainer) -> float | None:
    """End time of the stream according to its header, in the timestamps of its frames; None if it is not stated."""
    if not any(name in _FORMATS_WITH_DURATION for name in container.format.name.split(",")):
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    # Matroska has the duration of a track in a tag, as hours:minutes:seconds.
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match is not None:
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    # The duration of the file is that of its longest stream; it is the video's only if there is no other stream.
    if len(container.streams) == 1 and container.duration is not None:
        return float((container.duration + (container.start_time or 0)) / av.time_base)
    return None


def _set_threads(container: InputContainer, num_threads: int) -> VideoStream:
    stream = video_stream(container)
    stream.codec_context.thread_type = "AUTO" if num_threads > 1 else "NONE"
    stream.codec_context.thread_count = num_threads
    return stream


def _video_frames(source: Path, first_frame: int, start_pts: int | None, num_threads: int) -> Iterator[TimedFrame]:
    reformatter = VideoReformatter()
    with open_video(source) as container:
        frames = None if start_pts is None else _seek(container, start_pts, num_threads)
        if frames is not None:
            try:
                yield from (_timed(frame, reformatter) for frame in frames)
            except av.error.FFmpegError as error:
                raise BadInputError(
                    f"{source} cannot be decoded after frame {first_frame}: {error.strerror}; the file changed "
                    "while it was packed: run pack again"
                ) from error
            return
    with open_video(source) as container:
        for number, frame in enumerate(_decoded(container, source, num_threads)):
            if number >= first_frame:
                yield _timed(frame, reformatter)


def _seek(container: InputContainer, start_pts: int, num_threads: int) -> Iterator[av.VideoFrame] | None:
    """Frames starting with the one at `start_pts`, reached by seeking; None if seeking does not find it.

    Frames before it are skipped; they may be corrupt because their reference frames were not decoded.
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


def _display_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) after rotation."""
    is_rotated = frame.rotation % 180 == 90
    return (frame.width, frame.height) if is_rotated else (frame.height, frame.width)


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> Frame:
    """uint8 RGB (H, W, 3) of a PyAV frame, rotated for display; the same bytes on every processor."""
    plain = reformatter.reformat(frame, format="rgb24", interpolation=_RGB, threads=1)
    rgb = np.asarray(plain.to_ndarray(), dtype=np.uint8)
    quarter_turns, remainder = divmod(frame.rotation, 90)
    if remainder:
        raise BadInputError(
            f"the video's metadata rotates it by {frame.rotation} degrees; expected a multiple of 90: re-encode it "
            "with ffmpeg, which applies the rotation"
        )
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb
