"""GPUs for trials: each trial has some for itself, also beside another driver of the study on the same machine."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from vsr_dist.core.errors import BadConfigError

_VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slot:
    """GPUs of one trial: their names as CUDA_VISIBLE_DEVICES takes them, and the open files that lock them.

    The trial's launcher inherits the files, so the GPUs stay taken as long as it lives, whatever becomes of the driver.
    """

    gpus: tuple[str, ...] = ()
    files: tuple[int, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """What the trial's processes get; nothing without GPUs."""
        return {_VARIABLE: ",".join(self.gpus)} if self.gpus else {}

    def release(self) -> None:
        """Close the driver's copies of the locks."""
        for file in self.files:
            os.close(file)


class Slots:
    """Hands out GPUs. With `gpus_per_trial` 0 there is nothing to hand out, and every trial gets an empty slot."""

    def __init__(self, study_dir: Path, gpus_per_trial: int) -> None:
        self._per_trial = gpus_per_trial
        self._gpus = visible_gpus() if gpus_per_trial else ()
        self._folder = study_dir / "gpus" / os.uname().nodename

    def take(self) -> Slot | None:
        """Free GPUs for a trial, or None if there are too few at the moment."""
        if not self._per_trial:
            return Slot()
        self._folder.mkdir(parents=True, exist_ok=True)
        taken: dict[str, int] = {}
        for gpu in self._gpus:
            if len(taken) == self._per_trial:
                break
            file = os.open(self._folder / f"{gpu.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
            else:
                taken[gpu] = file
        slot = Slot(tuple(taken), tuple(taken.values()))
        if len(taken) == self._per_trial:
            return slot
        slot.release()
        return None

    def any_free(self) -> bool:
        """True if a trial could have its GPUs now."""
        slot = self.take()
        if slot is not None:
            slot.release()
        return slot is not None


def visible_gpus() -> tuple[str, ...]:
    """Names of the GPUs that this process may use."""
    given = os.environ.get(_VARIABLE)
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    with suppress(RuntimeError):  # A broken driver: then there are none, and `check_gpus` says so.
        return tuple(str(number) for number in range(torch.cuda.device_count()))
    return ()


def check_gpus(gpus_per_trial: int, workers: int) -> None:
    """Raise BadConfigError if the machine has too few GPUs for all workers of a driver."""
    if gpus_per_trial and (wanted := gpus_per_trial * workers) > (found := len(visible_gpus())):
        raise BadConfigError(
            f"{workers} worker(s) with {gpus_per_trial} GPU(s) per trial need {wanted} GPUs, but this machine shows "
            f"{found}; lower --workers or --gpus-per-trial, or check {_VARIABLE}"
        )
