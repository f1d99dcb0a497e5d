"""Many series in one process, in parallel in a few threads; those that killed a process alone, in a second process."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Final

import torch

from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import ModelError, WorkerError
from cohortseg.infer.attempts import suspects
from cohortseg.infer.commit import committed_status
from cohortseg.infer.job import Done, Job, attempts_of, give_up, segment_and_commit
from cohortseg.processors import SecondProcess
from cohortseg.weights import LoadedModel, load_model

_MOST_LANES: Final = 4
"""Most series in parallel: each holds a volume in memory."""
_WAKE_EVERY_S: Final = 0.2
"""For Ctrl-C: if another thread of the process took the signal, Python acts on it once the main thread wakes."""


def segment_many(job: Job, model: LoadedModel, records: Sequence[SeriesRecord]) -> Iterator[Done]:
    """Segment and commit series, several in parallel, and yield each as it ends.

    Each has a thread of its own with an equal share of PyTorch's threads, larger when fewer are left: all but the
    network runs on one core, and would leave the others idle. As many volumes are in memory as series are in parallel.
    With another number of threads the network adds in another order: probabilities move by a few thousandths at most,
    so that a pixel between two classes may change its class.

    Raises
    ------
    StoreError
        If a result cannot be written, or the cohort has gone.
    """
    cores = torch.get_num_threads()
    lanes = min(_MOST_LANES, cores, len(records))
    stopped = threading.Event()
    begun: set[str] = set()

    def between_steps() -> None:
        """Share the cores among the series being worked on; end the work once the run is over."""
        torch.set_num_threads(max(1, cores // len(begun)))
        if stopped.is_set():
            raise CancelledError

    def segment(record: SeriesRecord) -> Done:
        begun.add(record.series_key)
        done = segment_and_commit(job, model, record, between_steps)
        begun.remove(record.series_key)
        return done

    # A single series stays in this thread: glibc keeps the freed memory of every thread apart.
    if lanes > 1:
        yield from _side_by_side(segment, records, lanes, stopped)
    else:
        yield from map(segment, records)


def _side_by_side(
    segment: Callable[[SeriesRecord], Done], records: Sequence[SeriesRecord], lanes: int, stopped: threading.Event
) -> Iterator[Done]:
    """Segment series in ``lanes`` threads."""
    cores = torch.get_num_threads()
    waiting = iter(records)
    running: set[Future[Done]] = set()
    pool = ThreadPoolExecutor(lanes, "series")
    try:
        while True:
            running |= {pool.submit(segment, record) for record in islice(waiting, 2 * lanes - len(running))}
            if not running:
                break
            ended, running = wait(running, _WAKE_EVERY_S, FIRST_COMPLETED)
            for future in ended:
                yield future.result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # the default of new threads, which those above have changed


def segment_all(job: Job, model: LoadedModel, records: Sequence[SeriesRecord]) -> Iterator[Done]:
    """Segment and commit series as `segment_many` does, but suspects of an earlier crash alone, in a second process.

    Suspects are series that were being worked on when a process died. This process lives to see whether such a series
    is at fault, and then gives it up.

    Raises
    ------
    StoreError
        If a result cannot be written, or the cohort has gone.
    WorkerError
        If the second process ends before it begins its series.
    """
    apart = suspects(job.out)
    yield from segment_many(job, model, [record for record in records if record.series_key not in apart])
    for record in records:
        if record.series_key in apart:
            yield _segment_apart(job, model, record)


def _segment_apart(job: Job, model: LoadedModel, record: SeriesRecord) -> Done:
    """Segment a series in a second process; where none can begin, in this one: if it dies, that is one more attempt."""
    with SecondProcess() as second:
        while not give_up(job, model.sha256, record):
            attempts = attempts_of(job, record)
            try:
                return second.call(_segment_alone, job, torch.get_num_threads(), record)
            except BrokenProcessPool as error:
                if attempts_of(job, record) == attempts:  # not the series' fault
                    raise WorkerError(
                        "a second process ended before it began its series (short of memory?); "
                        "make room and run the same command again"
                    ) from error
    return Done(record.series_key, committed_status(job.out, record.series_key), 0)


def _segment_alone(job: Job, num_threads: int, record: SeriesRecord) -> Done:
    torch.set_num_threads(num_threads)
    (done,) = segment_many(job, load_job_model(job), [record])
    return done


def load_job_model(job: Job) -> LoadedModel:
    """Return the job's model, loaded.

    Raises
    ------
    ModelError
        If the file is not the one that the run was started with.
    """
    model = load_model(job.model_path)
    if model.sha256 != job.model_sha256:
        raise ModelError("the model file is not the one the run was started with: it changed, or differs on this node")
    return model
