"""Decode a video file or a folder of numbered images to uint8 RGB frames, in time order.

Frames are streamed, one at a time. They are (H, W, 3), in display orientation (rotation metadata is applied). Their
bytes do not depend on the processor: FFmpeg's decoders are bit-exact, and the conversion to RGB uses its bit-exact
mode. A full pass over a video also detects interlacing and damage (`DamageDetector`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from sharding.codec import Frame
from sharding.errors import BadInputError
from sharding.images import has_alpha, is_folder, list_images, natural_key, read_image
from sharding.shots import THUMBNAIL_SIZE_PX

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".y4m", ".ts", ".m2ts", ".mpg", ".wmv")
# FFmpeg opens any text file as an ANSI animation, and a single image as a video of one frame.
_REFUSED_FORMATS = ("tty", "image2", "_pipe")
# Without these flags the rounding depends on the SIMD instructions of the processor, and frames get one level darker.
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
_RGB = Interpolation.BILINEAR | EXACT
_SMALL = Interpolation.AREA | EXACT
# Containers with durations in their headers; for others FFmpeg estimates the duration from the file size.
_FORMATS_WITH_DURATION = ("mov", "matroska", "avi", "asf")
# Containers round timestamps, and some count the time before the first frame: smaller differences are not damage.
_END_TOLERANCE_S = 1.0
# Containers that state the length of each track, so that the loss of a few frames shows.
_EXACT_FORMATS, _EXACT_TOLERANCE_S = ("mov", "matroska"), 0.25
# ITU-T H.273 code points, as FFmpeg has them.
BT709, BT601 = 1, 6
# H.273 matrix -> that of FFmpeg's converter. BT.2020's constant-luminance matrix (10) is read as the other one (9).
_CONVERTER = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
# H.273 values that name no matrix of YUV: RGB, unspecified, reserved.
_NO_MATRIX = (0, 2, 3)
# The matrix that follows from the primaries (12), for primaries whose matrix is in the table: BT.709, BT.2020.
_CHROMA_DERIVED, _DERIVED_MATRIX = 12, {1: 1, 9: 9}
# Players take an untagged video of more than this for BT.709, below for BT.601 (mpv's rule).
_MAX_SD_WIDTH_PX, _MAX_SD_HEIGHT_PX = 1279, 576
_MAX_NAMED = 3
HAS_ALPHA = "has alpha, which is dropped"
IS_TAKEN_FOR_BT709 = "has no colour tags and is read as BT.709, as players do at its size"
# How a stored picture becomes upright: rows and columns are exchanged, then columns are mirrored, then rows.
Turn = tuple[bool, bool, bool]


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before it is decoded.

    `num_frames` is None if the container does not state it, `fps` is None for a folder or a stream without a
    frame rate; `width` and `height` are in pixels, in display orientation. `notes` are what the user should know of
    how it is read, as text for behind its name.
    """

    name: str
    num_frames: int | None
    fps: Fraction | None
    width: int
    height: int
    notes: tuple[str, ...] = ()


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
        return SourceInfo(source.name, len(paths), None, width, height, (HAS_ALPHA,) if has_alpha(paths[0]) else ())
    with open_video(source) as container:
        stream = video_stream(container)
        first = next(_decoded(container, source, 1), None)
        if first is None:
            raise BadInputError(f"{source} is not a video that can be decoded: it has no frames")
        num_frames, fps, notes = _estimate_num_frames(stream), stream.average_rate, notes_of(first)
        height, width = to_rgb(first, VideoReformatter(), source).shape[:2]
        return SourceInfo(source.name, num_frames, fps, width, height, notes)


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
            yield Thumbnail(np.asarray(small, np.uint8), *_display_size(frame, source), frame.pts)


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


def list_videos(folder: Path) -> list[Path]:
    """The video files in a folder on disk, by their suffix, in natural order."""
    inside = folder.iterdir() if folder.is_dir() else ()
    videos = [one for one in inside if one.suffix.lower() in VIDEO_SUFFIXES and one.name[0] != "." and one.is_file()]
    return sorted(videos, key=lambda one: natural_key(one.name))


def open_video(source: Path) -> InputContainer:
    """An open PyAV container with a video stream of a known codec."""
    if not source.exists():
        raise BadInputError(f"{source} does not exist; expected a video file or a folder of images")
    if not source.is_file():
        raise BadInputError(f"{source} is a pipe or a device; expected a file or a folder, which are read twice")
    try:
        # Absolute, since FFmpeg takes what stands before a colon for a protocol.
        container: InputContainer = av.open(str(source.absolute()), metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _not_a_video(source, getattr(error, "strerror", None) or str(error)) from error
    name = container.format.name
    if any(refused in name for refused in _REFUSED_FORMATS):
        container.close()
        raise _not_a_video(source, f"FFmpeg detects it as '{name}', a text or a single image")
    if not any(_is_video(stream) for stream in container.streams.video):
        container.close()
        raise _not_a_video(source, "it has no video stream")
    if video_stream(container).codec_context is None:
        container.close()
        raise _not_a_video(source, "this FFmpeg does not know its video codec")
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
        self._last_s: float | None = None
        self._end_s: float | None = None
        self._longest_s = 0.0

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
            if self._last_s is not None:
                self._longest_s = max(self._longest_s, frame.time - self._last_s)
            self._last_s = frame.time
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
        lost_s = 0.0 if self._end_s is None else missing_s(container, self._end_s, self._longest_s)
        if lost_s and self._end_s is not None:
            raise self.truncation_error(
                f"it ends at {self._end_s:.2f} s, and by its header the last {lost_s:.2f} s are missing"
            )

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
    return _file_end_s(container) if len(container.streams) == 1 else None


def _file_end_s(container: InputContainer) -> float | None:
    if container.duration is None:
        return None
    return float((container.duration + (container.start_time or 0)) / av.time_base)


def missing_s(container: InputContainer, end_s: float, longest_s: float) -> float:
    """By how much less the frames last than the header says, in s; 0 for what is no damage.

    end_s: the end of the last frame. longest_s: the longest step from frame to frame; the last may be as long.
    """
    is_exact = any(name in _EXACT_FORMATS for name in container.format.name.split(","))
    tolerance_s = max(_EXACT_TOLERANCE_S if is_exact else _END_TOLERANCE_S, longest_s)
    stated_s = stated_end_s(video_stream(container), container)
    if stated_s is None and "matroska" in container.format.name:
        # Only the length of the whole file is stated: it is cut off if no track reaches the end.
        stated_s = _file_end_s(container)
        if stated_s is not None and end_s < stated_s - tolerance_s:
            with av.open(container.name, metadata_errors="replace") as again:
                end_s = max(end_s, _last_packet_end_s(again))
    return stated_s - end_s if stated_s is not None and end_s < stated_s - tolerance_s else 0.0


def _last_packet_end_s(container: InputContainer) -> float:
    end_s = 0.0
    try:
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except av.error.FFmpegError:
        return end_s
    return end_s


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
                yield from (_timed(frame, reformatter, source) for frame in frames)
            except av.error.FFmpegError as error:
                raise BadInputError(
                    f"{source} cannot be decoded after frame {first_frame}: {error.strerror}; the file changed "
                    "while it was packed: run pack again"
                ) from error
            return
    with open_video(source) as container:
        for number, frame in enumerate(_decoded(container, source, num_threads)):
            if number >= first_frame:
                yield _timed(frame, reformatter, source)


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


def _timed(frame: av.VideoFrame, reformatter: VideoReformatter, source: Path) -> TimedFrame:
    return TimedFrame(to_rgb(frame, reformatter, source), frame.time, frame.pts)


def _display_size(frame: av.VideoFrame, source: Path) -> tuple[int, int]:
    """(height, width) of the upright frame."""
    is_transposed = turn_of(frame, source)[0]
    return (frame.width, frame.height) if is_transposed else (frame.height, frame.width)


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter, source: Path) -> Frame:
    """uint8 RGB (H, W, 3) of a PyAV frame, upright; the same bytes on every processor. source: for errors."""
    if not is_rgb(frame):
        frame.colorspace = converter_matrix(matrix_of(frame, source))
    plain = reformatter.reformat(frame, format="rgb24", interpolation=_RGB, threads=1)
    return upright(np.asarray(plain.to_ndarray(), dtype=np.uint8), turn_of(frame, source))


def is_rgb(frame: av.VideoFrame) -> bool:
    """True for RGB and palettes, which have no matrix."""
    return bool(frame.format.is_rgb or frame.format.has_palette)


def matrix_of(frame: av.VideoFrame, source: Path) -> int:
    """The H.273 matrix of a YUV frame; without a tag the one that players assume for a video of this size.

    Raises BadInputError for one that FFmpeg's converter cannot read.
    """
    matrix = int(frame.colorspace)
    if matrix in _NO_MATRIX:
        return BT709 if _is_hd(frame) else BT601
    if matrix == _CHROMA_DERIVED:
        matrix = _DERIVED_MATRIX.get(int(frame.color_primaries), matrix)
    if matrix not in _CONVERTER:
        raise BadInputError(
            f"{source} has colours of H.273 matrix {matrix} (such as YCgCo or ICtCp), which cannot be read exactly; "
            f"convert it first, for example with ffmpeg -i {source} -vf zscale=matrix=709 -c:v ffv1 "
            f"{source.stem}_bt709.mkv"
        )
    return matrix


def _is_hd(frame: av.VideoFrame) -> bool:
    return bool(frame.width > _MAX_SD_WIDTH_PX or frame.height > _MAX_SD_HEIGHT_PX)


def converter_matrix(matrix: int) -> int:
    """FFmpeg's matrix for an H.273 one that `matrix_of` gives."""
    return _CONVERTER[matrix]


def notes_of(frame: av.VideoFrame) -> tuple[str, ...]:
    """What the user should know of how the first frame is read, as text for behind the name of the source."""
    is_assumed = not is_rgb(frame) and int(frame.colorspace) in _NO_MATRIX and _is_hd(frame)
    is_assumed = is_assumed and len(frame.format.components) > 1
    alpha = any(component.is_alpha for component in frame.format.components)
    return ((HAS_ALPHA,) if alpha else ()) + ((IS_TAKEN_FOR_BT709,) if is_assumed else ())


def note_lines(notes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """One line for each note, with the names of the sources that have it."""
    names: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for text in texts:
            names.setdefault(text, []).append(name)
    lines = []
    for text, some in names.items():
        more = f" and {len(some) - _MAX_NAMED} more" if len(some) > _MAX_NAMED else ""
        lines.append(f"note: {', '.join(some[:_MAX_NAMED])}{more}: {text}")
    return lines


def turn_of(frame: av.VideoFrame, source: Path) -> Turn:
    """From the display matrix: `x' = a x + c y`, `y' = b x + d y` (ISO 14496-12, 8.2.2). Raises BadInputError."""
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("<5i", bytes(data)[:20])
    if (b, c) == (0, 0) and a and d:
        return False, a < 0, d < 0
    if (a, d) == (0, 0) and b and c:
        return True, c < 0, b < 0
    raise BadInputError(
        f"{source} has a rotation of {frame.rotation} degrees; expected a multiple of 90: convert it with ffmpeg, "
        "which applies the rotation"
    )


def upright(rgb_HWC: NDArray[Any], turn: Turn) -> NDArray[Any]:
    """A picture as it is displayed; contiguous."""
    transpose, mirror_columns, mirror_rows = turn
    turned = rgb_HWC.swapaxes(0, 1) if transpose else rgb_HWC
    return np.ascontiguousarray(turned[:: -1 if mirror_rows else 1, :: -1 if mirror_columns else 1])
