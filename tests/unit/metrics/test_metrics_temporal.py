"""Temporal metrics on clips whose motion and flicker are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from metric_references import blind_warping_error, tecogan_tof

from vsr_dist.losses.temporal import temporal_difference
from vsr_dist.metrics.registry import centre_crop
from vsr_dist.metrics.temporal import TruthMotion, flicker, tdiff, tof, warping_error


def _texture(side=160):
    noise = np.random.default_rng(0).normal(size=(side, side, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def _moving(step_px, num_frames=6, side=112):
    texture = _texture()
    return np.stack([texture[16 : 16 + side, 40 - t * step_px :][:, :side] for t in range(num_frames)])


EVERYWHERE = (slice(None), slice(None))


def tof_of(fake, real, region=EVERYWHERE):
    return tof(fake, TruthMotion(real), region)


def warp_of(fake, real, region=EVERYWHERE):
    return warping_error(fake, TruthMotion(real), region)


def test_tdiff_equals_the_loss_of_listing_3():
    rng = np.random.default_rng(0)
    fake, real = rng.integers(0, 256, (2, 4, 9, 8, 3), dtype=np.uint8)
    clips = [torch.from_numpy(clip)[None].double() / 255 for clip in (fake, real)]
    assert tdiff(fake, real) == pytest.approx(temporal_difference(*clips).item(), rel=1e-12)


def test_tdiff_ignores_standing_errors():
    real = _moving(2)
    fake = np.clip(real, 0, 200)
    assert tdiff(real, real) == 0.0
    assert tdiff(np.clip(real, 40, 255) - 40 + np.uint8(40), np.clip(real, 40, 255)) == 0.0
    assert tdiff(fake, real) > 0.0


def test_tof_is_the_difference_of_speeds():
    assert tof_of(_moving(2), _moving(2)) == 0.0
    assert tof_of(_moving(3), _moving(1)) == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize(("side", "cut"), [(112, 2), (100, 0), (61, 1)])
def test_tof_equals_tecogans(side, cut):
    real = _moving(2, num_frames=7, side=side)
    fake = cv2.blur(_moving(1, num_frames=7, side=side).transpose(1, 2, 3, 0).reshape(side, side, -1), (3, 3))
    fake = np.ascontiguousarray(fake.reshape(side, side, 3, 7).transpose(3, 0, 1, 2))
    kept = slice(cut, 7 - cut)
    found = tof_of(fake[kept], real[kept], centre_crop(side, side))
    assert found == pytest.approx(tecogan_tof(fake, real, cut), rel=1e-6)
    assert found > 0.5


@pytest.mark.parametrize("metric", [tof_of, warp_of])
def test_only_the_region_counts(metric):
    real = _moving(1, num_frames=4)
    fake = real.copy()
    fake[1::2, :8], fake[1::2, -8:] = 0, 0
    assert metric(fake, real, centre_crop(112, 112)) < 0.5 * metric(fake, real)


def test_warping_error_is_small_for_motion_and_sees_flicker():
    real = _moving(2)
    flicker = real.copy()
    flicker[1::2] = np.clip(flicker[1::2].astype(int) + 20, 0, 255).astype(np.uint8)
    steady = warp_of(real, real)
    assert steady < 2e-4
    assert warp_of(flicker, real) == pytest.approx((20 / 255) ** 2, rel=0.15)
    assert warp_of(np.zeros_like(real), real) == 0.0


def test_warping_error_equals_the_formula_in_float64():
    real = _moving(3, num_frames=4, side=80)
    real[2:, 20:40, 20:40] = 255 - real[2:, 30:50, 25:45]
    rng = np.random.default_rng(1)
    fake = np.clip(real + rng.normal(0, 12, real.shape), 0, 255).astype(np.uint8)
    assert warp_of(fake, real) == pytest.approx(blind_warping_error(fake, real), rel=1e-3)
    assert warp_of(fake, real) > 1e-3


def test_flicker_equals_a_loop_over_static_pixels():
    rng = np.random.default_rng(2)
    real = np.repeat(rng.integers(0, 250, (1, 20, 24, 3), dtype=np.uint8), 2, axis=0)
    real[1, :, 12:] += rng.integers(0, 6, (20, 12, 3), dtype=np.uint8)
    fake = rng.integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)

    def luma(rgb):
        red, green, blue = (int(value) for value in rgb)
        return 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255

    changes = [
        abs(luma(fake[1, y, x]) - luma(fake[0, y, x]))
        for y in range(20)
        for x in range(24)
        if abs(luma(real[1, y, x]) - luma(real[0, y, x])) < 1
    ]
    assert 240 < len(changes) < 300, "some of the noisy half moves less than a level"
    assert flicker(fake, real) == pytest.approx(np.mean(changes), rel=1e-12)


def test_flicker_is_the_size_of_a_flash_and_absent_without_static_pixels():
    real = np.full((64, 64, 3), 100, np.uint8)
    flash = real + np.uint8(10)
    still = np.stack([real, real, real])
    assert flicker(np.stack([real, flash, real]), still) == pytest.approx(10 * 219 / 255)
    assert flicker(still, still) == 0.0
    assert flicker(still[:2], np.stack([real, flash])) is None
    # The mean is over the pairs that have a value.
    assert flicker(np.stack([real, flash, real]), np.stack([real, real, flash])) == pytest.approx(10 * 219 / 255)
