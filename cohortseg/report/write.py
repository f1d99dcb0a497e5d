"""The report of an output folder: who changed how, from burden.parquet alone; nothing is measured again."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from cohortseg.hashes import file_sha256
from cohortseg.longitudinal import patients_table, timeline_table
from cohortseg.report.clinical import saved_clinical
from cohortseg.report.page import report_html
from cohortseg.report.pictures import trajectories_png
from cohortseg.store.files import store_errors, write_file
from cohortseg.store.layout import PICTURES, REPORT
from cohortseg.store.schemas import BURDEN, CLINICAL, PATIENTS, TIMELINE
from cohortseg.store.tables import read_table, write_table

_log: Final = logging.getLogger(__name__)

_FAR_DAYS: Final = 365


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """What was written."""

    burden: pl.DataFrame
    """Read, not written: schema ``BURDEN``."""
    timeline: pl.DataFrame
    """Schema ``TIMELINE``."""
    patients: pl.DataFrame
    """Schema ``PATIENTS``."""
    page: Path
    """The self-contained HTML page."""


def write_report(out: Path) -> WrittenReport:
    """Write ``timeline.parquet``, ``patients.parquet``, the trajectories picture and ``report.html``.

    Parameters
    ----------
    out
        Output folder of ``infer``: its ``burden.parquet``, ``pictures/`` and, where there is one, the clinical table
        that was last given are read.

    Raises
    ------
    StoreError
        If there is no readable burden table, the clinical table is damaged, or the report cannot be written.
    """
    burden, clinical = read_table(out / BURDEN.file_name, BURDEN), saved_clinical(out)
    timeline, patients = timeline_table(burden, clinical), patients_table(burden, clinical)
    _warn_of_far_onsets(timeline)
    if clinical is not None:
        _warn_of_missing_onsets(patients)
    provenance = {
        "model_sha256": sorted(burden["model_sha256"].drop_nulls().unique()),
        "burden_rows": len(burden),
        "clinical_sha256": None if clinical is None else file_sha256(out / CLINICAL.file_name),
    }
    write_table(out / TIMELINE.file_name, timeline, TIMELINE, provenance)
    write_table(out / PATIENTS.file_name, patients, PATIENTS, provenance)
    pictures, page = out / PICTURES, out / REPORT
    with store_errors(pictures, "cannot be made a folder"):
        pictures.mkdir(exist_ok=True)
    trajectories = trajectories_png(timeline)
    write_file(pictures / "trajectories.png", trajectories)
    write_file(page, report_html(burden, timeline, patients, trajectories, pictures).encode())
    return WrittenReport(burden=burden, timeline=timeline, patients=patients, page=page)


def _warn_of_missing_onsets(patients: pl.DataFrame) -> None:
    """Warn of patients without onset: the kept table only has patients known when it was given, not new ones."""
    named = patients.drop_nulls("patient_id")
    if missing := named["onset_date"].null_count():
        _log.warning(
            "%d of %d patients have no onset_date; if they are new, give the whole table to report --clinical again",
            missing,
            len(named),
        )


def _warn_of_far_onsets(timeline: pl.DataFrame) -> None:
    """Warn of onsets that hardly fit the scans: dates of one of them were shifted, or one is mistyped."""
    days = pl.col("days_since_onset")
    patients = timeline.group_by("patient_id").agg(nearest=days.abs().min(), last=days.max())
    if far := len(patients.filter(pl.col("nearest") > _FAR_DAYS)):
        _log.warning("%d patients have an onset of symptoms more than a year from each of their scans", far)
    if after := len(patients.filter(pl.col("last") < 0)):
        _log.warning("%d patients have an onset of symptoms after all of their scans", after)
