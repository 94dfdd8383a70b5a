"""Files that are seen whole or not at all."""

from __future__ import annotations

import json
import os
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
