"""A study in its storage, and everything that is written to it. Only the driver holds a `Store`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweeps.backends import open_storage, storage_file, storage_name, study_lock
from sweeps.lease import Driver
from sweeps.samplers import make_pruner, make_sampler
from sweeps.study_config import StudyConfig
from vsr_dist.core.errors import BadConfigError, UserError

SETTINGS = "settings"
REASON = "reason"
INTERRUPTED = "interrupted"
ROLE, SLOT, REPEAT_OF, SEEDS = "role", "slot", "repeat_of", "seeds"
# What Optuna's own `enqueue_trial` writes: values that the trial gets instead of sampled ones.
_FIXED = "fixed_params"


@dataclass(frozen=True)
class Store:
    """One study of one storage."""

    storage: BaseStorage
    study: optuna.Study
    config: StudyConfig

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """One trial as the storage has it now."""
        return self.storage.get_trial(self._id(number))

    def create(self, attributes: Mapping[str, Any], fixed: Mapping[str, Any]) -> int:
        """Make a trial in state RUNNING that has its attributes from the first moment on; returns its number.

        fixed: values, by path, that its sampler must not choose.
        """
        template = FrozenTrial(
            number=-1,  # Given by the storage.
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs=dict(attributes),
            system_attrs={_FIXED: dict(fixed)} if fixed else {},
            intermediate_values={},
        )
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trial_id = self.storage.create_new_trial(study_id, template_trial=template)
        return self.storage.get_trial(trial_id).number

    def open_trial(self, number: int) -> optuna.Trial:
        """A running trial for suggestions, with a sampler whose seed is the study's and the trial's number only.

        A sampler seeded once per process would draw the first trials' values again whenever a study goes on.
        """
        self.study.sampler = make_sampler(self.config, number)
        return optuna.Trial(self.study, self._id(number))

    def report(self, number: int, step: int, value: float) -> bool:
        """Tell an intermediate value; returns True if the pruner would end the trial. One objective only."""
        trial_id = self._id(number)
        self.storage.set_trial_intermediate_value(trial_id, step, value)
        return self.study.pruner.prune(self.study, self.storage.get_trial(trial_id))

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Set user attributes (JSON values) of a running trial."""
        trial_id = self._id(number)
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)

    def constrain(self, number: int, values: Mapping[str, float]) -> None:
        """Set constraints of a running trial; feasible at 0 and below."""
        trial = optuna.Trial(self.study, self._id(number))
        for name, value in values.items():
            if name not in trial.constraints:
                trial.set_constraint(name, value)

    def complete(self, number: int, values: Sequence[float]) -> None:
        """End a running trial with its objectives."""
        self.study.tell(number, list(values))

    def prune(self, number: int, reason: str) -> None:
        """End a running trial that was stopped because it was hopeless."""
        self.note(number, {REASON: reason})
        self.study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str, *, interrupted: bool = False) -> None:
        """End a running trial without a result. An interrupted one is run anew under another number."""
        self.note(number, {REASON: reason, INTERRUPTED: interrupted})
        self.study.tell(number, state=TrialState.FAIL)

    def _id(self, number: int) -> int:
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)


def open_store(config: StudyConfig, settings: Mapping[str, Any], *, train_steps: int, warmup_steps: int) -> Store:
    """Make the study, or go on with it.

    settings: JSON values, by dotted key, that decide what a trial's objective means. Raises BadConfigError if the
    study was begun with others: its values could not be compared with new ones.
    """
    config.directory.mkdir(parents=True, exist_ok=True)
    with study_lock(config):  # Two drivers that begin at once would both make the tables.
        storage = open_storage(config)
        study = optuna.create_study(
            storage=storage,
            study_name=config.name,
            directions=[objective.direction for objective in config.objectives],
            pruner=make_pruner(config.pruner, train_steps=train_steps, warmup_steps=warmup_steps),
            load_if_exists=True,
        )
        wanted = json.loads(json.dumps(settings))
        saved = study.user_attrs.get(SETTINGS)
        if saved is None:
            study.set_user_attr(SETTINGS, wanted)
        elif saved != wanted:
            changed = [key for key in sorted(saved.keys() | wanted.keys()) if saved.get(key) != wanted.get(key)]
            listed = ", ".join(f"{key} {saved.get(key)!r} -> {wanted.get(key)!r}" for key in changed)
            raise BadConfigError(
                f"study {config.name} in {config.study_dir} was begun with other settings ({listed}), so old and new "
                "trials could not be compared; undo the change, or set another name and study_dir"
            )
    return Store(storage, study, config)


def open_study(config: StudyConfig) -> optuna.Study:
    """An existing study, for reading; UserError if there is none yet."""
    missing = UserError(f"no study {config.name} in {storage_name(config)}; start it with: vsr-dist study run")
    file = storage_file(config)
    if file is not None and not file.exists():
        raise missing
    try:
        return optuna.load_study(storage=open_storage(config), study_name=config.name)
    except KeyError:
        raise missing from None


def load_trials(config: StudyConfig) -> list[FrozenTrial]:
    """All trials of an existing study, for reading; UserError if there is none yet."""
    return open_study(config).get_trials()


def is_void(trial: FrozenTrial) -> bool:
    """True for a trial that ended without its own doing and does not count."""
    return trial.state == TrialState.FAIL and bool(trial.user_attrs.get(INTERRUPTED, False))


def role_of(trial: FrozenTrial) -> str:
    """`search`, `start`, `repeat` or `warm`."""
    return str(trial.user_attrs.get(ROLE, "search"))


def is_feasible(trial: FrozenTrial) -> bool:
    """True if no constraint is violated."""
    return all(value <= 0 for value in trial.constraints.values())


def by(driver: Driver) -> dict[str, Any]:
    """The attribute that says who runs a trial."""
    return {"lease": driver.lease()}


__all__ = [
    "INTERRUPTED",
    "REASON",
    "REPEAT_OF",
    "ROLE",
    "SEEDS",
    "SETTINGS",
    "SLOT",
    "Store",
    "is_feasible",
    "is_void",
    "load_trials",
    "open_store",
    "open_study",
    "role_of",
    "storage_file",
    "storage_name",
]
