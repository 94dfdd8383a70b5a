"""`python -m vsr_dist.train` with the fault that FAULT names, from the third step on, in rank FAULT_RANK.

`die` (SIGKILL), `memory` (asks for more memory than RLIMIT_AS allows), `nan` (a weight becomes NaN), `hang` (deaf to
SIGTERM, as a rank that is stuck in a collective). Only in trial 0: later trials of a study train as they should.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from vsr_dist import train
from vsr_dist.training.trainer import Trainer

_train_step = Trainer._train_step
_FAULT_STEP = 2
_LIMIT_BYTES = 1 << 33


def fault(trainer: Trainer) -> None:
    kind = os.environ["FAULT"]
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
        time.sleep(3600)


def faulty_step(self: Trainer, step: int, *arguments: object) -> None:
    is_chosen = self.parts.world.rank == int(os.environ["FAULT_RANK"])
    if step == _FAULT_STEP and is_chosen and Path(self.parts.run_dir).name == "trial_0000":
        fault(self)
    _train_step(self, step, *arguments)


if __name__ == "__main__":
    Trainer._train_step = faulty_step  # type: ignore[method-assign]
    sys.exit(train.main())
