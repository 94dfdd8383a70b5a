"""A lock among the threads and processes of one machine."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Inside, nobody else holds the lock file `path`, which is made and stays.

    The system releases the lock of a process that dies. Raises OSError if the file cannot be made, and
    BlockingIOError if somebody holds the lock and `wait` is False.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
