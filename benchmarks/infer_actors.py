"""Measure two Ray actors against one, each with one CPU and one thread, over the same cohort.

    python benchmarks/infer_actors.py COHORT

The time runs from the beginning of the first series to the end of the last; Ray's start-up is reported separately. The
last line is one JSON object. Each variant runs in a process of its own, since Ray is started only once per process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infer_overhead import watch_first_attempt


def timed(cohort: Path, workers: int, out: Path) -> tuple[float, float]:
    """Return seconds of Ray's start and of the work, with as many actors as CPUs."""
    # Read while ray is imported: bind to loopback, tell nobody.
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    from cohortseg.config import InferConfig
    from cohortseg.pipeline import infer_cohort

    ray.init(num_cpus=workers, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    begun = watch_first_attempt(out)
    ends: list[float] = []

    @contextmanager
    def progress(title: str) -> Iterator[object]:
        begin = time.perf_counter()
        yield lambda *_: ends.append(time.perf_counter())
        if title == "Segmenting":
            ends[:] = [begin, ends[-1]]

    infer_cohort(
        cohort,
        out,
        config=InferConfig(engine="ray", workers=workers),
        model_path=None,
        progress=progress,  # type: ignore[arg-type]
    )
    ray.shutdown()
    return begun[0] - ends[0], ends[1] - begun[0]


def main() -> None:
    """Time both and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--workers", type=int, help="time only this many (used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.workers:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(timed(arguments.cohort, arguments.workers, Path(name) / "out")))
        return
    figures = {}
    for workers in (1, 2):
        command = [sys.executable, __file__, str(arguments.cohort), "--workers", str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
        figures[workers] = json.loads(output.splitlines()[-1])
    (start1, work1), (start2, work2) = figures[1], figures[2]
    result = {"start_1_s": start1, "work_1_s": work1, "start_2_s": start2, "work_2_s": work2, "ratio": work1 / work2}
    print(json.dumps({name: round(value, 2) for name, value in result.items()} | {"cpus": os.cpu_count()}))


if __name__ == "__main__":
    main()
