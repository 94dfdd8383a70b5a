"""Intervals and verdicts on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from metric_references import sign_flip_p
from scipy.stats import bootstrap

from vsr_dist.metrics.uncertainty import (
    NUM_RESAMPLES,
    _block_means,
    compare,
    interval_over_frames,
    interval_over_sequences,
    weighted_mean,
)


@pytest.mark.parametrize("weights", [[1.0] * 8, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]])
def test_p_is_the_share_of_the_flips_that_are_as_far(weights):
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.4, 1.0):
        other = rng.normal(30, 3, 8)
        this = other + rng.normal(shift, 1, 8)
        assert compare(this, other, weights, +1).p == pytest.approx(sign_flip_p(this - other, weights), abs=1e-12)


def test_a_difference_of_the_same_sign_everywhere_is_better_or_worse():
    other = np.linspace(20, 40, 8)
    found = compare(other + 0.1, other, [1.0] * 8, +1)
    assert (found.verdict, found.p) == ("better", 2 / 2**8)
    assert found.difference == pytest.approx(0.1)
    assert found.interval is not None and found.interval.low <= 0.1 + 1e-9 and found.interval.high >= 0.1 - 1e-9
    assert compare(other + 0.1, other, [1.0] * 8, -1).verdict == "worse"
    assert compare(other - 0.1, other, [1.0] * 8, +1).verdict == "worse"
    assert compare(other - 0.1, other, [1.0] * 8, -1).verdict == "better"


def test_differences_of_both_signs_are_noise():
    found = compare([1.0, -1.1, 0.9, -1.0, 1.2, -0.9], [0.0] * 6, [1.0] * 6, +1)
    assert found.verdict == "within noise"
    assert found.interval is not None and found.interval.low < 0 < found.interval.high
    same = compare([3.0] * 7, [3.0] * 7, [1.0] * 7, +1)
    assert (same.verdict, same.difference, same.p) == ("within noise", 0.0, 1.0)


def test_five_sequences_are_too_few_for_any_verdict():
    found = compare([2.0] * 5, [1.0] * 5, [1.0] * 5, +1)
    assert (found.verdict, found.p, found.num_sequences) == ("too few sequences", None, 5)
    assert compare([2.0] * 6, [1.0] * 6, [1.0] * 6, +1).verdict == "better"


def test_the_interval_is_scipys():
    values = np.random.default_rng(1).normal(30, 3, 12)
    found = interval_over_sequences(list(values), [1.0] * 12)
    expected = bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(5)).confidence_interval
    spread = expected.high - expected.low
    assert found is not None
    assert (found.method, found.units, found.num_units) == ("BCa bootstrap", "sequences", 12)
    assert found.low == pytest.approx(expected.low, abs=0.05 * spread)
    assert found.high == pytest.approx(expected.high, abs=0.05 * spread)
    assert found == interval_over_sequences(list(values), [1.0] * 12), "the same on every call"


def test_intervals_of_few_or_equal_sequences():
    assert interval_over_sequences([1.0, 2.0], [1.0, 1.0]) is None
    flat = interval_over_sequences([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    assert flat is not None and (flat.low, flat.high) == (2.0, 2.0)
    odd = interval_over_sequences([2.0, 2.0, 2.0, 3.0], [1.0] * 4)
    assert odd is not None and 2.0 <= odd.low <= odd.high <= 3.0


def _block_width(values):
    """Width of the interval over frames, in that of independent frames by the normal law."""
    found = interval_over_frames([list(values)], [1.0])
    assert found is not None and (found.method, found.units) == ("block bootstrap", "frames")
    return (found.high - found.low) / (2 * 1.96 * values.std() / np.sqrt(len(values)))


def test_blocks_of_frames_keep_what_ties_them_together():
    rng = np.random.default_rng(2)
    loose = [_block_width(rng.normal(30, 1, 400)) for _ in range(12)]
    tied = [_block_width(np.repeat(rng.normal(30, 1, 40), 10)) for _ in range(12)]
    assert np.mean(loose) == pytest.approx(1.0, abs=0.1)
    # Ten equal frames in a row are one look: the interval is wider by up to the root of ten.
    assert 2.0 < np.mean(tied) < np.sqrt(10) * 1.1
    assert interval_over_frames([[1.0, 2.0] * 4, [1.0, 2.0, 1.0, 4.0, 5.0, 2.0, 7.0]], [1.0, 1.0]) is None, "7 frames"


def test_a_block_goes_round_and_the_last_is_cut():
    """The sums give the means of the frames themselves."""
    values = np.random.default_rng(3).normal(30, 1, 19)
    rng = np.random.default_rng(0)
    starts = np.random.default_rng(0).integers(0, 19, (NUM_RESAMPLES, 4))  # blocks of 6, 6, 6 and 1
    places = (starts[..., None] + np.arange(6)).reshape(NUM_RESAMPLES, -1)[:, :19] % 19
    assert _block_means(values, rng) == pytest.approx(values[places].mean(axis=1), abs=1e-12)


def test_two_sequences_count_by_their_weights():
    found = interval_over_frames([[1.0, 2.0] * 4, [10.0] * 8], [1.0, 3.0])
    assert found is not None
    assert weighted_mean([1.5, 10.0], [1.0, 3.0]) == pytest.approx(7.875)
    assert found.low <= 7.875 <= found.high
    assert found.num_units == 16
