"""All chosen series of a cohort, each segmented once: here or by Ray Data actors; safe to kill and to repeat."""

import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch

from cohortseg import __version__
from cohortseg.cluster import Resources, cluster_address, connected, local_resources, require_workers
from cohortseg.config import InferConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import CohortSegError, ConfigError, ModelError, NotEvaluableError, StoreError
from cohortseg.infer.commit import (
    SeriesResult,
    begin_attempt,
    commit,
    committed_status,
    count_attempts,
    is_done,
    result_token,
    withdraw_attempt,
)
from cohortseg.infer.segmenter import segment_series, series_row
from cohortseg.lungs import LUNG_METHOD
from cohortseg.store.schemas import SCHEMA_VERSION
from cohortseg.volume import Volume
from cohortseg.weights import LoadedModel, load_model

Report = Callable[[int, int | None, str], None]
"""Takes what is done, of how much (None: not known yet), and a short text."""

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker needs to know; paths are absolute and, on a cluster, the same on every node."""

    root: Path
    """The cohort: series name their files relative to it."""
    out: Path
    model_path: Path | None
    model_sha256: str
    config: InferConfig

    def token(self, record: SeriesRecord) -> str:
        """Return the hash of all that the result of a series depends on."""
        settings = {
            "flips": self.config.flips,
            "overlays": self.config.overlays,
            "version": __version__,
            "schema": SCHEMA_VERSION,
            "lungs": LUNG_METHOD,
        }
        return result_token(record.fingerprint, self.model_sha256, settings)


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
        _shares(config, local_resources())


def pending_series(job: Job, records: Sequence[SeriesRecord]) -> list[SeriesRecord]:
    """Return the series without a valid result; those that ended a process before come last."""
    waiting = [record for record in records if not is_done(job.out, record.series_key, job.token(record))]
    return sorted(waiting, key=lambda record: count_attempts(job.out, record.series_key, job.token(record)) > 0)


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
        Told about each finished series.
    address
        Of a Ray cluster; None: ``RAY_ADDRESS``, else this machine.

    Raises
    ------
    ConfigError
        If the workers do not fit.
    StoreError
        If results cannot be written.
    """
    tally = _Tally(len(pending), report)
    if _engine(job.config, len(pending), address) == "local":
        _run_local(job, model, pending, tally)
        return "local"
    try:
        _run_ray(job, pending, tally, address)
    except KeyboardInterrupt:
        # The actors are gone with the cluster's job; what they were at is not to blame.
        for record in pending:
            if count_attempts(job.out, record.series_key, job.token(record)) > 0:
                withdraw_attempt(job.out, record.series_key, job.token(record))
        raise
    return "ray"


class _Tally:
    """Counts finished series and says so, with slices a second."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self._seen: set[str] = set()
        self._statuses: Counter[str] = Counter()
        self._num_slices = 0
        self._start = time.perf_counter()
        report(0, total, "")

    def add(self, series_key: str, status: str, num_slices: int) -> None:
        """Count one series, once, however often it is delivered."""
        if series_key in self._seen:
            return
        self._seen.add(series_key)
        self._statuses[status] += 1
        self._num_slices += num_slices
        rate = self._num_slices / (time.perf_counter() - self._start)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self._statuses.items(), reverse=True))
        self._report(len(self._seen), self._total, f"{counts}; {rate:.1f} slices/s")


def process_series(job: Job, model: LoadedModel, record: SeriesRecord, read: Callable[[], tuple[Volume, float]]) -> str:
    """Segment one series whose attempt has begun, commit the result and return its status.

    Parameters
    ----------
    job, model
        As in `run_series`.
    record
        The series.
    read
        Returns its volume and the seconds that reading took; may raise.
    """
    start = time.perf_counter()
    try:
        result, read_s = _attempt(model, record, read, job.config)
    except KeyboardInterrupt:
        withdraw_attempt(job.out, record.series_key, job.token(record))
        raise
    row = {**result.burden, "runtime_s": round(read_s + time.perf_counter() - start, 3)}
    commit(job.out, record.series_key, job.token(record), replace(result, burden=row))
    return str(row["status"])


def _attempt(
    model: LoadedModel, record: SeriesRecord, read: Callable[[], tuple[Volume, float]], config: InferConfig
) -> tuple[SeriesResult, float]:
    """Return the result of a series whatever happens: the boundary behind which a bad series is a row with a reason."""
    read_s, flags = 0.0, record.qc_flags
    try:
        volume, read_s = read()
        return segment_series(record, volume, model, config), read_s
    except NotEvaluableError as error:
        status, reason, flags = "not_evaluable", str(error), (*flags, *error.qc_flags)
    except CohortSegError as error:
        status, reason = "failed", str(error)
    except Exception as error:  # noqa: BLE001 - the one boundary: the rest of the cohort must go on
        _log.debug("series %s", record.series_key, exc_info=True)
        status, reason = "failed", f"unexpected {type(error).__name__}: {error}"
    _log.info("series %s %s: %s", record.series_key, status, reason)
    row = series_row(record, model) | {"status": status, "reason": reason, "qc_flags": list(flags)}
    return SeriesResult(burden=row), read_s


def _give_up(job: Job, model: LoadedModel, record: SeriesRecord) -> bool:
    """Commit a failed row for a series that ended its process too often; return whether it is one."""
    attempts = count_attempts(job.out, record.series_key, job.token(record))
    if attempts < job.config.max_attempts:
        return False
    reason = f"given up after {attempts} attempts that ended the process (crash, or killed for memory)"
    row = series_row(record, model) | {"status": "failed", "reason": reason}
    commit(job.out, record.series_key, job.token(record), SeriesResult(burden=row))
    return True


def _timed_read(record: SeriesRecord, root: Path) -> tuple[Volume, float]:
    start = time.perf_counter()
    volume = read_volume(record, root)
    return volume, time.perf_counter() - start


def _run_local(job: Job, model: LoadedModel, pending: Sequence[SeriesRecord], tally: _Tally) -> None:
    """Segment in this process; a thread reads the next series meanwhile, unless either has ended a process before."""
    suspects = {r.series_key for r in pending if count_attempts(job.out, r.series_key, job.token(r)) > 0}
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        ahead = None
        for record, following in zip(pending, [*pending[1:], None], strict=True):
            if _give_up(job, model, record):
                tally.add(record.series_key, "failed", 0)
                continue
            if ahead is None:
                begin_attempt(job.out, record.series_key, job.token(record))
            reading = ahead or pool.submit(_timed_read, record, job.root)
            ahead = None
            if following is not None and not {record.series_key, following.series_key} & suspects:
                begin_attempt(job.out, following.series_key, job.token(following))
                ahead = pool.submit(_timed_read, following, job.root)
            try:
                status = process_series(job, model, record, reading.result)
            except (KeyboardInterrupt, CohortSegError):
                if ahead is not None and following is not None:
                    withdraw_attempt(job.out, following.series_key, job.token(following))
                raise
            tally.add(record.series_key, status, record.n_slices)


def _engine(config: InferConfig, num_pending: int, address: str | None) -> Literal["local", "ray"]:
    """Decide how to run: Ray where asked for (by engine, workers or address) or where the cohort repays its start."""
    if config.engine != "auto":
        return config.engine
    if (config.workers or 1) > 1 or cluster_address(address) is not None:
        return "ray"
    many = config.workers is None and num_pending >= config.auto_ray_series
    return "ray" if many and _shares(config, local_resources())[0] > 1 else "local"


def _shares(config: InferConfig, resources: Resources) -> tuple[int, float, float]:
    """Return workers, and the CPUs and GPUs of each: a GPU where there is one, else two cores, at worst one."""
    gpus = 1.0 if resources.num_gpus >= 1 else 0.0
    cpus = 1.0 if gpus else 2.0
    workers = config.workers or max(1, resources.fitting(cpus, gpus))
    if resources.fitting(cpus, gpus) < workers:
        cpus = 1.0
    require_workers(workers, cpus, gpus, resources, cpus_flag=None)
    return workers, cpus, gpus


class _Worker:
    """A Ray actor: holds a model, takes one series at a time, commits it itself and hands back a line."""

    def __init__(self, job: Job, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._job = job
        self._model = load_model(job.model_path)
        if self._model.sha256 != job.model_sha256:
            raise ModelError("the model file of this node is not the one of the node that started the run")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (document,) = batch["record"]
        record: SeriesRecord = pickle.loads(document)
        key, token = record.series_key, self._job.token(record)
        # Ray runs a row again when its actor died: what is done stays done, what kills every actor is given up.
        if is_done(self._job.out, key, token) or _give_up(self._job, self._model, record):
            status = committed_status(self._job.out, key)
        else:
            begin_attempt(self._job.out, key, token)
            status = process_series(self._job, self._model, record, lambda: _timed_read(record, self._job.root))
        return {"series_key": [key], "status": [status], "n_slices": [record.n_slices]}


def _run_ray(job: Job, pending: Sequence[SeriesRecord], tally: _Tally, address: str | None) -> None:
    """Segment on Ray Data: rows are paths, one series a block, which is the unit of retry."""
    with connected(address) as resources:
        workers, cpus, gpus = _shares(job.config, resources)
        import ray  # after `connected`, which sets what ray reads while it is imported
        import ray.data
        import ray.exceptions

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("ray.data")]:
            logging.getLogger(name).setLevel(logging.ERROR)
        # Rows travel from this process to its own actors, in one version of the code: pickle is exact and safe here.
        rows = [{"record": pickle.dumps(record)} for record in pending]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(job, max(1, int(cpus))),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        try:
            for row in results.iter_rows():
                tally.add(row["series_key"], row["status"], row["n_slices"])
        except ray.exceptions.RayError as error:
            raise StoreError(f"the run on Ray ended early: {_cause(error)}; run the same command again") from error


def _cause(error: BaseException) -> str:
    """Return the innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
