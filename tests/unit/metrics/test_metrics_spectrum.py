"""Band powers and the spectral probe on images whose spectrum is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vsr_dist.metrics.drift import auc
from vsr_dist.metrics.spectrum import NUM_BANDS, band_powers, fit_probe, high_frequency_gap

# Luma of (v, v, v) is 219 / 255 v + 16 / 255 (ITU-R BT.601).
LUMA_GAIN = 219.0 / 255.0


def gray(image_YX):
    return image_YX.expand(1, 3, *image_YX.shape)


@pytest.mark.parametrize("cycles", [1, 9, 17, 31])
def test_a_wave_lies_in_its_band(cycles):
    """64 pixels: `cycles` / 64 per pixel is band floor(cycles / 64 / 0.5 * 16) = cycles // 2."""
    phase = 2 * math.pi * cycles * torch.arange(64) / 64
    powers = band_powers(gray(0.5 + 0.4 * torch.cos(phase).expand(64, 64)))
    assert int(np.argmax(powers)) == cycles // 2
    far = [power for band, power in enumerate(powers) if abs(band - cycles // 2) > 2]
    assert max(far) < powers.max() - 6.0, "the Hann window keeps the leakage away"


def test_white_noise_is_flat_at_its_variance():
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(200, 1, 32, 32, generator=generator).expand(-1, 3, -1, -1)
    hann = torch.hann_window(32, periodic=False)
    expected = math.log((LUMA_GAIN * 0.1) ** 2 * float(hann.square().mean()) ** 2)
    powers = band_powers(noise)
    # The mean that is taken out of each frame is missing in the lowest band.
    assert powers[1:] == pytest.approx(np.full(NUM_BANDS - 1, expected), abs=0.1)


def test_a_flat_image_has_the_floor_power():
    assert band_powers(gray(torch.full((24, 24), 0.7))) == pytest.approx(np.full(NUM_BANDS, math.log(1e-10)), abs=0.1)


def test_high_frequency_gap_of_a_scaled_image():
    """Half the contrast is a quarter of the power: the gap is ln 0.25 in every band."""
    image = 0.5 + 0.3 * torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1)
    real, fake = (np.stack([band_powers(frame[None]) for frame in clip]) for clip in (image, 0.5 * image))
    assert high_frequency_gap(real, fake) == pytest.approx(math.log(0.25), abs=1e-3)
    assert high_frequency_gap(real, real) == 0.0


def test_the_probe_separates_what_differs_and_nothing_else():
    numbers = np.random.default_rng(0)
    mean = numbers.normal(size=NUM_BANDS)
    real, fake, same = (numbers.normal(mean, 1.0, size=(64, NUM_BANDS)) for _ in range(3))
    fake[:, 12:] -= 3.0
    probe = fit_probe(real[:32], fake[:32])
    assert auc(probe.scores(real[32:]), probe.scores(fake[32:])) > 0.98
    blind = fit_probe(real[:32], same[:32])
    assert 0.3 < auc(blind.scores(real[32:]), blind.scores(same[32:])) < 0.7


def test_the_probe_is_the_minimum_of_its_loss():
    numbers = np.random.default_rng(1)
    real, fake = numbers.normal(0.5, 1.0, size=(20, 4)), numbers.normal(0.0, 2.0, size=(20, 4))
    probe = fit_probe(real, fake)

    def loss(weights):
        standard = (np.concatenate((real, fake)) - probe.mean) / probe.spread
        logits = standard @ weights[:-1] + weights[-1]
        signed = np.concatenate((-logits[:20], logits[20:]))
        return np.mean(np.log1p(np.exp(signed))) + 0.005 * np.sum(weights[:-1] ** 2)

    least = loss(probe.weights)
    for change in np.eye(5) * 1e-3:
        assert loss(probe.weights + change) > least and loss(probe.weights - change) > least


def test_the_probe_stands_what_separates_perfectly_and_what_does_not_vary():
    real, fake = np.ones((8, 3)), np.ones((8, 3))
    fake[:, 0] = -1.0
    scores = [fit_probe(real, fake).scores(part) for part in (real, fake)]
    assert scores[0].min() > 0.0 > scores[1].max() and np.isfinite(scores).all()
