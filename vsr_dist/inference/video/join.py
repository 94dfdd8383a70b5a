"""The last step of a job: finished segments become one output, with the other tracks of the input beside the video.

The packets of all segments, and those of sound, subtitles, cover pictures and fonts, are copied into the output once.
All times move by the same amount, so that the earliest track of the input, or the beginning of the part that was asked
for, is at 0.
"""

from __future__ import annotations

import heapq
import io
import math
import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream
from av.subtitles.codeccontext import SubtitleCodecContext
from av.subtitles.subtitle import SubtitleSet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from sharding.images import list_images
from sharding.video import open_video, stated_end_s, video_stream
from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.inference.video.video_in import Clock, MediaFacts, has_jumping_clock
from vsr_dist.inference.video.video_out import CONTAINERS, EncoderSettings, read_packets, set_up

# What a subtitle of plain text becomes where the container does not take it as it is.
_TEXT_CODECS = ("subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text")
_TEXT_TARGETS = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip", "webm": "webvtt"}
# What audio becomes with --encode-audio, and its bit rate for each channel.
_AUDIO_TARGETS, _AUDIO_BITS_PER_S = {"webm": "libopus"}, 96_000
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_COVER_TYPES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
# Written by every muxer, or wrong for the new video.
_STALE_TAGS = {"encoder", "rotate", "major_brand", "minor_version", "compatible_brands", "duration", "vendor_id"}
_STALE_PREFIXES = ("_statistics", "bps", "number_of_", "duration-")
# mp4 counts the time of the whole file at least this fine; its muxer doubles the units of a track until they are.
_LEAST_TIMESCALE = 10_000
# Tracks of an MPEG stream start within this time of each other.
_NEAR_S = 10
# Of hidden sound before the first frame this much is kept, from which decoders begin.
_PRIMING_S = 0.1
# In the header of a Matroska file.
_STEREO_MODE, _DISPLAY_WIDTH, _DISPLAY_HEIGHT = b"\x53\xb8\x81\x03", b"\x54\xb0", b"\x54\xba"
_EMPTY_ELEMENT = b"\xec\x82\x00\x00"


@dataclass(frozen=True)
class Track:
    """What becomes of a track of the input. codec: in the output, of a converted or encoded one."""

    index: int
    kind: str
    action: Literal["copy", "convert", "encode", "attach", "drop"]
    codec: str
    note: str = ""


@dataclass(frozen=True)
class JoinJob:
    """What is put together: for the container `target`, or with None for a folder of PNG frames.

    cut_start, cut_end: the result begins after the beginning of the input, or ends before its end, and so do its other
    tracks; a cut beginning becomes time 0.
    """

    facts: MediaFacts
    target: str | None
    settings: EncoderSettings | None
    tracks: list[Track]
    cut_start: bool
    cut_end: bool


def plan_tracks(
    container: InputContainer, target: str, *, audio: bool, encode_audio: bool, subtitles: bool
) -> list[Track]:
    """What becomes of every track but the video.

    Raises BadConfigError for sound and subtitles that the container cannot hold, naming one that can.
    """
    video, has_chapters = video_stream(container).index, bool(container.chapters())
    return [
        _plan_track(stream, target, {"audio": audio, "subtitle": subtitles}.get(stream.type, False), encode_audio)
        for stream in container.streams
        # The muxer itself writes the text track in which a mov has its chapters.
        if stream.index != video and not (stream.type == "data" and has_chapters and _codec_of(stream) == "bin_data")
    ]


def _plan_track(stream: Stream, target: str, wanted: bool, encode_audio: bool) -> Track:
    kind, codec, name = stream.type, _codec_of(stream), _name_of(stream)
    why = f"{target} output cannot hold it"
    if kind in ("audio", "subtitle"):
        if wanted and stream.codec_context is not None:
            return _plan_heard_or_read(stream, target, encode_audio)
        why = "its codec is unknown" if wanted else _option_without(stream)
    elif stream.disposition & Disposition.attached_pic:
        if target == "matroska" and codec in _COVER_TYPES:
            return Track(stream.index, "cover", "attach", codec)
        if target in ("mp4", "mov") and _can_hold(target, stream):
            return Track(stream.index, "cover", "copy", codec)
    elif kind == "attachment" and target == "matroska":
        return Track(stream.index, kind, "copy", codec)
    elif kind == "video":
        why = "only the first video is upscaled"
    return Track(stream.index, kind, "drop", codec, f"{name} dropped: {why}")


def _plan_heard_or_read(stream: Stream, target: str, encode_audio: bool) -> Track:
    """For sound and subtitles of a known codec."""
    kind, codec, name = stream.type, _codec_of(stream), _name_of(stream)
    if _can_hold(target, stream):
        return Track(stream.index, kind, "copy", codec)
    if codec in _TEXT_CODECS:
        becomes = _TEXT_TARGETS[target]
        return Track(stream.index, kind, "convert", becomes, f"{name} converted from {codec} to {becomes}")
    becomes = _AUDIO_TARGETS.get(target, "aac")
    if kind == "audio" and encode_audio:
        return Track(stream.index, kind, "encode", becomes, f"{name} encoded from {codec} to {becomes}")
    able = [suffix for suffix, container in CONTAINERS.items() if _can_hold(container, stream)]
    advice = f"name the output {' or '.join(able)}" if able else "no supported container can"
    advice += f", encode it to {becomes} with --encode-audio" if kind == "audio" else ""
    raise BadConfigError(f"{target} cannot hold {name} of {codec}; {advice}, or drop it with {_option_without(stream)}")


def _option_without(stream: Stream) -> str:
    return "--no-audio" if stream.type == "audio" else "--no-subtitles"


def _name_of(stream: Stream) -> str:
    language = stream.metadata.get("language", "")
    return f"{stream.type} track {stream.index}" + (f" ({language})" if language not in ("", "und") else "")


def _codec_of(stream: Stream) -> str:
    context = stream.codec_context
    return str((getattr(stream, "name", None) if context is None else context.codec.name) or "unknown")


def _can_hold(target: str, stream: Stream) -> bool:
    """True if a container takes packets of this track as they are."""
    try:
        av.open(io.BytesIO(), "w", format=target).add_stream_from_template(stream, opaque=True)
    except ValueError:
        return False
    return True


def check_output(job: JoinJob) -> None:
    """Write the head of the output to nowhere. Raises BadConfigError if the container does not take it."""
    if job.settings is None:
        return
    try:
        with ExitStack() as stack:
            source = stack.enter_context(open_video(job.facts.path)) if job.facts.is_video else None
            output, _, _ = _open_output(stack, io.BytesIO(), job, job.settings, source)
            output.start_encoding()
    except (av.error.FFmpegError, ValueError) as error:
        raise BadConfigError(
            f"a {job.target} file with {job.settings.codec} cannot be written: "
            f"{getattr(error, 'strerror', None) or error}; choose another --codec, another --pixel-format or another "
            "suffix, such as .mkv, which takes most"
        ) from error


def join(job: JoinJob, segments: Sequence[Path], last_duration: int, path: Path) -> tuple[int, int]:
    """Write the output to `path`: (number of frames, ticks of the video's time base by which all times are earlier).

    segments: in time order. last_duration: of the last frame, as the decoder says.
    """
    if job.settings is None:
        return _join_frames(job, segments, path)
    # Memory: 40 bytes for each frame.
    shown, time_base = _presentation_times(job, job.settings, segments), job.facts.time_base
    with ExitStack() as stack:
        source = stack.enter_context(open_video(job.facts.path)) if job.facts.is_video else None
        if source is not None and not job.cut_end:
            last_duration = _last_duration(source, shown, last_duration, time_base)
        times_N3 = packet_timing(shown, last_duration)
        first, end = int(times_N3[:, 0].min()), int((times_N3[:, 0] + times_N3[:, 2]).max())
        shift = first if job.cut_start else _ticks_before_first(source, first, time_base)
        times_N3[:, :2] -= shift
        output, video, streams = _open_output(stack, str(path.absolute()), job, job.settings, source)
        others: Iterator[av.Packet] = iter(())
        if source is not None:
            begin_s = float(first * time_base) if job.cut_start else -math.inf
            end_s = float(end * time_base) if job.cut_end else math.inf
            output.set_chapters(_chapters(source, begin_s, end_s, float(shift * time_base)))  # type: ignore[arg-type]
            others = _track_packets(source, streams, job, (begin_s, end_s), shift * time_base)
        packets = heapq.merge(others, _video_packets(segments, times_N3, time_base, video), key=_decoding_time)
        try:
            for packet in packets:
                output.mux(packet)
        except (av.error.ArgumentError, av.error.PatchWelcomeError) as error:
            raise BadInputError(
                f"{job.facts.path} has timestamps that {job.target} cannot store, for example after a timestamp "
                "jump; cut it there and upscale each part"
            ) from error
    if _needs_display_size(job, job.settings):
        _write_display_size(path, job.settings)
    return len(shown), shift


def _open_output(
    stack: ExitStack, file: str | BinaryIO, job: JoinJob, settings: EncoderSettings, source: InputContainer | None
) -> tuple[OutputContainer, VideoStream, dict[int, Stream]]:
    """The output with its metadata and streams: the video's, and those of the other tracks by index in the input."""
    # Without dates, random numbers and version names the same job writes the same bytes. Sound that begins before 0, as
    # AAC does in mp4, must not move the video.
    options = {"fflags": "+bitexact", "avoid_negative_ts": "disabled"}
    if job.target in ("mp4", "mov"):
        # Otherwise the start and the length of the video are rounded to milliseconds.
        scale = settings.time_base.denominator
        while scale < _LEAST_TIMESCALE:
            scale *= 2
        options["movie_timescale"] = str(scale)
    output = stack.enter_context(av.open(file, "w", format=job.target, options=options))
    video = output.add_stream(settings.codec, rate=settings.rate)
    set_up(video.codec_context, settings)
    video.time_base = settings.time_base
    if settings.codec == "libx265" and job.target in ("mp4", "mov"):
        # The form of HEVC that Apple's players take.
        video.codec_context.codec_tag = "hvc1"
    streams: dict[int, Stream] = {}
    if source is not None:
        _add_tracks(output, video, streams, job, source)
    if _needs_display_size(job, settings):
        # PyAV cannot tell this muxer the shape of a pixel. With a stereo mode it writes a display size, for
        # `_write_display_size` to correct.
        video.metadata["stereo_mode"] = "top_bottom"
    return output, video, streams


def _needs_display_size(job: JoinJob, settings: EncoderSettings) -> bool:
    """True for the containers that state the shape of pixels by the size of the picture on the screen."""
    return job.target in ("matroska", "webm") and settings.sample_aspect != 1


def _write_display_size(path: Path, settings: EncoderSettings) -> None:
    """Replace the stereo mode in the header of a Matroska file by an empty element, and set the display size.

    The sizes are whole numbers that fit into the bytes that are there, in the exact ratio where that is possible.
    """
    ratio = Fraction(settings.width, settings.height) * settings.sample_aspect
    with path.open("r+b") as file:
        head = file.read(1 << 20)
        place = head.index(_STEREO_MODE)
        fields = []
        for name in (_DISPLAY_WIDTH, _DISPLAY_HEIGHT):
            at = head.index(name, place) + len(name)
            fields.append((at + 1, head[at] & 0x7F))
        most_wide, most_high = (256**num_bytes - 1 for _, num_bytes in fields)
        shown = ratio.limit_denominator(max(1, min(most_high, int((most_wide - 1) / ratio))))
        times = min(most_wide // shown.numerator, most_high // shown.denominator, settings.width // shown.numerator)
        file.seek(place)
        file.write(_EMPTY_ELEMENT)
        for (at, num_bytes), size in zip(fields, shown.as_integer_ratio(), strict=True):
            file.seek(at)
            file.write((max(1, times) * size).to_bytes(num_bytes, "big"))


def _add_tracks(
    output: OutputContainer, video: VideoStream, streams: dict[int, Stream], job: JoinJob, source: InputContainer
) -> None:
    """Metadata, and the other tracks, which are put into `streams`."""
    output.metadata.update(_fresh_tags(source.metadata))
    video.metadata.update(_fresh_tags(video_stream(source).metadata))
    video.disposition = video_stream(source).disposition
    for track in job.tracks:
        template = source.streams[track.index]
        if track.action == "attach":
            name, mime_type = _COVER_TYPES[track.codec]
            output.add_attachment(name, mime_type, bytes(next(source.demux(template))))
        elif track.action != "drop":
            if track.action == "convert":
                stream = _add_converted(output, template, track.codec)
            elif track.action == "encode":
                stream = _add_encoded(output, template, track.codec)
            else:
                stream = output.add_stream_from_template(template, opaque=True)
            stream.disposition = template.disposition
            if track.kind != "attachment":
                stream.metadata.update(_fresh_tags(template.metadata))
                streams[track.index] = stream


def _add_converted(output: OutputContainer, template: Stream, codec: str) -> Stream:
    decoder = cast(SubtitleCodecContext, template.codec_context)
    decoder.open(strict=False)
    stream = output.add_stream(codec)
    encoder = cast(SubtitleCodecContext, stream.codec_context)
    encoder.subtitle_header = decoder.subtitle_header
    encoder.time_base = stream.time_base = Fraction(1, 1000)
    return stream


def _add_encoded(output: OutputContainer, template: Stream, codec: str) -> AudioStream:
    source = cast(AudioCodecContext, template.codec_context)
    rates = av.Codec(codec, "w").audio_rates or [source.sample_rate]
    rate = source.sample_rate if source.sample_rate in rates else 48_000
    stream = cast(AudioStream, output.add_stream(codec, rate=rate))
    # Old formats say only how many channels there are.
    layout = av.AudioLayout(_LAYOUTS.get(source.layout.nb_channels, "stereo"))
    stream.codec_context.layout = layout
    stream.codec_context.bit_rate = _AUDIO_BITS_PER_S * layout.nb_channels
    stream.codec_context.time_base = Fraction(1, rate)
    return stream


def _fresh_tags(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata without what describes the old file."""
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _STALE_TAGS and not key.lower().startswith(_STALE_PREFIXES)
    }


def _decoding_time(packet: av.Packet) -> Fraction:
    time: Fraction = (packet.pts if packet.dts is None else packet.dts) * packet.time_base
    return time


def _presentation_times(job: JoinJob, settings: EncoderSettings, segments: Sequence[Path]) -> array[int]:
    """Of all packets in decoding order. The headers of all encoders must agree."""
    shown, headers = array("q"), set()
    for path in segments:
        header, packets = read_packets(path)
        headers.add(header)
        shown.extend(packet[0] for packet in packets)
    if not shown:
        raise BadInputError(f"{job.facts.path}: no frame could be decoded; get the file again")
    if len(headers) > 1:
        raise BadInputError(
            f"the segments of this job come from different builds of {settings.codec}; install the same software on "
            "every machine, remove the work folder and start again"
        )
    return shown


def packet_timing(pts: Sequence[int], last_duration: int) -> NDArray[np.int64]:
    """(N, 3): presentation time, decoding time and duration of packets, from the first, given in decoding order.

    Each encoder counts from its own beginning, so with uneven times its decoding times may lie before the end of the
    segment before. Computed again over all: packet k is decoded at the k-th of the presentation times in order, `d`
    places earlier, where d is the deepest reordering. That grows strictly and is never after the packet's own
    presentation. The first d lie before the first presentation, as far as makes the sum of all steps the length that is
    shown: mp4 keeps only that sum. With even times the result is that of x264.
    """
    shown = np.asarray(pts, dtype=np.int64)
    order = np.argsort(shown, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(shown))
    ordered = shown[order]
    durations = np.append(np.diff(ordered), max(1, last_duration))[ranks]
    delay = int((np.arange(len(shown)) - ranks).max())
    ahead = int(ordered[-1] + max(1, last_duration) - ordered[len(shown) - 1 - delay] - durations[-1])
    early = ordered[0] - ahead + np.arange(delay) * ahead // max(1, delay)
    return np.stack([shown, np.concatenate([early, ordered[: len(shown) - delay]]), durations], axis=1)


def _last_duration(source: InputContainer, shown: Sequence[int], decoded: int, time_base: Fraction) -> int:
    """How long the last frame is shown, in units of the time base.

    `decoded` is what the decoder says: the duration of another frame where frames are reordered. The header decides,
    unless it counts frames that are missing.
    """
    ordered = np.sort(np.asarray(shown, dtype=np.int64))
    longest = max(decoded, int(np.diff(ordered).max(initial=0)))
    stated_s = stated_end_s(video_stream(source), source)
    stated = 0 if stated_s is None else round(stated_s / time_base) - int(ordered[-1])
    # mp4 states ends in milliseconds.
    slack = round(Fraction(1, 1000) / time_base) + 1
    is_known = 0 < stated <= longest + slack and abs(stated - decoded) > slack
    return stated if is_known else decoded


def _ticks_before_first(source: InputContainer | None, first: int, time_base: Fraction) -> int:
    """By how much the earliest track begins after 0, in ticks of the video, whose first frame is at `first`.

    MPEG streams begin at any time, in the last seconds of their clock's round also before 0. In other containers sound
    before 0 is hidden, and the decoder begins with it.
    """
    if source is None:
        return 0
    starts = [
        math.floor(stream.start_time * (stream.time_base or 0) / time_base)
        for stream in source.streams
        if stream.type in ("video", "audio", "subtitle") and stream.start_time is not None
        if not stream.disposition & Disposition.attached_pic
    ]
    if not has_jumping_clock(source):
        return max(0, min([first, *starts]))
    # What starts far away is by the clock of another section.
    near = _NEAR_S / time_base
    return min([first, *(start for start in starts if abs(start - first) < near)])


def _video_packets(
    segments: Sequence[Path], times_N3: NDArray[np.int64], time_base: Fraction, video: VideoStream
) -> Iterator[av.Packet]:
    times = iter(times_N3)
    for path in segments:
        with path.open("rb") as file:
            for _, is_key, offset, num_bytes in read_packets(path)[1]:
                file.seek(offset)
                packet = av.Packet(file.read(num_bytes))
                packet.stream, packet.time_base, packet.is_keyframe = video, time_base, is_key
                packet.pts, packet.dts, packet.duration = map(int, next(times))
                yield packet


def _track_packets(
    source: InputContainer,
    streams: dict[int, Stream],
    job: JoinJob,
    limits_s: tuple[float, float],
    shift_s: Fraction,
) -> Iterator[av.Packet]:
    """Packets within the limits, earlier by `shift_s`, in the order of the file. Ends early at damage."""
    actions = {track.index: track.action for track in job.tracks}
    encoders = {i: _AudioEncoder(source.streams[i], one) for i, one in streams.items() if actions[i] == "encode"}
    clock, video, last = Clock(job.facts.clock), video_stream(source), dict.fromkeys(streams, -math.inf)
    wanted = [source.streams[index] for index in streams]
    # The video's packets say where the clock jumps.
    packets = source.demux([video, *wanted] if len(job.facts.clock) > 1 else wanted) if streams else iter(())
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            break
        index = packet.stream.index
        if index == video.index:
            clock.follow(packet)
            continue
        clock.move(packet)
        if not packet.size or not _place(packet, limits_s, shift_s):
            continue
        # Where two sections of a clock meet, the sound of both may overlap.
        time = packet.pts if packet.dts is None else packet.dts
        if len(job.facts.clock) > 1 and time is not None and time <= last[index]:
            continue
        last[index] = last[index] if time is None else time
        if index in encoders:
            yield from encoders[index].encode(packet)
        elif (ready := _converted(packet, streams[index]) if actions[index] == "convert" else packet) is not None:
            ready.stream = streams[index]
            yield ready
    for encoder in encoders.values():
        yield from encoder.finish()


def _place(packet: av.Packet, limits_s: tuple[float, float], shift_s: Fraction) -> bool:
    """Move a packet of the input to its time in the output; False if it is not part of that.

    A text that is on the screen when the output begins or ends is shown from there, or until there.
    """
    if packet.stream.disposition & Disposition.attached_pic:
        packet.pts = packet.dts = 0
        return True
    pts, base = packet.dts if packet.pts is None else packet.pts, packet.time_base
    if pts is None:
        return False
    begin_s, end_s = limits_s
    if packet.stream.type == "subtitle" and packet.duration:
        first = pts if math.isinf(begin_s) else max(pts, math.ceil(begin_s / base))
        stop = pts + packet.duration
        stop = stop if math.isinf(end_s) else min(stop, math.ceil(end_s / base))
        if stop <= first:
            return False
        packet.pts = packet.dts = pts = first
        packet.duration = stop - first
    elif not begin_s <= float(pts * base) < end_s:
        return False
    # What an edit list hides, as a lossless cut leaves it.
    if packet.is_discard and float(pts * base - shift_s) < -_PRIMING_S:
        return False
    ticks = round(shift_s / base)
    packet.pts = None if packet.pts is None else packet.pts - ticks
    packet.dts = None if packet.dts is None else packet.dts - ticks
    return True


class _AudioEncoder:
    """Encodes the packets of an audio track for a stream of the output; gaps become silence."""

    def __init__(self, template: Stream, stream: Stream) -> None:
        self._source = cast(AudioCodecContext, template.codec_context)
        self._time_base, self._stream = template.time_base, stream
        self._graph: av.filter.Graph | None = None

    def encode(self, packet: av.Packet) -> Iterator[av.Packet]:
        """Packets of the output; damaged ones of the input are left out."""
        try:
            frames = self._source.decode(packet)
        except av.error.FFmpegError:
            return
        yield from self._push(frames)

    def finish(self) -> Iterator[av.Packet]:
        """What is left at the end."""
        yield from self._push([*self._source.decode(None), None])
        yield from self._encoded(None)

    def _push(self, frames: Sequence[av.AudioFrame | None]) -> Iterator[av.Packet]:
        for frame in frames:
            if self._graph is None and frame is not None:
                self._graph = self._new_graph(frame)
            if self._graph is None:
                return
            self._graph.push(frame)
            while True:
                try:
                    ready = self._graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
                yield from self._encoded(ready)

    def _encoded(self, frame: av.AudioFrame | None) -> Iterator[av.Packet]:
        for packet in self._stream.codec_context.encode(frame):
            packet.stream = self._stream
            yield packet

    def _new_graph(self, like: av.AudioFrame) -> av.filter.Graph:
        target = cast(AudioCodecContext, self._stream.codec_context)
        target.open(strict=False)
        graph = av.filter.Graph()
        nodes = [
            graph.add_abuffer(
                sample_rate=like.sample_rate,
                format=like.format.name,
                layout=like.layout.name,
                time_base=like.time_base or self._time_base,
            ),
            graph.add("aresample", "async=1"),
            graph.add(
                "aformat",
                f"sample_fmts={target.format.name}:sample_rates={target.sample_rate}:channel_layouts={target.layout.name}",
            ),
            graph.add("asetnsamples", f"n={target.frame_size or 1024}:p=0"),
            graph.add("abuffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def _converted(packet: av.Packet, stream: Stream) -> av.Packet | None:
    """A subtitle in the codec of another stream; None if it shows nothing."""
    found = packet.stream.codec_context.decode2(packet)
    lines = [] if found is None else [rect.ass for rect in found.rects if getattr(rect, "ass", b"")]
    if not lines or not lines[0].split(b",", 8)[-1].strip():
        return None
    text = b"\\N".join([lines[0], *(line.split(b",", 8)[-1] for line in lines[1:])])
    made = stream.codec_context.encode_subtitle(SubtitleSet.create(text, 0, 1, 0))
    made.pts = made.dts = packet.pts
    made.duration, made.time_base = packet.duration, packet.time_base
    return made


def _chapters(source: InputContainer, begin_s: float, end_s: float, shift_s: float) -> list[dict[str, Any]]:
    """The chapters of the input that touch [begin_s, end_s), cut to that and moved earlier by `shift_s`."""
    kept = []
    for chapter in source.chapters():
        base = chapter["time_base"] or Fraction(1, av.time_base)
        start_s, stop_s = float(chapter["start"] * base), float(chapter["end"] * base)
        if start_s < end_s and stop_s > begin_s:
            moved = {"start": max(start_s, begin_s) - shift_s, "end": min(stop_s, end_s) - shift_s}
            kept.append({**chapter, **{key: round(time_s / base) for key, time_s in moved.items()}})
    return kept


def _join_frames(job: JoinJob, segments: Sequence[Path], folder: Path) -> tuple[int, int]:
    """Gather the PNG frames of all segments in a new folder; see `join`.

    Images keep the names of the folder that they come from; frames of a video are numbered from 0, and `timestamps.txt`
    (version 2, milliseconds, as mkvmerge reads it) holds the time of each.
    """
    facts = job.facts
    files = [file for path in segments for file in sorted(path.iterdir())]
    if not files:
        raise BadInputError(f"{facts.path}: no frame could be decoded; get the file again")
    times = [int(file.stem.partition("_")[2]) for file in files]
    names = [f"{number:08d}" for number in range(len(files))]
    shift = times[0] if job.cut_start else 0
    if facts.is_video and not job.cut_start:
        with open_video(facts.path) as source:
            shift = _ticks_before_first(source, times[0], facts.time_base)
    if not facts.is_video:
        stems = [path.stem for path in list_images(facts.path)]
        names = [stems[number] for number in times] if len(set(stems)) == len(stems) else names
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, name in zip(files, names, strict=True):
        try:
            os.link(file, folder / f"{name}.png")
        except OSError:
            shutil.copyfile(file, folder / f"{name}.png")
    if facts.is_video:
        lines = (f"{float((pts - shift) * facts.time_base * 1000):.3f}\n" for pts in times)
        (folder / "timestamps.txt").write_text("# timestamp format v2\n" + "".join(lines))
    return len(files), shift
