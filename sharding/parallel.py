"""Run independent tasks in processes, with progress for people: a bar on a terminal, lines in a log."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType
from typing import TypeVar

import cv2

from sharding.errors import UserError
from sharding.progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
_REFRESH_S = 0.2

_report: Callable[[int], None] = lambda count: None  # noqa: E731 - replaced while tasks run in this process


def report_frames(count: int) -> None:
    """Called by a task, wherever it runs: `count` more frames are done."""
    _report(count)


class Workers:
    """At most `num_workers` processes, started when they are first needed and kept until the end of the `with`.

    One worker, or one task, runs in this process.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        # Spawned, not forked: FFmpeg, OpenCV and BLAS threads of this process do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._counter: Synchronized[int] = self._context.Value("Q", 0)
        self._pool: ProcessPoolExecutor | None = None

    def run(self, work: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress) -> list[Result]:
        """`work` of every task, begun and returned in the order of the tasks.

        `work` and the tasks must be picklable. After an exception the tasks that had not begun are given up, and
        when the others are done the exception of the first task that has one is raised.
        """
        with progress:
            if min(self.num_workers, len(tasks)) <= 1:
                return list(_run_here(work, tasks, progress))
            return self._run_in_pool(work, tasks, progress)

    def _run_in_pool(self, work: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress) -> list[Result]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.num_workers, mp_context=self._context, initializer=_begin_worker, initargs=(self._counter,)
            )
        before = self._counter.value
        futures = [self._pool.submit(work, task) for task in tasks]
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=_REFRESH_S, return_when=FIRST_COMPLETED)
                progress.show(self._counter.value - before)
                if any(future.exception() for future in done):
                    pending = {future for future in pending if not future.cancel()}
                    wait(pending)
                    break
            # Tasks begin in their order, so a fault is met here before any task that was given up.
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most likely for want of memory; expected all of them to end by "
                "themselves: run again with fewer --workers, finished shards are kept"
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
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress.show(done)

    before, _report = _report, report
    try:
        for task in tasks:
            yield work(task)
    finally:
        _report = before


def _begin_worker(counter: Synchronized[int]) -> None:
    """Set up a worker: one thread, frames counted for the parent, and no life without it.

    A worker must not write beside a rerun when its parent is gone, even by SIGKILL. Ctrl-C reaches every process of
    the terminal: the workers go without a word, the parent reports.
    """
    global _report  # noqa: PLW0603 - set once in a process of its own

    def report(count: int) -> None:
        with counter.get_lock():
            counter.value += count

    _report = report
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait_for_end([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
