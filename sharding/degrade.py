"""HR to LR: the one place for every recipe that `pack` can make low-resolution frames with.

Frames are uint8 RGB, shape (H, W, 3). HR is cropped at its bottom and right edge to a multiple of the scale
before a recipe sees it, so that pixel coordinates stay those of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sharding.codec import Frame
from sharding.compress import H264, MAX_CRF
from sharding.errors import BadConfigError, nearest_hint

Floats = NDArray[np.float32]

SCALES = (1, 2, 3, 4)
CUBIC_A = -0.5
BLUR_SIGMA_PX = 1.5
BLUR_KERNEL_PX = 13  # reaches 4 sigma to each side


def crop_to_multiple(frame: Frame, scale: int) -> Frame:
    """The largest top-left part of `frame` whose height and width are multiples of `scale` (a view)."""
    height, width = frame.shape[0] // scale * scale, frame.shape[1] // scale * scale
    return frame[:height, :width]


def bicubic_downscale(frame: Frame, scale: int) -> Frame:
    """`frame` (H, W, 3) reduced to (H/scale, W/scale, 3) by the antialiased bicubic kernel.

    Keys' cubic with a = -0.5 (Keys 1981, "Cubic convolution interpolation"), widened by `scale`, at
    half-pixel centres, weights cut off at the border and normalised to sum 1: the rule of Pillow's BICUBIC
    and of torch's `interpolate(mode="bicubic", antialias=True)`. Both passes are in float32, rounded once
    at the end. The sum runs in a fixed order of single products, so the result does not depend on the
    machine or on threads. Raises ValueError if height or width is not a multiple of `scale`.
    """
    height, width = frame.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"expected a frame whose sides are multiples of {scale}, got {height} x {width}")
    if scale == 1:
        return frame.copy()
    rows = _reduce_rows(frame.reshape(height, width * 3), scale)
    columns = np.ascontiguousarray(rows.reshape(-1, width, 3).transpose(1, 0, 2)).reshape(width, -1)
    small = _reduce_rows(columns, scale).reshape(width // scale, height // scale, 3).transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(np.rint(small), 0, 255).astype(np.uint8))


def _reduce_rows(image: NDArray[Any], scale: int) -> Floats:
    """(N, M) uint8 or float32 to (N/scale, M) float32: an output row is a sum of 4*scale weighted rows."""
    num_out = image.shape[0] // scale
    weights, pad = _row_weights(num_out, scale)
    padded = np.zeros((image.shape[0] + 3 * scale, image.shape[1]), dtype=np.float32)
    padded[pad : pad + image.shape[0]] = image
    total = np.zeros((num_out, image.shape[1]), dtype=np.float32)
    product = np.empty_like(total)
    for tap in range(weights.shape[1]):
        taken = padded[tap : tap + (num_out - 1) * scale + 1 : scale]
        np.multiply(taken, weights[:, tap : tap + 1], out=product)
        total += product
    return total


@lru_cache(maxsize=64)
def _row_weights(num_out: int, scale: int) -> tuple[Floats, int]:
    """((num_out, taps) weights, padding): output i sums padded rows i*scale + tap.

    The window of output i starts at input row i*scale - pad; rows outside of the image get weight 0 and the
    rest is normalised.
    """
    pad = 3 * scale // 2  # support 2*scale to each side of a centre that is scale/2 into the block
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
    """`frame` blurred by a Gaussian (sigma 1.5 px, borders reflected), then every `scale`-th pixel from 0.

    The usual "BD" degradation of video super-resolution at scale 4. Sampling starts at pixel 0, so LR pixel i
    lies at HR pixel i*scale, (scale-1)/2 px up and left of where `bicubic_downscale` puts it.
    """
    blurred = cv2.GaussianBlur(
        frame, (BLUR_KERNEL_PX, BLUR_KERNEL_PX), BLUR_SIGMA_PX, borderType=cv2.BORDER_REFLECT_101
    )
    return np.ascontiguousarray(blurred[::scale, ::scale])


@dataclass(frozen=True)
class Recipe:
    """A degradation: `apply(frame, scale)` shrinks one frame, after `codec` took the sequence there and back.

    `parameters` are those that the index records beside the recipe's name.
    """

    apply: Callable[[Frame, int], Frame]
    parameters: Mapping[str, Any]
    codec: H264 | None = None

    def stream(self, frames: Iterator[Frame], scale: int) -> Iterator[Frame]:
        """The LR frames of a sequence, in order; HR sides are multiples of `scale`."""
        coded = frames if self.codec is None else self.codec.round_trip(frames)
        return (self.apply(frame, scale) for frame in coded)


_BICUBIC = {"a": CUBIC_A, "antialias": True, "centres": "half-pixel"}
RECIPES: Mapping[str, Recipe] = {
    "bicubic": Recipe(bicubic_downscale, _BICUBIC),
    "blur_decimate": Recipe(blur_decimate, {"sigma_px": BLUR_SIGMA_PX, "kernel_px": BLUR_KERNEL_PX, "first_px": 0}),
    "video_compression": Recipe(bicubic_downscale, {**H264().parameters(), "then": "bicubic", **_BICUBIC}, H264()),
}


def get_recipe(name: str, crf: int | None = None) -> Recipe:
    """The recipe of that name, with another rate factor if `crf` is given.

    Raises BadConfigError that names the known ones, and for a `crf` that is out of range or of no use.
    """
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise BadConfigError(
            f"expected a degradation out of {known}, got '{name}'{nearest_hint(name, RECIPES)}; choose one of them"
        )
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
    """The index's record of a recipe: its name and parameters. Frames given as pairs are named "paired"."""
    return {"name": name} if name == "paired" else {"name": name, **get_recipe(name, crf).parameters}
