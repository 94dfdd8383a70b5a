"""`python -m vsr_dist.train`, in which the n-th start of a rank dies by SIGKILL before a step of its own.

DYING_RANK is a list `rank:step,rank:step,...`, one entry per start; later starts live.
"""

from __future__ import annotations

import os
import signal
import sys

from vsr_dist import train
from vsr_dist.training.trainer import Trainer

_train_step = Trainer._train_step


def dying_step(self: Trainer, step: int, *arguments: object, **options: object) -> None:
    deaths = [tuple(map(int, death.split(":"))) for death in os.environ["DYING_RANK"].split(",") if death]
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if start < len(deaths) and deaths[start] == (self.parts.world.rank, step):
        os.kill(os.getpid(), signal.SIGKILL)
    _train_step(self, step, *arguments, **options)


if __name__ == "__main__":
    Trainer._train_step = dying_step  # type: ignore[method-assign]
    sys.exit(train.main())
