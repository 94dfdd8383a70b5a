"""Processes that are forked with all imports done, and otherwise what `python -m MODULE ARGUMENTS` is.

Starting Python and importing torch takes ten seconds of CPU time, longer than most of what the tests run.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from mlflow_server import free_port

_IMPORTED = [
    "torch._dynamo",
    "vsr_dist.train",
    "vsr_dist.evaluate",
    "vsr_dist.upscale",
    "vsr_dist.report",
    "sweeps.driver",
    "sweeps.report",
]


def forks() -> ForkServerContext:
    """The context of multiprocessing whose processes have imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


_started: list[Forked] = []


@pytest.fixture(autouse=True)
def _no_forked_process_stays() -> Iterator[None]:
    """Not even after a test that failed: multiprocessing would wait for it at the end of all tests."""
    yield
    for process in _started:
        process.kill()
    _started.clear()


class Forked:
    """`python -m MODULE ARGUMENTS`, started; used as a `subprocess.Popen` that writes into files of `folder`."""

    def __init__(
        self, module: str | Path, arguments: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None
    ) -> None:
        """module: its name, or the file of a script; folder: where it runs; variables: changes of the environment."""
        self.args = [str(module), *arguments]
        name = f"{os.getpid()}-{time.monotonic_ns()}"
        self._outputs = folder / f"stdout-{name}.txt", folder / f"stderr-{name}.txt"
        for path in self._outputs:
            path.touch()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
        arguments = (self.args, folder, self._outputs, environment)
        self._process = forks().Process(target=_become, args=arguments)
        self._process.start()
        _started.append(self)
        self.pid = int(self._process.pid or 0)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr) once it has ended."""
        self.wait(timeout)
        return self.output()

    def output(self) -> tuple[str, str]:
        """What it has written so far to stdout and stderr."""
        return self._outputs[0].read_text(), self._outputs[1].read_text()

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_forked(
    module: str | Path, arguments: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS` in `folder`, to its end."""
    process = Forked(module, arguments, folder, variables)
    texts = process.communicate()
    return subprocess.CompletedProcess(process.args, process.wait(), *texts)


def start_ranks(
    num: int, module: str | Path, arguments: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None
) -> list[Forked]:
    """The processes of one distributed program on the CPU, with the environment that torchrun would give them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    shared |= {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), **(variables or {})}
    return [
        Forked(module, arguments, folder, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(num)
    ]


def run_ranks(
    num: int, module: str | Path, arguments: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`start_ranks` to the end of all: as under torchrun, one that fails takes the others down after a while.

    The status is that of the first to fail, a signal's before others; what the ranks wrote stands one behind the other.
    """
    processes = start_ranks(num, module, arguments, folder, variables)
    status, failed_s = 0, None
    while any(process.poll() is None for process in processes):
        if failed_s is None and (status := _worst(processes)):
            failed_s = time.monotonic()
        if failed_s is not None and time.monotonic() - failed_s > 30:
            for process in processes:
                process.terminate()
        time.sleep(0.02)
    status = status or _worst(processes)
    texts = ("".join(parts) for parts in zip(*(process.output() for process in processes), strict=True))
    return subprocess.CompletedProcess(processes[0].args, status, *texts)


def _worst(processes: Sequence[Forked]) -> int:
    """The status of one that failed, 0 if none has."""
    return min((status for process in processes if (status := process.poll())), default=0)


def _become(words: Sequence[str], folder: Path, outputs: tuple[Path, Path], environment: Mapping[str, str]) -> None:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    # A shell that starts the tests in the background has SIGINT ignored, by them and by what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[:] = words
    with warnings.catch_warnings():
        # The module was imported already, which runpy warns of.
        warnings.simplefilter("ignore", RuntimeWarning)
        if Path(words[0]).is_file():
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
