"""All chosen series of a cohort, each segmented once: here or by Ray Data actors; safe to kill and to repeat."""

import logging
import math
import pickle
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal

import torch

from cohortseg.cluster import (
    LONGEST_WAIT_S,
    WATCH_EVERY_S,
    RayStartError,
    Resources,
    WorkerRequest,
    advice,
    cluster_address,
    connected,
    connected_resources,
    followed,
    head_answers,
    last_line,
    local_resources,
    require_same_package,
)
from cohortseg.config import InferConfig
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import CohortSegError, ConfigError, ModelError, StoreError, WorkerError
from cohortseg.infer.attempts import attempts_noted, suspects
from cohortseg.infer.commit import committed_status
from cohortseg.infer.job import Done, Job, give_up
from cohortseg.infer.stream import load_job_model, segment_all, segment_many
from cohortseg.progress import Report
from cohortseg.weights import LoadedModel

_log: Final = logging.getLogger(__name__)

_MOST_A_BLOCK: Final = 16
"""Series that an actor takes at once."""
_BLOCKS_A_WORKER: Final = 8
"""Least number of blocks per worker, so that all workers end at about the same time."""
_WORKER_CPUS: Final = 1.0
"""CPUs per worker: all but the network runs on one core, and takes longer than the network on a GPU."""
_WORKERS_A_GPU: Final = 4
"""Workers that share a GPU unless more are asked for: each keeps a model and a batch on it."""
_SLOW_START_S: Final = 60.0
_ERRORS: Final = {f"{kind.__module__}.{kind.__name__}": kind for kind in (ConfigError, ModelError, StoreError)}
"""Errors of an actor that cannot start, by the name that stands in the text, which is all that Ray keeps of them."""


def check_workers(config: InferConfig, address: str | None = None) -> None:
    """Refuse, before any work, workers that this machine cannot run; those of a cluster are checked on connecting.

    Raises
    ------
    ConfigError
        If they do not fit, or several are asked of the local engine.
    """
    if config.engine == "local" and (config.workers or 1) > 1:
        raise ConfigError(f"engine local is one process, got {config.workers} workers; use --engine ray")
    if config.engine != "local" and config.workers is not None and cluster_address(address) is None:
        worker_shares(config, local_resources())


def run_series(
    job: Job, model: LoadedModel, pending: Sequence[SeriesRecord], report: Report, address: str | None = None
) -> Literal["local", "ray"]:
    """Segment and commit every pending series, and return the engine that did it.

    Parameters
    ----------
    job
        Folders, model and settings.
    model
        The job's model, loaded; used by the local engine.
    pending
        From `pending_series`.
    report
        Called for each finished series.
    address
        Address of a Ray cluster; None: ``RAY_ADDRESS``, else this machine.

    Raises
    ------
    ConfigError
        If the workers do not fit.
    StoreError
        If results cannot be written, or the cohort has gone.
    WorkerError
        If the cluster or a second process fails.
    """
    tally = _Tally(len(pending), report)
    with attempts_noted(job.out, job.run_id):
        if choose_engine(job.config, len(pending), address) == "ray":
            try:
                _run_ray(job, pending, tally, address)
            except RayStartError as error:
                if job.config.engine != "auto" or job.config.workers is not None:
                    raise
                _log.warning("%s; going on in this process alone", error)
            else:
                return "ray"
        for done in segment_all(job, model, pending):
            tally.add(done)
    return "local"


class _Tally:
    """Counts finished series and reports them, with slices per second."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self._seen: set[str] = set()
        self._statuses: Counter[str] = Counter()
        self._num_slices = 0
        self._start = time.perf_counter()
        report(0, total, "")

    @property
    def num_done(self) -> int:
        """Number of finished series."""
        return len(self._seen)

    def add(self, done: Done) -> None:
        """Count a series once, however often it is delivered, and log its note here, in one process."""
        if done.series_key in self._seen:
            return
        if done.note:
            note = done.note.removeprefix(f"series {done.series_key}: ")
            _log.info("series %s %s: %s", done.series_key, done.status, note)
        if done.frames:
            _log.debug("series %s\n%s", done.series_key, done.frames)
        self._seen.add(done.series_key)
        self._statuses[done.status] += 1
        self._num_slices += done.n_slices
        rate = self._num_slices / (time.perf_counter() - self._start)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self._statuses.items(), reverse=True))
        self._report(len(self._seen), self._total, f"{counts}; {rate:.1f} slices/s")


def choose_engine(config: InferConfig, num_pending: int, address: str | None) -> Literal["local", "ray"]:
    """Return the engine: Ray if asked for (by engine, workers or address) or if the cohort repays its start."""
    if config.engine != "auto":
        return config.engine
    if (config.workers or 1) > 1 or cluster_address(address) is not None:
        return "ray"
    many = config.workers is None and num_pending >= config.auto_ray_series
    return "ray" if many and worker_shares(config, local_resources())[0] > 1 else "local"


def worker_shares(config: InferConfig, resources: Resources) -> tuple[int, float]:
    """Return the number of workers, each with one core, and the share of a GPU for each: an equal one where it fits."""
    gpus = 1 / _WORKERS_A_GPU if resources.num_gpus >= 1 else 0.0
    workers = config.workers or max(1, resources.fitting(_WORKER_CPUS, gpus))
    if gpus:
        equal = 1 / math.ceil(workers / int(resources.num_gpus))
        # With larger shares fewer workers may fit: some node may have too few cores to use its GPUs up.
        if resources.fitting(_WORKER_CPUS, equal) >= workers or resources.fitting(_WORKER_CPUS, gpus) < workers:
            gpus = equal
    WorkerRequest(num_workers=workers, cpus_per_worker=_WORKER_CPUS, gpus_per_worker=gpus).check(resources)
    return workers, gpus


class _Worker:
    """A Ray actor: holds a model, takes a block of series, commits each itself and hands back a line."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(int(_WORKER_CPUS))
        self._job = job
        with _node_named():
            require_same_package(job.package_sha256)
            self._model = load_job_model(job)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        records: list[SeriesRecord] = [pickle.loads(zlib.decompress(document)) for document in batch["record"]]
        apart = suspects(self._job.out)
        calm: list[SeriesRecord] = []
        waiting: list[SeriesRecord] = []
        # Ray runs a block again when its actor died: finished series stay done, one that kills every actor is given up.
        for record in records:
            if self._job.is_done(record) or give_up(self._job, self._model.sha256, record):
                status = committed_status(self._job.out, record.series_key)
                yield _line(Done(record.series_key, status, record.n_slices))
            else:
                (waiting if record.series_key in apart else calm).append(record)
        for group in (calm, *([record] for record in waiting)):
            with _node_named():
                for done in segment_many(self._job, self._model, group):
                    yield _line(done)


@contextmanager
def _node_named() -> Iterator[None]:
    """Add the name of this node to errors that may hold for it alone."""
    try:
        yield
    except (ConfigError, ModelError, StoreError) as error:
        raise type(error)(f"{error} (on node {socket.gethostname()})") from error


def _line(done: Done) -> dict[str, list[Any]]:
    return {name: [value] for name, value in done._asdict().items()}


def _run_ray(job: Job, pending: Sequence[SeriesRecord], tally: "_Tally", address: str | None) -> None:
    """Segment on Ray Data: a row is a packed series record; a block of a few series is the unit of retry."""
    with connected(address) as resources:
        workers, gpus = worker_shares(job.config, resources)
        import ray  # after `connected`, which sets what ray reads while it is imported
        import ray.data
        import ray.data.exceptions
        import ray.exceptions

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        # A block per row: Ray then delivers each series as it ends, and counts its wait from there.
        context.target_max_block_size = 1
        context.execution_no_progress_timeout_s = LONGEST_WAIT_S
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("ray.data")]:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # its errors are reported below, in one line
        # Rows travel from this process to its own actors, in one version of the code: pickle is exact and safe here.
        # Packed, since a series may name a thousand files and a cohort hold many thousand series.
        rows = [{"record": zlib.compress(pickle.dumps(record))} for record in pending]
        block = min(_MOST_A_BLOCK, max(1, len(rows) // (_BLOCKS_A_WORKER * workers)))
        results = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // block)).map_batches(
            _Worker,
            fn_constructor_args=(job,),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            num_cpus=_WORKER_CPUS,
            num_gpus=gpus,
        )
        try:
            earlier = suspects(job.out)
            with room_watched(workers, gpus, lambda: tally.num_done > 0 or suspects(job.out) != earlier):
                for row in results.iter_rows():
                    tally.add(Done(**row))
        except ray.data.exceptions.ExecutionTimeoutError:
            room = _room(workers, gpus)
            raise WorkerError(
                f"no series has ended for {LONGEST_WAIT_S / 60:g} minutes, and Ray has room for {room} of {workers} "
                "workers, less what other jobs hold; see to the cluster and run the same command again"
            ) from None
        except ray.exceptions.RayError as error:
            raised = getattr(error, "cause", None)  # in an actor
            if isinstance(raised, CohortSegError):
                raise type(raised)(str(raised).splitlines()[0]) from error  # the rest is Ray's advice on its settings
            last = last_line(str(error)) or type(error).__name__
            kind, _, said = last.partition(": ")
            if (ours := _ERRORS.get(kind)) is not None:
                raise ours(said) from error
            what_next = advice(last, "run the same command again")
            raise WorkerError(f"the run on Ray ended early: {last}; {what_next}") from error


@contextmanager
def room_watched(workers: int, gpus: float, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Log when nodes are lost or back, once Ray has noticed (10 to 15 seconds), and when no worker begins.

    Ray itself waits in silence, for other jobs of the cluster too.

    Without a head node Ray ends this process after one to three minutes, and does not say why.
    """

    def watch(over: threading.Event) -> None:
        before, slow_at = workers, time.monotonic() + _SLOW_START_S
        while not over.wait(WATCH_EVERY_S):
            if not head_answers():
                _log.error(
                    "Ray's head node does not answer: if that lasts, this run ends in a few minutes; run the same "
                    "command again"
                )
                return
            room = _room(workers, gpus)
            if room != before:
                wait = "" if room else f"; waiting up to {LONGEST_WAIT_S / 60:g} minutes for more"
                _log.warning("Ray has room for %d of %d workers now%s", room, workers, wait)
            before = room
            if time.monotonic() > slow_at:
                slow_at = math.inf
                with suppress(StoreError):  # the folder cannot be listed for a moment
                    if not has_begun():
                        _log.warning(
                            "no worker has begun after %g seconds: Ray starts slowly, or other jobs hold what there "
                            "is; waiting up to %g minutes",
                            _SLOW_START_S,
                            LONGEST_WAIT_S / 60,
                        )

    with followed(watch):
        yield


def _room(workers: int, gpus: float) -> int:
    """Return how many of the workers fit on the nodes alive now."""
    return min(workers, connected_resources().fitting(_WORKER_CPUS, gpus))
