"""PSNR and SSIM on constructed frames and against a direct transcription of SSIM."""

from __future__ import annotations

import numpy as np
import pytest

from vsr_dist.core.errors import BadInputError
from vsr_dist.metrics.fidelity import PSNR_CAP_DB, frame_fidelity, psnr, ssim


def _frame(seed=0, side=40):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_psnr_of_a_known_error():
    real = np.full((8, 8), 100, np.uint8)
    assert psnr(real + 5, real) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(real, real) == PSNR_CAP_DB


def test_equal_frames_are_perfect():
    frame = _frame()
    result = frame_fidelity(frame, frame, border_px=4)
    assert (result.psnr_y, result.psnr_rgb) == (PSNR_CAP_DB, PSNR_CAP_DB)
    assert result.ssim_y == pytest.approx(1.0) and result.ssim_rgb == pytest.approx(1.0)


def test_luma_error_is_the_scaled_grey_error():
    real = np.full((32, 32, 3), 100, np.uint8)
    result = frame_fidelity(real + 10, real, border_px=0)
    assert result.psnr_rgb == pytest.approx(10 * np.log10(255**2 / 100))
    # Studio range shrinks a grey step by 219/255.
    assert result.psnr_y == pytest.approx(10 * np.log10(255**2 / (10 * 219 / 255) ** 2), abs=1e-6)


def test_border_is_left_out():
    real = _frame()
    fake = real.copy()
    fake[:4], fake[-4:], fake[:, :4], fake[:, -4:] = 0, 0, 0, 0
    assert frame_fidelity(fake, real, border_px=4).psnr_rgb == PSNR_CAP_DB
    assert frame_fidelity(fake, real, border_px=3).psnr_rgb < 40


def _ssim_by_hand(first, second):
    """Wang et al. 2004, equations 13 to 16: 11 x 11 Gaussian of sigma 1.5, valid positions only."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(first.shape[0] - 10):
        for j in range(first.shape[1] - 10):
            x, y = first[i : i + 11, j : j + 11], second[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


def test_ssim_equals_its_definition():
    first = _frame(1, 24)[..., 0].astype(float)
    second = np.clip(first + np.random.default_rng(2).normal(0, 20, first.shape), 0, 255)
    assert ssim(first, second) == pytest.approx(_ssim_by_hand(first, second), abs=1e-9)


def test_mistakes_are_answered():
    with pytest.raises(BadInputError, match="equal shapes"):
        frame_fidelity(_frame(), _frame(side=41), border_px=0)
    with pytest.raises(BadInputError, match="at least 11"):
        frame_fidelity(_frame(side=16), _frame(side=16), border_px=4)
