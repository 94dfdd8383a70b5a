"""The tracks beside the film (sound, subtitles, cover, fonts): which are kept, how, and what is said of the others."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, cast

import av
from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream
from av.subtitles.codeccontext import SubtitleCodecContext
from av.subtitles.subtitle import SubtitleSet

from sharding.video import film_stream
from vsr_dist.core.errors import BadConfigError
from vsr_dist.inference.video.codecs import CONTAINERS

# What a subtitle of plain text becomes where the container does not take it as it is.
_TEXT_CODECS = ("subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text")
_TEXT_TARGETS = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip", "webm": "webvtt"}
_COVER_TYPES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
# Set anew by whoever writes a container, or wrong for the new video.
_STALE_TAGS = {"encoder", "rotate", "major_brand", "minor_version", "compatible_brands", "duration", "vendor_id"}
_STALE_PREFIXES = ("_statistics", "bps", "number_of_", "duration-")


@dataclass(frozen=True)
class Track:
    """What becomes of a track of the input. codec: of a converted one in the output."""

    index: int
    kind: str
    action: Literal["copy", "convert", "attach", "drop"]
    codec: str
    note: str = ""


def plan_tracks(container: InputContainer, target: str, *, audio: bool, subtitles: bool) -> list[Track]:
    """What becomes of every track but the film.

    Raises BadConfigError for sound and subtitles that the container cannot hold, naming one that can.
    """
    film = film_stream(container).index
    has_chapters = bool(container.chapters())
    tracks = []
    for stream in container.streams:
        if stream.index == film:
            continue
        if stream.type == "data" and has_chapters and stream.name == "bin_data":
            continue  # the chapters of a mov, which are kept as chapters
        tracks.append(_plan_track(stream, target, audio=audio, subtitles=subtitles))
    return tracks


def _plan_track(stream: Stream, target: str, *, audio: bool, subtitles: bool) -> Track:
    if stream.type == "audio":
        return _plan_audio(stream, target) if audio else _dropped(stream, "--no-audio")
    if stream.type == "subtitle":
        return _plan_subtitle(stream, target) if subtitles else _dropped(stream, "--no-subtitles")
    if stream.type == "video" and stream.disposition & Disposition.attached_pic:
        return _plan_cover(stream, target)
    if stream.type == "attachment" and target == "matroska":
        return Track(stream.index, stream.type, "copy", _codec_name(stream))
    is_film = stream.type == "video"
    return _dropped(stream, "only the first is enlarged" if is_film else f"{target} output holds no such track")


def _dropped(stream: Stream, why: str) -> Track:
    return Track(stream.index, stream.type, "drop", _codec_name(stream), f"{_name(stream)} dropped: {why}")


def _plan_audio(stream: Stream, target: str) -> Track:
    if not _holds(target, stream):
        raise BadConfigError(_cannot_hold(stream, target, "--no-audio"))
    return Track(stream.index, "audio", "copy", _codec_name(stream))


def _plan_subtitle(stream: Stream, target: str) -> Track:
    codec = _codec_name(stream)
    if _holds(target, stream):
        return Track(stream.index, "subtitle", "copy", codec)
    if codec not in _TEXT_CODECS or stream.codec_context is None:
        raise BadConfigError(_cannot_hold(stream, target, "--no-subtitles"))
    becomes = _TEXT_TARGETS[target]
    note = f"{_name(stream)} converted from {codec} to {becomes}"
    return Track(stream.index, "subtitle", "convert", becomes, note)


def _plan_cover(stream: Stream, target: str) -> Track:
    codec = _codec_name(stream)
    if target == "matroska" and codec in _COVER_TYPES:
        return Track(stream.index, "cover", "attach", codec)
    if target in ("mp4", "mov") and _holds(target, stream):
        return Track(stream.index, "cover", "copy", codec)
    return Track(stream.index, "cover", "drop", codec, f"cover picture dropped: {target} holds none of this kind")


def _codec_name(stream: Stream) -> str:
    return str(stream.name or "unknown") if stream.codec_context is None else str(stream.codec_context.codec.name)


def _name(stream: Stream) -> str:
    language = stream.metadata.get("language", "")
    return f"{stream.type} track {stream.index}" + (f" ({language})" if language not in ("", "und") else "")


def _holds(target: str, stream: Stream) -> bool:
    """True if a container takes packets of this track as they are."""
    if stream.codec_context is None:
        return False
    scratch = av.open(io.BytesIO(), "w", format=target)
    try:
        scratch.add_stream_from_template(stream, opaque=True)
    except ValueError:
        return False
    return True


def _cannot_hold(stream: Stream, target: str, option: str) -> str:
    able = [suffix for suffix, name in CONTAINERS.items() if _holds(name, stream)]
    advice = f"name the output {' or '.join(able)}" if able else "no container known here can"
    return f"{target} cannot hold {_name(stream)} of {_codec_name(stream)}; {advice}, or leave it out with {option}"


class TrackCopier:
    """Adds the kept tracks to an output, and gives their packets in the order of the file."""

    def __init__(self, source: InputContainer, output: OutputContainer, tracks: list[Track]) -> None:
        self._source = source
        self._streams: dict[int, Stream] = {}
        self._converted: set[int] = set()
        for track in tracks:
            template = source.streams[track.index]
            if track.action == "attach":
                name, mimetype = _COVER_TYPES[track.codec]
                output.add_attachment(name, mimetype, _cover(source, template))
            elif track.action == "convert":
                self._streams[track.index] = _add_converted(output, template, track.codec)
                self._converted.add(track.index)
            elif track.action == "copy":
                stream = output.add_stream_from_template(template, opaque=True)
                if track.kind != "attachment":
                    self._streams[track.index] = stream
                stream.disposition = template.disposition
            if track.index in self._streams:
                self._streams[track.index].metadata.update(fresh_tags(template.metadata))

    def packets(self, start_s: float, end_s: float, shift_s: float) -> Iterator[av.Packet]:
        """Packets that begin in [start_s, end_s), earlier by `shift_s`, ready to be muxed. Ends early at damage."""
        if not self._streams:
            return
        demuxed = self._source.demux([self._source.streams[index] for index in self._streams])
        while True:
            try:
                packet = next(demuxed)
            except (StopIteration, av.error.FFmpegError):
                return
            if packet.size == 0:
                continue
            if packet.stream.disposition & Disposition.attached_pic:
                packet.pts = packet.dts = 0
                yield from self._ready(packet, 0.0)
                continue
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None and start_s <= float(time * packet.time_base) < end_s:
                yield from self._ready(packet, shift_s)

    def _ready(self, packet: av.Packet, shift_s: float) -> Iterator[av.Packet]:
        index = packet.stream.index
        if shift_s:
            ticks = round(Fraction(shift_s) / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - ticks
            packet.dts = None if packet.dts is None else packet.dts - ticks
        if index not in self._converted:
            packet.stream = self._streams[index]
            yield packet
            return
        stream = self._streams[index]
        text = _text(self._source.streams[index], packet)
        if text is not None:
            subtitle = SubtitleSet.create(text, 0, 1, 0)
            made = stream.codec_context.encode_subtitle(subtitle)
            made.pts = made.dts = packet.pts
            made.duration, made.time_base = packet.duration, packet.time_base
            made.stream = stream
            yield made


def _cover(source: InputContainer, stream: Stream) -> bytes:
    data = b""
    for packet in source.demux(stream):
        data = bytes(packet)
        break
    return data


def _add_converted(output: OutputContainer, template: Stream, codec: str) -> Stream:
    decoder = cast(SubtitleCodecContext, template.codec_context)
    decoder.open(strict=False)
    stream = output.add_stream(codec)
    encoder = cast(SubtitleCodecContext, stream.codec_context)
    encoder.subtitle_header = decoder.subtitle_header
    encoder.time_base = stream.time_base = Fraction(1, 1000)
    stream.disposition = template.disposition
    return stream


def _text(stream: Stream, packet: av.Packet) -> bytes | None:
    """The dialogue line (ASS) of a subtitle packet; None if it shows nothing."""
    found = stream.codec_context.decode2(packet)
    lines = [] if found is None else [rect.ass for rect in found.rects if getattr(rect, "ass", b"")]
    if not lines or not lines[0].split(b",", 8)[-1].strip():
        return None
    others = [line.split(b",", 8)[-1] for line in lines[1:]]
    return b"\\N".join([lines[0], *others])


def fresh_tags(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata without what describes the old file."""
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _STALE_TAGS and not key.lower().startswith(_STALE_PREFIXES)
    }
