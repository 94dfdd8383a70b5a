"""How sure a mean is, and whether two differ by more than noise.

The unit is the sequence: frames of one sequence are no independent looks. A sequence's weight is its share in
`overall`, so that every estimate here is the number of the tables. Deterministic: random numbers come from one seed.

Axes: N sequences, T frames, R resamples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import DegenerateDataWarning, bootstrap, permutation_test

LEVEL = 0.95
NUM_RESAMPLES = 5000
# With n sequences the smallest two-sided p of all sign flips is 2 / 2^n: below 0.05 from 6 on.
LEAST_FOR_VERDICT = 6
LEAST_FOR_INTERVAL = 3
# Two blocks of `interval_over_frames`.
LEAST_FRAMES = 8
_SEED = 20240229

Verdict = Literal["better", "worse", "within noise", "too few sequences"]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Where the mean lies with a probability of 95 %; by which method, over how many of which units."""

    low: float
    high: float
    method: str
    units: str
    num_units: int


@dataclass(frozen=True)
class Difference:
    """This minus the other, over the sequences of both; `p` is None where there are too few for a verdict."""

    difference: float
    interval: Interval | None
    p: float | None
    num_sequences: int
    verdict: Verdict


def weighted_mean(values_N: Sequence[float] | Values, weights_N: Sequence[float] | Values) -> float:
    """`sum(w v) / sum(w)`."""
    values, weights = np.asarray(values_N, np.float64), np.asarray(weights_N, np.float64)
    return float((values * weights).sum() / weights.sum())


def interval_over_sequences(values_N: Sequence[float], weights_N: Sequence[float]) -> Interval | None:
    """Bias-corrected and accelerated bootstrap (scipy) of the weighted mean; None for fewer than three sequences."""
    if len(values_N) < LEAST_FOR_INTERVAL:
        return None
    low, high = _bootstrap(np.asarray(values_N, np.float64), np.asarray(weights_N, np.float64))
    return Interval(low, high, "BCa bootstrap", "sequences", len(values_N))


def interval_over_frames(sequences: Sequence[Sequence[float]], weights_N: Sequence[float]) -> Interval | None:
    """Circular block bootstrap of frames within each sequence: for one or two sequences.

    Blocks of `ceil(n^(1/3) * 2)` neighbouring frames keep most of what ties them together (Politis and Romano 1992). It
    says how sure the mean of *these* sequences is and nothing about others. None if a sequence has fewer than eight
    frames: a block is nearly the whole of it then, and all resamples are alike.
    """
    num_frames = sum(len(values) for values in sequences)
    if min(len(values) for values in sequences) < LEAST_FRAMES:
        return None
    rng = np.random.default_rng(_SEED)
    means_NR = np.stack([_block_means(np.asarray(values, np.float64), rng) for values in sequences])
    weights = np.asarray(weights_N, np.float64)[:, None]
    means_R = (means_NR * weights).sum(axis=0) / weights.sum()
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), "block bootstrap", "frames", num_frames)


def compare(
    this_N: Sequence[float], other_N: Sequence[float], weights_N: Sequence[float], direction: int
) -> Difference:
    """The verdict on paired means per sequence. `direction`: +1 if higher is better, -1 if lower is.

    Exact sign-flip test of the weighted mean difference (scipy's permutation_test; up to 13 sequences all flips, above
    them 9,999 at random), two-sided at 5 %; the interval is that of the difference.
    """
    this, other = np.asarray(this_N, np.float64), np.asarray(other_N, np.float64)
    weights = np.asarray(weights_N, np.float64)
    difference = weighted_mean(this - other, weights)
    interval = interval_over_sequences(list(this - other), list(weights))
    if len(this) < LEAST_FOR_VERDICT:
        return Difference(difference, interval, None, len(this), "too few sequences")
    p = _sign_flip_p(this, other, weights)
    if p >= 1 - LEVEL or difference == 0.0:
        return Difference(difference, interval, p, len(this), "within noise")
    return Difference(difference, interval, p, len(this), "better" if difference * direction > 0 else "worse")


def _sign_flip_p(this: Values, other: Values, weights: Values) -> float:
    shares = weights / weights.sum()

    def statistic(first: Values, second: Values, axis: int) -> Values:
        mean: Values = ((first - second) * shares).sum(axis=axis)
        return mean

    result = permutation_test(
        (this, other),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        alternative="two-sided",
        rng=np.random.default_rng(_SEED),
    )
    return float(result.pvalue)


def _bootstrap(values: Values, weights: Values) -> tuple[float, float]:
    if np.ptp(values) == 0.0:
        return float(values[0]), float(values[0])

    def statistic(values: Values, weights: Values, axis: int) -> Values:
        mean: Values = (values * weights).sum(axis=axis) / weights.sum(axis=axis)
        return mean

    def interval(method: str) -> tuple[float, float]:
        found = bootstrap(
            (values, weights),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=NUM_RESAMPLES,
            confidence_level=LEVEL,
            method=method,
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
        return float(found.low), float(found.high)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        low, high = interval("BCa")
    # Where all but one value are equal there is no acceleration to be had.
    return (low, high) if math.isfinite(low) and math.isfinite(high) else interval("percentile")


def _block_means(values_T: Values, rng: np.random.Generator) -> Values:
    """(R,) means of resampled sequences of the same length."""
    length = len(values_T)
    block = min(length, math.ceil(2 * length ** (1 / 3)))
    num_blocks = -(-length // block)
    starts = rng.integers(0, length, (NUM_RESAMPLES, num_blocks))
    # Round and round, so that the first and the last frames are drawn as often as the others. Sums up to each frame
    # give a block's sum without its frames: memory is that of the blocks, and a video may be long.
    mean = values_T.mean()
    sums = np.concatenate(([0.0], np.cumsum(np.concatenate((values_T, values_T)) - mean)))
    sizes = np.full(num_blocks, block)
    sizes[-1] = length - block * (num_blocks - 1)
    means: Values = mean + (sums[starts + sizes] - sums[starts]).sum(axis=1) / length
    return means
