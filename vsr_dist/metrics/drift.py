"""Does the discriminator still tell real from fake, and is it getting worse?

A training loss alone cannot say: a discriminator loss at chance is the ideal equilibrium as well as a dead
discriminator. These numbers separate the two; they are meant for held-out clips, with the discriminator in
evaluation mode. `real` and `fake` are scores (logits, higher means more real), one per clip or per patch, in
any shape; they are compared in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp, rankdata, theilslopes

Scores = npt.ArrayLike
# An undecided logit's gradient, times their number, is 1 (hinge), 0.5 (bce, rpgan) or 0.25 (paper): far above this.
DEAD_GRADIENT = 1e-3
_LEAST_POINTS = 3
_STEPS_PER_SLOPE = 1000.0


@dataclass(frozen=True)
class Trend:
    """Theil-Sen slope per unit of position with its confidence interval, over `num_points` values."""

    slope: float
    low: float
    high: float
    num_points: int


def normalised_loss(loss: float, chance: float) -> float:
    """Discriminator loss over its objective's chance value: 1 at chance, 0 for perfect separation."""
    if chance <= 0.0:
        raise ValueError(f"chance value of an objective: expected above 0, found {chance}")
    return loss / chance


def paired_accuracy(real: Scores, fake: Scores) -> float:
    """Share of pairs (same clip) in which the real one scores higher; ties count half. 0.5 at chance."""
    real_scores, fake_scores = _pair(real, fake)
    return float(np.mean(real_scores > fake_scores) + 0.5 * np.mean(real_scores == fake_scores))


def auc(real: Scores, fake: Scores) -> float:
    """Probability that a random real score exceeds a random fake one; ties count half. 0.5 at chance.

    The Mann-Whitney statistic over the product of the counts, which is the area under the ROC curve.
    """
    real_scores, fake_scores = _flat(real), _flat(fake)
    ranks = rankdata(np.concatenate((real_scores, fake_scores)))
    num_real, num_fake = len(real_scores), len(fake_scores)
    wins = ranks[:num_real].sum() - num_real * (num_real + 1) / 2.0
    return float(wins / (num_real * num_fake))


def kolmogorov_smirnov(real: Scores, fake: Scores) -> float:
    """Largest difference of the two empirical distribution functions (`scipy.stats.ks_2samp`): 0 to 1, 1 for disjoint.

    Like `auc` it does not change when the scores go through an increasing function, so it compares discriminators of
    different objectives. Two samples of n scores of one distribution lie about 0.87 / sqrt(n / 2) apart.
    """
    return float(ks_2samp(_flat(real), _flat(fake)).statistic)


def margin(real: Scores, fake: Scores) -> float:
    """Mean score difference in units of the pooled standard deviation (Cohen's d); 0 at chance.

    Infinite, with the sign of the difference, if all scores of each kind are equal; 0 if there is no
    difference.
    """
    real_scores, fake_scores = _pair(real, fake)
    difference = float(np.mean(real_scores) - np.mean(fake_scores))
    pooled = float(np.sqrt((np.var(real_scores) + np.var(fake_scores)) / 2.0))
    if pooled == 0.0:
        return 0.0 if difference == 0.0 else float(np.copysign(np.inf, difference))
    return difference / pooled


def dead_fraction(gradient: npt.ArrayLike, threshold: float = DEAD_GRADIENT) -> float:
    """Share of logits that no longer move the loss: `N |dL/dz_i| < threshold`.

    gradient: dL/dz of one kind of logits (real or fake), any shape with N elements, where L averages over
    those N. Take it by autograd on the logits, not from sigmoid(z): relativistic logits have a free offset,
    so a large logit need not be a dead one.
    """
    values = _flat(gradient)
    return float(np.mean(np.abs(values) * len(values) < threshold))


def theil_sen(position: npt.ArrayLike, value: npt.ArrayLike, confidence: float = 0.95) -> Trend:
    """Median of the slopes between all pairs of points, with its interval (`scipy.stats.theilslopes`).

    Robust to 29 % outliers. Raises ValueError for fewer than 2 points or points that share one position.
    """
    where, what = _pair(position, value)
    if len(where) < 2 or np.ptp(where) == 0.0:
        raise ValueError(f"slope: expected at least 2 points at different positions, found {len(where)}")
    result = theilslopes(what, where, alpha=confidence)
    return Trend(float(result.slope), float(result.low_slope), float(result.high_slope), len(where))


def drift_slope(step: npt.ArrayLike, normalised: npt.ArrayLike) -> Trend | None:
    """Trend of the normalised loss per 1000 steps, over the later half of the evaluations' span of steps.

    step: optimiser steps at each evaluation since the discriminator began to play, growing. The earlier half is left
    out because every run begins at chance and falls. None with fewer than three points in the later half, where there
    is no interval. A slope says nothing without the level: a loss that sits at chance from the start has slope 0. Wait
    for about 20 points before trusting it.
    """
    where, what = _pair(step, normalised)
    late = where >= (where[0] + where[-1]) / 2.0
    if np.count_nonzero(late) < _LEAST_POINTS:
        return None
    return theil_sen(where[late] / _STEPS_PER_SLOPE, what[late])


def gradient_ratio(adversarial_norm: float, content_norm: float, weight: float = 1.0) -> float:
    """`weight * |grad adversarial| / |grad content|`, both norms at the same place of the generator.

    The quantity of VQGAN (Esser et al. 2021, arXiv:2012.09841, equation 7), which takes the last layer. Infinite for
    a vanishing content gradient; 0 if both vanish.
    """
    if content_norm == 0.0:
        return 0.0 if adversarial_norm == 0.0 else float("inf")
    return weight * adversarial_norm / content_norm


def _flat(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    flat = np.asarray(values, np.float64).ravel()
    if flat.size == 0:
        raise ValueError("drift metrics: expected at least one score, found none")
    return flat


def _pair(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    pair = _flat(first), _flat(second)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"drift metrics: expected pairs, found {len(pair[0])} and {len(pair[1])} values")
    return pair
