"""What frequencies tell: band powers of images, and a probe that separates real from fake by them alone.

The probe is a yardstick for a discriminator: where it separates the two and the discriminator does not, the
discriminator is at fault, not the generator too good.

Axes: T time, C channels, Y X image rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vsr_dist.ops.color import rgb_to_y_bt601

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


def high_frequency_gap(real: Features, fake: Features) -> float:
    """Mean difference of log power, fake less real, over the upper half of the bands; in nats, 0 for equal spectra.

    real, fake: (N, num_bands). Negative: the fake images are too smooth.
    """
    upper = real.shape[1] // 2
    return float(np.mean(fake[:, upper:]) - np.mean(real[:, upper:]))


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
