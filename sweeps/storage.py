"""The Optuna storage of a study: opening it, what is written to its trials, and which trials count.

Optuna's heartbeat, which databases have, finds trials whose driver died. `retry` adds such a trial to the queue again
under a new number. It then has the values, the run directory and the checkpoints of the first attempt.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from sweeps.config import StudyConfig, load_study
from sweeps.space import Space
from vsr_dist.core.console import say
from vsr_dist.core.errors import BadConfigError, UserError, import_extra

# User attributes of a study and of its trials.
SETTINGS = "settings"
REASON, ROLE, SEEDS, REPEAT_OF, START, WARM_OF = "reason", "role", "seeds", "repeat_of", "start", "warm_of"
# Host and process of the driver that has claimed the trial.
DRIVER = "driver"
# How many drivers died while they ran the trial, earlier attempts included.
DEATHS = "deaths"
# Of a trial that is not part of the study, because another driver had claimed the last place.
SURPLUS = "surplus"
# What a retried trial keeps of its first attempt.
_KEPT_BY_RETRY = (ROLE, SEEDS, REPEAT_OF, START, DEATHS)
_KEPT_SYSTEM_ATTRS = ("fixed_params", "failed_trial", "retry_history")
_DATABASE_NAME = "study.db"
_JOURNAL, _SQLITE, _GRPC = "journal:", "sqlite:///", "grpc://"
# Drivers that write to one SQLite file at the same time wait for each other.
_SQLITE_WAIT_S = 60
_GRPC_READY_S = 20.0
_MISSED_HEARTBEATS = 3
_NUM_TRIES = 3


class _Database(RDBStorage):
    """Optuna's database storage whose heartbeat survives a database that restarts.

    Optuna records the heartbeat in a thread that would end at the first error, and with it all further heartbeats.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, SQLAlchemyError) as error:
            say(f"warning: no heartbeat recorded: {one_line(error)}")


def storage_file(config: StudyConfig) -> Path | None:
    """The file that holds the study; None for a server."""
    if config.storage is None:
        return config.directory / _DATABASE_NAME
    for kind in (_JOURNAL, _SQLITE):
        if config.storage.startswith(kind):
            return Path(config.storage.removeprefix(kind))
    return None


def storage_name(config: StudyConfig) -> str:
    """The storage for messages: its file, or its address without the password."""
    file = storage_file(config)
    if file is not None:
        return str(file)
    return make_url(str(config.storage)).render_as_string(hide_password=True)


def open_storage(config: StudyConfig) -> BaseStorage:
    """Connect, and create missing tables; BadConfigError or MissingExtraError if that fails."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # The driver writes its own messages.
    warnings.simplefilter("ignore", ExperimentalWarning)
    file = storage_file(config)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    url = config.storage or f"{_SQLITE}{file}"
    if url.startswith(_JOURNAL):
        return _open_journal(Path(url.removeprefix(_JOURNAL)))
    if url.startswith(_GRPC):
        return _open_proxy(url)
    if url.startswith(_SQLITE):
        return _open_database(config, url, {"connect_args": {"timeout": _SQLITE_WAIT_S}})
    import_extra("postgres", "psycopg", f"storage {storage_name(config)}")
    # A connection that the server or a firewall has closed is replaced before use.
    return _open_database(config, url, {"pool_pre_ping": True})


def _open_database(config: StudyConfig, url: str, engine: dict[str, Any]) -> BaseStorage:
    for attempt in range(_NUM_TRIES):
        try:
            return _Database(
                url,
                engine_kwargs=engine,
                heartbeat_interval=config.heartbeat_s,
                grace_period=_MISSED_HEARTBEATS * config.heartbeat_s,
                heartbeat_stale_trial_callback=lambda study, trial: retry(study, trial, max_deaths=config.max_retries),
            )
        except (SQLAlchemyError, ArgumentError) as error:
            # Two drivers that start together may both create the tables.
            if isinstance(error, IntegrityError | ProgrammingError) and attempt + 1 < _NUM_TRIES:
                time.sleep(1.0)
                continue
            reason = one_line(getattr(error, "orig", None) or error)
            raise BadConfigError(f"storage {storage_name(config)} cannot be opened: {reason}") from error
    raise AssertionError("the last attempt returns or raises")


def _open_journal(file: Path) -> BaseStorage:
    """A journal; half a line at its end, which a power failure leaves, is dropped: the next line would join it."""
    if file.exists():
        lock = JournalFileSymlinkLock(str(file))
        lock.acquire()
        try:
            with file.open("rb+") as journal:
                data = journal.read()
                whole = data.rfind(b"\n") + 1
                journal.truncate(whole)
        finally:
            lock.release()
        if whole < len(data):
            say(f"warning: the last line of {file} was cut off, by a power failure perhaps; it is dropped")
    try:
        return JournalStorage(JournalFileBackend(str(file)))
    except ValueError as error:
        raise BadConfigError(
            f"storage {file} is not a journal of Optuna, or it is damaged ({one_line(error)}); restore a copy, or set "
            "another storage"
        ) from error


def _open_proxy(url: str) -> BaseStorage:
    host, _, port = url.removeprefix(_GRPC).rpartition(":")
    if not host or not port.isdigit():
        raise BadConfigError(f"storage {url}: expected grpc://HOST:PORT, e.g. grpc://head-node:13000")
    import_extra("studies", "grpc", f"storage {url}")
    proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=_GRPC_READY_S)
    except Exception as error:
        raise BadConfigError(
            f"storage {url}: no answer within {_GRPC_READY_S:.0f} s ({type(error).__name__}); start the proxy with "
            "optuna.storages.run_grpc_proxy_server, or check host and port"
        ) from error
    return proxy


def storage_fault(error: BaseException | None) -> BaseException | None:
    """The fault of an open storage behind an error, which may pass, such as a server that restarts; None if none is.

    `Study.optimize` raises an AssertionError while it handles such a fault, so the context is looked at too.
    """
    kinds: list[type[BaseException]] = [StorageInternalError, SQLAlchemyError]
    if "grpc" in sys.modules:
        kinds.append(sys.modules["grpc"].RpcError)
    while error is not None and not isinstance(error, tuple(kinds)):
        error = error.__context__
    return error


@contextmanager
def faults_as_user_errors(config: StudyConfig) -> Iterator[None]:
    """Inside, a fault of the storage is raised as a UserError."""
    try:
        yield
    except Exception as error:
        fault = storage_fault(error)
        if fault is None:
            raise
        raise UserError(f"storage {storage_name(config)} fails: {one_line(fault)}") from error


def one_line(error: object) -> str:
    """The first line of an error's text."""
    return " ".join(str(error).partition("\n")[0].split())


def create_study(
    config: StudyConfig, storage: BaseStorage, pruner: BasePruner, settings: Mapping[str, Any]
) -> optuna.Study:
    """Create the study, or continue it.

    settings: JSON values, by dotted key, that all trials must share. Raises BadConfigError if the study was begun with
    others: its values could not be compared with new ones.
    """
    study = optuna.create_study(
        storage=storage,
        study_name=config.name,
        directions=[objective.direction for objective in config.objectives],
        pruner=pruner,
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
            f"study {config.name} in {config.study_dir} was started with other settings ({listed}), so old and new "
            "trials are not comparable; undo the change, or set another name and study_dir"
        )
    return study


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
    with faults_as_user_errors(config):
        return open_study(config).get_trials()


def retry(study: optuna.Study, trial: FrozenTrial, *, max_deaths: int | None = None) -> None:
    """Queue a trial that ended without a result again, under a new number.

    max_deaths: given if its driver died; a trial whose drivers have died more often is not queued, for it may be what
    kills them. A trial that its driver gives back is always queued.
    """
    history = RetryHeartbeatStaleTrialCallback.retry_history
    if any(trial.number in history(other) for other in study.get_trials(deepcopy=False)):
        return  # Its driver queued it before it died.
    kept = {key: value for key, value in trial.user_attrs.items() if key in _KEPT_BY_RETRY}
    if max_deaths is not None:
        num_deaths = kept.get(DEATHS, 0) + 1
        if num_deaths > max_deaths:
            say(f"trial {trial.number}: its driver died again after {max_deaths} retries; not retried")
            return
        kept[DEATHS] = num_deaths
    trial.user_attrs = kept
    trial.system_attrs = {key: value for key, value in trial.system_attrs.items() if key in _KEPT_SYSTEM_ATTRS}
    RetryHeartbeatStaleTrialCallback()(study, trial)
    say(f"trial {trial.number}: interrupted; queued again to resume from its last checkpoint")


def first_number(trial: FrozenTrial) -> int:
    """The number of the first attempt: its run directory is the one of every retry."""
    found = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if found is None else found


def role_of(trial: FrozenTrial) -> str:
    """`search`, `start` (given values), `repeat` (of another trial, with a new seed) or `warm` (of another study)."""
    return str(trial.user_attrs.get(ROLE, "search"))


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: not those that were retried under another number, and no surplus ones."""
    retried = {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
    return [trial for trial in trials if trial.number not in retried and not trial.user_attrs.get(SURPLUS)]


def warm_start(config: StudyConfig, study: optuna.Study, settings: Mapping[str, Any]) -> None:
    """Add the completed trials of the studies that `warm_start` names, each once.

    They must have the same objectives, and a value for every path of the space that lies in the space; others are left
    out, and their number is printed. BadConfigError for a study with other objectives.
    """
    for file in config.warm_start:
        source = open_study(load_study(Path(file)))
        theirs = source.user_attrs.get(SETTINGS, {})
        keys = sorted(key for key in theirs.keys() | settings.keys() if key.startswith("study.objective"))
        if other := [key for key in keys if theirs.get(key) != settings.get(key)]:
            listed = "; ".join(f"{key} {theirs.get(key)!r} there, {settings.get(key)!r} here" for key in other)
            raise BadConfigError(f"warm_start {file}: its objectives differ ({listed}); remove it from warm_start")
        known = {trial.user_attrs.get(WARM_OF) for trial in study.get_trials(deepcopy=False)}
        completed = [t for t in source.get_trials(states=(TrialState.COMPLETE,)) if role_of(t) != "warm"]
        fitting = [trial for trial in completed if _is_in_space(trial, config.space)]
        new = {f"{source.study_name}:{trial.number}": trial for trial in fitting}
        new = {origin: trial for origin, trial in new.items() if origin not in known}
        study.add_trials(_copy(trial, config.space, origin) for origin, trial in new.items())
        if new:
            left_out = len(completed) - len(fitting)
            ending = f"; {left_out} do not fit the space" if left_out else ""
            say(f"warm start: {len(new)} trial(s) of study {source.study_name}{ending}")


def _is_in_space(trial: FrozenTrial, space: Space) -> bool:
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
    """The same values and constraints under this study's distributions."""
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        values=trial.values,
        params={path: trial.params[path] for path in space},
        distributions={path: dimension.distribution() for path, dimension in space.items()},
        user_attrs={ROLE: "warm", WARM_OF: origin},
        constraints=trial.constraints or None,
    )
