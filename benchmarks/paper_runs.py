"""Trainings of resumable scripts: started, measured in CPU time, stopped together, not repeated once finished."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from vsr_dist.core.errors import BadConfigError

POLL_S = 0.02
TAIL_LINES = 15
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Stopped(Exception):  # noqa: N818 - not an error: it is how the work ends that was told to
    """The work was told to stop."""


def python(*arguments: str) -> list[str]:
    """A `vsr-dist` command."""
    return [sys.executable, "-m", "vsr_dist.cli", *arguments]


def train_command(config: Path, settings: Sequence[str]) -> list[str]:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return python("train", "--config", str(config), "--resume", "auto", *overrides)


class Runner:
    """Runs commands from any thread; `stop` ends those that run with SIGTERM, and no further one starts."""

    def __init__(self) -> None:
        self._live: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._lock = threading.RLock()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._live:
                os.kill(process.pid, signal.SIGTERM)

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def publish(self, path: Path, data: object) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(data, indent=1))
        os.replace(temporary, path)

    def train(self, config: Path, settings: Sequence[str], run_dir: Path) -> None:
        """One run to its end; a finished one is left alone, an interrupted one goes on."""
        if (run_dir / "summary.json").exists():
            return
        spent = self.run(train_command(config, settings), run_dir.with_suffix(".log"), run_dir.with_suffix(".cpu"))
        self.say(f"{run_dir.name}: trained, {spent / 60:.1f} CPU-minutes")

    def evaluate(self, what: Sequence[str], data: Path, out: Path) -> None:
        """`vsr-dist evaluate`, unless its result is there; metrics.json is among the last files that it writes."""
        if not (out / "metrics.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            self.run(python("evaluate", *what, "--data", str(data), "--out", str(out)), out / "log.txt")

    @staticmethod
    def cpu_s(run_dir: Path) -> float | None:
        """CPU seconds of all processes that a run took; None if this script was killed and did not note them."""
        noted = run_dir.with_suffix(".cpu")
        return sum(float(line) for line in noted.read_text().split()) if noted.exists() else None

    def run(self, command: Sequence[str], log: Path, cpu: Path | None = None) -> float:
        """Run to the end, output appended to `log`, CPU seconds to `cpu`; a failure raises with the end of the log."""
        process = self._start(command, log)
        spent = self._wait(process)
        if cpu is not None:
            with cpu.open("a") as file:
                file.write(f"{spent:.2f}\n")
        if self._stopping:
            raise Stopped
        if process.returncode:
            raise _failure(command, process.returncode, log)
        return spent

    def cpu_per_step(self, config: Path, settings: Sequence[str], run_dir: Path, limit_s: float) -> float:
        """CPU seconds per step, from a run that logs every step and is ended after `limit_s` CPU seconds of them.

        The first step, which sets things up, is not counted.
        """
        shutil.rmtree(run_dir, ignore_errors=True)
        log = run_dir.with_suffix(".log")
        command = train_command(config, settings)
        process = self._start(command, log)
        watched = psutil.Process(process.pid)
        first = last = (0, 0.0)
        metrics = run_dir / "metrics.jsonl"
        while _runs(process) and (last[0] < first[0] + 2 or last[1] - first[1] < limit_s):
            time.sleep(POLL_S)
            steps = metrics.read_text().count("perf/step_ms") if metrics.exists() else 0
            if steps > last[0] and _runs(process):
                used = watched.cpu_times()
                last = (steps, used.user + used.system)
                first = first if first[0] else last
        ended_early = not _runs(process)
        os.kill(process.pid, signal.SIGTERM)
        self._wait(process)
        if self._stopping:
            raise Stopped
        if ended_early:
            raise _failure(command, process.returncode, log)
        shutil.rmtree(run_dir)
        return (last[1] - first[1]) / (last[0] - first[0])

    def _start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, log.open("a") as file:
            if self._stopping:
                raise Stopped
            # A session of its own: Ctrl-C reaches this script alone, which stops its children in order.
            process = subprocess.Popen(
                list(command),
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
            self._live.add(process)
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> float:
        """Wait for the end; CPU seconds of the process. Reaped under the lock, so that `stop` meets no stranger."""
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._live.discard(process)
        return usage.ru_utime + usage.ru_stime


def _runs(process: subprocess.Popen[bytes]) -> bool:
    """False once the process has ended; does not reap it."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None


def _failure(command: Sequence[str], status: int, log: Path) -> RuntimeError:
    tail = "\n".join(log.read_text().splitlines()[-TAIL_LINES:])
    return RuntimeError(f"{' '.join(command)} ended with status {status}; the end of {log}:\n{tail}")


def run_alone(work: Path, script: str, do: Callable[[Runner], None]) -> int:
    """Run a resumable script as the only one in `work`; SIGTERM and Ctrl-C stop its processes. Returns the status."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadConfigError(f"{work} is in use by another {script}; wait for it or stop it") from error
        runner = Runner()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: runner.stop())
        try:
            do(runner)
        except Stopped:
            runner.say("stopped; run the same command to go on")
            return 143
    return 0
