"""Finished trials of other studies, for the sampler to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeps.backends import study_lock
from sweeps.space import Space
from sweeps.storage import ROLE, SETTINGS, Store, open_study, role_of
from sweeps.study_config import load_study
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError

ORIGIN = "warm_of"
_OBJECTIVE = "study.objective"


def warm_start(store: Store, settings: Mapping[str, Any]) -> None:
    """Add the finished trials of the studies that `warm_start` names, each once.

    They must have the same objectives, and each a value for every path of the space that the space could take; trials
    without are left out, and their number is said. BadConfigError for a study with other objectives.
    """
    for file in store.config.warm_start:
        source = open_study(load_study(Path(file)))
        _check_objectives(file, source.user_attrs.get(SETTINGS, {}), settings)
        with study_lock(store.config):
            _add(store, source)


def _add(store: Store, source: optuna.Study) -> None:
    space = store.config.space
    known = {trial.user_attrs.get(ORIGIN) for trial in store.trials()}
    finished = [t for t in source.get_trials(states=(TrialState.COMPLETE,)) if role_of(t) != "warm"]
    fitting = [trial for trial in finished if _fits(trial, space)]
    added = 0
    for trial in fitting:
        origin = f"{source.study_name}:{trial.number}"
        if origin not in known:
            store.study.add_trial(_copy(trial, space, origin))
            added += 1
    if added:
        left_out = len(finished) - len(fitting)
        say(
            f"warm start: {added} trial(s) of study {source.study_name}"
            + (f"; {left_out} do not fit the space" if left_out else "")
        )


def _check_objectives(file: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    keys = sorted(key for key in theirs.keys() | ours.keys() if key.startswith(_OBJECTIVE))
    other = [
        f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in keys if theirs.get(key) != ours.get(key)
    ]
    if other:
        raise BadConfigError(f"warm_start {file}: its trials were judged otherwise ({'; '.join(other)}); leave it out")


def _fits(trial: FrozenTrial, space: Space) -> bool:
    for path, dimension in space.items():
        if path not in trial.params:
            return False
        distribution = dimension.distribution()
        try:
            inside = distribution._contains(distribution.to_internal_repr(trial.params[path]))
        except ValueError:  # A choice that the space does not have.
            return False
        if not inside:
            return False
    return True


def _copy(trial: FrozenTrial, space: Space, origin: str) -> FrozenTrial:
    """The same values under this study's distributions; constraints too."""
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=trial.values,
        params={path: trial.params[path] for path in space},
        distributions={path: dimension.distribution() for path, dimension in space.items()},
        user_attrs={ROLE: "warm", ORIGIN: origin},
        constraints=trial.constraints or None,
    )
