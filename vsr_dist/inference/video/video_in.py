"""A video or a folder of images as upright RGB frames: what the source states, its colours, each frame with its time.

The matrix and the range of the input lead to RGB, and `video_out` goes back by the same, so no colour shifts. Primaries
and transfer (PQ and HLG too) are only passed on: the network sees the coded values. Unlike in packing, damage does not
stop the reading: what can be decoded is returned, and what was lost is counted.

Axis letters: H W rows and columns, C channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from sharding.images import has_alpha, is_folder, list_images, read_file
from sharding.video import (
    BT709,
    EXACT,
    HAS_ALPHA,
    Turn,
    converter_matrix,
    matrix_of,
    missing_s,
    notes_of,
    open_video,
    stated_end_s,
    turn_of,
    upright,
    video_stream,
)
from vsr_dist.core.errors import BadInputError
from vsr_dist.inference.frames import Frame

# Bicubic, not bilinear: with bilinear chroma FFmpeg 8 overflows at saturated 16-bit colours (white turns green).
EXACT_BICUBIC = Interpolation.BICUBIC | EXACT
# ITU-T H.273 code point, as FFmpeg has it.
UNSPECIFIED = 2
STUDIO_RANGE, FULL_RANGE = 1, 2
# White in FFmpeg's 16-bit RGB, where it comes from or goes to studio range: 255 of 8 bits moved to the top.
STUDIO_WHITE = 255 << 8
# A step of decoding time that is longer, or goes back by more, is a jump of the clock: FFmpeg's own limits.
_JUMP_S, _BACK_S = Fraction(10), Fraction(1, 10)
_HDR10 = (SideDataType.MASTERING_DISPLAY_METADATA, SideDataType.CONTENT_LIGHT_LEVEL)
# What a reader counts, as text for the user with a place for the number.
UNDECODABLE = "{:g} packets cannot be decoded"
PATCHED = "{:g} frames are damaged, and used as the decoder repaired them"
INTERLACED = "{:g} frames are marked as interlaced (try --deinterlace)"
MOVED = "{:g} frames had a timestamp not after the previous one, and got a new one"
MISSING = "the last {:.2f} s are missing"
CAPTIONS = "{:g} frames have closed captions, which are dropped"
OTHER_COLOURS = "{:g} frames have other primaries or another transfer than the first, and keep its tags"


@dataclass(frozen=True)
class ColourTags:
    """H.273 code points of a video."""

    matrix: int
    range: int
    primaries: int
    transfer: int


@dataclass(frozen=True)
class PixelLayout:
    """What a pixel format is made of. `subsampling` is 420, 422 or 444; grey counts as 420."""

    name: str
    bits: int
    subsampling: int
    is_grey: bool
    is_rgb: bool
    has_alpha: bool


@cache
def layout_of(pixel_format: str) -> PixelLayout:
    """What FFmpeg's pixel format of this name is made of."""
    found = av.VideoFormat(pixel_format, 16, 16)
    # `is_chroma` of PyAV 18 is false for chroma of full size, so colour shows in the number of components.
    is_grey = not found.has_palette and sum(not component.is_alpha for component in found.components) == 1
    is_rgb = found.is_rgb or found.has_palette
    subsampling = 420 if is_grey else 444
    if not is_grey and not is_rgb:
        halved = (found.chroma_width(1920) < 1920, found.chroma_height(1080) < 1080)
        subsampling = {(True, True): 420, (True, False): 422}.get(halved, 444)
    has_alpha = any(component.is_alpha for component in found.components)
    return PixelLayout(found.name, found.components[0].bits, subsampling, is_grey, is_rgb, has_alpha)


def tags_of(frame: av.VideoFrame, source: Path) -> ColourTags:
    """The tags of a decoded frame; without a matrix the one that players assume for a video of this size.

    RGB video becomes BT.709 in studio range, which is what encoders of YUV expect.
    """
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    if layout_of(frame.format.name).is_rgb:
        return ColourTags(BT709, STUDIO_RANGE, primaries, transfer)
    is_full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    return ColourTags(matrix_of(frame, source), FULL_RANGE if is_full else STUDIO_RANGE, primaries, transfer)


class ToRgb:
    """Decoded frames to RGB, uint8 or, if `deep`, uint16 (H, W, 3) with white at 65535. Alpha is dropped."""

    def __init__(self, *, deep: bool) -> None:
        self._deep = deep
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, tags: ColourTags) -> Frame:
        """One frame by its tags; these and its pixel format may differ from those of the frames before."""
        layout = layout_of(frame.format.name)
        if layout.is_grey:
            return self._grey(frame, layout)
        if not layout.is_rgb:
            frame.colorspace, frame.color_range = converter_matrix(tags.matrix), tags.range
        name = "rgb48le" if self._deep else "rgb24"
        plain = self._reformatter.reformat(frame, format=name, interpolation=EXACT_BICUBIC, threads=1)
        rgb_HWC = cast(Frame, plain.to_ndarray())
        if not self._deep:
            return rgb_HWC
        is_studio = not layout.is_rgb and tags.range == STUDIO_RANGE
        return scaling(0, STUDIO_WHITE if is_studio else _shifted_white(layout.bits), 65535, 16)[rgb_HWC]

    def _grey(self, frame: av.VideoFrame, layout: PixelLayout) -> Frame:
        # FFmpeg's converter takes grey for full range, whatever the tag says.
        bits = 16 if layout.bits > 8 else 8
        plain = self._reformatter.reformat(frame, format="gray16le" if bits > 8 else "gray", threads=1)
        # It widens by shifting.
        black, white = 0, _shifted_white(layout.bits) if bits > 8 else 255
        if frame.color_range == STUDIO_RANGE:
            black, white = 16 << (bits - 8), 235 << (bits - 8)
        table = scaling(black, white, 65535 if self._deep else 255, bits)
        return np.repeat(table[plain.to_ndarray()][:, :, None], 3, axis=2)


def _shifted_white(bits: int) -> int:
    """White of `bits` bits, moved to the top of 16."""
    return ((1 << bits) - 1) << (16 - bits)


@cache
def scaling(black: int, white: int, top: int, bits: int, rise: int = 0) -> Frame:
    """Table from levels of `bits` bits, in which `black` becomes `rise` and `white` `top`; clipped to `top`'s range."""
    levels = (np.arange(1 << bits, dtype=np.float64) - black) / (white - black) * (top - rise) + rise
    highest = next(limit for limit in (255, 1023, 4095, 65535) if top <= limit)
    return cast(Frame, levels.round().clip(0, highest).astype(np.uint8 if top <= 255 else np.uint16))


@dataclass(frozen=True)
class MediaFacts:
    """What is known of a source from its header and its first frame.

    is_video: a file, not a folder. width, height: upright, in pixels. deep: more than 8 bits. num_frames: as the header
    states or its length makes likely; None if it does not say. sample_aspect: width of a pixel by its height, upright.
    clock: see `Clock`. notes: what the user should know of how it is read, as text for behind its name.
    """

    path: Path
    is_video: bool
    width: int
    height: int
    deep: bool
    layout: PixelLayout
    tags: ColourTags
    time_base: Fraction
    rate: Fraction
    num_frames: int | None
    turn: Turn = (False, False, False)
    sample_aspect: Fraction = Fraction(1)
    interlaced: bool = False
    clock: tuple[Fraction, ...] = (Fraction(0),)
    notes: tuple[str, ...] = ()


class Clock:
    """Makes the times of packets continuous, in the order of the file, where its clock jumps.

    MPEG streams that were joined, or recorded over an interruption, have sections with a clock of their own. offsets:
    what is added to the times of each section, in s; the first is 0, and each section begins where the one before ends.
    """

    def __init__(self, offsets: tuple[Fraction, ...]) -> None:
        self._offsets, self._section = offsets, 0
        self._last_s: Fraction | None = None

    def follow(self, packet: Packet[Any]) -> None:
        """Move the next packet of the video."""
        if len(self._offsets) == 1 or (time_s := _decoding_time_s(packet)) is None:
            return
        if is_jump(time_s, self._last_s):
            self._section = min(self._section + 1, len(self._offsets) - 1)
        self._last_s = time_s
        _move(packet, self._offsets[self._section])

    def move(self, packet: Packet[Any]) -> None:
        """Move a packet of another track, to the section in which it is nearest to the video's last packet."""
        if self._last_s is None or (time_s := _decoding_time_s(packet)) is None:
            return
        now_s = self._last_s + self._offsets[self._section]
        near = self._offsets[max(0, self._section - 1) : self._section + 2]
        _move(packet, min(near, key=lambda offset: abs(time_s + offset - now_s)))


def _decoding_time_s(packet: Packet[Any]) -> Fraction | None:
    ticks = packet.pts if packet.dts is None else packet.dts
    return None if ticks is None else ticks * packet.time_base


def _move(packet: Packet[Any], offset_s: Fraction) -> None:
    ticks = round(offset_s / packet.time_base)
    packet.pts = None if packet.pts is None else packet.pts + ticks
    packet.dts = None if packet.dts is None else packet.dts + ticks


def is_jump(time_s: Fraction, last_s: Fraction | None) -> bool:
    """Whether a decoding time belongs to another clock than the one before it in the file."""
    return last_s is not None and not -_BACK_S <= time_s - last_s <= _JUMP_S


def has_jumping_clock(container: InputContainer) -> bool:
    """True for a kind of container whose clock may jump, and begin anywhere."""
    return container.format.name in ("mpegts", "mpeg")


def _read_clock(container: InputContainer, nominal_s: Fraction) -> tuple[Fraction, ...]:
    """The offsets for a `Clock`, from the packets alone; `nominal_s`: how long a frame is, where it is not said."""
    stream = video_stream(container)
    sections: list[list[Fraction]] = []
    last_s: Fraction | None = None
    for packet in _packets(container, stream, Counter()):
        time_s = _decoding_time_s(packet)
        if not packet.size or time_s is None or packet.pts is None:
            continue
        begin_s = packet.pts * packet.time_base
        end_s = begin_s + (packet.duration * packet.time_base if packet.duration else nominal_s)
        if not sections or is_jump(time_s, last_s):
            sections.append([begin_s, end_s])
        sections[-1] = [min(sections[-1][0], begin_s), max(sections[-1][1], end_s)]
        last_s = time_s
    offsets = [Fraction(0)]
    for before, after in pairwise(sections):
        offsets.append(offsets[-1] + before[1] - after[0])
    return tuple(offsets)


def read_facts(source: Path, image_rate: Fraction) -> MediaFacts:
    """The facts of a source; `image_rate` is that of a folder, whose images have no times.

    Raises BadInputError if it is not a video that can be decoded and not a folder of images.
    """
    if is_folder(source):
        return _folder_facts(source, image_rate)
    with open_video(source) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1
        first = next(_decoded(container, Counter(), MediaFacts.clock), None)
        if first is None:
            raise BadInputError(f"{source} is not a video that can be decoded: it has no frames; get the file again")
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        end_s = stated_end_s(stream, container)
        num_frames = stream.frames or (None if end_s is None else max(1, round(end_s * rate)))
        layout, turn, aspect = layout_of(first.format.name), turn_of(first, source), stream.sample_aspect_ratio
        size, aspect = (first.width, first.height), aspect or Fraction(1)
        if turn[0]:
            size, aspect = (first.height, first.width), 1 / aspect
        clock = MediaFacts.clock
        if has_jumping_clock(container):
            with open_video(source) as again:
                clock = _read_clock(again, 1 / rate)
        notes = notes_of(first)
        if len(clock) > 1:
            times = "once" if len(clock) == 2 else f"{len(clock) - 1} times"
            notes += (f"changes its clock {times}; the sections follow each other without a gap",)
        if any(kind in first.side_data for kind in _HDR10):
            notes += ("has HDR10 mastering data, which is dropped",)
        return MediaFacts(
            path=source,
            is_video=True,
            width=size[0],
            height=size[1],
            deep=layout.bits > 8,
            layout=layout,
            tags=tags_of(first, source),
            time_base=stream.time_base or 1 / rate,
            rate=rate,
            num_frames=num_frames,
            turn=turn,
            sample_aspect=aspect,
            interlaced=bool(first.interlaced_frame),
            clock=clock,
            notes=notes,
        )


def _folder_facts(folder: Path, rate: Fraction) -> MediaFacts:
    paths = list_images(folder)
    first = _read_image(paths[0], None)
    deep, alpha = first.dtype == np.uint16, has_alpha(paths[0])
    layout = PixelLayout("rgb", 16 if deep else 8, 444, is_grey=False, is_rgb=True, has_alpha=alpha)
    tags = ColourTags(BT709, STUDIO_RANGE, UNSPECIFIED, UNSPECIFIED)
    height, width = first.shape[:2]
    notes = (HAS_ALPHA,) if alpha else ()
    return MediaFacts(folder, False, width, height, deep, layout, tags, 1 / rate, rate, len(paths), notes=notes)


def _read_image(path: Path, like: Frame | None) -> Frame:
    """RGB of an image file, uint8 or uint16, of the size and depth of `like` if that is given."""
    data = np.frombuffer(read_file(path), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH) if data.size else None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise BadInputError(f"{path} is not an image of 8 or 16 bits that OpenCV can decode; replace or remove it")
    frame: Frame = image
    if like is not None and (frame.shape, frame.dtype) != (like.shape, like.dtype):
        raise BadInputError(
            f"{path} is {frame.shape[1]} x {frame.shape[0]} px of {frame.dtype}, the images before it are "
            f"{like.shape[1]} x {like.shape[0]} px of {like.dtype}; expected one size and depth: use a folder for each"
        )
    return frame


def packet_times(facts: MediaFacts) -> list[int | None]:
    """The time of each frame, from the packets alone, in the order of the file; None for one without."""
    if not facts.is_video:
        return list(range(facts.num_frames or 0))
    clock = Clock(facts.clock)
    times: list[int | None] = []
    with open_video(facts.path) as container:
        # The frames behind an error cannot be decoded either, and the reader reports that.
        for packet in _packets(container, video_stream(container), Counter()):
            if packet.size and not packet.is_discard:
                clock.follow(packet)
                times.append(packet.pts)
    return times


@dataclass(frozen=True)
class Place:
    """A place in a source: after `num_frames` frames. pts: the time of the last of them, None if that is ambiguous."""

    num_frames: int = 0
    pts: int | None = None


@dataclass(frozen=True)
class MediaFrame:
    """One upright frame, with its time and duration in units of the source's time base.

    damage: what was lost between the frame before and this one, and with this one; see `MediaReader`.
    """

    rgb: Frame
    pts: int
    duration: int
    damage: Counter[str]


class MediaReader:
    """Gives the frames of a source from a place on.

    damage: text for the user -> its number, of what was lost after the last frame that was given. can_seek: every frame
    so far had a time of its own, so that a time says which frame it is.
    """

    def __init__(self, facts: MediaFacts, *, deinterlace: bool = False) -> None:
        self.facts, self._deinterlace = facts, deinterlace
        self._to_rgb = ToRgb(deep=facts.deep)
        self.damage: Counter[str] = Counter()
        self._can_enter = not deinterlace and len(facts.clock) == 1
        self.can_seek = facts.is_video and self._can_enter
        self._nominal = max(1, round(1 / (facts.rate * facts.time_base)))
        self._end_s: float | None = None
        self._longest_s = 0.0

    def frames(self, place: Place) -> Iterator[MediaFrame]:
        """All frames after `place`. A video is entered by seeking, if that leads exactly there."""
        if not self.facts.is_video:
            yield from self._images(place.num_frames)
            return
        if place.pts is not None and self._can_enter:
            with open_video(self.facts.path) as container:
                if (decoded := self._entered(container, place.pts)) is not None:
                    yield from self._timed(decoded, place.pts)
                    self._check_end(container)
                    return
        with open_video(self.facts.path) as container:
            decoded = _decoded(container, self.damage, self.facts.clock)
            if self._deinterlace:
                decoded = _deinterlaced(decoded, video_stream(container))
            for number, frame in enumerate(self._timed(decoded, None)):
                if number >= place.num_frames:
                    yield frame
            self._check_end(container)

    def _images(self, first: int) -> Iterator[MediaFrame]:
        like: Frame | None = None
        for number, path in enumerate(list_images(self.facts.path)[first:], first):
            like = _read_image(path, like)
            yield MediaFrame(like, number, 1, Counter())

    def _entered(self, container: InputContainer, pts: int) -> Iterator[av.VideoFrame] | None:
        """Frames after the one at `pts`, reached by seeking; None if that does not lead there."""
        try:
            container.seek(pts, stream=video_stream(container), backward=True)
        except av.error.FFmpegError:
            return None
        frames = _decoded(container, self.damage, self.facts.clock)
        reached = next((frame for frame in frames if frame.pts is None or frame.pts >= pts), None)
        self.damage.clear()
        is_there = reached is not None and reached.pts == pts and not reached.is_corrupt
        return frames if is_there else None

    def _timed(self, frames: Iterator[av.VideoFrame], last: int | None) -> Iterator[MediaFrame]:
        """Upright RGB with times that grow from frame to frame; `last`: the time of the frame before."""
        facts = self.facts
        stored = (facts.height, facts.width) if facts.turn[0] else (facts.width, facts.height)
        for frame in frames:
            pts = frame.pts
            if pts is not None and frame.time_base != facts.time_base:
                pts = round(pts * frame.time_base / facts.time_base)
            if pts is None or (last is not None and pts <= last):
                self.damage[MOVED] += pts is not None
                self.can_seek = False
                pts = 0 if last is None else last + self._nominal
            if last is not None:
                self._longest_s = max(self._longest_s, float((pts - last) * facts.time_base))
            last = pts
            self.damage[PATCHED] += bool(frame.is_corrupt)
            self.damage[INTERLACED] += bool(frame.interlaced_frame)
            if (frame.width, frame.height) != stored:
                raise BadInputError(
                    f"{facts.path} changes its size from {stored[0]} x {stored[1]} to {frame.width} x {frame.height} "
                    f"px at {float(pts * facts.time_base):.2f} s; cut it there, and upscale each part"
                )
            self.damage[CAPTIONS] += SideDataType.A53_CC in frame.side_data
            tags = tags_of(frame, facts.path)
            is_other = (tags.primaries, tags.transfer) != (facts.tags.primaries, facts.tags.transfer)
            self.damage[OTHER_COLOURS] += is_other
            duration = int(frame.duration or 0) or self._nominal
            rgb = cast(Frame, upright(self._to_rgb(frame, tags), facts.turn))
            damage = +self.damage
            self.damage.clear()
            yield MediaFrame(rgb, pts, duration, damage)
            self._end_s = float((pts + duration) * facts.time_base)

    def _check_end(self, container: InputContainer) -> None:
        lost_s = 0.0 if self._end_s is None else missing_s(container, self._end_s, self._longest_s)
        if lost_s:
            self.damage[MISSING] = lost_s  # type: ignore[assignment]


def _packets(container: InputContainer, stream: VideoStream, damage: Counter[str]) -> Iterator[Packet[Any]]:
    """The packets of a stream, up to an error, which is counted."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            damage[f"the video ends early ({error.strerror})"] = 1
            return
        yield packet


def _decoded(container: InputContainer, damage: Counter[str], offsets: tuple[Fraction, ...]) -> Iterator[av.VideoFrame]:
    """Frames as they come, by the clock of these offsets; packets that cannot be decoded are counted and skipped."""
    stream, clock = video_stream(container), Clock(offsets)
    stream.codec_context.thread_type = "AUTO"
    for packet in _packets(container, stream, damage):
        clock.follow(packet)
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            damage[UNDECODABLE] += 1


def _deinterlaced(frames: Iterator[av.VideoFrame], stream: VideoStream) -> Iterator[av.VideoFrame]:
    """One progressive frame for each interlaced one (FFmpeg's bwdif), at the same time."""
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(template=stream),
        graph.add("bwdif", "mode=send_frame:deint=all"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    for frame in chain(frames, [None]):
        graph.push(frame)
        while True:
            try:
                yield graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
