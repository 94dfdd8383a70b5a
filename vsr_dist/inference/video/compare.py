"""The input enlarged by bicubic and the result, side by side in a video.

Axis letters: H W low-resolution, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from vsr_dist.inference.streaming.stream import Frame
from vsr_dist.inference.video.codecs import choose_encoder, set_up
from vsr_dist.inference.video.colour import FromRgb, ToRgb, layout_of
from vsr_dist.inference.video.media_facts import MediaFacts, read_facts
from vsr_dist.inference.video.media_in import MediaReader, Place
from vsr_dist.ops.color import from_uint8, to_uint8
from vsr_dist.ops.picture import Picture, side_by_side, with_titles
from vsr_dist.ops.resample import bicubic_upsample


def write_comparison(
    path: Path,
    target: str,
    facts: MediaFacts,
    result: Path,
    scale: int,
    *,
    start: Place,
    deinterlace: bool,
    advance: Callable[[int], None],
) -> None:
    """Write a video of 8 bits, without sound, with the times of the input; it appears under its name when whole.

    result: the finished video or folder of frames. start: the place in the input where the result begins.
    """
    plain = replace(facts, deep=False, layout=layout_of(av.VideoFormat("yuv420p", 16, 16)), sample_aspect=Fraction(1))
    source = MediaReader(plain, ToRgb(facts.tags, deep=False), deinterlace=deinterlace)
    found = read_facts(result, facts.rate)
    enlarged = MediaReader(found, ToRgb(found.tags, deep=False), deinterlace=False)
    height, width = _panels(np.zeros((facts.height, facts.width, 3), np.uint8), None, scale).shape[:2]
    settings, _ = choose_encoder(
        replace(plain, width=width, height=height),
        1,
        target,
        codec=None,
        quality=None,
        preset=None,
        pixel_format="yuv420p",
    )
    to_yuv = FromRgb(settings.pixel_format, settings.tags)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with av.open(str(temporary), "w", format=target, options={"fflags": "+bitexact"}) as output:
            video = output.add_stream(settings.codec, rate=settings.rate)
            set_up(video.codec_context, settings)
            first_pts: int | None = None if start.num_frames else 0
            for low, fake in zip(source.frames(start), enlarged.frames(Place()), strict=False):
                # As in the result, a beginning in the middle is time 0.
                first_pts = low.pts if first_pts is None else first_pts
                frame = to_yuv(_panels(low.rgb, fake.rgb, scale))
                frame.pts, frame.time_base = low.pts - first_pts, facts.time_base
                output.mux(video.encode(frame))
                advance(1)
            output.mux(video.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _panels(low_HWC: Frame, fake_YXC: Frame | None, scale: int) -> Picture:
    """Both with their titles; without a result the bicubic one stands in."""
    low_BCHW = from_uint8(torch.from_numpy(np.ascontiguousarray(low_HWC))).permute(2, 0, 1)[None]
    bicubic_YXC = to_uint8(bicubic_upsample(low_BCHW, scale))[0].permute(1, 2, 0).numpy()
    height, width = bicubic_YXC.shape[:2]
    fake = bicubic_YXC if fake_YXC is None else _eight_bits(fake_YXC[:height, :width])
    return with_titles(side_by_side([bicubic_YXC, fake], height), ["bicubic", "network"])


def _eight_bits(frame_YXC: Frame) -> Picture:
    if frame_YXC.dtype == np.uint8:
        return np.asarray(frame_YXC, dtype=np.uint8)
    return np.asarray((frame_YXC.astype(np.uint32) * 255 + 32767) // 65535, dtype=np.uint8)
