"""Which trial of a study comes next, claimed so that no two drivers take the same one.

A study has places: `search:0` to `search:N-1`, and after the search `repeat:W:I` for the winner W and its I-th fresh
seed. A trial carries its place from the moment it is made, and a place belongs to the trial with the lowest number that
holds it and does not count as interrupted. Trial numbers are given out by the storage, one after another, so even
drivers that share nothing but a database agree, and `num_trials` is not overshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweeps.backends import study_lock
from sweeps.lease import LEASE, Driver
from sweeps.storage import REPEAT_OF, ROLE, SEEDS, SLOT, Store, is_feasible, is_void, role_of
from sweeps.study_config import StudyConfig

_SURPLUS = "another driver claimed the same place of the study first"
_WARM = "warm"


@dataclass(frozen=True)
class Place:
    """One trial that the study wants: its name, its role, values that are given, and how it is seeded."""

    name: str
    role: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    repeat_of: int | None = None


def claim(store: Store, starts: Sequence[Mapping[str, Any]], base_seed: int, driver: Driver) -> int | None:
    """Make the next trial in state RUNNING; its number, or None while there is nothing left to begin.

    starts: stored values of the first trials. base_seed: of the base configuration.
    """
    with study_lock(store.config):
        while (place := next_place(store.config, store.trials(), starts, base_seed)) is not None:
            attributes: dict[str, Any] = {SLOT: place.name, ROLE: place.role, SEEDS: list(place.seeds)}
            attributes[LEASE] = driver.lease()
            if place.repeat_of is not None:
                attributes[REPEAT_OF] = place.repeat_of
            number = store.create(attributes, place.fixed)
            if owns(store.trials(), number, place.name):
                return number
            store.fail(number, _SURPLUS, interrupted=True)
    return None


def owns(trials: Sequence[FrozenTrial], number: int, place: str) -> bool:
    """True if no earlier trial holds the place."""
    return all(trial.number >= number for trial in trials if not is_void(trial) and place_of(trial) == place)


def next_place(
    config: StudyConfig, trials: Sequence[FrozenTrial], starts: Sequence[Mapping[str, Any]], base_seed: int
) -> Place | None:
    """The first place that no trial holds, or None."""
    taken = {place_of(trial) for trial in trials if not is_void(trial)}
    seeds = tuple(base_seed + place for place in range(config.seeds_per_trial))
    for index in range(config.num_trials):
        name = f"search:{index}"
        if name not in taken:
            if index < len(starts):
                return Place(name, "start", starts[index], seeds)
            return Place(name, "search", seeds=seeds)
    if num_searched(config, trials) < config.num_trials:
        return None  # The winners are not known yet.
    for winner in winners(config, trials):
        for index in range(config.repeat.seeds):
            name = f"repeat:{winner.number}:{index}"
            if name not in taken:
                fresh = base_seed + config.seeds_per_trial + index
                return Place(name, "repeat", winner.params, (fresh,), winner.number)
    return None


def place_of(trial: FrozenTrial) -> str | None:
    """The place that a trial holds; None for one that was taken over from another study."""
    if role_of(trial) == _WARM:
        return None
    return str(trial.user_attrs.get(SLOT, f"search:{trial.number}"))


def num_searched(config: StudyConfig, trials: Sequence[FrozenTrial]) -> int:
    """Trials of the search that have ended and count."""
    return len(searched(config, trials))


def searched(config: StudyConfig, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that `num_searched` counts."""
    places = {f"search:{index}" for index in range(config.num_trials)}
    ended = (trial for trial in trials if trial.state.is_finished() and not is_void(trial))
    return [trial for trial in ended if place_of(trial) in places]


def winners(config: StudyConfig, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The best feasible trials of the search, best first, as many as are repeated."""
    complete = [t for t in searched(config, trials) if t.state == TrialState.COMPLETE and is_feasible(t)]
    sign = -1.0 if config.objective.direction == "maximize" else 1.0
    ranked = sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))
    return ranked[: config.repeat.top]


def num_left(config: StudyConfig, trials: Sequence[FrozenTrial]) -> int:
    """Places that no ended trial holds, as far as they are known."""
    left = config.num_trials - num_searched(config, trials)
    if left:
        return left
    done = {place_of(trial) for trial in trials if trial.state.is_finished() and not is_void(trial)}
    wanted = [
        f"repeat:{trial.number}:{index}" for trial in winners(config, trials) for index in range(config.repeat.seeds)
    ]
    return sum(name not in done for name in wanted)
