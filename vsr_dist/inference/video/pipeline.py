"""Decode, network and encode side by side: a thread before and a thread behind the network, with short queues.

The network runs in the thread that calls `run_part`. Whatever fails in one thread, Ctrl-C included, ends all three.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from vsr_dist.inference.streaming.stream import Frame, FrameStream
from vsr_dist.inference.video.media_in import Damage, MediaFrame, MediaReader, Place
from vsr_dist.inference.video.segments import SegmentSink
from vsr_dist.inference.video.work_folder import Part, SegmentRecord

Item = TypeVar("Item")

# Frames that may wait before the network and behind it: enough to even out, few enough for large frames.
_QUEUE_FRAMES = 4


class StoppedError(Exception):
    """Another thread has ended the work; its reason is the one to tell."""


class Channel(Generic[Item]):
    """A short queue between two threads that either may close."""

    def __init__(self, capacity: int = _QUEUE_FRAMES) -> None:
        self._items: deque[Item] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self._ended = self._stopped = False

    def put(self, item: Item) -> None:
        """Hand over, waiting for room. Raises StoppedError after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._capacity)
            if self._stopped:
                raise StoppedError
            self._items.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Whoever waits at this queue shall stop."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        """The items, until `end`. Raises StoppedError after `stop`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._ended or self._items)
                if self._stopped:
                    raise StoppedError
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


@dataclass(frozen=True)
class Range:
    """The frames of a part: those with `first_pts <= pts < end_pts` (None: no bound), at most `num_frames` of them.

    `start`: the place from where frames are pushed, some before the first of the part to warm the network up.
    """

    first_pts: int | None = None
    end_pts: int | None = None
    num_frames: int | None = None
    start: Place = field(default_factory=Place)


@dataclass
class PartReport:
    """What a part took. network_s: inside the network's calls; damage: of the whole part, earlier starts included."""

    num_frames: int = 0
    num_new: int = 0
    network_s: float = 0.0
    num_cuts: int = 0
    damage: Damage = field(default_factory=Damage)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Close:
    """Ends a segment."""

    record: SegmentRecord
    state: dict[str, Tensor] | None


_Output = tuple[Frame, int] | _Close


class PartRun:
    """One process's work on its part, from its first unfinished segment on."""

    def __init__(
        self,
        part: Part,
        reader: MediaReader,
        stream: FrameStream,
        make_sink: Callable[[int, int], SegmentSink],
        *,
        frames: Range,
        segment_frames: int,
        advance: Callable[[int], None],
    ) -> None:
        self._part, self._reader, self._stream, self._make_sink = part, reader, stream, make_sink
        self._range, self._segment_frames, self._advance = frames, segment_frames, advance
        self.report = PartReport()
        self._pending: deque[int] = deque()
        self._last: SegmentRecord | None = None
        self._met = Damage()

    def run(self) -> PartReport:
        """Do what is left. Raises what any of the threads raised."""
        self._resume()
        if self._last is not None and self._last.last:
            return self.report
        number = 0 if self._last is None else self._last.number + 1
        self._part.clear_unfinished(number)
        incoming: Channel[MediaFrame] = Channel()
        outgoing: Channel[_Output] = Channel()
        sink = self._make_sink(number, self.report.num_frames)
        try:
            workers = [partial(self._decode, incoming), partial(self._encode, outgoing, sink)]
            with _beside([incoming, outgoing], workers):
                self._work(incoming, outgoing, number)
        except BaseException:
            sink.abandon()
            raise
        return self.report

    def _resume(self) -> None:
        for record in self._part.records():
            self.report.num_frames += record.num_frames
            self._last = record
        if self._last is None:
            return
        record = self._last
        self.report.num_cuts, self.report.facts = record.num_cuts, record.facts
        self.report.damage = Damage(**record.damage)
        if not record.last:
            self._stream.restore(self._part.state(record.number))
            self._pending.extend(record.pending)

    def _place(self) -> Place:
        if self._last is None:
            return self._range.start
        return Place(self._last.pushed, self._last.last_pts, self._last.seekable)

    def _decode(self, incoming: Channel[MediaFrame]) -> None:
        for frame in self._reader.frames(self._place(), self._range.first_pts):
            incoming.put(frame)
        incoming.end()

    def _work(self, incoming: Channel[MediaFrame], outgoing: Channel[_Output], number: int) -> None:
        """Push frames until the part's last result is out; close segments on the way."""
        pushed, in_segment, last, finished = self._place().num_frames, 0, None, False
        for last in incoming:
            self._pending.append(last.pts)
            if self._range.end_pts is None or last.pts < self._range.end_pts:
                self._met = last.damage
            num_out, finished = self._take(partial(self._stream.push, last.rgb), outgoing)
            pushed += 1
            in_segment += num_out
            if finished:
                incoming.stop()
                break
            if in_segment >= self._segment_frames:
                outgoing.put(_Close(self._record(number, in_segment, pushed, last), self._stream.state()))
                number, in_segment = number + 1, 0
        if not finished:
            self._met = self._reader.damage
            in_segment += self._take(self._stream.finish, outgoing)[0]
        record = self._record(number, in_segment, pushed, last)
        record.last = True
        outgoing.put(_Close(record, None))
        outgoing.end()

    def _take(self, work: Callable[[], list[Frame]], outgoing: Channel[_Output]) -> tuple[int, bool]:
        """Let the network work, and hand its results on; see `_hand_on`."""
        begin_s = time.perf_counter()
        results = work()
        self.report.network_s += time.perf_counter() - begin_s
        self.report.num_cuts += sum(map(self._is_own, self._stream.cut_lags))
        return self._hand_on(results, outgoing)

    def _is_own(self, lag: int) -> bool:
        """True if the frame `lag` before the newest is of this part, not one before or behind it."""
        limits, place = self._range, len(self._pending) - 1 - lag
        pts = self._pending[place]
        return (
            (limits.first_pts is None or pts >= limits.first_pts)
            and (limits.end_pts is None or pts < limits.end_pts)
            and (limits.num_frames is None or self.report.num_frames + place < limits.num_frames)
        )

    def _hand_on(self, results: list[Frame], outgoing: Channel[_Output]) -> tuple[int, bool]:
        """Give the encoder those of the results that are of this part: how many, and True when its last one is out."""
        limits, num_out = self._range, 0
        for result in results:
            pts = self._pending.popleft()
            if limits.end_pts is not None and pts >= limits.end_pts:
                return num_out, True
            if limits.first_pts is None or pts >= limits.first_pts:
                outgoing.put((result, pts))
                num_out += 1
                self.report.num_frames += 1
                if self.report.num_frames == limits.num_frames:
                    return num_out, True
        return num_out, False

    def _record(self, number: int, num_frames: int, pushed: int, last: MediaFrame | None) -> SegmentRecord:
        report = self.report
        report.num_new += num_frames
        # The counts of a reader begin with this process; the report goes on from the last segment.
        before = self._last
        report.damage = self._met.after(Damage() if before is None else Damage(**before.damage))
        report.facts = self._stream.facts()
        last_pts = None if before is None else before.last_pts
        last_duration = 1 if before is None else before.last_duration
        return SegmentRecord(
            number,
            num_frames,
            pushed,
            last_pts if last is None else last.pts,
            seekable=self._reader.seekable and (before is None or before.seekable),
            last=False,
            last_duration=last_duration if last is None else last.duration,
            pending=list(self._pending),
            damage=asdict(report.damage),
            num_cuts=report.num_cuts,
            facts=report.facts,
        )

    def _encode(self, outgoing: Channel[_Output], sink: SegmentSink) -> None:
        for item in outgoing:
            if isinstance(item, _Close):
                sink.finish(item.record)
                self._part.publish(item.record, item.state)
            else:
                sink.write(*item)
                self._advance(1)


@contextmanager
def _beside(channels: Sequence[Channel[Any]], workers: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Run the workers in threads beside the body, and wait for them behind it; the first failure ends them all."""

    def on_end(future: Future[None]) -> None:
        if not isinstance(future.exception(), StoppedError | None):
            stop()

    def stop() -> None:
        for channel in channels:
            channel.stop()

    with ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(worker) for worker in workers]
        for future in futures:
            future.add_done_callback(on_end)
        try:
            with suppress(StoppedError):
                yield
            wait(futures)
        except BaseException:
            stop()
            raise
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, StoppedError):
            raise error
