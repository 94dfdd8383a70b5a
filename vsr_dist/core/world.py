"""The ranks of a job as a plain value, so that planning code needs no process group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Where this process stands: `rank` counts from 0 to `size` - 1 over all machines."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the tracking server."""
        return self.rank == 0
