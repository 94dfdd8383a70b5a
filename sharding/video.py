"""Decode a source, a video file or a folder of numbered images, to uint8 RGB frames in one stable order.

Everything is streamed: one frame is held at a time. Frames are (H, W, 3), in the orientation in which a
player shows them (rotation metadata is applied).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from sharding.codec import Frame
from sharding.errors import BadInputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# FFmpeg "plays" any text file as an ANSI terminal film, and a single picture as a film of one frame.
_REFUSED_FORMATS = ("tty", "image2", "_pipe")


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


def probe(source: Path) -> SourceInfo:
    """Name, size and rate of a source. Raises BadInputError if it is no video and no folder of images."""
    source = Path(source)
    if source.is_dir():
        paths = list_images(source)
        height, width = _read_image(paths[0]).shape[:2]
        return SourceInfo(source.name, len(paths), None, width, height)
    with _open(source) as container:
        stream = container.streams.video[0]
        first = next(_decoded(container, source), None)
        if first is None:
            raise BadInputError(f"{source} is not a video that can be decoded: it holds no frame")
        height, width = _to_rgb(first, VideoReformatter()).shape[:2]
        return SourceInfo(source.name, stream.frames or None, stream.average_rate, width, height)


def iter_frames(source: Path) -> Iterator[Frame]:
    """All frames of a video file or image folder in time order. Raises BadInputError, also half-way."""
    for frame in iter_timed_frames(source):
        yield frame.rgb


def iter_timed_frames(source: Path, first_frame: int = 0, start_pts: int | None = None) -> Iterator[TimedFrame]:
    """Frames from number `first_frame` on.

    With `start_pts`, the pts of that frame as an earlier full pass saw it, a video is entered at the key
    frame before it; if that does not lead to exactly this pts, it is decoded from its beginning.
    """
    source = Path(source)
    if source.is_dir():
        return _folder_frames(source, first_frame)
    return _video_frames(source, first_frame, start_pts)


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order (2 before 10). Raises BadInputError if there is none."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not paths:
        inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
        hint = f"; it has subfolders, give them one by one, such as {folder / inner[0]}" if inner else ""
        raise BadInputError(f"{folder} holds no image; expected files such as 0001.png{hint}")
    return sorted(paths, key=lambda path: natural_key(path.name))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """A sort key that compares runs of digits as numbers; equal numbers fall back to their text."""
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts if part]


def _folder_frames(folder: Path, first_frame: int) -> Iterator[TimedFrame]:
    expected: tuple[int, ...] | None = None
    for path in list_images(folder)[first_frame:]:
        image = _read_image(path)
        if expected is not None and image.shape != expected:
            raise BadInputError(
                f"{path} is {image.shape[1]} x {image.shape[0]} px, the images before it are "
                f"{expected[1]} x {expected[0]}; expected one size: put each size in its own folder"
            )
        expected = image.shape
        yield TimedFrame(image, None, None)


def _read_image(path: Path) -> Frame:
    data = np.fromfile(path, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
        raise BadInputError(f"{path} is not an image that OpenCV can decode; replace or remove it")
    return np.asarray(image, dtype=np.uint8)


def _open(source: Path) -> InputContainer:
    """An open PyAV container with a video stream."""
    if not source.exists():
        raise BadInputError(f"{source} does not exist; expected a video file or a folder of images")
    try:
        container: InputContainer = av.open(str(source))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _no_video(source, getattr(error, "strerror", None) or str(error)) from error
    name = container.format.name
    if any(refused in name for refused in _REFUSED_FORMATS):
        container.close()
        raise _no_video(source, f"FFmpeg takes it for '{name}', a text or a single picture")
    if not container.streams.video:
        container.close()
        raise _no_video(source, "it has no video stream")
    return container


def _no_video(source: Path, reason: str) -> BadInputError:
    return BadInputError(
        f"{source} is not a video that can be decoded: {reason}; expected a file that FFmpeg opens, or a "
        "folder of images"
    )


def _decoded(container: InputContainer, source: Path) -> Iterator[av.VideoFrame]:
    """The decoded PyAV frames from where the container stands; FFmpeg's errors become BadInputError."""
    container.streams.video[0].thread_type = "AUTO"
    number = 0
    try:
        for frame in container.decode(video=0):
            yield frame
            number += 1
    except av.error.FFmpegError as error:
        raise BadInputError(
            f"{source} breaks off after {number} frames: {error.strerror}; expected a whole video file"
        ) from error


def _video_frames(source: Path, first_frame: int, start_pts: int | None) -> Iterator[TimedFrame]:
    reformatter = VideoReformatter()
    with _open(source) as container:
        frames = None if start_pts is None else _entered_at(container, source, start_pts)
        if frames is not None:
            yield from (_timed(frame, reformatter) for frame in frames)
            return
    with _open(source) as container:
        for number, frame in enumerate(_decoded(container, source)):
            if number >= first_frame:
                yield _timed(frame, reformatter)


def _entered_at(container: InputContainer, source: Path, start_pts: int) -> Iterator[av.VideoFrame] | None:
    """Frames from the one with `start_pts`, reached by seeking; None if seeking does not lead there."""
    stream = container.streams.video[0]
    try:
        container.seek(start_pts, stream=stream, backward=True)
    except av.error.FFmpegError:
        return None
    frames = _decoded(container, source)
    for frame in frames:
        if frame.pts == start_pts:
            return _chain(frame, frames)
        if frame.pts is None or frame.pts > start_pts:
            return None
    return None


def _chain(first: av.VideoFrame, rest: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    yield first
    yield from rest


def _timed(frame: av.VideoFrame, reformatter: VideoReformatter) -> TimedFrame:
    return TimedFrame(_to_rgb(frame, reformatter), frame.time, frame.pts)


def _to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> Frame:
    """uint8 RGB (H, W, 3) of a PyAV frame, turned upright."""
    rgb = np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    quarter_turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise BadInputError(f"a video asks for a turn by {frame.rotation} degrees; only quarter turns are known")
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb
