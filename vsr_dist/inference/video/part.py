"""One process's share of a job: decode, network and encode side by side, and what is kept so that it can resume.

A thread decodes some frames ahead and another encodes behind; the network runs between them, in the thread of the
caller. Each `segment_frames` results a segment is finished and the state of the network is saved.

    part_000/000000             a finished segment: encoded packets, or a folder of PNG frames
             state.safetensors  where the part stands at the end of the last one: `PartState` and the network's memory
             lock               of the process that works on this part

Files appear by rename. Segments count up to the number in the state; what lies behind is removed on resume.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vsr_dist.inference.engine import VideoStream
from vsr_dist.inference.frames import Frame
from vsr_dist.inference.video.video_in import MediaFrame, MediaReader, Place
from vsr_dist.inference.video.video_out import BoundedPool, PacketWriter, PngWriter

Item = TypeVar("Item")

# Frames that may wait before the network and behind it: enough to even out, few enough for large frames.
_QUEUE_FRAMES = 4


@dataclass(frozen=True)
class Range:
    """The frames of a part: `first_pts <= pts < end_pts` (None: no bound), at most `num_frames` of them.

    num_expected: how many there likely are. start: from where frames are pushed, some before the first to warm up.
    """

    num_expected: int
    first_pts: int | None = None
    end_pts: int | None = None
    num_frames: int | None = None
    start: Place = field(default_factory=Place)


@dataclass
class PartState:
    """Where a part stands.

    num_frames: results in the finished segments. num_read: frames that the network has taken; last_pts: see `Place`;
    last_duration: of the last of them. pending: [time, whether a shot begins] of those whose results are not out.
    damage: see `MediaReader`. facts: how the network ran, for people.
    """

    num_segments: int = 0
    num_frames: int = 0
    num_read: int = 0
    last_pts: int | None = None
    last_duration: int = 1
    pending: list[list[int]] = field(default_factory=list)
    num_cuts: int = 0
    damage: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Any] = field(default_factory=dict)
    is_done: bool = False


class Part:
    """The folder of a part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state_path = folder / "state.safetensors"

    def state(self) -> PartState:
        """Where it stands; cheap, and any process may ask."""
        if not self._state_path.is_file():
            return PartState()
        with safe_open(self._state_path, "pt") as file:
            found = json.loads(file.metadata()["state"])
        return PartState(**{**found, "damage": Counter(found["damage"])})

    def memory(self) -> dict[str, Tensor]:
        """The network's memory at the end of the last segment."""
        found: dict[str, Tensor] = load_file(self._state_path)
        return found

    def commit(self, state: PartState, memory: dict[str, Tensor]) -> None:
        """Let the segments up to `state.num_segments` count."""
        temporary = self._state_path.with_suffix(".tmp")
        tensors = {name: tensor.contiguous() for name, tensor in memory.items()}
        save_file(tensors, temporary, metadata={"state": json.dumps(vars(state))})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self._state_path)

    def segment(self, number: int) -> Path:
        """Where a segment is."""
        return self.folder / f"{number:06d}"

    def remove_unfinished(self, num_segments: int) -> None:
        """Remove what was begun after the finished segments."""
        for path in self.folder.glob("[0-9]*"):
            if path.suffix or int(path.name) >= num_segments:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def prefetched(items: Iterator[Item], capacity: int) -> Generator[Item]:
    """The items, none of them None, of which a thread makes up to `capacity` ahead."""
    with ThreadPoolExecutor(1) as pool:
        try:
            waiting = deque(pool.submit(next, items, None) for _ in range(capacity))
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


class PartRun:
    """The work on a part, from its first unfinished segment on. state: how far it is; network_s: inside the network."""

    def __init__(
        self,
        part: Part,
        frames: Range,
        stream: VideoStream,
        open_segment: Callable[[Path, int], PacketWriter | PngWriter],
        *,
        segment_frames: int,
        advance: Callable[[], object],
    ) -> None:
        """open_segment: makes the writer of a segment from its path and the number of its first frame.

        advance: is called for each encoded frame, in another thread.
        """
        self._part, self._range, self._stream, self._advance = part, frames, stream, advance
        self._open_segment, self._segment_frames = open_segment, segment_frames
        self._writer: PacketWriter | PngWriter | None = None
        self.state = part.state()
        self._num_closed = self.state.num_frames
        self.network_s = 0.0

    def run(self, reader: MediaReader) -> None:
        """Do what is left. Raises what any of the threads raised."""
        state, place = self.state, self._range.start
        if state.is_done:
            return
        self._part.remove_unfinished(state.num_segments)
        if state.num_segments:
            place = Place(state.num_read, state.last_pts)
            self._stream.restore(self._part.memory())
        state.num_read = place.num_frames
        with (
            BoundedPool(1, _QUEUE_FRAMES) as encoding,
            closing(prefetched(reader.frames(place), _QUEUE_FRAMES)) as frames,
        ):
            for frame in frames:
                self._note(frame, reader.can_seek)
                if self._hand_on(partial(self._stream.push, frame.rgb), encoding):
                    break
                if state.num_frames - self._num_closed >= self._segment_frames:
                    self._close_segment(self._stream.state(), encoding)
            else:
                state.damage += reader.damage
                self._hand_on(self._stream.finish, encoding)
            state.is_done = True
            self._close_segment({}, encoding)
            encoding.drain()

    def _note(self, frame: MediaFrame, can_seek: bool) -> None:
        state = self.state
        state.num_read += 1
        state.last_pts, state.last_duration = frame.pts if can_seek else None, frame.duration
        state.pending.append([frame.pts, False])
        if self._is_own(frame.pts):
            state.damage += frame.damage

    def _is_own(self, pts: int) -> bool:
        """True for frames of this part, False for those before, which warm the network up, and those behind."""
        first, end = self._range.first_pts, self._range.end_pts
        return (first is None or pts >= first) and (end is None or pts < end)

    def _hand_on(self, work: Callable[[], list[Frame]], encoding: BoundedPool) -> bool:
        """Let the network work and give its results to the encoder: True when the last one of the part is out."""
        state, limits = self.state, self._range
        began_s = time.perf_counter()
        results = work()
        self.network_s += time.perf_counter() - began_s
        for lag in self._stream.cut_lags:
            state.pending[-1 - lag][1] = True
        for rgb in results:
            pts, starts_shot = state.pending.pop(0)
            if limits.end_pts is not None and pts >= limits.end_pts:
                return True
            if self._is_own(pts):
                encoding.submit(self._encode, rgb, pts, state.num_segments, state.num_frames)
                state.num_frames += 1
                state.num_cuts += starts_shot
                if state.num_frames == limits.num_frames:
                    return True
        return False

    def _encode(self, rgb: Frame, pts: int, segment: int, number: int) -> None:
        if self._writer is None:
            self._writer = self._open_segment(self._part.segment(segment), number)
        self._writer.write(rgb, pts)
        self._advance()

    def _close_segment(self, memory: dict[str, Tensor], encoding: BoundedPool) -> None:
        state = self.state
        # The last segment may be empty; then there is none.
        state.num_segments += state.num_frames > self._num_closed
        state.facts, self._num_closed = self._stream.facts(), state.num_frames
        encoding.submit(self._publish, copy.deepcopy(state), memory)

    def _publish(self, state: PartState, memory: dict[str, Tensor]) -> None:
        if self._writer is not None:
            self._writer.finish()
            self._writer = None
        self._part.commit(state, memory)
