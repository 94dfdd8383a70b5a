"""Bringing a run to its tracking server from a thread of its own, so that training never waits for it.

Each scalar arrives once. `metrics.jsonl` is sent in batches and the acknowledged byte is kept on disk; the highest
step of each name is written down before it is sent, so after a lost answer or a crash only points up to there are in
doubt, and those are compared with what the server holds. Steps that a resumed run computes again are therefore not
sent again: the server keeps the first values, which on a CPU are the same bit for bit (but for clock times).
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vsr_dist.core.console import say
from vsr_dist.training.metrics_file import Line, MetricsFile
from vsr_dist.training.outbox import Job, Outbox

MAX_POINTS = 1000
_MAX_NAME_CHARS = 250
_INTERVAL_S = 2.0
_LONGEST_PAUSE_S = 60.0


class Unavailable(Exception):  # noqa: N818 - a state of the server, not a mistake
    """The server did not take something now; the same may succeed later. `refused`: it answered, and said no."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Rejected(Exception):  # noqa: N818 - an answer of the server
    """The server will never take this one thing."""


@dataclass(frozen=True)
class Point:
    """One scalar at a step, with the time in milliseconds at which it was measured."""

    name: str
    value: float
    step: int
    time_ms: int


class Destination(Protocol):
    """A tracking server. Every method raises Unavailable or Rejected."""

    def connect(self, outbox: Outbox) -> str:
        """Find or make the run; returns its id."""

    def send(self, run_id: str, points: Sequence[Point]) -> None:
        """Log scalars in one request."""

    def steps(self, run_id: str, name: str) -> set[int]:
        """Steps of which the server holds a point of this name."""

    def deliver(self, run_id: str, job: Job) -> None:
        """Hand over one thing that is no scalar; twice the same must do no harm."""


class Delivery:
    """Brings everything that waits to a destination, in the calling thread."""

    def __init__(self, file: MetricsFile, outbox: Outbox, destination: Destination) -> None:
        self.file, self.outbox, self.destination = file, outbox, destination
        self.num_taken = 0
        self._connected = False
        self._there: dict[str, set[int]] = {}
        self._rewinds = file.rewinds

    def connect(self) -> str:
        """Reach the server and find or make the run; returns its id."""
        state = self.outbox.state
        if not self._connected or state.run_id is None:
            state.run_id = self.destination.connect(self.outbox)
            self.outbox.save()
            self._connected = True
        return state.run_id

    def run(self) -> None:
        """Deliver until nothing waits; the final status comes last. Raises Unavailable."""
        try:
            run_id = self.connect()
            self._send_scalars(run_id)
            # A status ends the run, so it goes after everything else, model included.
            for job in sorted(self.outbox.jobs(), key=lambda job: (job.kind == "status", job.path.name)):
                self._deliver(run_id, job)
        except Unavailable:
            self._there.clear()
            raise

    def outstanding(self) -> tuple[int, int]:
        """(Number of scalars, number of other things) that wait."""
        return self.file.num_values_from(self.outbox.state.acknowledged_bytes), len(self.outbox.jobs())

    def _send_scalars(self, run_id: str) -> None:
        state = self.outbox.state
        while True:
            excerpt = self.file.read_from(state.acknowledged_bytes, MAX_POINTS)
            if not excerpt.lines:
                return
            if excerpt.rewinds != self._rewinds:
                self._rewinds = excerpt.rewinds
                self._there.clear()
            points = [point for line in excerpt.lines for point in points_of(line)]
            fresh = [point for point in points if not self._is_there(run_id, point)]
            for point in fresh:
                state.attempted[point.name] = max(point.step, state.attempted.get(point.name, -1))
            self.outbox.save()
            self._send(run_id, fresh)
            with self.outbox.position_lock:
                # What was rewound meanwhile is written anew, and read anew.
                if self.file.rewinds == excerpt.rewinds:
                    state.acknowledged_bytes = excerpt.end
            self.outbox.save()
            self.num_taken += 1

    def _is_there(self, run_id: str, point: Point) -> bool:
        """True if the server holds a point of this name and step. Asked only of what may have been sent before."""
        state = self.outbox.state
        if not state.taken_over and point.step > state.attempted.get(point.name, -1):
            return False
        if point.name not in self._there:
            self._there[point.name] = self.destination.steps(run_id, point.name)
        return point.step in self._there[point.name]

    def _send(self, run_id: str, points: Sequence[Point]) -> None:
        if not points:
            return
        try:
            self.destination.send(run_id, points)
        except Rejected as error:
            if len(points) == 1:
                say(f"warning: MLflow refuses {points[0].name} of step {points[0].step}, now left out: {error}")
                return
            middle = len(points) // 2
            self._send(run_id, points[:middle])
            self._send(run_id, points[middle:])

    def _deliver(self, run_id: str, job: Job) -> None:
        try:
            self.destination.deliver(run_id, job)
        except Rejected as error:
            say(f"warning: MLflow refuses the {job.kind} in {job.path.name}, now put aside: {error}")
            self.outbox.reject(job, str(error))
        else:
            self.outbox.done(job)
        self.num_taken += 1


class Shipper:
    """A thread that delivers what was put into the outbox, and tries again after a pause while the server fails."""

    def __init__(self, delivery: Delivery, interval_s: float = _INTERVAL_S) -> None:
        self.delivery, self.interval_s = delivery, interval_s
        self.refusal: Unavailable | Rejected | None = None
        self._news, self._closing, self._answered = threading.Event(), threading.Event(), threading.Event()
        self._failures = 0
        self._warned = False
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def start(self, patience_s: float) -> bool:
        """Begin; waits `patience_s` at most for the first answer. False: there was none, or it was no (`refusal`)."""
        self._thread.start()
        self._answered.wait(patience_s)
        return self.refusal is None and self._answered.is_set() and not self._failures

    def wake(self) -> None:
        """Say that something waits."""
        self._news.set()

    def close(self, limit_s: float) -> bool:
        """Try once more to deliver everything, for `limit_s` at most; True if nothing waits any more."""
        self._closing.set()
        self._news.set()
        self._thread.join(limit_s)
        return not self._thread.is_alive() and self.delivery.outstanding() == (0, 0)

    def _loop(self) -> None:
        try:
            self._first_contact()
            closing = False
            while not closing:
                self._news.wait()
                self._news.clear()
                closing = self._closing.is_set()
                if not self._attempt():
                    self._news.set()
                # Batches: what comes meanwhile goes together. Closing cuts the pause short.
                self._closing.wait(0 if closing else self._pause_s())
        except Exception:  # noqa: BLE001 - whatever is wrong here, training goes on and the outbox keeps everything
            say(f"warning: tracking stops here, what waits is kept for 'track replay':\n{traceback.format_exc()}")
        finally:
            self._answered.set()

    def _first_contact(self) -> None:
        try:
            self.delivery.connect()
        except Rejected as error:
            self.refusal = error
        except Unavailable as error:
            if error.refused:
                self.refusal = error
            self._note_failure(error)
        self._answered.set()
        self._news.set()

    def _attempt(self) -> bool:
        num_before = self.delivery.num_taken
        try:
            self.delivery.run()
        except (Unavailable, Rejected) as error:
            # One that takes a thing now and then is asked again soon.
            if self.delivery.num_taken > num_before:
                self._failures = 0
            self._note_failure(error)
            return False
        if self._warned:
            say("MLflow takes everything again")
        self._failures, self._warned = 0, False
        return True

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        if not self._warned:
            say(f"warning: MLflow does not take everything; training goes on, all is kept: {error}")
        self._warned = True

    def _pause_s(self) -> float:
        return min(self.interval_s * 2.0 ** min(self._failures, 10), _LONGEST_PAUSE_S)


def points_of(line: Line) -> list[Point]:
    """The scalars of one line of `metrics.jsonl`, under names that the server accepts."""
    time_ms = round(1000 * line["time_s"])
    values = {name: value for name, value in line.items() if name not in {"step", "time_s"}}
    return [Point(legal_name(name), float(value), line["step"], time_ms) for name, value in values.items()]


def legal_name(name: str) -> str:
    """`name` as MLflow accepts names: letters, digits, `_ - . space : /`, no odd paths, at most 250 characters.

    A name that had to be changed ends with four hex digits of its hash, so two names never become one.
    """
    legal = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)
    if posixpath.normpath(legal) != legal or legal.startswith((".", "/")):
        legal = legal.replace("/", "_").lstrip(".") or "_"
    if legal == name and len(name) <= _MAX_NAME_CHARS:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:4]
    return f"{legal[: _MAX_NAME_CHARS - 5]}-{mark}"
