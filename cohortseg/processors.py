"""Processors and processes: how many this one may use, and children that do not outlive it."""

import multiprocessing
import os
import threading


def num_processors() -> int:
    """Return the processors left by the CPU affinity and by the quota of a container (cgroups), at least 1.

    ``LOKY_MAX_CPU_COUNT`` lowers it further.
    """
    from joblib import cpu_count

    return int(cpu_count())


def die_with_parent() -> None:
    """End this process when the one that started it ends, killed or not: the initializer of every pool of processes.

    Else two runs could write into one folder, and processes wait for ever for work that nobody gives.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("only a child process has a parent to follow")

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
