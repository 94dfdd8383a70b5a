"""Seeds against SplitMix64 written down a second time, and against published outputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from vsr_dist.core.rng import mix, purpose, seed_step

ANY_INT = st.integers(-(2**70), 2**70)


def splitmix64(state: int) -> int:
    """First output for a state, in NumPy's wrapping arithmetic; constants of Vigna's splitmix64.c."""
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int(z ^ (z >> np.uint64(31)))


@pytest.mark.parametrize(
    ("seed", "output"),
    [(1234567, 6457827717110365317), (0, 0xE220A8397B1DCDAF)],
)
def test_one_value_gives_the_published_first_output(seed, output):
    assert splitmix64(seed) == output
    assert mix(seed) == output >> 1


@given(st.lists(ANY_INT, max_size=5))
def test_each_value_is_one_round(values):
    state = 0
    for value in values:
        state = splitmix64((state + value) % 2**64)
    assert mix(*values) == state >> 1


@given(st.lists(ANY_INT, min_size=1, max_size=5))
def test_seeds_have_63_bits_and_values_count_modulo_2_to_the_64(values):
    assert 0 <= mix(*values) < 2**63
    assert mix(*values) == mix(*[value % 2**64 for value in values])


def test_order_and_number_of_values_matter():
    triples = list(itertools.product(range(8), repeat=3))
    pairs = list(itertools.product(range(8), repeat=2))
    seeds = {mix(*values) for values in [*triples, *pairs]}
    assert len(seeds) == len(triples) + len(pairs)


@pytest.mark.parametrize("stream", [lambda i: (i,), lambda i: (7, i), lambda i: (i, 7)])
def test_consecutive_numbers_are_spread_evenly(stream):
    num_seeds, num_bins = 20_000, 64
    seeds = np.array([mix(*stream(i)) for i in range(num_seeds)], dtype=np.uint64)
    for bins in (seeds >> np.uint64(57), seeds % np.uint64(num_bins)):
        counts = np.bincount(bins.astype(int), minlength=num_bins)
        statistic = ((counts - num_seeds / num_bins) ** 2 / (num_seeds / num_bins)).sum()
        low, high = chi2.ppf([1e-4, 1 - 1e-4], num_bins - 1)
        assert low < statistic < high


def test_a_flipped_bit_flips_half_of_the_seed():
    flips = [
        (mix(base, 5) ^ mix(base ^ (1 << bit), 5)).bit_count() for base in range(0, 4000, 80) for bit in range(0, 64, 7)
    ]
    assert np.mean(flips) == pytest.approx(63 / 2, abs=0.7)


def test_a_purpose_is_a_stable_number_of_its_own():
    # `printf order | b2sum -l 64`; another number would reorder every run.
    assert purpose("order") == int.from_bytes(bytes.fromhex("441e63c444a179dd"), "little")
    names = ["order", "augment", "step", "generator", "discriminator", ""]
    assert len({purpose(name) for name in names}) == len(names)
    assert all(0 <= purpose(name) < 2**64 for name in names)


def test_a_step_draws_the_same_numbers_whatever_was_drawn_before():
    def draw(seed, rank, step):
        seed_step(seed, rank, step)
        return tuple(torch.rand(3).tolist())

    first = draw(1, 0, 5)
    torch.rand(100)
    assert draw(1, 0, 5) == first
    assert len({first, draw(2, 0, 5), draw(1, 1, 5), draw(1, 0, 6), draw(1, 5, 0)}) == 5
