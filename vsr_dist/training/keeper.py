"""The checkpoints of one run: when one is written, which is the best, and which one a rollback goes on from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vsr_dist.core.collectives import barrier, from_main, together
from vsr_dist.core.errors import BadConfigError, nearest_hint
from vsr_dist.core.world import World
from vsr_dist.training import checkpoint
from vsr_dist.training.train_config import TrainConfig

State = dict[str, Any]


class Keeper:
    """Saves on rank 0 and restores on all. Every rank must make the same calls in the same order."""

    def __init__(self, config: TrainConfig, run_dir: Path, live: checkpoint.Restorable, world: World) -> None:
        self.config, self.live, self.world = config, live, world
        self.folder = run_dir / "checkpoints"
        self._best = from_main(together(self._known_best))

    def save(self, done: int, state: State) -> None:
        """Write the checkpoint of step `done`, then remove what is older than the newest `keep_checkpoints`."""
        if self.world.is_main:
            checkpoint.save(self.folder, done, self.live, state, self.config.keep_checkpoints)
        barrier()

    def keep_best(self, done: int, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        """Write `checkpoints/best` if the metrics of step `done`, the same on every rank, are the best so far.

        `state` may hold collective calls. An untrained generator is no candidate, NaN neither.
        """
        name = self.config.best_metric
        if name is None:
            return
        if name not in metrics:
            raise BadConfigError(f"train.best_metric: the validation has no metric {name}{nearest_hint(name, metrics)}")
        value = metrics[name]
        better = not math.isnan(value) and (self._best is None or self._gain(value, self._best) > 0)
        if done == 0 or not better:
            return
        self._best = value
        best = {"metric": name, "mode": self.config.best_mode, "value": value}
        full = {**state(), "best": best}
        if self.world.is_main:
            checkpoint.save_best(self.folder, done, self.live, full)
        barrier()

    def has_checkpoint(self) -> bool:
        """True on every rank if there is a complete checkpoint."""
        return from_main(self.world.is_main and checkpoint.newest(self.folder) is not None)

    def restore_last_good(self) -> State | None:
        """Load the newest checkpoint without a broken weight; returns its state, or None if there is no such one."""
        path = from_main(together(self._last_good))
        return None if path is None else together(lambda: checkpoint.load(path, self.live))

    def _last_good(self) -> Path | None:
        if not self.world.is_main:
            return None
        complete = reversed(checkpoint.complete_checkpoints(self.folder))
        return next((path for path in complete if checkpoint.is_finite(path)), None)

    def _known_best(self) -> float | None:
        """The value of a best checkpoint by the same measure, from before this process."""
        path = checkpoint.best(self.folder) if self.world.is_main else None
        if path is None:
            return None
        best = checkpoint.read_state(path)["best"]
        same = (best["metric"], best["mode"]) == (self.config.best_metric, self.config.best_mode)
        return float(best["value"]) if same else None

    def _gain(self, value: float, over: float) -> float:
        return value - over if self.config.best_mode == "max" else over - value
