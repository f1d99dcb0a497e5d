"""The stages of a run put together: scan, segment and measure, report."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import polars as pl

from cohortseg import __version__
from cohortseg.cluster import cluster_address, connected
from cohortseg.config import EXECUTION_SETTINGS, InferConfig
from cohortseg.dicom.scan import CohortScan, require_cohort, scan_cohort
from cohortseg.dicom.selection import select_next
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import ConfigError
from cohortseg.identity import without_path
from cohortseg.infer.claim import claimed
from cohortseg.infer.commit import (
    begin_anew,
    committed_keys,
    committed_slices,
    committed_status,
    end_anew,
    forget_failed,
    read_committed,
    remove_results,
    sweep,
)
from cohortseg.infer.job import Job, pending_series
from cohortseg.infer.run import check_workers, run_series, worker_shares
from cohortseg.infer.segmenter import MEASURES
from cohortseg.longitudinal import is_cut, is_end_of_another_part, is_little, is_narrow, with_time
from cohortseg.lungs import LUNG_METHOD
from cohortseg.progress import Progress, no_progress
from cohortseg.report.clinical import (
    keep_clinical_of,
    read_clinical_of,
    remove_clinical,
    save_clinical,
    saved_clinical,
    warn_of_lost_onsets,
)
from cohortseg.report.scan_tables import write_scan
from cohortseg.report.write import WrittenReport, write_report
from cohortseg.store.documents import parse_json
from cohortseg.store.layout import MASKS, PICTURES, STATE
from cohortseg.store.masks import create_mask_store, sweep_masks
from cohortseg.store.output import note_unfinished, require_output
from cohortseg.store.provenance import read_run_json, write_run_json
from cohortseg.store.schemas import BURDEN, FILES, MANIFEST, SLICES
from cohortseg.store.tables import read_table, write_table
from cohortseg.weights import LoadedModel, load_model

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InferSummary:
    """What a run of `infer_cohort` did."""

    out: Path
    burden: pl.DataFrame
    """All chosen series, those of earlier runs included."""
    reasons: Mapping[str, str]
    """Why series were not measured, by series key; without file paths, so fit for a terminal or a log."""
    counts: Mapping[str, int]
    """Number of chosen series by status; a status that no series has is left out."""
    num_found: int
    """Series found in the cohort."""
    num_unreadable: int
    """Files and folders that could not be read, and may have held slices."""
    num_archives: int
    """Archives that were not looked into."""
    num_done: int
    """Series segmented by this run; 0: there was nothing to do."""
    num_patients_left_out: int
    """Patients none of whose series was chosen."""
    num_others: int
    """Series of earlier runs that are not chosen now: their masks and pictures stay, the tables leave them out."""
    engine: str
    """How: local or ray; "none" if there was nothing to do."""

    @property
    def complete(self) -> bool:
        """Whether at least one series was chosen, all chosen ones were measured, and every file could be read."""
        return set(self.counts) == {"ok"} and not self.num_unreadable


def infer_cohort(
    cohort: Path,
    out: Path,
    *,
    config: InferConfig,
    model_path: Path | None,
    progress: Progress = no_progress,
    address: str | None = None,
) -> InferSummary:
    """Find, segment, measure and report every series of a cohort; what an earlier run finished is kept.

    Parameters
    ----------
    cohort
        Folder of DICOM files; it is only read.
    out
        Output folder; it is created.
    config
        Settings.
    model_path
        Model file; None: the one in the package.
    progress
        Shows the progress of scanning (in files) and of segmentation (in series).
    address
        Address of a Ray cluster that sees both folders under the same paths; None: ``RAY_ADDRESS``, else this machine.

    Raises
    ------
    ConfigError
        If ``out`` lies inside the cohort, would write into it, or holds results of another one, the cohort holds no
        DICOM, the rules leave no series, or the workers do not fit.
    StoreError
        If another run writes into ``out``, it cannot be written, or the clinical table in it is damaged.
    WorkerError
        If Ray, or a process that reads headers or segments, fails.
    ModelError
        If the model cannot be loaded.
    """
    begin = time.perf_counter()
    cohort, out = cohort.resolve(), out.resolve()
    if out.is_relative_to(cohort):
        raise ConfigError(f"{out}: the output must not lie inside the cohort, which is only read; choose another -o")
    if any(cohort.is_relative_to(out / name) for name in (MASKS, PICTURES, STATE)):
        raise ConfigError(f"{cohort}: the cohort is only read, but {out} writes there; choose another -o")
    check_workers(config, address)
    model = load_model(model_path)
    with claimed(out):
        saved_clinical(out)  # raises before the work, not at the end of it, if the table is damaged
        with progress("Scanning") as report:
            scan = scan_cohort(cohort, report, config=config)
        scan_s = time.perf_counter() - begin
        _check_rules(scan)
        job = Job(
            root=cohort,
            out=out,
            model_path=model_path and model_path.resolve(),
            model_sha256=model.sha256,
            config=config,
        )
        of_another = _is_of_another_cohort(out, scan)
        if of_another and config.resume:  # its tables would replace the other one's
            raise ConfigError(
                f"{out}: holds results, none of which is of a series of this cohort; choose another -o, or --no-resume "
                "to remove them"
            )
        with _cluster(job, scan, address):
            require_cohort(cohort)  # before results are removed or written anew
            if of_another:
                _forget_cohort(out)
            _make_ready(job)
            scan, num_done, engine = _segment(job, model, scan, progress, address)
        summary = _finished(job, scan, num_done, engine)
        facts = _facts(summary, scan, config, model)
        if not num_done and _tells_of(out, facts):
            return summary  # run.json keeps describing the run that made the results
        timings = {"scan_s": round(scan_s, 3), "total_s": round(time.perf_counter() - begin, 3)}
        write_run_json(out, "infer", facts | {"timings": timings})
    return summary


def _segment(
    job: Job, model: LoadedModel, scan: CohortScan, progress: Progress, address: str | None
) -> tuple[CohortScan, int, str]:
    """Segment and commit the selected series not done yet, then alternatives where these left something open.

    Returns
    -------
    tuple
        The scan with the alternatives it selected, the number of series segmented, and the engine.
    """
    engine, num_done = "none", 0
    tried: set[str] = set()
    rows: list[pl.DataFrame] = []
    while added := [record for record in scan.selected if record.series_key not in tried]:
        pending = pending_series(job, added)
        if pending:
            note_unfinished(job.out, unfinished=True)
            with progress("Segmenting") as report:
                used = run_series(job, model, pending, report, address)
            engine = "ray" if "ray" in (engine, used) else used
            sweep_masks(job.out / MASKS)  # left by actors that were killed while writing
            num_done += len(pending)
        tried |= {record.series_key for record in added}
        if any(record.decision == "alternative" for record in scan.series):
            # A series that a later run may measure, such as one with a file missing now, keeps its place.
            open_before = {record.series_key for record in pending}
            done = [record for record in added if record.series_key not in open_before or job.is_done(record)]
            rows.append(read_committed(job.out, job.tokens(done)))
            scan = _with_alternatives(scan, job.config, pl.concat(rows))
    return scan, num_done, engine


def _finished(job: Job, scan: CohortScan, num_done: int, engine: str) -> InferSummary:
    """Write tables and report from the committed results, and return the summary of the run."""
    out, chosen = job.out, scan.selected
    note_unfinished(out, unfinished=True)
    burden = with_time(read_committed(out, job.tokens(chosen)))
    _warn_of_mixed_precision(burden)
    _write_tables(scan, burden, job)
    if not job.config.resume:
        keep_clinical_of(out, _patients(scan.series))
        # Of an interrupted run with other rules, which this one went on with.
        remove_results(out, kept={record.series_key for record in chosen})
    write_report(out)
    end_anew(out)
    note_unfinished(out, unfinished=False)
    missed = dict(burden.drop_nulls("reason").select("series_key", "reason").iter_rows())
    reasons = {
        record.series_key: without_path(missed[record.series_key], record.files)
        for record in chosen
        if record.series_key in missed
    }
    return InferSummary(
        out=out,
        burden=burden,
        reasons=reasons,
        counts=dict(burden["status"].value_counts().sort("status").rows()),
        num_found=len(scan.series),
        num_unreadable=scan.num_unreadable,
        num_archives=scan.num_archives,
        num_done=num_done,
        num_patients_left_out=len(_patients(scan.series) - _patients(chosen)),
        num_others=len(committed_keys(out) - {record.series_key for record in chosen}),
        engine=engine,
    )


def _warn_of_mixed_precision(burden: pl.DataFrame) -> None:
    """Tell the user if machines of two kinds measured the series: a change over time may be that of the arithmetic."""
    if burden["precision"].drop_nulls().n_unique() > 1:
        _log.warning(
            "some series were measured in bfloat16, others in float32 (column precision): their volumes may differ by "
            "up to 5 %; with --no-resume, on machines of one kind, all are measured alike"
        )


def _patients(series: Iterable[SeriesRecord]) -> set[str]:
    return {record.patient_id for record in series if record.patient_id is not None}


def report_cohort(out: Path, clinical: Path | None = None) -> WrittenReport:
    """Write the report of an output folder again; nothing is segmented or measured.

    Parameters
    ----------
    out
        Output folder of ``infer``.
    clinical
        A user's table of patients (`read_clinical`), whose rows for the cohort's patients the folder then keeps. None:
        the table kept there, if any.

    Raises
    ------
    ConfigError
        If ``out`` is no output folder of ``infer``, or none of its patients is in the clinical table.
    DataError
        If the clinical table cannot be used.
    StoreError
        If a run is writing into ``out``, its burden table (or, with ``clinical``, its manifest) cannot be read, or the
        report cannot be written.
    """
    require_output(out)
    # Raises before the folder is touched if the table is damaged.
    read_table(out / BURDEN.file_name, BURDEN)
    known = None if clinical is None else read_clinical_of(out, clinical)
    with claimed(out):
        sweep(out)
        if known is not None:
            patients, source_sha256, found = known
            warn_of_lost_onsets(out, patients, found)
            save_clinical(out, patients, source_sha256)
        return write_report(out)


def _check_rules(scan: CohortScan) -> None:
    """Refuse rules that leave no series, before any result of an earlier run is replaced."""
    excluded = Counter(record.reason for record in scan.series if record.decision == "excluded")
    if excluded and not scan.selected:
        reasons = "; ".join(f"{count} {reason}" for reason, count in excluded.most_common())
        raise ConfigError(
            f"no series is chosen: {reasons}; 'cohortseg scan COHORT -o manifest.parquet' writes what the columns hold"
        )


def _is_of_another_cohort(out: Path, scan: CohortScan) -> bool:
    """Return whether a folder holds results, but none for a series of this cohort."""
    done = committed_keys(out)
    return bool(done) and done.isdisjoint(record.series_key for record in scan.series)


@contextmanager
def _cluster(job: Job, scan: CohortScan, address: str | None) -> Iterator[None]:
    """Connect to the cluster, if one is used and has work to do, for the duration of the block.

    This comes before any result of an earlier run is removed: the cluster may not answer, or have too little room.
    """
    selected = scan.selected
    again = not job.config.resume or (
        job.config.retry_failed
        and any(committed_status(job.out, record.series_key) == "failed" for record in selected if job.is_done(record))
    )
    is_used = cluster_address(address) is not None and job.config.engine != "local"
    if is_used and (again or pending_series(job, selected)):
        with connected(address) as resources:
            worker_shares(job.config, resources)
            yield
    else:
        yield


def _forget_cohort(out: Path) -> None:
    """Remove what a folder keeps of another cohort besides its results, which `begin_anew` removes."""
    end_anew(out)
    if saved_clinical(out) is not None:
        remove_clinical(out)
        _log.warning("the onset dates kept in %s were of another cohort: removed", out)


def _make_ready(job: Job) -> None:
    """Create the mask store, sweep the output folder, and remove earlier results as the settings ask."""
    create_mask_store(job.out / MASKS)
    sweep(job.out)
    if not job.config.resume:
        note_unfinished(job.out, unfinished=True)
        begin_anew(job.out)
    elif job.config.retry_failed:
        forget_failed(job.out)


def _with_alternatives(scan: CohortScan, config: InferConfig, tried: pl.DataFrame) -> CohortScan:
    """Return the scan with an alternative added to each study whose series tried so far left something open.

    That is the case where nothing was measured, or only lung at the end of a scan of another part of the body; also
    where there is little lung, or it extends beyond the end slices or the field of view, and an alternative reaches
    farther.

    Parameters
    ----------
    scan
        What was found.
    config
        Its preferences are used.
    tried
        Rows of the burden table for all series tried so far.
    """

    def keys(rule: pl.Expr) -> set[str]:
        return set(tried.filter(rule)["series_key"])

    unmeasured = keys((pl.col("status") != "ok") | is_end_of_another_part())
    short, narrow = keys(is_cut() | is_little()), keys(is_narrow())
    return replace(scan, series=tuple(select_next(scan.series, config, unmeasured, short=short, narrow=narrow)))


def _write_tables(scan: CohortScan, burden: pl.DataFrame, job: Job) -> None:
    """Write manifest, files, burden and slices in the order of the scan, whichever series finished first."""
    provenance = {"model_sha256": job.model_sha256, "config": asdict(job.config)}
    keys = [record.series_key for record in scan.selected]
    write_scan(scan, provenance, manifest=job.out / MANIFEST.file_name, files=job.out / FILES.file_name)
    write_table(job.out / SLICES.file_name, committed_slices(job.out, keys), SLICES, provenance)
    write_table(job.out / BURDEN.file_name, burden, BURDEN, provenance)


def _facts(summary: InferSummary, scan: CohortScan, config: InferConfig, model: LoadedModel) -> dict[str, Any]:
    """Return the content of ``run.json``: settings, model, methods, engine and counts."""
    return {
        "config": asdict(config),
        "model": {"name": model.name, "sha256": model.sha256},
        "methods": {"lungs": LUNG_METHOD, "measures": MEASURES},
        "engine": summary.engine,
        "counts": {
            "series_found": summary.num_found,
            "series_chosen": len(summary.burden),
            "status": dict(summary.counts),
            "series_segmented_by_this_run": summary.num_done,
            "files_in_no_series": len(scan.skipped),
        },
    }


def _tells_of(out: Path, facts: Mapping[str, Any]) -> bool:
    """Return whether a folder's ``run.json`` has the same series counts, settings, model, methods and version.

    Settings that only say how the work is done may differ.
    """
    told, now = read_run_json(out), parse_json(json.dumps(facts))
    try:
        return bool(
            told["config"] | {name: now["config"][name] for name in EXECUTION_SETTINGS} == now["config"]
            and all(told["counts"][name] == now["counts"][name] for name in ("series_found", "series_chosen", "status"))
            and told["model"]["sha256"] == now["model"]["sha256"]
            and told["methods"] == now["methods"]
            and told["versions"]["cohortseg"] == __version__
        )
    except (KeyError, TypeError):
        return False
