"""Does the discriminator still separate real from generated clips, and is it getting worse?

A training loss alone cannot tell: a discriminator loss at chance is the ideal equilibrium as well as a dead
discriminator. Three parts separate the two. Statistics of the discriminator's scores on held-out clips: `real` and
`fake` are logits (higher means more real), one per clip or per patch, in any shape, compared in float64, with the
discriminator in evaluation mode. A spectral probe that separates real from fake by band powers alone: where it
succeeds and the discriminator does not, the discriminator is at fault, not the generator too good. And a verdict, one
word for what the measures say together, since none of them is enough alone.

Axes: T time, C channels, Y X image rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy  # its `stats` is imported where it is used: half a second that only a measurement need pay
import torch
from torch import Tensor

from vsr_dist.ops.color import ByteArray, from_uint8, rgb_to_y_bt601

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
    ranks = scipy.stats.rankdata(np.concatenate((real_scores, fake_scores)))
    num_real, num_fake = len(real_scores), len(fake_scores)
    wins = ranks[:num_real].sum() - num_real * (num_real + 1) / 2.0
    return float(wins / (num_real * num_fake))


def kolmogorov_smirnov(real: Scores, fake: Scores) -> float:
    """Largest difference of the two empirical distribution functions (`scipy.stats.ks_2samp`): 0 to 1, 1 for disjoint.

    Like `auc` it does not change when the scores go through an increasing function, so it compares discriminators of
    different objectives. Two samples of n scores of one distribution lie about 0.87 / sqrt(n / 2) apart.
    """
    return float(scipy.stats.ks_2samp(_flat(real), _flat(fake)).statistic)


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
    result = scipy.stats.theilslopes(what, where, alpha=confidence)
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


NUM_BANDS = 16
# Power of a band without any signal: far below the 6e-8 that rounding to 8 bits leaves, above float32's own rounding.
_FLOOR = 1e-10
# Nats. Bands that vary less are not blown up to the size of the others.
_LEAST_SPREAD = 1e-2
_RIDGE = 1e-2
_NEWTON_STEPS = 50
Features = npt.NDArray[np.float64]


def band_powers(clip_TCYX: Tensor, num_bands: int = NUM_BANDS) -> Features:
    """Log power of a clip's luma in `num_bands` radial bands of equal width, a mean over frames; (num_bands,) float64.

    clip_TCYX: float RGB in [0, 1]. Each frame's luma loses its mean and is weighted by a Hann window, so that its
    borders do not look like edges; the power of a band is the mean of `|FFT|^2 / (Y X)` over its frequencies. Band i
    holds the radii i to i + 1 of `num_bands` parts of 0 to 0.5 cycles per pixel; the corners beyond are left out. A
    band in which a small image has no frequency takes the power of the floor, 1e-10. Natural logarithm.
    """
    luma_TYX = rgb_to_y_bt601(clip_TCYX.float()).squeeze(-3)
    rows, columns = luma_TYX.shape[-2:]
    window_YX, bands_YX = _window_and_bands(rows, columns, num_bands)
    luma_TYX = (luma_TYX - luma_TYX.mean(dim=(-2, -1), keepdim=True)) * window_YX.to(luma_TYX.device)
    power_TYX = torch.fft.fft2(luma_TYX).abs().square() / (rows * columns)
    power = power_TYX.mean(dim=0).double().cpu().numpy().ravel()
    which = bands_YX.ravel()
    inside = which < num_bands
    sums = np.bincount(which[inside], weights=power[inside], minlength=num_bands)
    counts = np.bincount(which[inside], minlength=num_bands)
    features: Features = np.log(sums / np.maximum(counts, 1) + _FLOOR)
    return features


@lru_cache(maxsize=8)
def _window_and_bands(rows: int, columns: int, num_bands: int) -> tuple[Tensor, npt.NDArray[np.int64]]:
    window_YX = torch.outer(torch.hann_window(rows, periodic=False), torch.hann_window(columns, periodic=False))
    radius_YX = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None, :])
    return window_YX, np.floor(radius_YX / 0.5 * num_bands).astype(np.int64)


def high_frequency_gap(fake_TYXC: ByteArray, real_TYXC: ByteArray) -> float:
    """Mean difference of a clip's log power, fake less real, over the upper half of the bands; in nats.

    0 for equal spectra; negative: the fake images are too smooth. uint8 RGB.
    """
    fake, real = (
        band_powers(from_uint8(torch.from_numpy(clip).permute(0, 3, 1, 2)))[NUM_BANDS // 2 :]
        for clip in (fake_TYXC, real_TYXC)
    )
    return float(np.mean(fake) - np.mean(real))


@dataclass(frozen=True)
class SpectralProbe:
    """Logistic regression on band powers; scores are logits, high for real."""

    mean: Features
    spread: Features
    weights: Features

    def scores(self, features: Features) -> Features:
        """(N, num_bands) to (N,) logits."""
        standard = (features - self.mean) / self.spread
        logits: Features = standard @ self.weights[:-1] + self.weights[-1]
        return logits


def fit_probe(real: Features, fake: Features) -> SpectralProbe:
    """Fit real (N, num_bands) against fake; deterministic, in float64.

    Newton's method on the mean logistic loss of standardised features plus `0.01 / 2 |w|^2`, without which the
    weights of two separable classes would grow for ever. The intercept is not penalised.
    """
    both = np.concatenate((real, fake))
    mean, spread = both.mean(axis=0), np.maximum(both.std(axis=0), _LEAST_SPREAD)
    inputs = np.column_stack(((both - mean) / spread, np.ones(len(both))))
    labels = np.concatenate((np.ones(len(real)), np.zeros(len(fake))))
    ridge = np.append(np.full(both.shape[1], _RIDGE), 0.0)
    weights = np.zeros(inputs.shape[1])
    for _ in range(_NEWTON_STEPS):
        chance = 0.5 * (1.0 + np.tanh(0.5 * inputs @ weights))
        gradient = inputs.T @ (chance - labels) / len(labels) + ridge * weights
        curvature = (inputs * (chance * (1.0 - chance) / len(labels))[:, None]).T @ inputs + np.diag(ridge)
        # The intercept has no ridge: where every chance is 0 or 1 its curvature would vanish.
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), gradient)
        weights = weights - step
        if np.max(np.abs(step)) < 1e-10:
            break
    return SpectralProbe(mean, spread, weights)


VerdictName = Literal["healthy", "weak", "dead", "overfit", "too strong", "equilibrium"]
# `drift/verdict_code` in metrics: the place in this table. New verdicts go to the end.
VERDICTS: tuple[VerdictName, ...] = ("healthy", "weak", "dead", "overfit", "too strong", "equilibrium")

# The levels come from trainings of 400 to 1,500 steps on real video (docs/drift_monitor.md). There the paper's set-up
# stood at a normalised loss of 1.00 and a pair accuracy of 0.52; discriminators that worked had losses of 0.38 to 0.95
# and accuracies of 0.76 to 1.00, with no dead logit; the spectral probe's area under the curve was 1.00 everywhere.
TOO_STRONG_LOSS = 0.2
WEAK_LOSS = 0.9
DEAD_FRACTION = 0.5
CHANCE_ACCURACY = 0.65
PROBE_GAP = 0.2
OVERFIT = 0.15

MEANING: dict[VerdictName, str] = {
    "healthy": "it separates real from fake, without certainty, and the generator learns from it",
    "weak": "its loss is near chance although real and fake can be told apart",
    "dead": "most of its logits no longer move the loss, and the generator gets no gradient",
    "overfit": "it knows the training clips and not the held-out ones",
    "too strong": "it is certain of every held-out clip",
    "equilibrium": "neither it nor the spectra separate real from fake",
}


def verdict(measures: Mapping[str, float]) -> VerdictName:
    """The verdict from `drift/{normalized_loss,paired_accuracy,dead_fraction,probe_gap,overfit}`.

    In this order, so that a case has one name: `too strong` before `dead`, because the logits of one that is certain
    saturate as well; `dead` whatever the accuracy, because a saturated discriminator may rank clips rightly and still
    give the generator nothing; `overfit`; then, at a loss near chance, `equilibrium` where nothing separates the two
    and `weak` else.
    """
    loss = measures["drift/normalized_loss"]
    if loss < TOO_STRONG_LOSS:
        return "too strong"
    if measures["drift/dead_fraction"] > DEAD_FRACTION:
        return "dead"
    if measures["drift/overfit"] > OVERFIT:
        return "overfit"
    if loss <= WEAK_LOSS:
        return "healthy"
    undecided = measures["drift/paired_accuracy"] < CHANCE_ACCURACY and measures["drift/probe_gap"] <= PROBE_GAP
    return "equilibrium" if undecided else "weak"


def verdict_sentence(name: VerdictName) -> str:
    """`discriminator weak: its loss ...`, for a log line or a summary."""
    return f"discriminator {name}: {MEANING[name]}"
