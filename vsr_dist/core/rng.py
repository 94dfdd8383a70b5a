"""Seeds that are pure functions of what they are for, so that nothing random has to be saved or replayed."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

_MASK_64 = (1 << 64) - 1
Numbers = npt.NDArray[np.uint64]


def mix(*values: int) -> int:
    """A 63-bit seed from any number of integers (each taken modulo 2**64), spread evenly and order-sensitive.

    Each value is absorbed by one round of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
    number generators", the finaliser of figure 17), whose output is a bijection of its input.
    """
    return _absorb_all(values) >> 1


def mix_many(prefix: tuple[int, ...], last: Numbers) -> Numbers:
    """`mix(*prefix, value)` for every value of an array of any shape, as uint64."""
    state = last + np.uint64((_absorb_all(prefix) + 0x9E3779B97F4A7C15) & _MASK_64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) >> np.uint64(1)


def _absorb_all(values: tuple[int, ...]) -> int:
    state = 0
    for value in values:
        state = (state + (value & _MASK_64) + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state


def purpose(name: str) -> int:
    """A stable 64-bit number for a purpose ("dropout", "order", ...), to keep streams of one seed apart."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed torch for one training step of one rank.

    Dropout and whatever else draws numbers inside step `step` then depends on (seed, rank, step) only: a
    resumed run draws what the uninterrupted one drew, with no generator state in the checkpoint.
    """
    torch.manual_seed(step_seed(seed, rank, step))


def step_seed(seed: int, rank: int, step: int) -> int:
    """What `seed_step` seeds torch with."""
    return mix(purpose("step"), seed, rank, step)
