"""Drift metrics on constructed scores with known answers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from vsr_dist.losses.adversarial import ADVERSARIAL
from vsr_dist.metrics.drift import (
    auc,
    dead_fraction,
    drift_slope,
    gradient_ratio,
    kolmogorov_smirnov,
    margin,
    normalised_loss,
    paired_accuracy,
    theil_sen,
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


def test_margin():
    assert margin([3, 5], [1, 3]) == pytest.approx(2.0)
    assert margin([1, 1], [1, 1]) == 0.0
    assert margin([2, 2], [1, 1]) == math.inf


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
