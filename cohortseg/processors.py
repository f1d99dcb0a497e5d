"""Processors and processes: how many to use, and child processes that end with this one and ignore Ctrl-C."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Final, ParamSpec, Self, TypeVar

_log: Final = logging.getLogger(__name__)

NO_PROCESS: Final = "no second process can begin (a script without __main__ guard?): %s in this one"
"""Message of a log, about what is done in this process then."""
_TO_END_S: Final = 2.0
"""Time that the processes of an interrupted pool have to finish what they are at."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def num_processors() -> int:
    """Return how many processors the CPU affinity and the quota of a container (cgroups) allow, at least 1.

    ``LOKY_MAX_CPU_COUNT`` lowers it further.
    """
    from joblib import cpu_count

    return int(cpu_count())


def can_begin_processes() -> bool:
    """Return whether there can be pools of processes: they need semaphores, which live in ``/dev/shm``."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError:
        return False
    return True


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that end with this one and ignore Ctrl-C; work still waiting at the end is dropped.

    Submit work within `uninterrupted`, and wait for it outside.
    """
    # "spawn": forking a process in which Ray or a GPU already runs is not safe.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _follow_parent)
    try:
        yield pool
        pool.shutdown(cancel_futures=True)
    except BaseException:  # GeneratorExit as well: of a generator that uses the pool
        # Not at once: of a process that is ended while it sends a result, the pool waits for the rest.
        processes = [*(pool._processes or {}).values()]  # public only from Python 3.14 on
        late = threading.Timer(_TO_END_S, _terminate, [processes])
        late.start()
        pool.shutdown(cancel_futures=True)  # if this is interrupted, the processes are ended all the same
        late.cancel()
        raise


def _terminate(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.terminate()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back signals that interrupt a run until the block ends, and Ctrl-C for good from processes started in it.

    A pool waits forever if it is interrupted while work is submitted, or if one of its processes (a terminal sends
    Ctrl-C to all) is interrupted while it sends a result. A lost terminal, too, is for this process alone.
    """
    received: list[int] = []
    handlers = {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # a mask that processes inherit
    try:
        resource_tracker.ensure_running()  # else the first process starts it, which lets SIGINT through again
        # A mask holds for one thread, and any other may take the signal; Python then calls its handler in the main one.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if callable(signal.getsignal(number)):
                    handlers[number] = signal.signal(number, lambda number, _frame: received.append(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        for held, handler in handlers.items():
            signal.signal(held, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for taken in received:
            signal.raise_signal(taken)


class SecondProcess:
    """Calls functions in a second process, started at the first call, and again after a call that ended it.

    Where no process can start (in a script without ``if __name__ == "__main__"``, or in a process that may have no
    children, or without shared memory), functions are called in this one.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None
        self._is_alone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function that may end its process, as decoders of damaged pixels do, and return its result.

        Raises
        ------
        BrokenProcessPool
            If the other process ended.
        """
        if self._pool is None and not self._is_alone:
            self._begin()
        if self._pool is None:
            return function(*args, **kwargs)
        try:
            with uninterrupted():
                called = self._pool.submit(function, *args, **kwargs)
            return called.result()
        except BrokenProcessPool:
            self._pool = None
            raise

    def _begin(self) -> None:
        if not can_begin_processes():
            self._is_alone = True
            _log.warning("no second process can begin (no usable /dev/shm?): risky work is done in this one")
            return
        pool = self._stack.enter_context(process_pool(1))
        try:
            with uninterrupted():
                begun = pool.submit(os.getpid)
            begun.result()
        except (BrokenProcessPool, AssertionError):  # AssertionError: in daemons of multiprocessing
            _log.warning(NO_PROCESS, "risky work is done")
            self._is_alone = True
        else:
            self._pool = pool


def _follow_parent() -> None:
    """Ignore Ctrl-C, and end this process when its parent ends, killed or not.

    Otherwise two runs could write into one folder, and processes would wait forever for work that nobody gives.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("only a child process has a parent to follow")

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
