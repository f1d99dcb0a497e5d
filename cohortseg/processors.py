"""Processors and processes: how many this one may use, and children that do not outlive it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import ParamSpec, Self, TypeVar

from cohortseg.errors import StoreError

P = ParamSpec("P")
T = TypeVar("T")


def num_processors() -> int:
    """Return the processors left by the CPU affinity and by the quota of a container (cgroups), at least 1.

    ``LOKY_MAX_CPU_COUNT`` lowers it further.
    """
    from joblib import cpu_count

    return int(cpu_count())


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that do not outlive this one and leave Ctrl-C to it; what waits at the end is dropped.

    A terminal sends Ctrl-C to all processes. One that is interrupted while it sends a result leaves a pool that waits
    for ever, and one that is while it begins prints where; so they are begun while SIGINT is blocked, as they inherit.
    """
    # "spawn": forking a process in which Ray or a GPU already runs is not safe.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _follow_parent)
    try:
        resource_tracker.ensure_running()  # else the first process starts it, and that unblocks SIGINT again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(workers):
                pool.submit(os.getpid)  # each begins one
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class Apart:
    """Calls functions in one other process, begun at the first call, and anew after one that ended it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns that may end its process, as decoders of damaged pixels do.

        Raises
        ------
        BrokenProcessPool
            If the process ended.
        StoreError
            If it ended before it was given anything to do.
        """
        if self._pool is None:
            pool = self._stack.enter_context(process_pool(1))
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise StoreError(
                    "a second process ended as it began (short of memory, or called from a script without "
                    'if __name__ == "__main__"?); make room and run the same command again'
                ) from error
            self._pool = pool
        try:
            return self._pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            self._pool = None
            raise


def _follow_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and end when it ends, killed or not.

    Else two runs could write into one folder, and processes wait for ever for work that nobody gives.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("only a child process has a parent to follow")

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
