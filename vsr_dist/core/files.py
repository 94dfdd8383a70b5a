"""Files: written whole or not at all, and locked among processes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by rename, so that nobody reads half of it, not even after a power cut.

    For files that one process writes at a time.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`write_whole` of a JSON object that people read, too."""
    write_whole(path, json.dumps(content, indent=1).encode())


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Inside, nobody else holds the lock file `path`, which is made and stays.

    The system releases the lock of a process that dies. Raises OSError if the file cannot be made, and
    BlockingIOError if somebody holds the lock and `wait` is False.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
