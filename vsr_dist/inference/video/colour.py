"""Decoded frames to RGB and RGB to what encoders take, in the colours that the video is tagged with.

The matrix and the range of the input lead to RGB, and the same lead back, so that nothing shifts. Primaries and
transfer (PQ and HLG too) are not touched: the network sees the coded values, and the tags are passed on.

Axis letters: H W low-resolution, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from sharding.video import EXACT
from vsr_dist.inference.streaming.stream import Frame

# Bicubic, not bilinear: with bilinear chroma FFmpeg 8 overflows at saturated 16-bit colours (white turns green).
_FLAGS = Interpolation.BICUBIC | EXACT
# ITU-T H.273 code points, as FFmpeg has them.
RGB, BT709, UNSPECIFIED, BT601 = 0, 1, 2, 6
STUDIO_RANGE, FULL_RANGE = 1, 2
# White in FFmpeg's 16-bit RGB, where it comes from or goes to studio range: 255 of 8 bits moved to the top.
_STUDIO_WHITE = 255 << 8
# H.273 matrix -> that of FFmpeg's converter. BT.2020's constant-luminance matrix (10) is read as the other one (9).
_CONVERTER = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
# Players take an untagged video of more than this for BT.709, below for BT.601 (mpv's rule).
_MAX_SD_WIDTH_PX, _MAX_SD_HEIGHT_PX = 1279, 576


@dataclass(frozen=True)
class ColourTags:
    """H.273 code points of a video; `guessed` if the matrix was not tagged and follows from the size."""

    matrix: int
    range: int
    primaries: int
    transfer: int
    guessed: bool = False


@dataclass(frozen=True)
class PixelLayout:
    """What a pixel format is made of. `subsampling` is 420, 422 or 444; grey counts as 420."""

    name: str
    bits: int
    subsampling: int
    is_grey: bool
    is_rgb: bool
    has_alpha: bool


def layout_of(pixel_format: av.VideoFormat) -> PixelLayout:
    """What a pixel format is made of."""
    components = pixel_format.components
    # `is_chroma` of PyAV 18 is false for chroma of full size, so colour shows in the number of components.
    is_grey = not pixel_format.has_palette and sum(not component.is_alpha for component in components) == 1
    is_rgb = pixel_format.is_rgb or pixel_format.has_palette
    subsampling = 420 if is_grey else 444
    if not is_grey and not is_rgb:
        halved = (pixel_format.chroma_width(1920) < 1920, pixel_format.chroma_height(1080) < 1080)
        subsampling = {(True, True): 420, (True, False): 422}.get(halved, 444)
    has_alpha = any(component.is_alpha for component in components)
    return PixelLayout(pixel_format.name, components[0].bits, subsampling, is_grey, is_rgb, has_alpha)


def tags_of(frame: av.VideoFrame) -> ColourTags:
    """The tags of a decoded frame, with the matrix guessed as players do where there is none.

    RGB video becomes BT.709, its range is what encoders of YUV expect: studio.
    """
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    layout = layout_of(frame.format)
    if layout.is_rgb:
        return ColourTags(BT709, STUDIO_RANGE, primaries, transfer)
    is_full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    matrix = int(frame.colorspace)
    guessed = matrix not in _CONVERTER
    if guessed:
        is_sd = frame.width <= _MAX_SD_WIDTH_PX and frame.height <= _MAX_SD_HEIGHT_PX
        matrix = BT601 if is_sd else BT709
    return ColourTags(matrix, FULL_RANGE if is_full else STUDIO_RANGE, primaries, transfer, guessed)


class ToRgb:
    """Decoded frames to RGB, uint8 or, if `deep`, uint16 (H, W, 3) with white at 65535. Alpha is left out."""

    def __init__(self, tags: ColourTags, *, deep: bool) -> None:
        self._tags, self._deep = tags, deep
        self._reformatter = VideoReformatter()
        self._layouts: dict[str, PixelLayout] = {}

    def __call__(self, frame: av.VideoFrame) -> Frame:
        """One frame; it may differ in pixel format from those before."""
        name = frame.format.name
        if name not in self._layouts:
            self._layouts[name] = layout_of(frame.format)
        layout = self._layouts[name]
        if layout.is_grey:
            return self._grey(frame, layout)
        if not layout.is_rgb:
            frame.colorspace, frame.color_range = self._tags.matrix, self._tags.range
        plain = self._reformatter.reformat(
            frame, format="rgb48le" if self._deep else "rgb24", interpolation=_FLAGS, threads=1
        )
        rgb_HWC = cast(Frame, plain.to_ndarray())
        if not self._deep:
            return rgb_HWC
        is_studio = not layout.is_rgb and self._tags.range == STUDIO_RANGE
        white = _STUDIO_WHITE if is_studio else _shifted_white(layout.bits)
        return _scaling(0, white, 65535, 16)[rgb_HWC]

    def _grey(self, frame: av.VideoFrame, layout: PixelLayout) -> Frame:
        # FFmpeg's converter takes grey for full range, whatever the tag says.
        bits = 16 if layout.bits > 8 else 8
        plain = self._reformatter.reformat(frame, format="gray16le" if bits > 8 else "gray", threads=1)
        # It widens by shifting.
        black, white = 0, _shifted_white(layout.bits) if bits > 8 else 255
        if frame.color_range == STUDIO_RANGE:
            black, white = 16 << (bits - 8), 235 << (bits - 8)
        table = _scaling(black, white, 65535 if self._deep else 255, bits)
        return np.repeat(table[plain.to_ndarray()][:, :, None], 3, axis=2)


def _shifted_white(bits: int) -> int:
    """White of `bits` bits, moved to the top of 16."""
    return ((1 << bits) - 1) << (16 - bits)


@cache
def _scaling(black: int, white: int, top: int, bits: int, rise: int = 0) -> Frame:
    """Table from levels of `bits` bits, in which `black` becomes `rise` and `white` `top`; clipped to `top`'s range."""
    levels = (np.arange(1 << bits, dtype=np.float64) - black) / (white - black) * (top - rise) + rise
    highest = 255 if top <= 255 else 65535 if top > 4095 else 1023 if top <= 1023 else 4095
    return cast(Frame, levels.round().clip(0, highest).astype(np.uint8 if top <= 255 else np.uint16))


class FromRgb:
    """RGB frames, uint8 or uint16 (Y, X, 3), to frames of a pixel format in the colours of `tags`.

    Where the format halves the chroma, an odd row or column is made even by repeating the last one.
    """

    def __init__(self, pixel_format: str, tags: ColourTags) -> None:
        self._layout = layout_of(av.VideoFormat(pixel_format, 16, 16))
        self._tags = tags
        self._reformatter = VideoReformatter()

    def __call__(self, frame_YXC: Frame) -> av.VideoFrame:
        """One frame, without a time."""
        bottom, right = padding_px(self._layout, frame_YXC.shape[1], frame_YXC.shape[0])
        if bottom or right:
            frame_YXC = cast(Frame, np.pad(frame_YXC, ((0, bottom), (0, right), (0, 0)), mode="edge"))
        is_deep = frame_YXC.dtype == np.uint16
        if is_deep and not self._layout.is_rgb:
            frame_YXC = _scaling(0, 65535, _STUDIO_WHITE, 16)[frame_YXC]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_YXC), format="rgb48le" if is_deep else "rgb24")
        if self._layout.is_rgb:
            return self._reformatter.reformat(frame, format=self._layout.name, interpolation=_FLAGS, threads=1)
        tags = self._tags
        is_full = tags.range == FULL_RANGE and not self._layout.is_grey
        converted = self._reformatter.reformat(
            frame,
            format=f"yuv{self._layout.subsampling}p16le" if is_full else self._layout.name,
            dst_colorspace=_CONVERTER[tags.matrix],
            dst_color_range=STUDIO_RANGE,
            interpolation=_FLAGS,
            threads=1,
        )
        if is_full:
            converted = _to_full_range(converted, self._layout)
        converted.colorspace, converted.color_range = tags.matrix, tags.range
        converted.color_primaries, converted.color_trc = tags.primaries, tags.transfer
        return converted


def _to_full_range(studio: av.VideoFrame, layout: PixelLayout) -> av.VideoFrame:
    """From 16 bits of studio range, since FFmpeg's own conversion to full range is off by half a level."""
    full = av.VideoFrame(studio.width, studio.height, layout.name)
    unit, top = 1 << (layout.bits - 8), (1 << layout.bits) - 1
    # BT.601 and BT.709: luma from 16 to 235 and chroma from 16 to 240 of 255, around 128.
    luma = _scaling(16 << 8, 235 << 8, top, 16)
    chroma = _scaling(128 << 8, 240 << 8, 128 * unit + top // 2, 16, 128 * unit)
    for number, (source, target) in enumerate(zip(studio.planes, full.planes, strict=True)):
        levels = np.frombuffer(source, np.uint16).reshape(source.height, -1)[:, : source.width]
        table = chroma if number else luma
        into = np.frombuffer(target, table.dtype).reshape(target.height, -1)
        into[:, : target.width] = table[levels]
    return full


def padding_px(layout: PixelLayout, width: int, height: int) -> tuple[int, int]:
    """(rows, columns) that a frame of this size lacks for the pixel format."""
    rows = height % 2 if layout.subsampling == 420 and not layout.is_grey else 0
    columns = width % 2 if layout.subsampling in (420, 422) and not layout.is_grey else 0
    return rows, columns
