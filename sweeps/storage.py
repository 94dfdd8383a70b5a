"""A study's storage, and everything that is written to it. Only the driver holds a `Store`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from sweeps.study_config import StudyConfig
from vsr_dist.core.errors import BadConfigError, UserError
from vsr_dist.core.rng import mix, purpose

SETTINGS = "settings"
REASON = "reason"
INTERRUPTED = "interrupted"
_JOURNAL_NAME = "journal.log"
_MAX_NUMPY_SEED = 2**32


@dataclass(frozen=True)
class Store:
    """One study of one storage."""

    storage: BaseStorage
    study: optuna.Study

    def next_number(self) -> int:
        """Number that the next trial will have."""
        return len(self.study.get_trials(deepcopy=False))

    def ask(self, seed: int) -> optuna.Trial:
        """A new trial, in state RUNNING, with a sampler of its own.

        The sampler's seed depends on the study's seed and the trial's number only. A sampler seeded once per
        process would draw the first trials' values again whenever a study goes on.
        """
        trial_seed = mix(purpose("study"), seed, self.next_number()) % _MAX_NUMPY_SEED
        self.study.sampler = optuna.samplers.TPESampler(seed=trial_seed)
        return self.study.ask()

    def complete(self, number: int, value: float) -> None:
        """End a running trial with its objective."""
        self.study.tell(number, value)

    def fail(self, number: int, reason: str, *, interrupted: bool = False) -> None:
        """End a running trial without a result. An interrupted one is run anew under another number."""
        self.note(number, {REASON: reason, INTERRUPTED: interrupted})
        self.study.tell(number, state=TrialState.FAIL)

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Set user attributes (JSON values) of a running trial."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial_id, key, value)

    def running(self) -> list[FrozenTrial]:
        """Trials that were asked for and not ended."""
        return self.study.get_trials(states=(TrialState.RUNNING,))

    def counted(self) -> list[FrozenTrial]:
        """Trials that count towards `num_trials`: ended, and not by an interruption of the driver."""
        ended = [trial for trial in self.study.get_trials() if trial.state.is_finished()]
        return [trial for trial in ended if not trial.user_attrs.get(INTERRUPTED, False)]


def open_store(config: StudyConfig, settings: Mapping[str, Any]) -> Store:
    """Make the study, or go on with it.

    settings: JSON values, by dotted key, that decide what a trial's objective means. Raises BadConfigError if the
    study was begun with others: its values could not be compared with new ones.
    """
    config.directory.mkdir(parents=True, exist_ok=True)
    storage = _open_storage(config)
    study = optuna.create_study(
        storage=storage,
        study_name=config.name,
        direction=config.objective.direction,
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
    return Store(storage, study)


def load_trials(config: StudyConfig) -> list[FrozenTrial]:
    """All trials of an existing study, for reading; UserError if there is none yet."""
    path = storage_file(config)
    missing = UserError(f"no study {config.name} in {path}; start it with: vsr-dist study run")
    if not path.exists():
        raise missing
    try:
        study = optuna.load_study(storage=_open_storage(config), study_name=config.name)
    except KeyError:
        raise missing from None
    return study.get_trials()


def storage_file(config: StudyConfig) -> Path:
    """The file that the storage is kept in."""
    if config.storage is None:
        return config.directory / _JOURNAL_NAME
    return Path(config.storage.removeprefix("sqlite:///"))


def _open_storage(config: StudyConfig) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # The driver reports in its own words.
    path = storage_file(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    if config.storage is None:
        return JournalStorage(JournalFileBackend(str(path)))
    try:
        return RDBStorage(config.storage)
    except SQLAlchemyError as error:
        raise BadConfigError(f"storage {config.storage} cannot be opened: {error}") from error
