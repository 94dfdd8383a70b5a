"""The frames of a video or of a folder of images, one at a time, upright and with their times, from any place on.

Unlike packing, damage does not end the reading: what can be decoded is given out, and what was lost is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from sharding.images import list_images
from sharding.video import END_TOLERANCE_S, film_stream, open_video, stated_end_s
from vsr_dist.core.errors import BadInputError
from vsr_dist.inference.streaming.stream import Frame
from vsr_dist.inference.video.media_facts import MediaFacts, read_image

# Containers that state the length of each track, from which a loss of few frames shows.
_EXACT_FORMATS, _EXACT_TOLERANCE_S = ("mov", "matroska"), 0.25


@dataclass
class Damage:
    """What was lost on the way.

    undecodable: packets. patched: frames that the decoder repaired by guess. interlaced: frames that say so.
    moved_times: frames whose time was not behind that of the frame before. missing_s, missing_frames: at the end, by
    the header.
    """

    undecodable: int = 0
    patched: int = 0
    interlaced: int = 0
    moved_times: int = 0
    missing_s: float = 0.0
    missing_frames: int = 0
    broke_off: str = ""

    def after(self, earlier: Damage) -> Damage:
        """This and what an earlier process met before."""
        merged = {name: value + getattr(earlier, name) for name, value in asdict(self).items() if name != "broke_off"}
        return Damage(**merged, broke_off=self.broke_off or earlier.broke_off)


@dataclass(frozen=True)
class MediaFrame:
    """One upright frame, with its time and duration in units of the source's time base.

    damage: what was lost up to here; the reader itself may be further on.
    """

    rgb: Frame
    pts: int
    duration: int
    damage: Damage = field(default_factory=Damage)


@dataclass(frozen=True)
class Place:
    """A place in a source: behind `num_frames` frames, the last of them at `pts`. `seekable`: its times are sound."""

    num_frames: int = 0
    pts: int | None = None
    seekable: bool = False


class MediaReader:
    """Gives the frames of a source from a place on; `damage` holds what was lost since there."""

    def __init__(self, facts: MediaFacts, convert: Callable[[av.VideoFrame], Frame], *, deinterlace: bool) -> None:
        self.facts, self._convert, self._deinterlace = facts, convert, deinterlace
        self.damage = Damage()
        self._counted_from: int | None = None
        self._nominal = max(1, round(1 / (facts.rate * facts.time_base)))
        self._end_s: float | None = None
        self._longest_s = 0.0
        # Whether every frame had a time of its own, so that a time says which frame it is.
        self.seekable = facts.is_video and not deinterlace

    def frames(self, place: Place, counted_from: int | None = None) -> Iterator[MediaFrame]:
        """All frames behind `place`. A video is entered by seeking, if that leads exactly there.

        counted_from: damage before this time is somebody else's to count; None counts all behind `place`.
        """
        self._counted_from = counted_from
        if not self.facts.is_video:
            yield from self._images(place.num_frames)
            return
        with open_video(self.facts.path) as container:
            decoded = None
            if place.pts is not None and place.seekable and not self._deinterlace:
                decoded = self._entered(container, place.pts)
            if decoded is not None:
                yield from self._timed(decoded, place.pts)
                self._check_end(container)
                return
        with open_video(self.facts.path) as container:
            decoded = self._decoded(container)
            skipped = -1
            for skipped, frame in enumerate(self._timed(decoded, None)):
                if skipped >= place.num_frames:
                    yield frame
                elif skipped + 1 == place.num_frames:
                    self.damage = Damage()
            self._check_end(container, skipped + 1)

    def _images(self, first: int) -> Iterator[MediaFrame]:
        like: Frame | None = None
        for number, path in enumerate(list_images(self.facts.path)[first:], first):
            like = read_image(path, like)
            yield MediaFrame(like, number, 1)

    def _packets(self, container: InputContainer) -> Iterator[av.VideoFrame]:
        """Decoded frames as they come; packets that cannot be decoded are counted and left out."""
        stream = film_stream(container)
        stream.codec_context.thread_type = "AUTO"
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self.damage.broke_off = str(error.strerror)
                return
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                self.damage.undecodable += 1

    def _decoded(self, container: InputContainer) -> Iterator[av.VideoFrame]:
        frames = self._packets(container)
        return _deinterlaced(frames, film_stream(container)) if self._deinterlace else frames

    def _entered(self, container: InputContainer, pts: int) -> Iterator[av.VideoFrame] | None:
        """Frames behind the one at `pts`, reached by seeking; None if that does not lead there."""
        try:
            container.seek(pts, stream=film_stream(container), backward=True)
        except av.error.FFmpegError:
            return None
        frames = self._packets(container)
        for frame in frames:
            if frame.pts == pts and not frame.is_corrupt:
                self.damage = Damage()
                return frames
            if frame.pts is None or frame.pts > pts:
                break
        self.damage = Damage()
        return None

    def _timed(self, frames: Iterator[av.VideoFrame], before: int | None) -> Iterator[MediaFrame]:
        """Upright RGB with times that grow from frame to frame."""
        facts, last = self.facts, before
        stored = (facts.width, facts.height)[:: -1 if facts.orientation.transpose else 1]
        for frame in frames:
            pts = frame.pts
            if pts is not None and frame.time_base != facts.time_base:
                pts = round(pts * frame.time_base / facts.time_base)
            if pts is None or (last is not None and pts <= last):
                self.damage.moved_times += pts is not None
                self.seekable = False
                pts = 0 if last is None else last + self._nominal
            if last is not None:
                self._longest_s = max(self._longest_s, float((pts - last) * facts.time_base))
            last = pts
            self.damage.patched += bool(frame.is_corrupt)
            self.damage.interlaced += bool(frame.interlaced_frame)
            if (frame.width, frame.height) != stored:
                raise BadInputError(
                    f"{facts.path} changes its size from {stored[0]} x {stored[1]} to {frame.width} x {frame.height} "
                    f"px at {float(pts * facts.time_base):.2f} s; cut it there, and upscale the parts one by one"
                )
            duration = int(frame.duration or 0) or self._nominal
            if self._counted_from is not None and pts < self._counted_from:
                self.damage = Damage()
            upright = facts.orientation.upright(self._convert(frame))
            yield MediaFrame(upright, pts, duration, replace(self.damage))
            self._end_s = float((pts + duration) * facts.time_base)

    def _check_end(self, container: InputContainer, num_frames: int | None = None) -> None:
        """Compare with the length that the header states; the last frame may be as long as the longest before it."""
        stream = film_stream(container)
        stated_s = stated_end_s(stream, container)
        is_exact = any(name in container.format.name for name in _EXACT_FORMATS)
        tolerance_s = max(_EXACT_TOLERANCE_S if is_exact else END_TOLERANCE_S, self._longest_s)
        if stated_s is not None and self._end_s is not None and self._end_s < stated_s - tolerance_s:
            self.damage.missing_s = stated_s - self._end_s
        if num_frames is not None and "mov" in container.format.name and stream.frames > num_frames:
            self.damage.missing_frames = stream.frames - num_frames


def _deinterlaced(frames: Iterator[av.VideoFrame], stream: VideoStream) -> Iterator[av.VideoFrame]:
    """One progressive frame for each interlaced one (FFmpeg's bwdif), at the same time."""
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream)
    deinterlacer = graph.add("bwdif", "mode=send_frame:deint=all")
    sink = graph.add("buffersink")
    source.link_to(deinterlacer)
    deinterlacer.link_to(sink)
    graph.configure()
    for frame in chain(frames, [None]):
        source.push(frame)
        while True:
            try:
                yield sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
