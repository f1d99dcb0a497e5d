"""The trainings of a comparison side by side on Ray: the only file here that imports it."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from cohortseg.cluster import (
    LONGEST_WAIT_S,
    PACKAGE_SHA256,
    WATCH_EVERY_S,
    WorkerRequest,
    connected,
    connected_resources,
    require_same_package,
    worker_request,
)
from cohortseg.compare.fold import FoldJob, run_fold
from cohortseg.errors import CohortSegError, WorkerError
from cohortseg.progress import Report

_log: Final = logging.getLogger(__name__)


def run_ray(jobs: Sequence[FoldJob], num_workers: int | None, address: str | None, report: Report) -> None:
    """Train on Ray, each job a task of its own; a task whose process or node dies is started again.

    Parameters
    ----------
    jobs
        What is to be trained; the folders must lie under the same paths on all nodes.
    num_workers
        Trainings in parallel; None: one per GPU.
    address
        As in `cluster_address`.
    report
        Takes the iterations of the trainings that have ended.

    Raises
    ------
    CohortSegError
        As `run_fold` on its worker.
    ConfigError
        If the workers do not fit.
    WorkerError
        If Ray or a worker fails.
    """
    with connected(address) as resources:
        request = worker_request(num_workers, None, resources)
        request.check(resources)
        import ray  # after `connected`, which sets what ray reads while it is imported
        import ray.exceptions

        task = ray.remote(num_cpus=request.cpus_per_worker, num_gpus=request.gpus_per_worker)(_run_on_worker)
        waiting = list(jobs)
        running: dict[Any, FoldJob] = {}
        total, done = sum(job.iterations for job in jobs), 0
        while waiting or running:
            while waiting and len(running) < request.num_workers:
                job = waiting.pop(0)
                running[task.remote(job, request, PACKAGE_SHA256)] = job
            report(done, total, "; ".join(job.title for job in running.values()))
            ended = _next_ended(running, request)
            job = running.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, CohortSegError):
                    raise error.cause from error
                said = str(error.cause).strip().partition("\n")[0]
                raise WorkerError(f"{job.title} failed on its worker: {type(error.cause).__name__}: {said}") from error
            except ray.exceptions.RayError as error:
                raise WorkerError(
                    f"{job.title}: its worker was lost ({type(error).__name__}); run the same command again"
                ) from error
            done += job.iterations


def _next_ended(running: Mapping[Any, FoldJob], request: WorkerRequest) -> Any:
    """Wait for the next task to end and return its reference; without room for any, wait for nodes that come back.

    Raises
    ------
    WorkerError
        If none has come back in half an hour.
    """
    import ray

    lost_at: float | None = None
    while True:
        ended, _ = ray.wait(list(running), timeout=WATCH_EVERY_S)
        if ended:
            return ended[0]
        if connected_resources().fitting(request.cpus_per_worker, request.gpus_per_worker):
            lost_at = None
        elif lost_at is None:
            lost_at = time.monotonic()
            _log.warning("Ray has no room for a worker now; waiting up to %g minutes for more", LONGEST_WAIT_S / 60)
        elif time.monotonic() - lost_at > LONGEST_WAIT_S:
            raise WorkerError("Ray has had no room for a worker for too long: run the same command again")


def _run_on_worker(job: FoldJob, request: WorkerRequest, package_sha256: str) -> None:
    require_same_package(package_sha256)
    torch.set_num_threads(request.num_threads)
    run_fold(job, lambda _iteration: None)
