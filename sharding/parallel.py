"""Run independent tasks in processes, with progress for people: a bar on a terminal, lines in a log."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from tqdm import tqdm

from sharding.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    work: Callable[[Task], Result], tasks: Sequence[Task], num_workers: int, verb: str, unit: str
) -> list[Result]:
    """`work` of every task, results in the order of the tasks; one worker runs in this process.

    `work` and the tasks must be picklable. The first exception of a task is raised after the others that had
    begun are done; those that had not are given up.
    """
    results: dict[int, Result] = {}
    done = _finished(work, tasks, min(num_workers, len(tasks)))
    on_terminal = sys.stderr.isatty()
    for number, result in tqdm(done, total=len(tasks), desc=verb, unit=unit, disable=not on_terminal):
        results[number] = result
        if not on_terminal:
            say(f"{verb} {len(results)} of {len(tasks)} {unit}s")
    return [results[number] for number in range(len(tasks))]


def say(line: str) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _finished(work: Callable[[Task], Result], tasks: Sequence[Task], num_workers: int) -> Iterator[tuple[int, Result]]:
    if num_workers <= 1:
        for number, task in enumerate(tasks):
            yield number, work(task)
        return
    # Spawned, not forked: FFmpeg, OpenCV and BLAS threads of this process do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:
        futures = {pool.submit(work, task): number for number, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most likely for want of memory; expected all of them to end by "
                "themselves: run again with fewer --workers, finished shards are kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Leave a worker when its parent is gone, even by SIGKILL; it must not write beside a rerun.

    Ctrl-C reaches every process of the terminal: the workers go without a word, the parent reports.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
