"""Run independent tasks in worker processes and show the progress of all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_exit
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType
from typing import TypeVar

import cv2

from sharding.console import Progress
from sharding.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
_REFRESH_S = 0.2

_report: Callable[[int], None] = lambda num_frames: None  # noqa: E731 - replaced while tasks run in this process


def report_frames(num_frames: int) -> None:
    """For a task, in any process: `num_frames` more frames are done."""
    _report(num_frames)


class Workers:
    """A pool of at most `num_workers` processes, started at first use and stopped at the end of the `with` block.

    With one worker or one task, everything runs in this process.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        # Spawned, not forked: threads of FFmpeg, OpenCV and BLAS do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._counter: Synchronized[int] = self._context.Value("Q", 0)
        self._pool: ProcessPoolExecutor | None = None

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress) -> list[Result]:
        """`work(task)` for each task; tasks start, and results are returned, in the order of `tasks`.

        `work` and the tasks must be picklable. After an exception no further task starts; when the running ones are
        done, the exception of the first failed task is raised.
        """
        with progress:
            if min(self.num_workers, len(tasks)) <= 1:
                return list(_run_here(work, tasks, progress))
            return self._run_in_pool(work, tasks, progress)

    def _run_in_pool(self, work: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress) -> list[Result]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.num_workers, mp_context=self._context, initializer=_init_worker, initargs=(self._counter,)
            )
        num_shown = self._counter.value
        futures = [self._pool.submit(work, task) for task in tasks]
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=_REFRESH_S, return_when=FIRST_COMPLETED)
                num_done = self._counter.value
                progress.advance(num_done - num_shown)
                num_shown = num_done
                if any(future.exception() for future in done):
                    pending = {future for future in pending if not future.cancel()}
                    wait(pending)
                    break
            # Tasks start in order, so a failed one comes before all cancelled ones.
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most likely because memory ran out; run again with fewer --workers "
                "(finished shards are kept)"
            ) from error

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _run_here(work: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress) -> Iterator[Result]:
    global _report  # noqa: PLW0603 - one process runs one task at a time
    before, _report = _report, progress.advance
    try:
        for task in tasks:
            yield work(task)
    finally:
        _report = before


def _init_worker(counter: Synchronized[int]) -> None:
    """Set up a worker: one OpenCV thread, frames counted in `counter`, exit when the parent exits.

    A worker must stop even if its parent was killed with SIGKILL, or it would write next to a rerun. Ctrl-C is sent to
    every process of the terminal: workers exit silently, the parent prints the message.
    """
    global _report  # noqa: PLW0603 - set once in a process of its own

    def report(num_frames: int) -> None:
        with counter.get_lock():
            counter.value += num_frames

    _report = report
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def exit_with_parent() -> None:
        wait_for_exit([sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
