"""PSNR and SSIM of many frames, quickly: the numbers of `vsr_dist.metrics.fidelity`, which asks scikit-image.

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

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vsr_dist.core.errors import BadInputError
from vsr_dist.metrics.fidelity import PEAK, PSNR_CAP_DB, SSIM_WINDOW_PX
from vsr_dist.ops.color import BT601_BLACK, BT601_BLUE, BT601_GREEN, BT601_RED, ByteArray

FIDELITY = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")
_SIGMA = 1.5
_RADIUS_PX = SSIM_WINDOW_PX // 2
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
_STRIP_ROWS = 48
_LUMA = np.array([BT601_RED, BT601_GREEN, BT601_BLUE]) / 255.0

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Scores = dict[str, float]


def fidelity(fake_TYXC: Tensor, real_TYXC: Tensor, wanted: Sequence[str], round_luma: bool = False) -> list[Scores]:
    """The wanted ones of `FIDELITY` for every frame of two uint8 RGB batches of equal shape, on their device.

    The border is cut before. `round_luma`: luma is rounded to 8 bits first. BadInputError for unequal shapes and for
    frames too small for SSIM's window.
    """
    _check(tuple(fake_TYXC.shape), tuple(real_TYXC.shape), wanted)
    if fake_TYXC.device.type == "cpu":
        pairs = zip(fake_TYXC.numpy(), real_TYXC.numpy(), strict=True)
        return [frame_fidelity_fast(fake, real, wanted, round_luma) for fake, real in pairs]
    return fidelity_of_tensors(fake_TYXC, real_TYXC, wanted, round_luma)


def frame_fidelity_fast(
    fake_YXC: ByteArray, real_YXC: ByteArray, wanted: Sequence[str], round_luma: bool = False
) -> Scores:
    """As `fidelity`, of one frame on the CPU. Lets other threads run."""
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


def fidelity_of_tensors(
    fake_TYXC: Tensor, real_TYXC: Tensor, wanted: Sequence[str], round_luma: bool = False
) -> list[Scores]:
    """As `fidelity`, with tensor operations only: what a GPU runs. Frame by frame, which bounds the memory."""
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
    """dB with a peak of 255, capped as in `fidelity`."""
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
_SINGLE = (cv2.CV_32F, _kernel().astype(np.float32), float(np.finfo(np.float32).eps) / 2.0)
_DOUBLE = (cv2.CV_64F, _kernel(), float(np.finfo(np.float64).eps) / 2.0)
_ALLOWED_ERROR = 8e-7


def _ssim_plane(fake_YX: ByteArray | Float32Array, real_YX: ByteArray | Float32Array) -> float:
    """Mean SSIM over the positions where the window lies inside, strip by strip.

    In float32, and once more in float64 where that may not be exact enough: noise on large bright and dark areas.
    """
    height = fake_YX.shape[0]
    total = 0.0
    for top in range(_RADIUS_PX, height - _RADIUS_PX, _STRIP_ROWS):
        rows = slice(top - _RADIUS_PX, min(top + _STRIP_ROWS, height - _RADIUS_PX) + _RADIUS_PX)
        mean, error = _ssim_strip(fake_YX[rows], real_YX[rows], _SINGLE)
        if error > _ALLOWED_ERROR:
            mean, _ = _ssim_strip(fake_YX[rows], real_YX[rows], _DOUBLE)
        total += mean * (rows.stop - rows.start - 2 * _RADIUS_PX)
    return float(total / (height - 2 * _RADIUS_PX))


def _ssim_strip(
    fake_YX: ByteArray | Float32Array, real_YX: ByteArray | Float32Array, precision: tuple[int, npt.NDArray[Any], float]
) -> tuple[float, float]:
    """(mean SSIM of a strip, about how much it may be off by rounding)."""
    kind, kernel, digit = precision
    inside = slice(_RADIUS_PX, -_RADIUS_PX)
    total_YX = cv2.add(fake_YX, real_YX, dtype=kind)
    error_YX = cv2.subtract(fake_YX, real_YX, dtype=kind)
    # The smaller the numbers, the more digits are left for the variance, which no shift changes.
    shift_s, shift_d = (float(round(cv2.mean(plane)[0])) for plane in (total_YX, error_YX))
    total_YX -= shift_s
    error_YX -= shift_d
    maps = (total_YX, error_YX, total_YX * total_YX, error_YX * error_YX)
    mean_s, mean_d, var_s, var_d = (cv2.sepFilter2D(plane, -1, kernel, kernel)[inside, inside] for plane in maps)
    square_s, square_d = mean_s * mean_s, mean_d * mean_d
    var_s -= square_s
    var_d -= square_d
    error = digit * _sensitivity(*(plane[::4, ::4] for plane in (var_s, var_d, square_s, square_d)))
    mean_s += shift_s
    mean_s *= mean_s
    mean_d += shift_d
    mean_d *= mean_d
    return _mean_ssim(mean_s, mean_d, var_s, var_d), error


def _sensitivity(
    var_s: npt.NDArray[Any], var_d: npt.NDArray[Any], square_s: npt.NDArray[Any], square_d: npt.NDArray[Any]
) -> float:
    """By how much the mean SSIM moves if each variance moves by its squared mean: derivatives of the last factor."""
    structure = var_s + 2 * _C2
    moved = (var_d * square_s + structure * square_d) / np.square(structure + var_d)
    return 2.0 * float(np.abs(moved).mean())


def _mean_ssim(
    mean_s2: npt.NDArray[Any], mean_d2: npt.NDArray[Any], var_s: npt.NDArray[Any], var_d: npt.NDArray[Any]
) -> float:
    """Mean of Wang et al. 2004, equation 13, in the terms of the module docstring, each factor times 2. In place."""
    above = mean_s2 - mean_d2
    above += 2 * _C1
    mean_s2 += mean_d2
    mean_s2 += 2 * _C1
    structure = var_s - var_d
    structure += 2 * _C2
    var_s += var_d
    var_s += 2 * _C2
    above *= structure
    mean_s2 *= var_s
    above /= mean_s2
    return float(above.mean(dtype=np.float64))


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
