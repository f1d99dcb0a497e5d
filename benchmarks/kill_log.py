"""Kill an actor, a node or the run itself at random moments, run the same command again, and compare the results.

    python benchmarks/kill_log.py --times 20

The script runs on a test cluster of three nodes on this machine's loopback. It prints what was killed when, and whether
tables and masks equal those of an uninterrupted run; the last line is one JSON object. The exit code is 1 if any
differ, or if a run has not ended after ``--limit`` seconds.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Read while ray is imported: bind to loopback, tell nobody, keep harmless errors of its C++ side off the screen.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}

from ray.cluster_utils import Cluster

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the tests ask of kills what this asks

from runs import differences

KINDS = ("actor", "node", "driver")
SAMPLE = Path(__file__).parents[1] / "sample_data/cohort/dicom"


@contextmanager
def three_nodes() -> Iterator[Cluster]:
    """Start a head that runs no series, and two nodes that do."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    )
    try:
        for _ in range(2):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Cluster) -> None:
    """Add a node for one actor."""
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=100 * 1024**2)


def start(cohort: Path, out: Path, address: str, *options: str) -> subprocess.Popen[str]:
    """Start the command that is to survive, in a process group of its own, as a shell does."""
    command = [sys.executable, "-m", "cohortseg", "-q", "infer", cohort, "-o", out, "--workers", "2", "--engine", "ray"]
    return subprocess.Popen(
        [*map(str, command), "--address", address, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_work(run: subprocess.Popen[str], out: Path, limit_s: float, done: int = 0) -> None:
    """Return when so many series are done and another has begun, or the run has ended.

    Raises
    ------
    TimeoutExpired
        If neither happens in time.
    """
    end = time.monotonic() + limit_s
    while run.poll() is None and (num_done(out) < done or not any(out.glob(".state/attempts/*/*"))):
        if time.monotonic() > end:
            raise subprocess.TimeoutExpired(run.args, limit_s)
        time.sleep(0.02)


def num_done(out: Path) -> int:
    """Return how many series have a result."""
    return len(list(out.glob(".state/rows/*.json")))


def ended(run: subprocess.Popen[str], limit_s: float) -> tuple[int, str]:
    """Return the exit code of a run and what it wrote; one that does not end in time is killed.

    Raises
    ------
    TimeoutExpired
        If it did not end.
    """
    try:
        messages, _ = run.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        run.kill()
        run.communicate()
        raise
    return run.returncode, messages


def kill_one(kind: str, run: subprocess.Popen[str], cluster: Cluster, chance: random.Random) -> str:
    """Kill with SIGKILL and return what happened."""
    if kind == "driver":
        run.kill()
        return "run killed"
    if kind == "node":
        nodes = [node for node in cluster.worker_nodes if node is not cluster.head_node]
        cluster.remove_node(chance.choice(nodes), allow_graceful=False)
        add_node(cluster)
        return "node killed, another one added"
    actors = [pid for pid, name in _processes() if name.startswith(b"ray::") and b"Worker" in name]
    if not actors:
        return "no actor was there to kill"
    os.kill(chance.choice(actors), signal.SIGKILL)
    return "actor killed"


def _processes() -> Iterator[tuple[int, bytes]]:
    """Yield the descendants of this process and their titles."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = folder.joinpath("cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
    for pid in parents:
        above = pid
        while above > 1 and above != os.getpid():
            above = parents.get(above, 0)
        if above == os.getpid() and pid != above:
            yield pid, names[pid]


def broken_run(
    kind: str, cohort: Path, out: Path, cluster: Cluster, chance: random.Random, work_s: float, limit_s: float
) -> tuple[str, list[int]]:
    """Start a run, kill at a random moment, and repeat the command until it finishes: what happened, and exit codes."""
    run = start(cohort, out, cluster.address)
    try:
        wait_for_work(run, out, limit_s)
        delay_s = chance.uniform(0, 0.8 * work_s)
        time.sleep(delay_s)
        done = num_done(out)
        killed = kill_one(kind, run, cluster, chance) if run.poll() is None else "had ended already"
        what = f"{delay_s:.1f} s after the first series began, {done} series done: {killed}"
        codes = [ended(run, limit_s)[0]]
        while codes[-1] not in (0, 3) and len(codes) < 5:
            codes.append(ended(start(cohort, out, cluster.address), limit_s)[0])
    finally:
        run.kill()
    return what, codes


def main() -> None:
    """Kill as often as asked and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS), help="what to kill, in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--cohort", type=Path, default=SAMPLE, help="default: the sample data")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds in which each run must end")
    arguments = parser.parse_args()
    chance, kinds, limit_s = random.Random(arguments.seed), arguments.kinds.split(","), arguments.limit
    with tempfile.TemporaryDirectory() as name, three_nodes() as cluster:
        folder = Path(name)
        cohort, reference = arguments.cohort, folder / "unbroken"
        begin = time.monotonic()
        unbroken = start(cohort, reference, cluster.address)
        wait_for_work(unbroken, reference, limit_s)
        before_work_s = time.monotonic() - begin
        code, messages = ended(unbroken, limit_s)
        if code not in (0, 3):
            raise SystemExit(f"the unbroken run failed: {messages}")
        work_s = time.monotonic() - begin - before_work_s
        print(f"unbroken: {before_work_s:.1f} s until the first series, {work_s:.1f} s from there", flush=True)
        equal = killed = 0
        for index in range(arguments.times):
            kind, out, begin = kinds[index % len(kinds)], folder / f"out{index}", time.monotonic()
            try:
                what, codes = broken_run(kind, cohort, out, cluster, chance, work_s, limit_s)
                wrong = differences(out, reference) if codes[-1] in (0, 3) else ["no result"]
            except subprocess.TimeoutExpired:
                what, codes, wrong = f"{num_done(out)} series done", [], [f"HUNG for more than {limit_s:g} s"]
            killed += what.endswith(("killed", "added"))
            equal += not wrong
            verdict = "equal" if not wrong else f"DIFFERENT: {', '.join(wrong)}"
            print(f"{index + 1:3}: {kind} {what}; exit codes {codes} after {time.monotonic() - begin:.0f} s; {verdict}",
                  flush=True)  # fmt: skip
    print(json.dumps({"times": arguments.times, "killed": killed, "equal": equal, "unbroken_work_s": round(work_s, 1)}))
    sys.exit(equal != arguments.times)


if __name__ == "__main__":
    main()
