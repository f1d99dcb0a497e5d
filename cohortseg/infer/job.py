"""The job of a run, and the work on one series, from its files to its marker; a bad series is a row with a reason."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

from cohortseg import __version__
from cohortseg.cluster import PACKAGE_SHA256
from cohortseg.config import EXECUTION_SETTINGS, InferConfig, ScanConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.scan import require_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import CohortSegError, NotEvaluableError, unexpected
from cohortseg.identity import without_path
from cohortseg.infer.attempts import begin_attempt, count_attempts, note_given_up, require_run, suspects
from cohortseg.infer.commit import SeriesResult, check_rows, commit, is_done, result_token
from cohortseg.infer.segmenter import MEASURES, record_columns, segment_series, series_row
from cohortseg.lungs import LUNG_METHOD
from cohortseg.store.schemas import BURDEN, SLICES
from cohortseg.weights import LoadedModel

_RESULT_SETTINGS: Final = sorted(
    {item.name for item in fields(InferConfig)} - {item.name for item in fields(ScanConfig)} - EXECUTION_SETTINGS
)
"""Settings that the result of a series depends on; the effects of `ScanConfig` are in its record."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker needs to know; paths are absolute and, on a cluster, the same on every node."""

    root: Path
    """The cohort: series name their files relative to it."""
    out: Path
    model_path: Path | None
    model_sha256: str
    config: InferConfig
    run_id: str = field(default_factory=lambda: uuid4().hex)
    """Tells the attempts of this run from those of earlier ones."""
    package_sha256: str = PACKAGE_SHA256
    """Hash of the cohortseg sources that the run was started with."""

    def is_done(self, record: SeriesRecord) -> bool:
        """Return whether the output folder holds all that this run would make for a series."""
        return is_done(self.out, record.series_key, self.token(record), with_picture=self.config.overlays)

    def token(self, record: SeriesRecord) -> str:
        """Return the hash of all that the result of a series depends on."""
        settings = {
            **{name: getattr(self.config, name) for name in _RESULT_SETTINGS},
            "version": __version__,
            "schema": [[schema.version, *schema.polars_schema] for schema in (BURDEN, SLICES)],
            "lungs": LUNG_METHOD,
            "measures": MEASURES,
            # The fingerprint does not cover copies and other volumes of the series, and headers can be changed in
            # place, with the file's size and time kept.
            "n_duplicates": record.n_duplicates,
            "record": record_columns(record),
        }
        return result_token(record.fingerprint, self.model_sha256, settings)

    def tokens(self, records: Iterable[SeriesRecord]) -> dict[str, str]:
        """Return the token of each series by its key."""
        return {record.series_key: self.token(record) for record in records}


def pending_series(job: Job, records: Sequence[SeriesRecord]) -> list[SeriesRecord]:
    """Return the series without a valid result; those being worked on when a process died come last."""
    last = suspects(job.out)
    waiting = [record for record in records if not job.is_done(record)]
    return sorted(waiting, key=lambda record: record.series_key in last)


def attempts_of(job: Job, record: SeriesRecord) -> int:
    """Return how many attempts at a series this run began and did not end."""
    return count_attempts(job.out, record.series_key, job.token(record), job.run_id)


def give_up(job: Job, model_sha256: str, record: SeriesRecord) -> bool:
    """Commit a failed row if a series has ended its process too often; return whether it has."""
    attempts = attempts_of(job, record)
    if attempts < job.config.max_attempts:
        return False
    reason = f"given up after {attempts} attempts that ended the process (crash, or killed for memory)"
    row = series_row(record, model_sha256) | {"status": "failed", "reason": reason}
    commit(job.out, record.series_key, job.token(record), SeriesResult(burden=row))
    note_given_up(job.out, record.series_key)
    return True


class Done(NamedTuple):
    """One finished series."""

    series_key: str
    status: str
    n_slices: int
    note: str = ""
    """For the log: why it was not measured. It names no patient and no file."""
    frames: str = ""
    """The stack's frames of an unexpected error."""


def segment_and_commit(job: Job, model: LoadedModel, record: SeriesRecord, between_steps: Callable[[], None]) -> Done:
    """Decode, segment and commit one series.

    ``between_steps`` is called now and then; its ``CancelledError`` ends the work, with nothing committed.

    Raises
    ------
    StoreError
        If the result cannot be written, the cohort has gone, or the run has ended meanwhile.
    CancelledError
        If ``between_steps`` raises it.
    """
    begin_attempt(job.out, record.series_key, job.token(record), job.run_id)
    start = time.perf_counter()
    result, frames = _result(job, model, record, between_steps)
    row = {**result.burden, "runtime_s": round(time.perf_counter() - start, 3)}
    require_run(job.out, job.run_id)
    commit(job.out, record.series_key, job.token(record), replace(result, burden=row))
    note = without_path(row["reason"] or "", record.files)
    return Done(record.series_key, row["status"], record.n_slices, note, frames)


def _result(
    job: Job, model: LoadedModel, record: SeriesRecord, between_steps: Callable[[], None]
) -> tuple[SeriesResult, str]:
    """Segment a series, whatever happens: this boundary turns a bad series into a row with a reason.

    The stack's frames of an unexpected error are returned as well.
    """
    final, flags, frames = True, record.qc_flags, ""
    try:
        result = segment_series(record, read_volume(record, job.root), model, job.config, between_steps)
        check_rows(result)
    except CancelledError:
        raise
    except NotEvaluableError as error:
        status, reason, flags = "not_evaluable", str(error), (*flags, *error.qc_flags)
    except CohortSegError as error:
        status, reason, final = "failed", str(error), not _may_pass(error.__cause__)
        if not final:
            require_cohort(job.root)
    except Exception as error:  # noqa: BLE001 - a boundary: the rest of the cohort must go on
        status, (reason, frames) = "failed", unexpected(error)
        # PyTorch reports a lack of memory as a RuntimeError.
        final = not isinstance(error, (OSError, MemoryError, RuntimeError))
    else:
        return result, frames
    row = series_row(record, model.sha256) | {"status": status, "reason": reason, "qc_flags": list(flags)}
    return SeriesResult(burden=row, final=final), frames


def _may_pass(cause: BaseException | None) -> bool:
    """Return whether a later run may not meet this: a missing file, or too little memory, but not a damaged file."""
    if isinstance(cause, OSError):
        return cause.errno is not None  # those of pydicom have none
    return isinstance(cause, MemoryError)
