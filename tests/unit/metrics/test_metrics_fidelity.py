"""PSNR and SSIM: known cases, and scikit-image's numbers on every kind of frame that could lose digits."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from metric_references import scikit_fidelity

from vsr_dist.core.errors import BadInputError, UserError
from vsr_dist.metrics.fidelity import (
    FIDELITY,
    PSNR_CAP_DB,
    batch_fidelity,
    check_against_scikit_image,
    frame_fidelity,
)

HEIGHT, WIDTH = 61, 83


def _frames(kind):
    rng = np.random.default_rng(0)
    shape = (HEIGHT, WIDTH, 3)
    texture = np.clip(128 + 900 * (cv2.GaussianBlur(rng.random(shape), (0, 0), 3) - 0.5), 0, 255)
    black, white = np.zeros(shape), np.full(shape, 255.0)
    one_value = texture.copy().round()
    one_value[30, 40, 2] += 1 if one_value[30, 40, 2] < 255 else -1
    found = {
        "texture": (texture, texture + rng.normal(0, 8, shape)),
        "noise": (rng.integers(0, 256, shape), rng.integers(0, 256, shape)),
        "black on white": (black, white),
        "one level": (white, white - 1),
        "bright flicker": (white - rng.integers(0, 2, shape), white - rng.integers(0, 2, shape)),
        "one value": (texture.round(), one_value),
        "no luma": (texture * 0 + 100, texture * 0 + [102, 99, 100]),
    }[kind]
    return tuple(np.clip(np.round(frame), 0, 255).astype(np.uint8) for frame in found)


KINDS = ["texture", "noise", "black on white", "one level", "bright flicker", "one value", "no luma"]


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_scikit_image(kind, rounded):
    fake, real = _frames(kind)
    expected = scikit_fidelity(fake, real, rounded)
    assert frame_fidelity(fake, real, FIDELITY, rounded) == pytest.approx(expected, abs=1e-6)
    tensors = [torch.from_numpy(np.stack([frame, frame[::-1]])) for frame in (fake, real)]
    found = batch_fidelity(*tensors, FIDELITY, rounded)
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert found[1] == pytest.approx(expected, abs=1e-6)


def test_only_what_is_wanted_and_in_batches():
    fake, real = (torch.from_numpy(np.stack([frame] * 3)) for frame in _frames("texture"))
    fake[1] = real[1]
    scores = batch_fidelity(fake, real, ("ssim_rgb", "psnr_y"))
    assert [set(frame) for frame in scores] == [{"ssim_rgb", "psnr_y"}] * 3
    assert scores[1]["psnr_y"] == PSNR_CAP_DB
    assert scores[1]["ssim_rgb"] == pytest.approx(1.0, abs=1e-9)
    assert scores[0] == scores[2]
    assert scores[0]["psnr_y"] < 40


def test_frames_larger_than_a_strip_and_parts_of_frames():
    rng = np.random.default_rng(3)
    real = np.repeat(rng.integers(0, 256, (150, 20, 3), dtype=np.uint8), 3, axis=1)
    fake = cv2.blur(real, (3, 3))
    inside = (slice(4, -4), slice(4, -4))
    found = frame_fidelity(fake[inside], real[inside], FIDELITY)
    assert found == pytest.approx(scikit_fidelity(fake[inside], real[inside], False), abs=1e-6)


def test_mistakes_are_answered():
    frame = np.zeros((20, 10, 3), np.uint8)
    with pytest.raises(BadInputError, match="at least 11 pixels inside the border, found 10"):
        frame_fidelity(frame, frame, ("ssim_y",))
    assert frame_fidelity(frame, frame, ("psnr_y",)) == {"psnr_y": PSNR_CAP_DB}
    with pytest.raises(BadInputError, match="equal shapes"):
        frame_fidelity(frame, frame[:15], FIDELITY)
    with pytest.raises(BadInputError, match="equal shapes"):
        batch_fidelity(
            torch.zeros(1, 20, 20, 3, dtype=torch.uint8), torch.zeros(1, 20, 21, 3, dtype=torch.uint8), FIDELITY
        )


def test_known_cases():
    real = np.full((32, 32, 3), 100, np.uint8)
    scores = frame_fidelity(real + 10, real)
    assert scores["psnr_rgb"] == pytest.approx(10 * np.log10(255**2 / 100))
    # Studio range shrinks a grey step by 219/255.
    assert scores["psnr_y"] == pytest.approx(10 * np.log10(255**2 / (10 * 219 / 255) ** 2), abs=1e-6)
    same = frame_fidelity(real, real)
    assert (same["psnr_y"], same["psnr_rgb"]) == (PSNR_CAP_DB, PSNR_CAP_DB)
    assert (same["ssim_y"], same["ssim_rgb"]) == pytest.approx((1.0, 1.0))


def test_ssim_equals_its_definition():
    """Wang et al. 2004, equations 13 to 16: 11 x 11 Gaussian of sigma 1.5, valid positions only, mean over channels."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, 256, (24, 24, 3), np.uint8)
    second = np.clip(first + rng.normal(0, 20, first.shape), 0, 255).round().astype(np.uint8)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line)[..., None] / line.sum() ** 2
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(14):
        for j in range(14):
            x, y = (frame[i : i + 11, j : j + 11].astype(float) for frame in (first, second))
            mx, my = (window * x).sum((0, 1)), (window * y).sum((0, 1))
            vx, vy = (window * (x - mx) ** 2).sum((0, 1)), (window * (y - my) ** 2).sum((0, 1))
            cov = (window * (x - mx) * (y - my)).sum((0, 1))
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert frame_fidelity(second, first)["ssim_rgb"] == pytest.approx(np.mean(values), abs=1e-6)


@pytest.mark.parametrize("rounded", [False, True])
def test_evaluation_is_checked_against_scikit_image(rounded):
    real = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    fake = (real.astype(int) + np.random.default_rng(1).integers(-9, 10, real.shape)).clip(0, 255).astype(np.uint8)
    found = frame_fidelity(fake, real, FIDELITY, rounded)
    check_against_scikit_image(fake, real, found, rounded)
    check_against_scikit_image(real, real, frame_fidelity(real, real, FIDELITY, rounded), rounded)
    for name, moved in (("psnr_y", 0.001), ("ssim_rgb", 0.0001), ("psnr_rgb", math.nan)):
        with pytest.raises(UserError, match=f"^{name} is .*, but scikit-image measures"):
            check_against_scikit_image(fake, real, {name: found[name] + moved}, rounded)
