"""The input enlarged by bicubic and the result, side by side in a video.

Axis letters: H W low-resolution, Y X high-resolution rows and columns, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from vsr_dist.inference.frames import Frame
from vsr_dist.inference.video.video_in import MediaFacts, MediaFrame, MediaReader, Place, layout_of, read_facts
from vsr_dist.inference.video.video_out import FromRgb, choose_encoder, container_of, set_up
from vsr_dist.ops.color import from_uint8, to_uint8
from vsr_dist.ops.picture import Picture, side_by_side, with_titles
from vsr_dist.ops.resample import bicubic_upsample


def write_comparison(
    path: Path,
    facts: MediaFacts,
    low: Iterator[MediaFrame],
    result: Path,
    scale: int,
    shift: int,
    advance: Callable[[], None],
) -> None:
    """Write a video of 8 bits, without sound, with the times of the result; it appears under its name when complete.

    low: uint8 frames of the input from the first of the result on; facts: of the input; result: the finished video or
    folder of frames, whose times are `shift` ticks earlier; advance: is called for each frame.
    """
    found = read_facts(result, facts.rate)
    fake = MediaReader(replace(found, deep=False)).frames(Place())
    height, width = _panels(np.zeros((facts.height, facts.width, 3), np.uint8), None, scale).shape[:2]
    shape = replace(
        facts, deep=False, layout=layout_of("yuv420p"), sample_aspect=Fraction(1), width=width, height=height
    )
    target = container_of(path) or "mp4"
    settings, _ = choose_encoder(shape, 1, target, pixel_format="yuv420p")
    to_yuv = FromRgb(settings.pixel_format, settings.tags)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with av.open(str(temporary.absolute()), "w", format=target, options={"fflags": "+bitexact"}) as output:
            video = output.add_stream(settings.codec, rate=settings.rate)
            set_up(video.codec_context, settings)
            for one, other in zip(low, fake, strict=False):
                frame = to_yuv(_panels(one.rgb, other.rgb, scale))
                frame.pts, frame.time_base = one.pts - shift, facts.time_base
                output.mux(video.encode(frame))
                advance()
            output.mux(video.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _panels(low_HWC: Frame, fake_YXC: Frame | None, scale: int) -> Picture:
    """Both with their titles; without a result the bicubic one stands in."""
    low_BCHW = from_uint8(torch.from_numpy(np.ascontiguousarray(low_HWC))).permute(2, 0, 1)[None]
    bicubic_YXC = to_uint8(bicubic_upsample(low_BCHW, scale))[0].permute(1, 2, 0).numpy()
    height, width = bicubic_YXC.shape[:2]
    fake = bicubic_YXC if fake_YXC is None else fake_YXC[:height, :width]
    if fake.dtype != np.uint8:
        fake = ((fake.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return with_titles(side_by_side([bicubic_YXC, np.asarray(fake, np.uint8)], height), ["bicubic", "network"])
