"""Drift metrics with known answers: scores, band powers and the spectral probe, and the verdict."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.metrics.drift import (
    MEANING,
    NUM_BANDS,
    VERDICTS,
    auc,
    band_powers,
    dead_fraction,
    drift_slope,
    fit_probe,
    gradient_ratio,
    high_frequency_gap,
    kolmogorov_smirnov,
    normalised_loss,
    paired_accuracy,
    theil_sen,
    verdict,
    verdict_sentence,
)


def test_normalised_loss():
    assert normalised_loss(math.log(2), ADVERSARIAL["rpgan"].chance) == pytest.approx(1.0)
    assert normalised_loss(0.5, 1.0) == 0.5
    with pytest.raises(ValueError, match="above 0"):
        normalised_loss(1.0, 0.0)


def test_paired_accuracy_counts_ties_half():
    assert paired_accuracy([1, 2, 3, 4], [0, 2, 5, 3]) == (2 + 0.5) / 4
    assert paired_accuracy([0, 0], [0, 0]) == 0.5
    with pytest.raises(ValueError, match="pairs"):
        paired_accuracy([1, 2], [1])
    with pytest.raises(ValueError, match="at least one"):
        paired_accuracy([], [])


def test_auc_counts_all_pairs_with_ties_half():
    real, fake = [0.0, 1.0, 1.0, 3.0, 2.0], [1.0, 0.5, 2.0]
    wins = sum((r > f) + 0.5 * (r == f) for r, f in itertools.product(real, fake))
    assert auc(real, fake) == pytest.approx(wins / 15)
    assert auc([2, 3], [0, 1]) == 1.0 and auc([0, 1], [2, 3]) == 0.0 and auc([7] * 5, [7] * 3) == 0.5


def test_auc_and_paired_accuracy_differ_where_clips_differ_more_than_kinds():
    content = np.linspace(0, 100, 50)
    assert paired_accuracy(content + 0.1, content) == 1.0
    assert auc(content + 0.1, content) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("name", "logit", "expected"), [("paper", 0.0, 0.0), ("paper", 16.0, 1.0)])
def test_dead_fraction_of_the_papers_objective(name, logit, expected):
    fake = torch.full((8, 3), logit, requires_grad=True)
    loss = ADVERSARIAL[name].discriminator_loss(torch.full((8, 3), logit), fake)
    (gradient,) = torch.autograd.grad(loss, fake)
    assert dead_fraction(gradient.numpy()) == expected


def test_dead_fraction_counts_logits_and_ignores_a_common_offset():
    fake = torch.tensor([0.0, 20.0, -20.0, 0.0], requires_grad=True)
    loss = ADVERSARIAL["paper"].discriminator_loss(torch.zeros(4), fake)
    (gradient,) = torch.autograd.grad(loss, fake)
    assert dead_fraction(gradient.numpy()) == 0.5
    shifted = torch.full((4,), 17.0, requires_grad=True)
    loss = ADVERSARIAL["rpgan"].discriminator_loss(torch.full((4,), 17.0), shifted)
    (gradient,) = torch.autograd.grad(loss, shifted)
    assert dead_fraction(gradient.numpy()) == 0.0


def test_theil_sen_is_exact_on_a_line_and_robust_to_outliers():
    where = np.linspace(0, 1, 25)
    line = 0.3 * where + 0.5
    trend = theil_sen(where, line)
    assert trend.slope == pytest.approx(0.3) and trend.low == pytest.approx(0.3) == pytest.approx(trend.high)
    assert trend.num_points == 25
    spoilt = line.copy()
    spoilt[:3] += 50.0
    assert theil_sen(where, spoilt).slope == pytest.approx(0.3, abs=0.05)
    assert np.polyfit(where, spoilt, 1)[0] < -5.0, "least squares is thrown off by the same points"


def test_theil_sen_interval_covers_the_truth_and_noise_has_no_trend():
    where = np.linspace(0, 1, 40)
    noise = np.random.default_rng(3).normal(0, 0.1, 40)
    trend = theil_sen(where, 0.5 + noise)
    assert trend.low < 0.0 < trend.high and trend.low <= trend.slope <= trend.high
    climbing = theil_sen(where, 0.5 + 0.5 * where + noise)
    assert 0.0 < climbing.low < 0.5 < climbing.high


def test_slope_of_a_run_is_per_1000_steps_and_looks_at_the_later_half():
    steps = np.arange(4000, 24001, 500)
    losses = np.where(steps < 14000, 5.0 - steps / 4000.0, 0.5 + 0.03 * (steps - 14000) / 1000.0)
    trend = drift_slope(steps, losses)
    assert trend.slope == pytest.approx(0.03) and trend.num_points == 21
    assert trend.low == pytest.approx(0.03) == pytest.approx(trend.high)


def test_slope_with_too_few_points_is_none():
    assert drift_slope([500], [1.0]) is None
    assert drift_slope([500, 1000, 1500], [1.0, 0.9, 0.8]) is None, "two points in the later half have no interval"
    assert drift_slope([500, 1000, 1500, 2000, 2500], [1.0, 0.9, 0.8, 0.7, 0.6]).slope == pytest.approx(-0.2)


def test_trend_needs_points():
    with pytest.raises(ValueError, match="at least 2"):
        theil_sen([0.1], [1.0])
    with pytest.raises(ValueError, match="different positions"):
        theil_sen([0.1, 0.1], [1.0, 2.0])


def test_gradient_ratio():
    assert gradient_ratio(2.0, 4.0, weight=0.1) == pytest.approx(0.05)
    assert gradient_ratio(0.0, 0.0) == 0.0 and gradient_ratio(1.0, 0.0) == math.inf


def test_kolmogorov_smirnov_by_hand_and_unchanged_by_an_increasing_function():
    # Below 1.5: one of four real scores, three of four fake ones; nowhere do the shares differ by more.
    real, fake = [1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 1.2, 2.5]
    assert kolmogorov_smirnov(real, fake) == pytest.approx(0.5)
    assert kolmogorov_smirnov(np.exp(real), np.exp(fake)) == kolmogorov_smirnov(real, fake)
    assert kolmogorov_smirnov(real, real) == 0.0 and kolmogorov_smirnov([1.0], [0.0]) == 1.0


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
    real = np.random.default_rng(1).integers(0, 121, (5, 32, 32, 1), dtype=np.uint8).repeat(3, axis=-1)
    assert high_frequency_gap(real, 2 * real) == pytest.approx(math.log(0.25), abs=1e-3)
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


def measures(loss=0.5, accuracy=1.0, dead=0.0, gap=0.0, overfit=0.0):
    values = {"normalized_loss": loss, "paired_accuracy": accuracy, "dead_fraction": dead, "probe_gap": gap}
    return {f"drift/{name}": value for name, value in (values | {"overfit": overfit}).items()}


CASES = [
    # What was measured of a conditional patch discriminator with relativistic pairs and gradient penalties.
    (measures(loss=0.49, accuracy=1.0, gap=0.01), "healthy"),
    (measures(loss=0.9, accuracy=0.8, gap=0.3), "healthy"),
    # Spectral norm with binary cross-entropy: alive, above chance, near no confidence.
    (measures(loss=0.95, accuracy=0.92, gap=0.25), "weak"),
    (measures(loss=1.01, accuracy=0.52, gap=0.5), "weak"),
    (measures(loss=0.95, accuracy=0.9, gap=0.1), "weak"),
    # The paper's, doubled in width: loss 1, no gradient; and one that ranks rightly with 95 % dead logits.
    (measures(loss=1.0, accuracy=0.52, dead=1.0, gap=0.5), "dead"),
    (measures(loss=0.75, accuracy=0.96, dead=0.95, gap=0.24), "dead"),
    (measures(loss=1.3, accuracy=0.6, overfit=0.4, gap=0.4), "overfit"),
    (measures(loss=0.1), "too strong"),
    (measures(loss=0.01, dead=0.99), "too strong"),
    (measures(loss=1.0, accuracy=0.5, gap=0.05), "equilibrium"),
]


@pytest.mark.parametrize(("found", "expected"), CASES)
def test_verdict(found, expected):
    assert verdict(found) == expected


def test_every_verdict_is_reached_and_explained():
    assert {name for _, name in CASES} == set(VERDICTS) == set(MEANING)
    assert verdict_sentence("dead").startswith("discriminator dead: most of its logits")


def test_the_codes_stay():
    """They stand in the metrics of runs of the past."""
    assert VERDICTS == ("healthy", "weak", "dead", "overfit", "too strong", "equilibrium")
