"""Degradations: every way in which `pack` can make LR frames from HR frames (table `RECIPES`).

Frames are uint8 RGB, shape (H, W, 3). HR frames are cropped at the bottom and right to a multiple of the scale before
they are degraded, so that pixel coordinates stay those of the source.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from sharding.codec import Frame
from sharding.errors import BadConfigError, nearest_hint
from sharding.video import BT601, EXACT, to_rgb

Floats = NDArray[np.float32]

SCALES = (1, 2, 3, 4)
CUBIC_A = -0.5
BLUR_SIGMA_PX = 1.5
BLUR_KERNEL_PX = 13  # covers 4 sigma on each side
DEFAULT_CRF = 25
MAX_CRF = 51
_RATE = 25
# x264 reads this many frames ahead, so as many HR frames wait for their LR frames.
_LOOKAHEAD_FRAMES = 10
_YUV = Interpolation.BICUBIC | EXACT
# For errors, which a video of its own encoder does not have.
_ROUND_TRIP = Path("the low resolution")


def crop_to_multiple(frame: Frame, scale: int) -> Frame:
    """`frame` cropped at the bottom and right so that height and width are multiples of `scale` (a view)."""
    height, width = frame.shape[0] // scale * scale, frame.shape[1] // scale * scale
    return frame[:height, :width]


def bicubic_downscale(frame: Frame, scale: int) -> Frame:
    """`frame` (H, W, 3) downscaled to (H/scale, W/scale, 3) with an antialiased bicubic kernel.

    Keys' cubic with a = -0.5 (Keys 1981, "Cubic convolution interpolation"), widened by `scale`, at half-pixel
    centres; weights outside of the image are dropped and the rest is normalised to sum 1. This is the kernel of
    Pillow's BICUBIC and of torch's `interpolate(mode="bicubic", antialias=True)`. Both passes are float32, rounded
    once at the end. Products are added in a fixed order, so the result does not depend on the machine or on the
    number of threads. Raises ValueError if height or width is not a multiple of `scale`.
    """
    height, width = frame.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"expected height and width to be multiples of {scale}, got {height} x {width}")
    if scale == 1:
        return frame.copy()
    rows = _reduce_rows(frame.reshape(height, width * 3), scale)
    columns = np.ascontiguousarray(rows.reshape(-1, width, 3).transpose(1, 0, 2)).reshape(width, -1)
    small = _reduce_rows(columns, scale).reshape(width // scale, height // scale, 3).transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(np.rint(small), 0, 255).astype(np.uint8))


def _reduce_rows(image: NDArray[Any], scale: int) -> Floats:
    """(N, M) uint8 or float32 to (N/scale, M) float32: each output row is a weighted sum of 4*scale rows."""
    num_out = image.shape[0] // scale
    weights, pad = _row_weights(num_out, scale)
    padded = np.zeros((image.shape[0] + 3 * scale, image.shape[1]), dtype=np.float32)
    padded[pad : pad + image.shape[0]] = image
    total = np.zeros((num_out, image.shape[1]), dtype=np.float32)
    product = np.empty_like(total)
    for tap in range(weights.shape[1]):
        rows = padded[tap : tap + (num_out - 1) * scale + 1 : scale]
        np.multiply(rows, weights[:, tap : tap + 1], out=product)
        total += product
    return total


@lru_cache(maxsize=64)
def _row_weights(num_out: int, scale: int) -> tuple[Floats, int]:
    """(weights of shape (num_out, taps), padding): output row i is the weighted sum of padded rows i*scale + tap.

    The window of output row i starts at input row i*scale - padding; rows outside of the image have weight 0, and
    the weights of each row sum to 1.
    """
    pad = 3 * scale // 2  # the kernel reaches 2*scale to each side of the centre, which is scale/2 into the block
    rows = np.arange(num_out)[:, None] * scale - pad + np.arange(4 * scale)[None, :]
    centres = (np.arange(num_out)[:, None] + 0.5) * scale
    weights = _cubic((rows + 0.5 - centres) / scale)
    weights[(rows < 0) | (rows >= num_out * scale)] = 0.0
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), pad


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = (CUBIC_A + 2) * x**3 - (CUBIC_A + 3) * x**2 + 1
    far = CUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def blur_decimate(frame: Frame, scale: int) -> Frame:
    """`frame` blurred with a Gaussian (sigma 1.5 px, reflected borders), then every `scale`-th pixel.

    The usual "BD" degradation of video super-resolution at scale 4. Sampling starts at pixel 0, so LR pixel i is at
    HR pixel i*scale, (scale-1)/2 px up and left of its position with `bicubic_downscale`.
    """
    blurred = cv2.GaussianBlur(
        frame, (BLUR_KERNEL_PX, BLUR_KERNEL_PX), BLUR_SIGMA_PX, borderType=cv2.BORDER_REFLECT_101
    )
    return np.ascontiguousarray(blurred[::scale, ::scale])


@dataclass(frozen=True)
class H264:
    """H.264 (libx264), 4:2:0, constant rate factor `crf` (0 to 51, higher is worse), 25 frames/s.

    The result is the same on every processor and for any number of threads: with SSSE3 and later instructions x264
    makes other decisions than its C code, so only instructions with the same result as C are enabled.
    """

    crf: int = DEFAULT_CRF
    preset: str = "medium"

    def parameters(self) -> dict[str, Any]:
        """The parameters stored in the index."""
        return {
            "encoder": "libx264",
            "crf": self.crf,
            "preset": self.preset,
            "pixels": "yuv420p",
            "rate": _RATE,
            "lookahead_frames": _LOOKAHEAD_FRAMES,
        }

    def round_trip(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Encode and decode `frames`, uint8 RGB of one shape (H, W, 3); yields as many frames in the same order.

        Streamed: about `_LOOKAHEAD_FRAMES` more frames are read than yielded. Odd heights and widths are padded by
        one row or column for the codec, and cropped again.
        """
        first = next(frames, None)
        if first is None:
            return
        height, width = first.shape[:2]
        encoder, decoder = self._encoder(height + height % 2, width + width % 2), _decoder()
        from_rgb, from_yuv = VideoReformatter(), VideoReformatter()
        # None flushes the encoder, and the decoder after it.
        for frame in chain([first], frames, [None]):
            packets = encoder.encode(None if frame is None else _to_yuv(frame, from_rgb))
            for decoded in _decode(decoder, packets, is_last=frame is None):
                # What `_to_yuv` makes, whatever players assume for a video of this size.
                decoded.colorspace = BT601
                yield np.ascontiguousarray(to_rgb(decoded, from_yuv, _ROUND_TRIP)[:height, :width])

    def _encoder(self, height: int, width: int) -> VideoCodecContext:
        try:
            encoder: VideoCodecContext = av.CodecContext.create("libx264", "w")
        except (av.error.FFmpegError, ValueError) as error:
            raise BadConfigError(
                "video_compression needs libx264, which this build of PyAV does not have; install PyAV from PyPI (pip "
                "install av), or use another --degradation"
            ) from error
        encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, _RATE), Fraction(_RATE)
        encoder.thread_count = 1
        # Every x86-64 processor has SSE2, and its results equal those of the C code.
        instructions = "MMX2,SSE2" if platform.machine().lower() in ("x86_64", "amd64") else "0"
        private = f"threads=1:lookahead-threads=1:rc-lookahead={_LOOKAHEAD_FRAMES}:sync-lookahead=0:asm={instructions}"
        encoder.options = {"preset": self.preset, "crf": str(self.crf), "x264-params": private}
        return encoder


def _decoder() -> VideoCodecContext:
    decoder: VideoCodecContext = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    return decoder


def _to_yuv(frame: Frame, reformatter: VideoReformatter) -> av.VideoFrame:
    even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
    return reformatter.reformat(
        av.VideoFrame.from_ndarray(even, format="rgb24"), format="yuv420p", interpolation=_YUV, threads=1
    )


def _decode(decoder: VideoCodecContext, packets: list[av.Packet], is_last: bool) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from decoder.decode(packet)
    if is_last:
        yield from decoder.decode(None)


@dataclass(frozen=True)
class Recipe:
    """A degradation: the sequence is encoded and decoded by `codec`, if there is one, then `apply(frame, scale)`.

    `parameters` are stored in the index with the name of the recipe.
    """

    apply: Callable[[Frame, int], Frame]
    parameters: Mapping[str, Any]
    codec: H264 | None = None

    def stream(self, frames: Iterator[Frame], scale: int) -> Iterator[Frame]:
        """The LR frames of a sequence, in order; HR height and width must be multiples of `scale`."""
        coded = frames if self.codec is None else self.codec.round_trip(frames)
        return (self.apply(frame, scale) for frame in coded)


_BICUBIC = {"a": CUBIC_A, "antialias": True, "centres": "half-pixel"}
RECIPES: Mapping[str, Recipe] = {
    "bicubic": Recipe(bicubic_downscale, _BICUBIC),
    "blur_decimate": Recipe(blur_decimate, {"sigma_px": BLUR_SIGMA_PX, "kernel_px": BLUR_KERNEL_PX, "first_px": 0}),
    "video_compression": Recipe(bicubic_downscale, {**H264().parameters(), "then": "bicubic", **_BICUBIC}, H264()),
}


def get_recipe(name: str, crf: int | None = None) -> Recipe:
    """The recipe of that name, with its rate factor replaced if `crf` is given.

    Raises BadConfigError for an unknown name, and for a `crf` that is out of range or not used by the recipe.
    """
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise BadConfigError(f"--degradation is '{name}', expected one of {known}{nearest_hint(name, RECIPES)}")
    recipe = RECIPES[name]
    if crf is None:
        return recipe
    if recipe.codec is None or not 0 <= crf <= MAX_CRF:
        raise BadConfigError(
            f"--crf is {crf} with --degradation {name}; expected 0 to {MAX_CRF} with --degradation video_compression"
        )
    codec = replace(recipe.codec, crf=crf)
    return replace(recipe, codec=codec, parameters={**recipe.parameters, **codec.parameters()})


def describe(name: str, crf: int | None = None) -> dict[str, Any]:
    """The entry of a recipe in the index: its name and parameters. Frames given as pairs have the name "paired"."""
    return {"name": name} if name == "paired" else {"name": name, **get_recipe(name, crf).parameters}
