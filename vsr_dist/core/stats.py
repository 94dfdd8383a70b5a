"""Means of named scalars over the steps of a log interval, kept on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from vsr_dist.core.collectives import mean_over_ranks


class IntervalMeans:
    """Adds up 0-d tensors without a host sync; `read` gives the mean over steps and ranks.

    Every rank must add the same names in the same order: `read` reduces over ranks.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one step's values (0-d, any device, detached or not)."""
        for name, value in values.items():
            kept = value.detach().double()
            self._sums[name] = self._sums[name] + kept if name in self._sums else kept
            self._counts[name] = self._counts.get(name, 0) + 1

    def state(self) -> dict[str, tuple[float, int]]:
        """Sum and number of steps of each name so far on this rank, for a checkpoint; reads the device."""
        return {name: (float(total), self._counts[name]) for name, total in self._sums.items()}

    def restore(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Go on from what `state` gave, bit for bit."""
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=device) for name, (total, _) in state.items()
        }
        self._counts = {name: int(count) for name, (_, count) in state.items()}

    def read(self) -> dict[str, float]:
        """Means since the last read, equal on all ranks; the sums start again from nothing."""
        if not self._sums:
            return {}
        names = list(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        values = mean_over_ranks(means).tolist()
        self._sums, self._counts = {}, {}
        return dict(zip(names, values, strict=True))
