"""`python -m vsr_dist.train` in which trial n of a study has the n-th of FAULTS, from the third step on, in FAULT_RANK.

`die` (SIGKILL), `memory` (asks for more memory than RLIMIT_AS allows), `nan` (a weight becomes NaN), `hang` (deaf to
SIGTERM, as a rank that is stuck in a collective). Later trials of a study train as they should. All write a line each
second, so that the slow start of a loaded machine is not taken for a hang.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

_hangs = threading.Event()


def show_life() -> None:
    while not _hangs.wait(1.0):
        print("alive", flush=True)


if __name__ == "__main__":
    threading.Thread(target=show_life, daemon=True).start()

import torch  # noqa: E402

from vsr_dist import train  # noqa: E402
from vsr_dist.training.trainer import Trainer  # noqa: E402

_train_step = Trainer._train_step
_FAULT_STEP = 2
_LIMIT_BYTES = 1 << 33


def fault(trainer: Trainer, kind: str) -> None:
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (_LIMIT_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
        torch.ones(_LIMIT_BYTES, dtype=torch.float32)
    elif kind == "nan":
        with torch.no_grad():
            next(trainer.parts.live.modules["generator"].parameters()).fill_(math.nan)
    elif kind == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _hangs.set()
        time.sleep(3600)


def faulty_step(self: Trainer, step: int, *arguments: object, **options: object) -> None:
    faults, trial = os.environ["FAULTS"].split(","), int(Path(self.parts.run_dir).name.removeprefix("trial_"))
    is_chosen = self.parts.world.rank == int(os.environ["FAULT_RANK"])
    if step == _FAULT_STEP and is_chosen and trial < len(faults):
        fault(self, faults[trial])
    _train_step(self, step, *arguments, **options)


if __name__ == "__main__":
    Trainer._train_step = faulty_step  # type: ignore[method-assign]
    sys.exit(train.main())
