"""`metrics.jsonl` of a run directory: every scalar of the run, written before anything else hears of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_dist.core.errors import BadInputError
from vsr_dist.core.files import write_whole

METRICS_NAME = "metrics.jsonl"
Line = dict[str, Any]


@dataclass(frozen=True)
class Excerpt:
    """Whole lines that begin at a byte offset, the offset behind them, and the number of rewinds before the read."""

    lines: list[Line]
    end: int
    rewinds: int


class MetricsFile:
    """One object per logged step: `{"step": n, "time_s": t, name: value}`. Safe to read from another thread."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Open for appending; lines of steps after `resume_step` (from before a crash) are dropped first, all of
        them for a fresh start at 0. None keeps the file as it is."""
        self.path = path
        self.rewinds = 0
        self._lock = threading.Lock()
        if resume_step is not None:
            self.rewind(resume_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        line = json.dumps({"step": step, "time_s": round(time.time(), 3), **metrics}) + "\n"
        with self._lock, self.path.open("a") as file:
            file.write(line)

    def rewind(self, step: int) -> int:
        """Drop the lines of steps after `step`, all of them for 0; returns the length that is left in bytes."""
        with self._lock:
            if not self.path.exists():
                return 0
            kept = [line for line in read_metrics(self.path) if step and line["step"] <= step]
            write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
            self.rewinds += 1
            return self.path.stat().st_size

    def read_from(self, offset: int, max_values: int) -> Excerpt:
        """Whole lines from a byte offset on: as many as hold `max_values` values together, but one at least."""
        lines: list[Line] = []
        num_values = 0
        with self._lock:
            if not self.path.is_file() or self.path.stat().st_size <= offset:
                return Excerpt([], offset, self.rewinds)
            with self.path.open("rb") as file:
                file.seek(offset)
                for raw in file:
                    line = _parse(self.path, raw) if raw.endswith(b"\n") else None
                    if line is None or (lines and num_values + len(line) > max_values):
                        break
                    lines.append(line)
                    num_values += len(line)
                    offset += len(raw)
            return Excerpt(lines, offset, self.rewinds)

    def num_bytes(self) -> int:
        """Length of the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def num_values_from(self, offset: int) -> int:
        """Number of values in the whole lines from a byte offset on."""
        lines = self.read_from(offset, 1 << 62).lines
        return sum(len(line) - 2 for line in lines)


def read_metrics(path: Path, holding: str = "") -> list[Line]:
    """Lines of a `metrics.jsonl`, oldest first; none if there is no file. An unfinished last line is left out.

    `holding`: only lines in which this name occurs. The others, most of a long run's, need not be understood then.
    """
    if not path.is_file():
        return []
    return [_parse(path, raw) for raw in path.read_bytes().split(b"\n")[:-1] if holding.encode() in raw]


def _parse(path: Path, raw: bytes) -> Line:
    try:
        line: Line = json.loads(raw)
    except ValueError as error:
        raise BadInputError(f"{path} holds a line that is not JSON ({error}); remove that line") from error
    return line
