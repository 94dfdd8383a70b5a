"""The folder beside the output where a job keeps what is done, so that it can go on after any end.

    .NAME.work/lock  job.json            the plan and everything that shapes the result
               part_000/000000.packets   encoded packets of a segment (or 000000/, its PNG frames)
                        000000.json      what is in it; the segment counts once this file is there
                        000000.state     the network's memory at its end (only of the last segment)
                        held             locked by the process that works on this part

Each file is published by rename. A part is a contiguous range of frames; each process has one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from vsr_dist.core.errors import BadConfigError, BadInputError
from vsr_dist.core.files import write_json
from vsr_dist.core.locks import exclusive

# What a work folder may hold: it is removed as a whole at the end.
_OWN_NAMES = re.compile(r"lock|job\.json(\.tmp)?|part_\d{3,}|whole(\..*)?")


@dataclass
class SegmentRecord:
    """What a finished segment holds, and where the work stood at its end.

    pts, sizes, keys: of its packets in the order of decoding; PNG frames have pts alone. pushed, last_pts: frames that
    the network had taken by then, and the time of the last. pending: times of those whose results were not out.
    """

    number: int
    num_frames: int
    pushed: int
    last_pts: int | None
    seekable: bool
    last: bool
    last_duration: int = 1
    pending: list[int] = field(default_factory=list)
    pts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    extradata: str = ""
    damage: dict[str, Any] = field(default_factory=dict)
    num_cuts: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class Part:
    """One process's share of a job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen_segments = self._seen_frames = 0
        self._seen_last = False

    def records(self) -> Iterator[SegmentRecord]:
        """The finished segments in order."""
        for number in count():
            path = self._path(number, ".json")
            if not path.is_file():
                return
            yield SegmentRecord(**json.loads(path.read_text()))

    def look(self) -> tuple[int, bool]:
        """(Finished frames, whether the last segment is among them); for a look from another process, and cheap."""
        for record in self._unseen():
            self._seen_segments, self._seen_frames = record.number + 1, self._seen_frames + record.num_frames
            self._seen_last = record.last
        return self._seen_frames, self._seen_last

    def _unseen(self) -> Iterator[SegmentRecord]:
        while (path := self._path(self._seen_segments, ".json")).is_file():
            yield SegmentRecord(**json.loads(path.read_text()))

    def packets_path(self, number: int) -> Path:
        """Where the packets of a segment are."""
        return self._path(number, ".packets")

    def frames_path(self, number: int) -> Path:
        """Where the PNG frames of a segment are."""
        return self._path(number, "")

    def publish(self, record: SegmentRecord, state: dict[str, Tensor] | None) -> None:
        """Let a segment count, whose packets or frames lie in place already."""
        if state is not None:
            path = self._path(record.number, ".state")
            temporary = path.with_suffix(".tmp")
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
            os.replace(temporary, path)
        write_json(self._path(record.number, ".json"), vars(record))
        if record.number:
            self._path(record.number - 1, ".state").unlink(missing_ok=True)

    def state(self, number: int) -> dict[str, Tensor]:
        """The network's memory at the end of a segment."""
        found: dict[str, Tensor] = load_file(self._path(number, ".state"))
        return found

    def clear_unfinished(self, num_done: int) -> None:
        """Remove what was begun behind the finished segments."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name == "held":
                continue
            is_done = path.stem.isdecimal() and int(path.stem) < num_done and path.suffix != ".tmp"
            if not is_done:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:06d}{suffix}"


class WorkFolder:
    """The whole of it; see the module."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job_path = path / "job.json"

    def make(self) -> None:
        """Create it. Raises BadConfigError where that is not possible, and for a folder that holds anything else."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = sorted(path.name for path in self.path.iterdir() if not _OWN_NAMES.fullmatch(path.name))
            if foreign:
                raise BadConfigError(
                    f"the work folder {self.path} holds {foreign[0]}, and it is removed at the end with all that is in "
                    "it; name a new folder with --work-dir"
                )
            (self.path / "lock").touch()
        except OSError as error:
            raise BadConfigError(
                f"the work folder {self.path} cannot be made ({error.strerror}); expected a folder that can be written "
                "to: choose another place for the output, or name one with --work-dir"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works on this job meanwhile. Raises BadConfigError if somebody does."""
        with hold(self.path / "lock", f"another process works on {self.path} just now; wait for it, or end it"):
            yield

    def part(self, number: int) -> Part:
        """The share of a process."""
        return Part(self.path / f"part_{number:03d}")

    def read_job(self) -> dict[str, Any] | None:
        """What an earlier start has planned."""
        if not self.job_path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(self.job_path.read_text())
        except ValueError as error:
            raise BadInputError(f"{self.job_path} is damaged ({error}); remove {self.path} to begin anew") from error
        return found

    def remove(self) -> None:
        """All is done: take it away."""
        shutil.rmtree(self.path)


@contextmanager
def hold(path: Path, message: str) -> Iterator[None]:
    """Lock a file; raises BadConfigError with the message, at once, if another process has it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(path, wait=False))
        except BlockingIOError as error:
            raise BadConfigError(message) from error
        yield


def is_held(path: Path) -> bool:
    """True if a living process holds the lock file."""
    try:
        with exclusive(path, wait=False):
            return False
    except (BlockingIOError, FileNotFoundError):
        return path.exists()
