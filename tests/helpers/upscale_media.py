"""Tiny videos for the tests of upscaling, the command itself, and a look at what came out."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from sharding.video import EXACT, stated_end_s
from vsr_dist.cli import main
from vsr_dist.inference.generator_io import save_generator
from vsr_dist.models import build_generator
from vsr_dist.models.recurrent import RecurrentConfig

FLAGS = Interpolation.BICUBIC | EXACT


def upscale(generator, source, output, *options):
    return main(["upscale", str(source), str(output), "--checkpoint", str(generator), *options])


def said(capsys):
    captured = capsys.readouterr()
    return captured.out, captured.err


def make_generator(folder, scale=2, noise=0.0):
    """A run folder: bicubic enlargement, or with `noise` something that remembers the frames before."""
    folder.mkdir(parents=True)
    config = RecurrentConfig(channels=2, num_blocks=1, recurrence="convgru")
    torch.manual_seed(0)
    generator = build_generator(config, scale)
    if noise:
        for tensor in (generator.tail[0].weight, generator.memory.project.weight):
            torch.nn.init.normal_(tensor, std=noise)
    save_generator(folder, generator, config, {})
    return folder


@pytest.fixture(scope="session")
def generator(tmp_path_factory):
    return make_generator(tmp_path_factory.mktemp("generator") / "run")


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Three frames in in.mp4, for tests that only read it."""
    return write_video(tmp_path_factory.mktemp("clip") / "in.mp4", moving(3))


def moving(num_frames, height=24, width=32, dtype=np.uint8):
    """Smooth coloured frames (H, W, 3) that move."""
    white = np.iinfo(dtype).max
    base = np.random.default_rng(5).integers(0, 256, (6, 8, 3)).astype(np.float32)
    big = cv2.resize(base, (width + num_frames, height), interpolation=cv2.INTER_CUBIC).clip(0, 255) / 255
    return [(big[:, n : n + width] * white).round().astype(dtype) for n in range(num_frames)]


def write_video(
    path,
    frames,
    *,
    codec="libx264",
    pixel_format="yuv420p",
    pts=None,
    time_base=Fraction(1, 30),
    rate=30,
    matrix=6,
    full_range=False,
    tags=None,
    rotation=None,
    audio=None,
    subtitles=None,
    chapters=None,
    metadata=None,
    options=None,
    cover=False,
    last_duration=None,
    texts_ms=((100, 200), (400, 200)),
    sample_aspect=None,
):
    """Encode RGB frames; tags: (matrix, range, primaries, transfer) to write, None for none. Returns the path.

    texts_ms: (time, duration) of each subtitle.
    """
    with av.open(str(path), "w") as output:
        output.metadata.update(metadata or {})
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.time_base = pixel_format, time_base
        stream.codec_context.time_base = time_base
        if sample_aspect is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        if tags is not None:
            context = stream.codec_context
            context.colorspace, context.color_range, context.color_primaries, context.color_trc = tags
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        sound = None if audio is None else output.add_stream(audio, rate=48000)
        if audio == "wmav2":
            sound.bit_rate = 128_000
        text = None if subtitles is None else _subtitle_stream(output, subtitles)
        if cover:
            output.add_attachment("cover.png", "image/png", cv2.imencode(".png", frames[0])[1].tobytes())
        if chapters:
            output.set_chapters(chapters)
        output.start_encoding()
        if text is not None:
            for number, (time_ms, duration_ms) in enumerate(texts_ms):
                packet = av.Packet(_text_payload(subtitles, f"line {number}"))
                packet.stream, packet.time_base = text, Fraction(1, 1000)
                packet.pts = packet.dts = time_ms
                packet.duration = duration_ms
                output.mux(packet)
        for number, rgb in enumerate(frames):
            frame = to_yuv(rgb, pixel_format, matrix, full_range)
            frame.pts, frame.time_base = number if pts is None else pts[number], time_base
            _mux(output, stream.encode(frame), last_duration if number == len(frames) - 1 else None)
        _mux(output, stream.encode(None), None)
        if sound is not None:
            _write_sound(output, sound, (len(frames) if pts is None else pts[-1] + 1) * time_base)
    return path


def remux(source, target, shift_s=0):
    """The same packets in another file, later by `shift_s`. Returns the path."""
    with av.open(str(source)) as inward, av.open(str(target), "w") as outward:
        streams = {stream.index: outward.add_stream_from_template(stream) for stream in inward.streams}
        for packet in inward.demux():
            if packet.size:
                ticks = round(shift_s / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = streams[packet.stream.index]
                outward.mux(packet)
    return target


def _mux(output, packets, duration):
    for packet in packets:
        output.mux(packet)


def to_yuv(rgb, pixel_format, matrix=6, full_range=False):
    name = "rgb24" if rgb.dtype == np.uint8 else "rgb48le"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=name)
    if pixel_format.startswith("gray"):
        white = 1023 if pixel_format == "gray10le" else 255
        unit = rgb @ [0.299, 0.587, 0.114] / np.iinfo(rgb.dtype).max
        black, top = (0, white) if full_range else (16 * (white + 1) // 256, 235 * (white + 1) // 256)
        luma = (black + unit * (top - black)).round().astype(np.uint16 if white > 255 else np.uint8)
        return av.VideoFrame.from_ndarray(luma, format=pixel_format)
    return VideoReformatter().reformat(
        frame,
        format=pixel_format,
        dst_colorspace=5 if matrix == 6 else matrix,
        dst_color_range=2 if full_range else 1,
        interpolation=FLAGS,
    )


def _write_sound(output, stream, duration):
    rate, samples = 48000, int(float(duration) * 48000)
    wave = (np.sin(np.arange(samples) / 20) * 0.3).astype(np.float32)
    for first in range(0, samples, 1024):
        piece = np.stack([wave[first : first + 1024]] * 2)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def _subtitle_stream(output, codec):
    stream = output.add_mux_stream(codec)
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = "fra"
    return stream


def _text_payload(codec, text):
    data = text.encode()
    return len(data).to_bytes(2, "big") + data if codec == "mov_text" else data


def packets_of(path, kind):
    """[(time in s, payload)] of the first track of a kind."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


def times_of(path):
    """Times of the frames as fractions of a second."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def decoded(path):
    """(First frame's `av.VideoFrame`, all frames as RGB by the file's own tags)."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            deep = frame.format.components[0].bits > 8
            plain = VideoReformatter().reformat(frame, format="rgb48le" if deep else "rgb24", interpolation=FLAGS)
            frames.append((frame, plain.to_ndarray()))
    return frames[0][0], [rgb for _, rgb in frames]


def stated_length_s(path):
    """The length of the film by the header, from time 0."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stated_end_s(stream, container)
