"""The quick PSNR and SSIM against scikit-image's, on every kind of frame that could lose digits."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from metric_references import scikit_fidelity

from vsr_dist.core.errors import BadInputError
from vsr_dist.metrics.fidelity import PSNR_CAP_DB
from vsr_dist.metrics.fidelity_batched import FIDELITY, fidelity, fidelity_of_tensors, frame_fidelity_fast

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
    assert frame_fidelity_fast(fake, real, FIDELITY, rounded) == pytest.approx(expected, abs=1e-6)
    tensors = [torch.from_numpy(np.stack([frame, frame[::-1]])) for frame in (fake, real)]
    found = fidelity_of_tensors(*tensors, FIDELITY, rounded)
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert found[1] == pytest.approx(expected, abs=1e-6)


def test_only_what_is_wanted_and_in_batches():
    fake, real = (torch.from_numpy(np.stack([frame] * 3)) for frame in _frames("texture"))
    fake[1] = real[1]
    scores = fidelity(fake, real, ("ssim_rgb", "psnr_y"))
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
    found = frame_fidelity_fast(fake[inside], real[inside], FIDELITY)
    assert found == pytest.approx(scikit_fidelity(fake[inside], real[inside], False), abs=1e-6)


def test_mistakes_are_answered():
    frame = np.zeros((20, 10, 3), np.uint8)
    with pytest.raises(BadInputError, match="at least 11 pixels inside the border, found 10"):
        frame_fidelity_fast(frame, frame, ("ssim_y",))
    assert frame_fidelity_fast(frame, frame, ("psnr_y",)) == {"psnr_y": PSNR_CAP_DB}
    with pytest.raises(BadInputError, match="equal shapes"):
        frame_fidelity_fast(frame, frame[:15], FIDELITY)
    with pytest.raises(BadInputError, match="equal shapes"):
        fidelity(torch.zeros(1, 20, 20, 3, dtype=torch.uint8), torch.zeros(1, 20, 21, 3, dtype=torch.uint8), FIDELITY)
