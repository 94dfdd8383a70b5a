"""RGB frames to finished segments: the choice of an encoder, the way back to its pixel format, packets or PNG files.

A segment is a file of encoded packets, or a folder of PNG files. Each has an encoder of its own and begins with a key
frame, so the result does not depend on where a job was stopped. `join` makes the output of them.

Axis letters: Y X rows and columns of the result, C channels.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import torch
from av.codec.context import Flags
from av.video.reformatter import VideoReformatter

from sharding.video import converter_matrix
from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.inference.frames import Frame
from vsr_dist.inference.video.video_in import (
    EXACT_BICUBIC,
    FULL_RANGE,
    STUDIO_RANGE,
    STUDIO_WHITE,
    ColourTags,
    MediaFacts,
    PixelLayout,
    layout_of,
    scaling,
)

# Suffix -> FFmpeg's name of the container.
CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov", ".webm": "webm"}
_X26X_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo",
)  # fmt: skip
# svtav1 reports its settings on stderr; errors are enough.
os.environ.setdefault("SVT_LOG", "1")
_PNG_THREADS = 4
# Of zlib, 0 to 9: level 1 is within a few percent of the others' size on photographs and several times faster.
_PNG_LEVEL = 1


@dataclass(frozen=True)
class Encoder:
    """One encoder of FFmpeg: what --quality and --preset mean for it, and its fixed options.

    quality: (option, lowest, highest, default); presets: (option, values, default).
    """

    quality: tuple[str, int, int, int] | None = None
    presets: tuple[str, tuple[str, ...], str] | None = None
    options: dict[str, str] = field(default_factory=dict)


ENCODERS: dict[str, Encoder] = {
    "libx264": Encoder(("crf", 0, 51, 16), ("preset", _X26X_PRESETS, "medium")),
    "libx265": Encoder(("crf", 0, 51, 18), ("preset", _X26X_PRESETS, "medium"), {"x265-params": "log-level=error"}),
    "libsvtav1": Encoder(("crf", 0, 63, 24), ("preset", tuple(map(str, range(14))), "8")),
    "libvpx-vp9": Encoder(("crf", 0, 63, 24), ("cpu-used", tuple(map(str, range(9))), "4"), {"b": "0", "row-mt": "1"}),
    "prores_ks": Encoder(("profile", 0, 5, 3), None, {"vendor": "apl0"}),
    "ffv1": Encoder(None, None, {"level": "3", "slicecrc": "1"}),
}


@dataclass(frozen=True)
class EncoderSettings:
    """Everything that shapes the encoded packets. width, height: with the padding that the pixel format asks for."""

    codec: str
    options: dict[str, str]
    pixel_format: str
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    sample_aspect: Fraction
    tags: ColourTags


def container_of(output: Path) -> str | None:
    """FFmpeg's container for a name, or None for a folder of PNG frames. Raises BadConfigError for other suffixes."""
    suffix = output.suffix.lower()
    if output.is_dir() and suffix in CONTAINERS:
        raise BadConfigError(f"OUTPUT {output} is a folder with the name of a video; choose another name")
    if output.is_dir() or not suffix:
        return None
    if suffix not in CONTAINERS:
        raise BadConfigError(
            f"OUTPUT {output} ends in {output.suffix!r}; expected {', '.join(CONTAINERS)}, or a name without suffix "
            f"for a folder of PNG frames{nearest_hint(output.suffix, CONTAINERS)}"
        )
    return CONTAINERS[suffix]


def choose_encoder(
    facts: MediaFacts,
    scale: int,
    container: str,
    codec: str | None = None,
    quality: int | None = None,
    preset: str | None = None,
    pixel_format: str | None = None,
) -> tuple[EncoderSettings, list[str]]:
    """The settings for a result, and notes for the user. Raises BadConfigError for what cannot be encoded."""
    default = "libx264"
    if container == "webm":
        default = "libsvtav1" if facts.deep else "libvpx-vp9"
    name = codec or default
    available = [one for one in ENCODERS if one in av.codecs_available]
    if name not in available:
        raise BadConfigError(f"--codec {name!r}: expected {', '.join(available)}{nearest_hint(name, available)}")
    chosen, notes = _pixel_format(name, facts.layout, pixel_format)
    options = ENCODERS[name].options | _options(name, quality, preset)
    if name == "prores_ks" and quality is None and "444" in chosen:
        options["profile"] = "4"
    width, height = facts.width * scale, facts.height * scale
    rows, columns = padding_px(layout_of(chosen), width, height)
    if rows or columns:
        notes.append(
            f"{chosen} needs even sizes: the last {'row and column are' if rows and columns else 'line is'} repeated, "
            f"{width + columns} x {height + rows} px instead of {width} x {height} (--pixel-format yuv444p keeps them)"
        )
    size = (width + columns, height + rows)
    return EncoderSettings(
        name, options, chosen, *size, facts.time_base, facts.rate, facts.sample_aspect, facts.tags
    ), notes


def _options(name: str, quality: int | None, preset: str | None) -> dict[str, str]:
    """The encoder's options for --quality and --preset."""
    encoder, options = ENCODERS[name], {}
    if encoder.quality is not None:
        option, lowest, highest, default = encoder.quality
        value = default if quality is None else quality
        if not lowest <= value <= highest:
            raise BadConfigError(f"--quality {value}: {name} takes {lowest} to {highest} ({option}, default {default})")
        options[option] = str(value)
    elif quality is not None:
        raise BadConfigError(f"--quality has no effect on {name}, which is lossless; remove it")
    if encoder.presets is not None:
        option, values, default_preset = encoder.presets
        chosen = default_preset if preset is None else preset
        if chosen not in values:
            raise BadConfigError(f"--preset {chosen!r}: {name} has {', '.join(values)}{nearest_hint(chosen, values)}")
        options[option] = chosen
    elif preset is not None:
        raise BadConfigError(f"--preset has no effect on {name}; remove it")
    return options


def _pixel_format(name: str, source: PixelLayout, wanted: str | None) -> tuple[str, list[str]]:
    """The pixel format: as many bits and as much chroma as the source has, as far as the encoder can."""
    offered = [one.name for one in av.codec.Codec(name, "w").video_formats or ()]
    if wanted is not None:
        if wanted not in offered:
            raise BadConfigError(f"--pixel-format {wanted!r}: {name} takes {', '.join(offered)}")
        if layout_of(wanted).has_alpha:
            raise BadConfigError(f"--pixel-format {wanted!r} has alpha, which is not upscaled; choose one without")
        return wanted, []
    # Never fewer than 10 bits for a source of more than 8.
    depths = (8, 10) if source.bits <= 8 else [depth for depth in (12, 10) if depth <= source.bits] or [10]
    # RGB and images become 4:2:0, which every player shows.
    chroma = 420 if source.is_rgb else source.subsampling
    for sampling in sorted((420, 422, 444), key=lambda one: (one < chroma, abs(one - chroma))):
        for bits in depths:
            chosen = f"yuv{sampling}p" + (f"{bits}le" if bits > 8 else "")
            if chosen in offered:
                is_cut = 8 < bits < source.bits
                return chosen, [
                    f"{source.bits} bits are reduced to {bits}, the most that {name} supports"
                ] if is_cut else []
    raise BadConfigError(
        f"the input has {source.bits} bits and {name} takes {', '.join(offered)}; choose another --codec, such as "
        f"libx265, or reduce the bits with --pixel-format {offered[0]}"
    )


def set_up(context: av.VideoCodecContext, settings: EncoderSettings) -> None:
    """Give an encoder that is not open yet the settings."""
    context.width, context.height = settings.width, settings.height
    context.pix_fmt = settings.pixel_format
    context.time_base, context.framerate = settings.time_base, settings.rate
    context.sample_aspect_ratio = settings.sample_aspect
    tags = settings.tags
    if not layout_of(settings.pixel_format).is_rgb:
        context.colorspace, context.color_range = tags.matrix, tags.range
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    context.options = dict(settings.options)
    if settings.codec == "libx264" and torch.backends.cpu.get_cpu_capability() == "AVX512":
        # The AVX-512 code of x264 (core 165) reads memory that was never written, in its macroblock tree. Packets would
        # differ from process to process, and so would the bytes of a resumed job.
        context.options = {**settings.options, "x264-params": "asm=AVX2"}
    context.thread_type, context.thread_count = "AUTO", 0


def new_encoder(settings: EncoderSettings) -> av.VideoCodecContext:
    """An open encoder, its header apart from the packets. Raises BadConfigError if it does not take the settings."""
    context = av.CodecContext.create(settings.codec, "w")
    set_up(context, settings)
    context.flags |= Flags.global_header
    try:
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        raise BadConfigError(
            f"{settings.codec} does not support {settings.width} x {settings.height} px of {settings.pixel_format} "
            f"with {settings.options}: {getattr(error, 'strerror', None) or error}; choose another --codec or other "
            "options"
        ) from error
    return context


def padding_px(layout: PixelLayout, width: int, height: int) -> tuple[int, int]:
    """(rows, columns) that a frame of this size lacks for the pixel format."""
    rows = height % 2 if layout.subsampling == 420 and not layout.is_grey else 0
    columns = width % 2 if layout.subsampling in (420, 422) and not layout.is_grey else 0
    return rows, columns


class FromRgb:
    """RGB frames, uint8 or uint16 (Y, X, 3), to frames of a pixel format in the colours of `tags`.

    Where the format halves the chroma, an odd row or column is made even by repeating the last one.
    """

    def __init__(self, pixel_format: str, tags: ColourTags) -> None:
        self._layout, self._tags = layout_of(pixel_format), tags
        self._reformatter = VideoReformatter()

    def __call__(self, frame_YXC: Frame) -> av.VideoFrame:
        """One frame, without a time."""
        layout, tags = self._layout, self._tags
        bottom, right = padding_px(layout, frame_YXC.shape[1], frame_YXC.shape[0])
        if bottom or right:
            frame_YXC = cast(Frame, np.pad(frame_YXC, ((0, bottom), (0, right), (0, 0)), mode="edge"))
        is_deep = frame_YXC.dtype == np.uint16
        if is_deep and not layout.is_rgb:
            frame_YXC = scaling(0, 65535, STUDIO_WHITE, 16)[frame_YXC]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_YXC), format="rgb48le" if is_deep else "rgb24")
        if layout.is_rgb:
            return self._reformatter.reformat(frame, format=layout.name, interpolation=EXACT_BICUBIC, threads=1)
        is_full = tags.range == FULL_RANGE and not layout.is_grey
        converted = self._reformatter.reformat(
            frame,
            format=f"yuv{layout.subsampling}p16le" if is_full else layout.name,
            dst_colorspace=converter_matrix(tags.matrix),
            dst_color_range=STUDIO_RANGE,
            interpolation=EXACT_BICUBIC,
            threads=1,
        )
        if is_full:
            converted = _to_full_range(converted, layout)
        converted.colorspace, converted.color_range = tags.matrix, tags.range
        converted.color_primaries, converted.color_trc = tags.primaries, tags.transfer
        return converted


def _to_full_range(studio: av.VideoFrame, layout: PixelLayout) -> av.VideoFrame:
    """From 16 bits of studio range, since FFmpeg's own conversion to full range is off by half a level."""
    full = av.VideoFrame(studio.width, studio.height, layout.name)
    unit, top = 1 << (layout.bits - 8), (1 << layout.bits) - 1
    # BT.601 and BT.709: luma from 16 to 235 and chroma from 16 to 240 of 255, around 128.
    luma = scaling(16 << 8, 235 << 8, top, 16)
    chroma = scaling(128 << 8, 240 << 8, 128 * unit + top // 2, 16, 128 * unit)
    for number, (source, target) in enumerate(zip(studio.planes, full.planes, strict=True)):
        levels = np.frombuffer(source, np.uint16).reshape(source.height, -1)[:, : source.width]
        table = chroma if number else luma
        into = np.frombuffer(target, table.dtype).reshape(target.height, -1)
        into[:, : target.width] = table[levels]
    return full


# The encoder's header, then each packet: presentation time, number of bytes, whether it is a key frame; its bytes.
_HEADER, _PACKET = struct.Struct("<I"), struct.Struct("<qI?")


class PacketWriter:
    """Encodes a segment into a file of packets, in decoding order; see `read_packets`."""

    def __init__(self, path: Path, settings: EncoderSettings) -> None:
        self._path, self._settings = path, settings
        self._to_yuv = FromRgb(settings.pixel_format, settings.tags)
        self._encoder = new_encoder(settings)
        self._file = path.with_suffix(".tmp").open("wb")
        header = self._encoder.extradata or b""
        self._file.write(_HEADER.pack(len(header)) + header)

    def write(self, frame_YXC: Frame, pts: int) -> None:
        """The next frame, with its time in the input's time base."""
        frame = self._to_yuv(frame_YXC)
        frame.pts, frame.time_base = pts, self._settings.time_base
        self._store(self._encoder.encode(frame))

    def _store(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            self._file.write(_PACKET.pack(packet.pts, packet.size, packet.is_keyframe))
            self._file.write(bytes(packet))

    def finish(self) -> None:
        """Publish the segment under its name, complete."""
        self._store(self._encoder.encode(None))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self._path)


def read_packets(path: Path) -> tuple[bytes, list[tuple[int, bool, int, int]]]:
    """The encoder's header, and of each packet its time, whether it is a key frame, its place in the file, its size."""
    packets = []
    with path.open("rb") as file:
        header = file.read(_HEADER.unpack(file.read(_HEADER.size))[0])
        while head := file.read(_PACKET.size):
            pts, num_bytes, is_key = _PACKET.unpack(head)
            packets.append((pts, is_key, file.tell(), num_bytes))
            file.seek(num_bytes, os.SEEK_CUR)
    return header, packets


class BoundedPool:
    """Threads that take at most `capacity` calls at a time: `submit` waits for room, so memory stays bounded.

    One thread runs its calls in order. What a call raises is raised by a later `submit` or by `drain`. Leaving the
    context drops the calls that have not begun.
    """

    def __init__(self, num_threads: int, capacity: int) -> None:
        self._pool, self._capacity = ThreadPoolExecutor(num_threads), capacity
        self._running: deque[Future[Any]] = deque()

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a call in a thread."""
        while len(self._running) >= self._capacity:
            self._running.popleft().result()
        self._running.append(self._pool.submit(function, *arguments))

    def drain(self) -> None:
        """Wait for all calls."""
        while self._running:
            self._running.popleft().result()

    def __enter__(self) -> BoundedPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class PngWriter:
    """Writes a segment as a folder of PNG files, several at a time; a name has the frame's number and its time."""

    def __init__(self, path: Path, first_frame: int) -> None:
        self._path, self._next = path, first_frame
        self._folder = path.with_suffix(".tmp")
        self._folder.mkdir()
        self._pool = BoundedPool(_PNG_THREADS, _PNG_THREADS)

    def write(self, frame_YXC: Frame, pts: int) -> None:
        """See `PacketWriter.write`."""
        self._pool.submit(_write_png, self._folder / f"{self._next:08d}_{pts}.png", frame_YXC)
        self._next += 1

    def finish(self) -> None:
        """See `PacketWriter.finish`."""
        with self._pool:
            self._pool.drain()
        os.replace(self._folder, self._path)


def _write_png(path: Path, frame_YXC: Frame) -> None:
    picture = cv2.cvtColor(np.ascontiguousarray(frame_YXC), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    if not done:
        raise RuntimeError(f"OpenCV did not encode {path.name}")
    path.write_bytes(data.tobytes())
