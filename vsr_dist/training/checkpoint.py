"""Checkpoints that are whole or absent, hold nothing that can run code, and are restored by name.

A checkpoint is a folder `step_XXXXXXXX`: weights as safetensors, optimiser states as plain tensors, `state.json`,
and `manifest.json` with the size and hash of every file. It is written under a temporary name and renamed, and
older ones are removed only afterwards. `best` is a checkpoint of the same make that pruning and resuming leave alone.
Nothing random is stored: seeds are functions of the step (`vsr_dist.core.rng`), and so is the data position.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import nn

from vsr_dist.core.collectives import World, barrier, from_main, raise_on_all_ranks
from vsr_dist.core.errors import BadCheckpointError, BadConfigError, nearest_hint
from vsr_dist.training.config import TrainConfig

_PREFIX = "step_"
_TEMPORARY = ".tmp"
_MANIFEST = "manifest.json"
_OPTIMIZERS = "optimizers.pt"
_BEST = "best"
_BEST_BEFORE = "best.old"


@dataclass(frozen=True)
class Restorable:
    """What lives through a run, by name. Modules are unwrapped: their keys carry no `module.`."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint taken after `step` steps lies."""
    return folder / f"{_PREFIX}{step:08d}"


def save(folder: Path, step: int, live: Restorable, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and then remove all but the newest `keep`. Call on one rank only.

    `state` is any JSON value that the caller wants back.
    """
    final = checkpoint_path(folder, step)
    temporary = _write(final, step, live, state)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _flush(folder)
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _save_best(folder: Path, step: int, live: Restorable, state: dict[str, Any]) -> Path:
    """Write the checkpoint `best` in place of the one before. Call on one rank only.

    A folder cannot be renamed over another: the one before steps aside first, where `best` finds it until it has its
    successor.
    """
    final, before = folder / _BEST, folder / _BEST_BEFORE
    temporary = _write(final, step, live, state)
    if final.exists():
        if before.exists():
            shutil.rmtree(before)
        os.replace(final, before)
    os.replace(temporary, final)
    _flush(folder)
    if before.exists():
        shutil.rmtree(before)
    return final


def best(folder: Path) -> Path | None:
    """The complete checkpoint that `_save_best` wrote last, or None."""
    return next((path for path in (folder / _BEST, folder / _BEST_BEFORE) if not _faults(path, hashes=False)), None)


def is_finite(path: Path) -> bool:
    """True if no weight in a complete checkpoint is NaN or infinite."""
    return all(
        bool(torch.isfinite(tensor).all())
        for file in sorted(path.glob("*.safetensors"))
        for tensor in load_file(file).values()
        if tensor.is_floating_point()
    )


def _write(final: Path, step: int, live: Restorable, state: dict[str, Any]) -> Path:
    """Write a whole checkpoint, on the disk to the last byte, beside `final`; returns where.

    Every file is written by Python, whose OSError says that the disk is full; the writers of both formats do not.
    """
    folder = final.parent
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in (*folder.glob(f"{_PREFIX}*{_TEMPORARY}"), *folder.glob(_BEST + _TEMPORARY)):
        shutil.rmtree(leftover)
    temporary = final.with_name(final.name + _TEMPORARY)
    temporary.mkdir()
    for name, module in live.modules.items():
        (temporary / f"{name}.safetensors").write_bytes(safetensors_bytes(_contiguous(module.state_dict())))
    optimizer_states = io.BytesIO()
    torch.save({name: optimizer.state_dict() for name, optimizer in live.optimizers.items()}, optimizer_states)
    (temporary / _OPTIMIZERS).write_bytes(optimizer_states.getbuffer())
    (temporary / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    manifest = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
    (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in temporary.iterdir():
        _flush(path)
    _flush(temporary)
    return temporary


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints whose files all have the size that their manifest says, oldest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(path for path in found if not _faults(path, hashes=False))


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    complete = complete_checkpoints(folder)
    return complete[-1] if complete else None


def read_state(path: Path) -> dict[str, Any]:
    """The state that a checkpoint was saved with, after all of its files were compared with their hashes."""
    faults = _faults(path, hashes=True)
    if faults:
        raise BadCheckpointError(f"checkpoint {path} is damaged: {'; '.join(faults)}; delete it to use an older one")
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def load(path: Path, live: Restorable) -> dict[str, Any]:
    """Restore every module and optimiser by name, in place; returns the saved state. Call on every rank."""
    state = read_state(path)
    try:
        optimizer_states = torch.load(path / _OPTIMIZERS, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise BadCheckpointError(f"{path / _OPTIMIZERS} does not hold plain tensors: {error}") from error
    _check_names(path, set(optimizer_states), set(live.optimizers), "optimisers")
    for name, module in live.modules.items():
        load_weights(module, path / f"{name}.safetensors")
    for name, optimizer in live.optimizers.items():
        optimizer.load_state_dict(optimizer_states[name])
    return state


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module; any missing, extra or differently shaped tensor is an error."""
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise BadCheckpointError(f"{path} cannot be read as a safetensors file: {error}") from error
    except RuntimeError as error:
        raise BadCheckpointError(
            f"{path} does not fit the configured network; use the configuration that it was trained with: {error}"
        ) from error


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _fingerprint(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"num_bytes": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}


def _faults(path: Path, *, hashes: bool) -> list[str]:
    """What a checkpoint folder lacks against its manifest."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
    except (OSError, ValueError):
        return ["no readable manifest.json"]
    if not isinstance(manifest, dict) or "state.json" not in manifest:
        return ["manifest.json lists no checkpoint"]
    faults = []
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["num_bytes"]:
            faults.append(f"{name} is missing or has another size")
        elif hashes and _fingerprint(file) != expected:
            faults.append(f"the bytes of {name} differ from its hash")
    return faults


def _check_names(path: Path, found: set[str], wanted: set[str], what: str) -> None:
    if found != wanted:
        raise BadCheckpointError(f"checkpoint {path} holds the {what} {sorted(found)}; expected {sorted(wanted)}")


def _flush(path: Path) -> None:
    """Force a file's (or folder's) bytes to the disk, so that the rename cannot overtake them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointKeeper:
    """The checkpoints of one run: saved on rank 0, restored on all; the newest ones and the best one are kept.

    Every rank must make the same calls in the same order.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, live: Restorable, world: World) -> None:
        self.config, self.live, self.world = config, live, world
        self.folder = run_dir / "checkpoints"
        self._best = from_main(raise_on_all_ranks(self._known_best))

    def save(self, done: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of step `done`, then remove what is older than the newest `keep_checkpoints`."""
        if self.world.is_main:
            save(self.folder, done, self.live, state, self.config.keep_checkpoints)
        barrier()

    def keep_best(self, done: int, metrics: Mapping[str, float], state: Callable[[], dict[str, Any]]) -> None:
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
        measured = {"metric": name, "mode": self._mode, "value": value}
        full = {**state(), "best": measured}
        if self.world.is_main:
            _save_best(self.folder, done, self.live, full)
        barrier()

    def forget_best_after(self, step: int) -> None:
        """Remove the best checkpoint if it is of a later step, which a rollback has abandoned."""
        path = best(self.folder) if self.world.is_main else None
        if path is not None and read_state(path)["step"] > step:
            for name in (_BEST, _BEST_BEFORE):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        self._best = from_main(raise_on_all_ranks(self._known_best))

    def has_checkpoint(self) -> bool:
        """True on every rank if there is a complete"""
        return from_main(self.world.is_main and newest(self.folder) is not None)

    def restore_last_good(self) -> dict[str, Any] | None:
        """Load the newest checkpoint without a broken weight; returns its state, or None if there is no such one."""
        path = from_main(raise_on_all_ranks(self._last_good))
        return None if path is None else raise_on_all_ranks(lambda: load(path, self.live))

    def _last_good(self) -> Path | None:
        if not self.world.is_main:
            return None
        complete = reversed(complete_checkpoints(self.folder))
        return next((path for path in complete if is_finite(path)), None)

    def _known_best(self) -> float | None:
        """The value of a best checkpoint by the same measure, from before this process."""
        path = best(self.folder) if self.world.is_main else None
        if path is None:
            return None
        measured = read_state(path)["best"]
        same = (measured["metric"], measured["mode"]) == (self.config.best_metric, self._mode)
        return float(measured["value"]) if same else None

    def _gain(self, value: float, over: float) -> float:
        return value - over if self.config.is_highest_best else over - value

    @property
    def _mode(self) -> str:
        return "max" if self.config.is_highest_best else "min"
