"""`benchmarks/paper_table.py`, whose `vsr-dist` commands are forked from it instead of started anew.

Each of eleven commands would first import torch for longer than it then works.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
VSR_DIST = [sys.executable, "-m", "vsr_dist.cli"]


class ForkedCommand:
    """What `runner.Runner` needs of a `subprocess.Popen`: its number, for it waits and counts by itself."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: IO[bytes],
        stderr: int,
        env: Mapping[str, str],
        start_new_session: bool,
        preexec_fn: object,
    ) -> None:
        assert command[:3] == VSR_DIST and stderr == subprocess.STDOUT and start_new_session
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                status = _run(command[3:], stdout.fileno(), env)
            except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)


def _run(arguments: Sequence[str], log: int, env: Mapping[str, str]) -> int:
    from vsr_dist.cli import main

    os.setsid()
    for stream in (1, 2):
        os.dup2(log, stream)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(env)
    sys.argv[:] = ["vsr-dist", *arguments]
    return main(list(arguments))


if __name__ == "__main__":
    sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent / "experiments")]
    import runner

    # In this module alone: what is forked may start processes of its own.
    runner.subprocess = SimpleNamespace(Popen=ForkedCommand, STDOUT=subprocess.STDOUT)
    runpy.run_path(str(BENCHMARKS / "paper_table.py"), run_name="__main__")
