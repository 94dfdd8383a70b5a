"""Who runs a trial: a driver's claim on it, renewed while the driver lives.

Optuna's own heartbeat works for databases within `Study.optimize` only. A lease is a user attribute of the running
trial, so every storage has it, and every driver sees it.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from optuna.trial import FrozenTrial

LEASE = "lease"


@dataclass(frozen=True)
class Driver:
    """One driver process: an id of its own, and where and what it is."""

    id: str
    host: str
    # Machine start and process-number namespace: two containers of one machine do not see each other's processes.
    place: str
    pid: int
    created_s: float

    def lease(self) -> dict[str, Any]:
        """The attribute's value now."""
        return {**vars(self), "renewed_s": round(time.time(), 3)}


def this_driver() -> Driver:
    """The driver that this process is."""
    pid = os.getpid()
    return Driver(uuid.uuid4().hex[:12], socket.gethostname(), _place(), pid, psutil.Process(pid).create_time())


def is_held_by(trial: FrozenTrial, driver: Driver) -> bool:
    """True if the trial's lease is this driver's."""
    return bool(trial.user_attrs.get(LEASE, {}).get("id") == driver.id)


@dataclass
class Watch:
    """Tells which leases are dead.

    On this machine a lease is as alive as its process. Of another machine only changes are seen, and its clock may be
    wrong, so its lease is dead once neither it nor the trial's files have changed for `lease_s` of this driver's time.
    """

    driver: Driver
    lease_s: float
    _seen: dict[int, tuple[object, float]] = field(default_factory=dict)

    def forget(self) -> None:
        """Begin to watch anew, after a time in which no driver could renew its lease."""
        self._seen.clear()

    def is_dead(self, trial: FrozenTrial, pulse: Sequence[tuple[float, int]]) -> bool:
        """True if nobody runs this trial any more; `pulse` is what its files look like."""
        lease = trial.user_attrs.get(LEASE)
        if lease is None:
            return True  # A driver claims a trial as it makes it, so this one is of a driver without leases.
        if lease["place"] == self.driver.place:
            return not _is_process(lease["pid"], lease["created_s"])
        sign = (lease["id"], lease["renewed_s"], tuple(pulse))
        before, since_s = self._seen.get(trial.number, (None, 0.0))
        if sign != before:
            self._seen[trial.number] = (sign, time.monotonic())
            return False
        return time.monotonic() - since_s > self.lease_s


def _is_process(pid: int, created_s: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - created_s) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _place() -> str:
    """What two processes have in common that can see each other by their numbers."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{started}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # Not Linux.
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"
