"""PSNR and SSIM of single frames against their ground truth.

Protocol: uint8 RGB frames; `border_px` pixels (by convention the scale) are cut from every side; luma is
BT.601 in studio range, not rounded. The peak is 255, for luma as well. SSIM has the settings of Wang et al.
2004: Gaussian window of sigma 1.5 (11 x 11), population covariance; for RGB it is the mean over the channels.
Numbers over a clip or a set are means of the per-frame numbers.

Axes: Y X rows and columns, C channels (RGB).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vsr_dist.core.errors import BadInputError
from vsr_dist.ops.color import ByteArray, FloatArray, rgb_to_y_bt601_array

PEAK = 255.0
# Equal images have an infinite PSNR, which no mean and no JSON file survives. One wrong grey level in one
# value of a 3 x 1000 x 1000 image is 113 dB, so the cap is reached only by frames that are equal to the eye.
PSNR_CAP_DB = 100.0
SSIM_WINDOW_PX = 11


@dataclass(frozen=True)
class FrameFidelity:
    """One frame's numbers: PSNR in dB, capped at 100; SSIM at most 1."""

    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float


def psnr(fake: ByteArray | FloatArray, real: ByteArray | FloatArray) -> float:
    """`10 log10(255^2 / MSE)` in dB over all elements, in 0..255, at most 100."""
    fake, real = np.asarray(fake, np.float64), np.asarray(real, np.float64)
    if np.array_equal(fake, real):
        return PSNR_CAP_DB
    return min(PSNR_CAP_DB, float(peak_signal_noise_ratio(real, fake, data_range=PEAK)))


def ssim(fake: ByteArray | FloatArray, real: ByteArray | FloatArray) -> float:
    """Structural similarity of images (Y, X) or (Y, X, C) in 0..255, at least 11 x 11 (module docstring)."""
    fake, real = np.asarray(fake, np.float64), np.asarray(real, np.float64)
    value = structural_similarity(
        real,
        fake,
        data_range=PEAK,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1 if real.ndim == 3 else None,
    )
    return float(value)


def frame_fidelity(fake_YXC: ByteArray, real_YXC: ByteArray, border_px: int) -> FrameFidelity:
    """All four numbers of one frame pair. BadInputError for unequal shapes or too few pixels."""
    if fake_YXC.shape != real_YXC.shape:
        raise BadInputError(f"PSNR: expected equal shapes, found {fake_YXC.shape} and {real_YXC.shape}")
    smallest = min(real_YXC.shape[:2]) - 2 * border_px
    if smallest < SSIM_WINDOW_PX:
        raise BadInputError(
            f"SSIM: expected at least {SSIM_WINDOW_PX} pixels inside the border, found {smallest}; "
            "measure larger frames"
        )
    inside = slice(border_px, -border_px or None)
    fake, real = fake_YXC[inside, inside], real_YXC[inside, inside]
    fake_y, real_y = rgb_to_y_bt601_array(fake), rgb_to_y_bt601_array(real)
    return FrameFidelity(
        psnr_y=psnr(fake_y, real_y),
        ssim_y=ssim(fake_y, real_y),
        psnr_rgb=psnr(fake, real),
        ssim_rgb=ssim(fake, real),
    )
