"""Many series in one process: while the network is at one, a thread finishes the last and reads the next."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import torch

from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import ModelError
from cohortseg.infer.commit import committed_status, suspects, withdraw_attempts
from cohortseg.infer.job import Job, Step, finish_step, give_up, predict_step, read_step
from cohortseg.weights import LoadedModel, load_model


class Done(NamedTuple):
    """One finished series."""

    series_key: str
    status: str
    n_slices: int


def process_stream(job: Job, model: LoadedModel, records: Sequence[SeriesRecord]) -> Iterator[Done]:
    """Segment and commit series one after the other.

    At most two volumes are in memory: the one thread beside the network finishes a series before it reads another.

    Raises
    ------
    StoreError
        If a result cannot be written, or the cohort has gone.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="beside-the-network")
    begun: dict[str, SeriesRecord] = {}
    finishing: Future[str] | None = None

    def read(record: SeriesRecord) -> Future[Step]:
        begun[record.series_key] = record
        return pool.submit(read_step, job, model, record)

    def done(status: str) -> Done:
        record = begun.pop(next(iter(begun)))  # series end in the order in which they began
        return Done(record.series_key, status, record.n_slices)

    try:
        ahead = deque(read(record) for record in records[:1])
        for index in range(len(records)):
            step = ahead.popleft().result()
            ahead.extend(read(record) for record in records[index + 1 : index + 2])
            step = predict_step(job, model, step)
            if finishing is not None:
                yield done(finishing.result())
            finishing = pool.submit(finish_step, job, model, step)
            del step  # its volume is to live no longer than the thread needs it
        if finishing is not None:
            yield done(finishing.result())
    finally:
        pool.shutdown(cancel_futures=True)
        # Empty unless interrupted or out of disk: a process that dies never comes here.
        for series_key in begun:
            withdraw_attempts(job.out, series_key, job.run_id)


def process_all(job: Job, model: LoadedModel, records: Sequence[SeriesRecord]) -> Iterator[Done]:
    """Do the same in this process, but what was at work when a process died is done alone, in a process of its own.

    So this process lives to see whether it was the series' fault, and gives the series up if it is.

    Raises
    ------
    StoreError
        If a result cannot be written, or the cohort has gone.
    """
    apart = suspects(job.out)
    yield from process_stream(job, model, [record for record in records if record.series_key not in apart])
    for record in records:
        if record.series_key in apart:
            yield _process_apart(job, model, record)


def _process_apart(job: Job, model: LoadedModel, record: SeriesRecord) -> Done:
    while not give_up(job, model.sha256, record):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _die_with_parent) as pool:
            try:
                return pool.submit(_process_one, job, torch.get_num_threads(), record).result()
            except BrokenProcessPool:
                continue
    return Done(record.series_key, committed_status(job.out, record.series_key), 0)


def _die_with_parent() -> None:
    """End this process when the one that started it ends, killed or not: two runs must not write into one folder."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("only a child process has a parent to follow")

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _process_one(job: Job, num_threads: int, record: SeriesRecord) -> Done:
    torch.set_num_threads(num_threads)
    (done,) = process_stream(job, load_job_model(job), [record])
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
