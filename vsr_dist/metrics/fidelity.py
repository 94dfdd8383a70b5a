"""PSNR and SSIM of frames against their ground truth, on the CPU and on GPUs.

Protocol: uint8 RGB frames whose border has been cut; luma is BT.601 in studio range. The peak is 255, for luma as
well. SSIM has the settings of Wang et al. 2004: Gaussian window of sigma 1.5 (11 x 11), population covariance; for RGB
it is the mean over the channels. Numbers of a clip or a set are means of the numbers per frame.

Both are written with the sum s and the difference d of the two images x and y, which needs four filtered maps
instead of five and loses no digits where the images are alike, so that float32 is exact enough for SSIM:

    mu_x mu_y = (G(s)^2 - G(d)^2) / 4          mu_x^2 + mu_y^2 = (G(s)^2 + G(d)^2) / 2
    cov_xy    = (var(s) - var(d)) / 4          var(x) + var(y) = (var(s) + var(d)) / 2      var(m) = G(m^2) - G(m)^2

PSNR comes from sums of integers. On the CPU one frame is a matter of strips that stay in the processor's cache; on any
other device the whole batch is one tensor, in float64. Both equal scikit-image within 1e-6
(benchmarks/results/metric_parity.json).

Axes: T frames, Y X rows and columns, C channels (RGB), N planes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vsr_dist.core.errors import BadInputError, UserError
from vsr_dist.ops.color import BT601_BLACK, BT601_BLUE, BT601_GREEN, BT601_RED, ByteArray, rgb_to_y_bt601_array

FIDELITY = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")
PEAK = 255.0
# Equal images have an infinite PSNR, which no mean and no JSON file can hold. One wrong grey level in one value of a
# 3 x 1000 x 1000 image is 113 dB, so only frames that look equal reach the cap.
PSNR_CAP_DB = 100.0
SSIM_WINDOW_PX = 11
_SIGMA = 1.5
_RADIUS_PX = SSIM_WINDOW_PX // 2
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
_STRIP_ROWS, _STRIP_COLUMNS = 128, 1280
_LUMA = np.array([BT601_RED, BT601_GREEN, BT601_BLUE]) / 255.0

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Scores = dict[str, float]


def frame_fidelity(
    fake_YXC: ByteArray, real_YXC: ByteArray, wanted: Sequence[str] = FIDELITY, round_luma: bool = False
) -> Scores:
    """The wanted ones of `FIDELITY` for one frame, on the CPU; releases the interpreter for other threads.

    `round_luma`: luma is rounded to 8 bits first. BadInputError for unequal shapes and for frames too small for SSIM's
    window.
    """
    _check((1, *fake_YXC.shape), (1, *real_YXC.shape), wanted)
    fake_YXC, real_YXC = np.ascontiguousarray(fake_YXC), np.ascontiguousarray(real_YXC)
    scores: Scores = {}
    lumas = None
    if "ssim_y" in wanted or ("psnr_y" in wanted and round_luma):
        lumas = tuple(_luma(frame, round_luma) for frame in (fake_YXC, real_YXC))
    if "psnr_y" in wanted:
        scores["psnr_y"] = _psnr(
            _mean_square(*lumas) if round_luma and lumas else _luma_mean_square(fake_YXC, real_YXC)
        )
    if "ssim_y" in wanted and lumas:
        scores["ssim_y"] = _ssim_plane(*lumas)
    if "psnr_rgb" in wanted:
        scores["psnr_rgb"] = _psnr(_mean_square(fake_YXC, real_YXC))
    if "ssim_rgb" in wanted:
        planes = zip(cv2.split(fake_YXC), cv2.split(real_YXC), strict=True)
        scores["ssim_rgb"] = float(np.mean([_ssim_plane(fake, real) for fake, real in planes]))
    return scores


def batch_fidelity(
    fake_TYXC: Tensor, real_TYXC: Tensor, wanted: Sequence[str] = FIDELITY, round_luma: bool = False
) -> list[Scores]:
    """As `frame_fidelity`, for a batch on its device with tensor operations; frame by frame, to save memory."""
    _check(tuple(fake_TYXC.shape), tuple(real_TYXC.shape), wanted)
    columns: dict[str, list[Tensor]] = {name: [] for name in FIDELITY if name in wanted}
    # Apple's GPUs have no float64; the sums below are exact enough in float32 as well (module docstring).
    dtype = torch.float32 if fake_TYXC.device.type == "mps" else torch.float64
    for fake_YXC, real_YXC in zip(fake_TYXC, real_TYXC, strict=True):
        rgb = [frame.permute(2, 0, 1).to(dtype) for frame in (fake_YXC, real_YXC)]
        luma = [_luma_tensor(frame, round_luma) for frame in rgb]
        for kind, (fake_NYX, real_NYX) in (("y", luma), ("rgb", rgb)):
            if f"psnr_{kind}" in columns:
                columns[f"psnr_{kind}"].append((fake_NYX - real_NYX).square().mean())
            if f"ssim_{kind}" in columns:
                columns[f"ssim_{kind}"].append(_ssim_tensor(fake_NYX, real_NYX))
    # One transfer for the whole batch: each would wait for the device.
    table = torch.stack([torch.stack(values) for values in columns.values()]).cpu().tolist()
    return [
        {name: _psnr(value) if name.startswith("psnr") else value for name, value in zip(columns, frame, strict=True)}
        for frame in zip(*table, strict=True)
    ]


def _check(fake: tuple[int, ...], real: tuple[int, ...], wanted: Sequence[str]) -> None:
    if fake != real:
        raise BadInputError(f"PSNR: expected equal shapes, found {fake[1:]} and {real[1:]}")
    smallest = min(real[1:3])
    if smallest < SSIM_WINDOW_PX and any(name.startswith("ssim") for name in wanted):
        raise BadInputError(
            f"SSIM: expected at least {SSIM_WINDOW_PX} pixels inside the border, found {smallest}; "
            "measure larger frames"
        )


def _psnr(mean_square: float) -> float:
    """dB with a peak of 255, at most `PSNR_CAP_DB`."""
    return PSNR_CAP_DB if mean_square == 0.0 else min(PSNR_CAP_DB, float(10.0 * np.log10(PEAK**2 / mean_square)))


def _luma(frame_YXC: ByteArray, rounded: bool) -> Float32Array | ByteArray:
    """BT.601 studio-range luma. For rounding float64 decides, as everywhere else, on which side a value lies."""
    if rounded:
        exact = cv2.transform(frame_YXC.astype(np.float64), np.append(_LUMA, BT601_BLACK)[None])
        return np.asarray(np.rint(exact), np.uint8)
    weights = np.append(_LUMA, BT601_BLACK).astype(np.float32)
    return np.asarray(cv2.transform(frame_YXC.astype(np.float32), weights[None]), np.float32)


def _mean_square(fake: ByteArray | Float32Array, real: ByteArray | Float32Array) -> float:
    return float(cv2.norm(fake, real, cv2.NORM_L2SQR)) / fake.size


def _luma_mean_square(fake_YXC: ByteArray, real_YXC: ByteArray) -> float:
    """Mean square of the luma's error, from the sums of products of the channels' errors, which are integers.

    sum (a_1 e_1 + a_2 e_2 + a_3 e_3)^2 with 2 sum e_1 e_2 = sum (e_1 + e_2)^2 - sum e_1^2 - sum e_2^2.
    """
    errors = cv2.split(cv2.subtract(fake_YXC, real_YXC, dtype=cv2.CV_16S))
    squares = [float(cv2.norm(error, cv2.NORM_L2SQR)) for error in errors]
    total = float(_LUMA**2 @ squares)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        both = float(cv2.norm(cv2.add(errors[first], errors[second]), cv2.NORM_L2SQR))
        total += _LUMA[first] * _LUMA[second] * (both - squares[first] - squares[second])
    num_pixels = fake_YXC.shape[0] * fake_YXC.shape[1]
    return float(max(0.0, total) / num_pixels)


def _kernel() -> Float64Array:
    offsets = np.arange(-_RADIUS_PX, _RADIUS_PX + 1)
    line = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel: Float64Array = line / line.sum()
    return kernel


# OpenCV's type, kernel and how much a variance may be off, in units of the squared mean, for both precisions.
_Precision = tuple[int, npt.NDArray[Any], float]
_SINGLE: _Precision = (cv2.CV_32F, _kernel().astype(np.float32), float(np.finfo(np.float32).eps) / 2.0)
_DOUBLE: _Precision = (cv2.CV_64F, _kernel(), float(np.finfo(np.float64).eps) / 2.0)
_ALLOWED_ERROR = 8e-7


def _ssim_plane(fake_YX: ByteArray | Float32Array, real_YX: ByteArray | Float32Array) -> float:
    """Mean SSIM over the positions where the window lies inside, tile by tile.

    In float32; where that may not be exact enough (noise on large bright and dark areas), the tiles that are most in
    doubt once more in float64.
    """
    rows, columns = (_cuts(side, step) for side, step in zip(fake_YX.shape, (_STRIP_ROWS, _STRIP_COLUMNS), strict=True))
    # The smaller the numbers, the more digits are left for the variance, which no shift changes.
    means = [cv2.mean(plane)[0] for plane in (fake_YX, real_YX)]
    shifts = (float(round(means[0] + means[1])), float(round(means[0] - means[1])))
    tiles = list(itertools.product(rows, columns))
    found = [_ssim_tile(fake_YX[tile], real_YX[tile], shifts, _SINGLE) for tile in tiles]
    num_positions = (fake_YX.shape[0] - 2 * _RADIUS_PX) * (fake_YX.shape[1] - 2 * _RADIUS_PX)
    total, error = (sum(column) for column in zip(*found, strict=True))
    for number in sorted(range(len(tiles)), key=lambda number: -found[number][1]):
        if error <= _ALLOWED_ERROR * num_positions:
            break
        exact, _ = _ssim_tile(fake_YX[tiles[number]], real_YX[tiles[number]], shifts, _DOUBLE)
        total += exact - found[number][0]
        error -= found[number][1]
    return float(total / num_positions)


def _cuts(size_px: int, step_px: int) -> list[slice]:
    """Parts of a side with the window's radius around them; the positions inside come once."""
    starts = range(_RADIUS_PX, size_px - _RADIUS_PX, step_px)
    return [slice(start - _RADIUS_PX, min(start + step_px, size_px - _RADIUS_PX) + _RADIUS_PX) for start in starts]


def _ssim_tile(
    fake_YX: ByteArray | Float32Array,
    real_YX: ByteArray | Float32Array,
    shifts: tuple[float, float],
    precision: _Precision,
) -> tuple[float, float]:
    """(sum of SSIM over a tile, about how much it may be off by rounding).

    Wang et al. 2004, equation 13, in the terms of the module docstring: a and b are the sum and the difference of the
    first factor's means, p and q the same of the second factor's variances, each with its constant.
    """
    kind, kernel, digit = precision
    s = cv2.addWeighted(fake_YX, 1.0, real_YX, 1.0, -shifts[0], dtype=kind)
    d = cv2.addWeighted(fake_YX, 1.0, real_YX, -1.0, -shifts[1], dtype=kind)
    p, q = _blurred(cv2.multiply(s, s), kernel, 2 * _C2), _blurred(cv2.multiply(d, d), kernel, 0.0)
    s, d = _blurred(s, kernel, 0.0), _blurred(d, kernel, 0.0)
    square_s, square_d = cv2.multiply(s, s), cv2.multiply(d, d)
    p -= square_s
    q -= square_d
    error = digit * _sensitivity(p, q, square_s, square_d)
    a = cv2.addWeighted(square_s, 1.0, s, 2 * shifts[0], shifts[0] ** 2 + 2 * _C1, dst=s)
    b = cv2.addWeighted(square_d, 1.0, d, 2 * shifts[1], shifts[1] ** 2, dst=d)
    above = cv2.subtract(a, b, dst=square_s)
    below = cv2.add(a, b, dst=square_d)
    above *= cv2.subtract(p, q, dst=s)
    below *= cv2.add(p, q, dst=d)
    return float(cv2.sumElems(cv2.divide(above, below, dst=above))[0]), error * above.size


def _blurred(plane_YX: npt.NDArray[Any], kernel: npt.NDArray[Any], added: float) -> npt.NDArray[Any]:
    """The Gaussian, plus a constant, where the window lies inside."""
    inside = slice(_RADIUS_PX, -_RADIUS_PX)
    whole: npt.NDArray[Any] = cv2.sepFilter2D(plane_YX, -1, kernel, kernel, delta=added)
    return whole[inside, inside]


def _sensitivity(
    p: npt.NDArray[Any], q: npt.NDArray[Any], square_s: npt.NDArray[Any], square_d: npt.NDArray[Any]
) -> float:
    """By how much the mean SSIM moves if each variance moves by its squared mean: derivatives of the last factor."""
    p, q, square_s, square_d = (plane[::8, ::8] for plane in (p, q, square_s, square_d))
    return 2.0 * float(np.abs((q * square_s + p * square_d) / np.square(p + q)).mean())


def _luma_tensor(rgb_CYX: Tensor, rounded: bool) -> Tensor:
    weights = torch.tensor(_LUMA.tolist(), dtype=rgb_CYX.dtype, device=rgb_CYX.device)
    luma_NYX = torch.einsum("c,cyx->yx", weights, rgb_CYX)[None] + BT601_BLACK
    return luma_NYX.round() if rounded else luma_NYX


def _ssim_tensor(fake_NYX: Tensor, real_NYX: Tensor) -> Tensor:
    """Mean SSIM over planes and positions, 0-d, on the device."""
    total, error = fake_NYX + real_NYX - PEAK, fake_NYX - real_NYX
    mean_s, mean_d, square_s, square_d = _blur(torch.stack((total, error, total.square(), error.square())))
    var_s, var_d = square_s - mean_s.square(), square_d - mean_d.square()
    mean_s2, mean_d2 = (mean_s + PEAK).square(), mean_d.square()
    above = (mean_s2 - mean_d2 + 2 * _C1) * (var_s - var_d + 2 * _C2)
    mean: Tensor = (above / ((mean_s2 + mean_d2 + 2 * _C1) * (var_s + var_d + 2 * _C2))).mean()
    return mean


def _blur(planes: Tensor) -> Tensor:
    """The Gaussian over the last two axes, valid positions only.

    A sum of shifted planes: a convolution would run in TF32 on a GPU, or in float64 without a fast path.
    """
    for axis in (-1, -2):
        size = planes.shape[axis] - 2 * _RADIUS_PX
        blurred = torch.zeros_like(planes.narrow(axis, 0, size))
        for place, weight in enumerate(_kernel().tolist()):
            blurred.add_(planes.narrow(axis, place, size), alpha=weight)
        planes = blurred
    return planes


def check_against_scikit_image(fake_YXC: ByteArray, real_YXC: ByteArray, found: Scores, round_luma: bool) -> None:
    """Raise UserError unless scikit-image measures the same on this machine, within 1e-4 dB of PSNR and 1e-5 of SSIM.

    `found`: what `frame_fidelity` or `batch_fidelity` returned for the frame. Our own code is several times as fast;
    this guards published numbers against a build of OpenCV, NumPy or torch that computes wrongly on a processor.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # noqa: PLC0415 - half a second

    options: dict[str, Any] = {"data_range": PEAK, "gaussian_weights": True, "sigma": _SIGMA}
    options["use_sample_covariance"] = False
    for name, value in found.items():
        pair: tuple[Any, Any] = (real_YXC.astype(np.float64), fake_YXC.astype(np.float64))
        if name.endswith("_y"):
            lumas = (rgb_to_y_bt601_array(image_YXC) for image_YXC in (real_YXC, fake_YXC))
            real_YX, fake_YX = (np.rint(luma) if round_luma else luma for luma in lumas)
            pair = (real_YX, fake_YX)
        if name.startswith("psnr"):
            with np.errstate(divide="ignore"):
                expected, allowed = min(PSNR_CAP_DB, peak_signal_noise_ratio(*pair, data_range=PEAK)), 1e-4
        else:
            axis = None if name.endswith("_y") else -1
            expected, allowed = structural_similarity(*pair, channel_axis=axis, **options), 1e-5
        if not abs(value - expected) <= allowed:
            raise UserError(
                f"{name} is {value:.6f}, but scikit-image measures {expected:.6f} on the same frame: a package "
                "computes wrongly on this machine; reinstall opencv-python-headless, numpy and torch"
            )
