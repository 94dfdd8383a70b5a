"""Temporal metrics on clips whose motion and flicker are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from vsr_dist.core.errors import BadInputError
from vsr_dist.losses.temporal import temporal_difference
from vsr_dist.metrics.temporal import tdiff, tof, warping_error


def _texture(side=160):
    noise = np.random.default_rng(0).normal(size=(side, side, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def _moving(step_px, num_frames=6, side=112):
    texture = _texture()
    return np.stack([texture[16 : 16 + side, 40 - t * step_px :][:, :side] for t in range(num_frames)])


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
    assert tof(_moving(2), _moving(2)) == 0.0
    assert tof(_moving(3), _moving(1)) == pytest.approx(2.0, abs=0.15)


def _tecogan_tof(fake, real, cut=2):
    """metrics.py of TecoGAN, written out: flow of whole frames, of which the centre is kept."""
    grays = [[cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip] for clip in (fake, real)]
    height, width = real.shape[1:3]
    rows, columns = height // 32 * 32, width // 32 * 32
    while rows > height - 16:
        rows -= 32
    while columns > width - 16:
        columns -= 32
    top, left = (height - rows) // 2, (width - columns) // 2
    lengths = []
    for t in range(cut + 1, len(real) - cut):
        flows = [
            cv2.calcOpticalFlowFarneback(gray[t - 1], gray[t], None, 0.5, 3, 15, 3, 5, 1.2, 0)[
                top : top + rows, left : left + columns
            ]
            for gray in grays
        ]
        difference = np.absolute(flows[1] - flows[0])
        lengths.append(np.sqrt(np.sum(difference * difference, axis=-1)).mean())
    return np.mean(lengths)


@pytest.mark.parametrize(("side", "cut"), [(112, 2), (100, 0), (61, 1)])
def test_tof_equals_tecogans(side, cut):
    real = _moving(2, num_frames=7, side=side)
    fake = cv2.blur(_moving(1, num_frames=7, side=side).transpose(1, 2, 3, 0).reshape(side, side, -1), (3, 3))
    fake = np.ascontiguousarray(fake.reshape(side, side, 3, 7).transpose(3, 0, 1, 2))
    assert tof(fake, real, trim_frames=cut) == pytest.approx(_tecogan_tof(fake, real, cut), rel=1e-6)
    assert tof(fake, real, trim_frames=cut) > 0.5


def test_tof_trims_frames_and_crops():
    real, fake = _moving(1, num_frames=6), _moving(1, num_frames=6)
    fake[:2], fake[-2:] = 0, 0
    assert tof(fake, real) == 0.0
    assert tof(fake, real, trim_frames=0) > 0.0
    fake = real.copy()
    fake[:, :8], fake[:, -8:] = 0, 0
    assert tof(fake, real) < 0.5 * tof(fake, real, crop_to_multiple=False), "96 of 112 rows are kept"


def test_warping_error_is_small_for_motion_and_sees_flicker():
    real = _moving(2)
    flicker = real.copy()
    flicker[1::2] = np.clip(flicker[1::2].astype(int) + 20, 0, 255).astype(np.uint8)
    steady = warping_error(real, real)
    assert steady < 2e-4
    assert warping_error(flicker, real) == pytest.approx((20 / 255) ** 2, rel=0.15)
    assert warping_error(np.zeros_like(real), real) == 0.0


def _bilinear(image, x, y):
    """Edge pixels repeated, in float64: a transcription of FlowNet2's Resample2d."""
    height, width = image.shape[:2]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    part_x, part_y = (x - left)[..., None], (y - top)[..., None]
    columns = [np.clip(left + step, 0, width - 1) for step in (0, 1)]
    rows = [np.clip(top + step, 0, height - 1) for step in (0, 1)]
    upper = image[rows[0], columns[0]] * (1 - part_x) + image[rows[0], columns[1]] * part_x
    lower = image[rows[1], columns[0]] * (1 - part_x) + image[rows[1], columns[1]] * part_x
    return upper * (1 - part_y) + lower * part_y


def _blind_warping_error(fake, real):
    """evaluate_WarpError.py and detect_occlusion of fast_blind_video_consistency in float64, with Farneback's flow."""
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in real]
    row, column = np.mgrid[0 : real.shape[1], 0 : real.shape[2]].astype(np.float64)
    total = 0.0
    for t in range(1, len(real)):
        there, back = (
            cv2.calcOpticalFlowFarneback(gray[a], gray[b], None, 0.5, 3, 15, 3, 5, 1.2, 0).astype(np.float64)
            for a, b in ((t - 1, t), (t, t - 1))
        )
        returned = _bilinear(back, column + there[..., 0], row + there[..., 1])
        size = [np.sum(flow**2, axis=-1) for flow in (returned + there, returned, there)]
        hidden = size[0] > 0.01 * (size[1] + size[2]) + 0.5
        slope = np.zeros_like(row)
        for part in (there[..., 0], there[..., 1]):
            slope[:, :-1] += (part[:, :-1] - part[:, 1:]) ** 2
            slope[:-1] += (part[:-1] - part[1:]) ** 2
        noc = 1.0 - np.logical_or(hidden, slope > 0.01 * size[2] + 0.002)[..., None].repeat(3, axis=-1)
        warped = _bilinear(fake[t] / 255.0, column + there[..., 0], row + there[..., 1])
        total += np.sum((noc * (warped - fake[t - 1] / 255.0)) ** 2) / np.sum(noc)
    return total / (len(real) - 1)


def test_warping_error_equals_the_formula_in_float64():
    real = _moving(3, num_frames=4, side=80)
    real[2:, 20:40, 20:40] = 255 - real[2:, 30:50, 25:45]
    rng = np.random.default_rng(1)
    fake = np.clip(real + rng.normal(0, 12, real.shape), 0, 255).astype(np.uint8)
    assert warping_error(fake, real) == pytest.approx(_blind_warping_error(fake, real), rel=1e-3)
    assert warping_error(fake, real) > 1e-3


@pytest.mark.parametrize("metric", [tdiff, tof, warping_error])
def test_mistakes_are_answered(metric):
    clip = np.zeros((6, 64, 64, 3), np.uint8)
    with pytest.raises(BadInputError, match="equal shapes"):
        metric(clip, clip[:, :60])
    with pytest.raises(BadInputError, match="at least"):
        metric(clip[:1], clip[:1])


def test_tof_names_the_way_out():
    clip = np.zeros((5, 40, 40, 3), np.uint8)
    with pytest.raises(BadInputError, match="trim_frames=0"):
        tof(clip, clip)
    with pytest.raises(BadInputError, match="crop_to_multiple=False"):
        tof(clip, clip, trim_frames=0)
