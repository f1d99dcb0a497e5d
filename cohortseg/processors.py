"""How many processors this process may use."""


def num_processors() -> int:
    """Return the processors left by the CPU affinity and by the quota of a container (cgroups), at least 1.

    ``LOKY_MAX_CPU_COUNT`` lowers it further.
    """
    from joblib import cpu_count

    return int(cpu_count())
