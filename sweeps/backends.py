"""Opening the storage of a study: a journal file, SQLite, PostgreSQL, or Optuna's gRPC proxy."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sweeps.study_config import StudyConfig
from vsr_dist.core.errors import BadConfigError, MissingExtraError
from vsr_dist.core.files import exclusive

_JOURNAL_NAME = "journal.log"
_LOCK_NAME = "driver.lock"
_JOURNAL, _SQLITE, _GRPC = "journal:", "sqlite:///", "grpc://"
# Drivers that write at the same time wait for each other.
_SQLITE_WAIT_S = 60
_GRPC_READY_S = 20.0


def storage_file(config: StudyConfig) -> Path | None:
    """The file that the storage is kept in; None for a server."""
    if config.storage is None:
        return config.directory / _JOURNAL_NAME
    for kind in (_JOURNAL, _SQLITE):
        if config.storage.startswith(kind):
            return Path(config.storage.removeprefix(kind))
    return None


def storage_name(config: StudyConfig) -> str:
    """The storage for people: its file, or its address without the password."""
    file = storage_file(config)
    if file is not None:
        return str(file)
    return make_url(str(config.storage)).render_as_string(hide_password=True)


def open_storage(config: StudyConfig) -> BaseStorage:
    """Connect, and make what is missing; BadConfigError with what to do if that fails."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # The driver reports in its own words.
    file = storage_file(config)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    url = config.storage
    if url is None or url.startswith(_JOURNAL):
        return JournalStorage(JournalFileBackend(str(file)))
    if url.startswith(_GRPC):
        return _open_proxy(config)
    try:
        if url.startswith(_SQLITE):
            return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _SQLITE_WAIT_S}})
        if importlib.util.find_spec("psycopg") is None:
            raise MissingExtraError(f"storage {storage_name(config)} needs psycopg; pip install 'psycopg[binary]'")
        # A connection that the server or a firewall has closed meanwhile is replaced before use.
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (SQLAlchemyError, ArgumentError) as error:
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise BadConfigError(f"storage {storage_name(config)} cannot be opened: {reason}") from error


def _open_proxy(config: StudyConfig) -> BaseStorage:
    address = str(config.storage).removeprefix(_GRPC)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadConfigError(f"storage {config.storage}: expected grpc://HOST:PORT, e.g. grpc://head-node:13000")
    if importlib.util.find_spec("grpc") is None:
        raise MissingExtraError(f"storage {config.storage} needs grpcio; pip install grpcio protobuf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=_GRPC_READY_S)
    except Exception as error:
        raise BadConfigError(
            f"storage {config.storage}: no answer within {_GRPC_READY_S:.0f} s ({type(error).__name__}); start the "
            "proxy with optuna.storages.run_grpc_proxy_server, or check host and port"
        ) from error
    return proxy


def is_storage_fault(error: BaseException) -> bool:
    """True if a storage that was open does not do its work now, which may pass: a server that restarts, a network."""
    kinds = [StorageInternalError, SQLAlchemyError]
    if "grpc" in sys.modules:
        kinds.append(sys.modules["grpc"].RpcError)
    return isinstance(error, tuple(kinds))


def study_lock(config: StudyConfig) -> AbstractContextManager[None]:
    """Hold the study folder's lock for a moment: drivers that share the folder look and claim one after another.

    The system releases it however a process ends. Drivers that share a database only are told apart by what is in it.
    """
    return exclusive(config.directory / _LOCK_NAME)
