"""What a video or a folder of images says of itself, from its header and its first frame."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.stream import VideoStream

from sharding.images import is_folder, list_images, read_file
from sharding.video import film_stream, open_video, stated_end_s
from vsr_dist.core.errors import BadInputError
from vsr_dist.inference.streaming.stream import Frame
from vsr_dist.inference.video.colour import (
    BT709,
    STUDIO_RANGE,
    UNSPECIFIED,
    ColourTags,
    PixelLayout,
    layout_of,
    tags_of,
)

_ONE = 1 << 16


@dataclass(frozen=True)
class Orientation:
    """How the stored picture becomes the shown one: rows and columns exchanged first, then mirrored."""

    transpose: bool = False
    mirror_columns: bool = False
    mirror_rows: bool = False

    def upright(self, frame_HWC: Frame) -> Frame:
        """The frame as it is shown, contiguous in memory."""
        turned = frame_HWC.swapaxes(0, 1) if self.transpose else frame_HWC
        turned = turned[:, ::-1] if self.mirror_columns else turned
        turned = turned[::-1] if self.mirror_rows else turned
        return cast(Frame, np.ascontiguousarray(turned))


@dataclass(frozen=True)
class MediaFacts:
    """What is known of a source from its header and its first frame.

    width, height: upright, in pixels. num_frames: as the header states or its length makes likely; None if it does not
    say. sample_aspect: width of a pixel by its height, upright. is_video: a file, not a folder. deep: more than 8 bits.
    container: FFmpeg's name of its format, empty for a folder.
    """

    path: Path
    is_video: bool
    width: int
    height: int
    deep: bool
    layout: PixelLayout
    tags: ColourTags
    orientation: Orientation
    time_base: Fraction
    rate: Fraction
    num_frames: int | None
    sample_aspect: Fraction
    interlaced: bool = False
    container: str = ""


def read_facts(source: Path, image_rate: Fraction) -> MediaFacts:
    """The facts of a source; `image_rate` is that of a folder, whose images have no times.

    Raises BadInputError if it is no video that can be decoded and no folder of images.
    """
    if is_folder(source):
        return _folder_facts(source, image_rate)
    with open_video(source) as container:
        stream = film_stream(container)
        if stream.codec_context is None:
            raise BadInputError(f"{source} holds video of a kind that this FFmpeg cannot decode; convert it first")
        stream.codec_context.thread_count = 1
        first = _first_frame(container, stream)
        if first is None:
            raise BadInputError(f"{source} is not a video that can be decoded: it holds no frame; get it again")
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        orientation = _orientation(first, source)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        width, height = first.width, first.height
        if orientation.transpose:
            width, height, aspect = height, width, 1 / aspect
        layout = layout_of(first.format)
        return MediaFacts(
            source,
            True,
            width,
            height,
            layout.bits > 8,
            layout,
            tags_of(first),
            orientation,
            stream.time_base or 1 / rate,
            rate,
            _num_frames(stream, container, rate),
            aspect,
            bool(first.interlaced_frame),
            container.format.name,
        )


def _first_frame(container: InputContainer, stream: VideoStream) -> av.VideoFrame | None:
    """The first frame that can be decoded."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        if frames:
            frame: av.VideoFrame = frames[0]
            return frame
    return None


def _num_frames(stream: VideoStream, container: InputContainer, rate: Fraction) -> int | None:
    if stream.frames:
        return int(stream.frames)
    end_s = stated_end_s(stream, container)
    return None if end_s is None else max(1, round(end_s * rate))


def _folder_facts(folder: Path, rate: Fraction) -> MediaFacts:
    paths = list_images(folder)
    first = read_image(paths[0], None)
    height, width = first.shape[:2]
    deep = first.dtype == np.uint16
    layout = layout_of(av.VideoFormat("rgb48le" if deep else "rgb24", 16, 16))
    tags = ColourTags(BT709, STUDIO_RANGE, UNSPECIFIED, UNSPECIFIED)
    return MediaFacts(
        folder, False, width, height, deep, layout, tags, Orientation(), 1 / rate, rate, len(paths), Fraction(1)
    )


def read_image(path: Path, like: Frame | None) -> Frame:
    """RGB of an image file, uint8 or uint16, of the size and depth of `like` if that is given."""
    data = np.frombuffer(read_file(path), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH) if data.size else None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise BadInputError(f"{path} is not an image of 8 or 16 bits that OpenCV can decode; replace or remove it")
    frame: Frame = image
    if like is not None and (frame.shape, frame.dtype) != (like.shape, like.dtype):
        raise BadInputError(
            f"{path} is {frame.shape[1]} x {frame.shape[0]} px of {frame.dtype}, those before are "
            f"{like.shape[1]} x {like.shape[0]} of {like.dtype}; expected one size and depth: put each into a folder"
        )
    return frame


def _orientation(frame: av.VideoFrame, source: Path) -> Orientation:
    """From the display matrix: `x' = a x + c y`, `y' = b x + d y` (ISO 14496-12, 8.2.2)."""
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return Orientation()
    a, b, _, c, d = struct.unpack("<5i", bytes(data)[:20])
    if (b, c) == (0, 0) and a and d:
        return Orientation(False, a < 0, d < 0)
    if (a, d) == (0, 0) and b and c:
        return Orientation(True, c < 0, b < 0)
    raise BadInputError(f"{source} asks for a turn by {frame.rotation} degrees; only quarter turns are known")
