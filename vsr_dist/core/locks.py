"""A lock among the processes of one machine."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """Inside, no other process holds the lock file `path`, which is made and stays; None locks nothing.

    The system releases the lock of a process that dies. Raises OSError if the file cannot be made.
    """
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
