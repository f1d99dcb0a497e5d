"""Clinical data that a user has on the patients besides their scans: the day of the first symptoms."""

import codecs
import csv
import hashlib
import io
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final
from unicodedata import normalize

import polars as pl

from cohortseg.dicom.elements import FILLER_DATE, FIRST_YEAR
from cohortseg.errors import ConfigError, DataError, SchemaError
from cohortseg.store.files import store_errors
from cohortseg.store.schemas import CLINICAL, MANIFEST
from cohortseg.store.tables import read_table, table_name, write_table

_log: Final = logging.getLogger(__name__)

_SEPARATORS: Final = (",", ";", "\t")
_DATE: Final = r"^(\d{4})([-/]?)(\d{2})([-/]?)(\d{2})(?:[ T]00:00(?::00(?:\.0+)?)?(?:Z|\+00:00)?)?$"
_MOST_ROWS_NAMED: Final = 5


def read_clinical(path: Path) -> tuple[pl.DataFrame, str]:
    """Read a user's table of patients: text with columns ``patient_id`` and ``onset_date``; others are ignored.

    Parameters
    ----------
    path
        Text in UTF-8 (or UTF-16 with a byte order mark, as Excel writes it) with a header, and commas, semicolons or
        tabs between the columns. Dates have the year first; a time of midnight after them is ignored. An empty date,
        or R's ``NA``, means not known. Rows with neither patient nor date are ignored.

    Returns
    -------
    tuple
        A data frame of schema ``CLINICAL``, one row per patient, and the SHA-256 of the file.

    Raises
    ------
    DataError
        If it cannot be read, lacks a column, or has an invalid date, or two dates for one patient. The message names
        patients by their row, counted from 1 below the header.
    """
    try:
        content = path.read_bytes()  # once: it may be a pipe
        header, *rows = _rows(_text(content)) or [[]]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}; save it as text (Excel: CSV UTF-8)") from error
    except csv.Error as error:  # none of its messages quotes the file
        raise DataError(f"{path}: cannot be read as a table: {error}") from error
    names = [name.casefold() for name in header]
    missing = [column.name for column in CLINICAL.columns if column.name not in names]
    if missing:  # does not quote the line: in a table without header it names a patient
        raise DataError(f"{path}: its first line must name the columns, and lacks {' and '.join(missing)}")
    if len(set(filter(None, names))) < sum(map(bool, names)):
        raise DataError(f"{path}: two columns have the same name")
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if any(row)]
    for what, odd in (
        ("fewer", [number for number, row in numbered if len(row) < len(names)]),
        ("more", [number for number, row in numbered if any(row[len(names) :])]),
    ):
        _refuse(path, odd, f"with {what} columns than the header")
    at = [names.index(column.name) for column in CLINICAL.columns]
    texts = pl.DataFrame(
        [(number, *(row[index] or None for index in at)) for number, row in numbered],
        schema={"row": pl.Int64} | dict.fromkeys(CLINICAL.polars_schema.names(), pl.String),
        orient="row",
    )
    texts = texts.with_columns(pl.col("onset_date").replace("NA", None))
    blank = pl.all_horizontal(pl.col(CLINICAL.polars_schema.names()).is_null())
    texts = texts.filter(~blank)
    if texts.is_empty():
        raise DataError(f"{path}: holds no patients")
    return _checked(path, texts), hashlib.sha256(content).hexdigest()


def _text(content: bytes) -> str:
    """Return the text of a file, in UTF-16 if it has that byte order mark, else in UTF-8."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8")


def _rows(text: str) -> list[list[str]]:
    """Return the rows of a table, cells stripped; the separator is Excel's ``sep=``, or the header's most frequent."""
    text = text.lstrip("\ufeff\r\n")
    said = re.match(r'"?sep=([,;\t|])"?\r?\n', text, re.IGNORECASE)
    if said:
        separator, text = said[1], text[said.end() :]
    else:
        header = re.split(r"[\r\n]", text, maxsplit=1)[0]
        separator = max(_SEPARATORS, key=re.sub(r'"[^"]*"', "", header).count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [[normalize("NFC", cell.strip()) for cell in row] for row in reader]  # as the scan does with identifiers
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from error


def _checked(path: Path, texts: pl.DataFrame) -> pl.DataFrame:
    digits = pl.when(pl.col("text").str.contains(_DATE)).then(pl.col("text").str.replace(_DATE, "$1$3$5"))
    dated = texts.with_columns(pl.col("onset_date").alias("text")).with_columns(
        digits.str.to_date("%Y%m%d", strict=False).alias("onset_date")
    )
    # Python's dates, which later steps use, have no year 0.
    is_early = pl.col("onset_date").dt.year() < FIRST_YEAR
    dated = dated.with_columns(pl.when(~is_early).then("onset_date").alias("onset_date"))
    is_filler = pl.col("onset_date") == FILLER_DATE
    if fillers := len(dated.filter(is_filler)):
        _log.warning("%d rows of %s have the onset_date %s, a filler: taken as not known", fillers, path, FILLER_DATE)
        dated = dated.with_columns(
            pl.when(is_filler).then(None).otherwise(pl.col(name)).alias(name) for name in ("onset_date", "text")
        )
    _refuse(path, dated.filter(pl.col("patient_id").is_null())["row"], "without patient_id")
    no_date = dated.filter(pl.col("text").is_not_null() & pl.col("onset_date").is_null())
    _refuse(path, no_date["row"], f"whose onset_date is no date from {FIRST_YEAR} on, of the form 2020-03-31")
    known = dated.drop_nulls("onset_date")
    twice = known.filter(pl.col("onset_date").n_unique().over("patient_id") > 1)
    _refuse(path, twice["row"], "with another onset_date for the same patient")
    # A patient with one date and rows without keeps the date.
    patients = dated.sort("onset_date", nulls_last=True, maintain_order=True).unique("patient_id", keep="first")
    return patients.select(CLINICAL.polars_schema.names()).sort("patient_id")


def _refuse(path: Path, rows: Sequence[int] | pl.Series, what: str) -> None:
    if len(rows):
        more = ", ..." if len(rows) > _MOST_ROWS_NAMED else ""
        named = ", ".join(map(str, rows[:_MOST_ROWS_NAMED]))
        raise DataError(f"{path}: {len(rows)} rows {what}: {named}{more} (counted from 1 below the header)")


def read_clinical_of(out: Path, clinical: Path) -> tuple[pl.DataFrame, str, pl.DataFrame]:
    """Read the rows of a clinical table for the patients of a cohort, measured or not.

    Returns
    -------
    tuple
        The table, the SHA-256 of its file, and the cohort's manifest.

    Raises
    ------
    ConfigError
        If none of its patients is in the cohort.
    DataError
        As `read_clinical`.
    StoreError
        If the manifest cannot be read.
    """
    given, source_sha256 = read_clinical(clinical)
    found = read_table(out / MANIFEST.file_name, MANIFEST)
    patients = given.join(found, on="patient_id", how="semi", maintain_order="left")
    if patients.is_empty():
        raise ConfigError(
            f"{clinical}: none of its {len(given)} patients is in {out}; patient_id must be written as in "
            f"{MANIFEST.file_name}, leading zeros included"
        )
    if others := len(given) - len(patients):
        _log.warning("%d of the %d patients of %s are not in this cohort: left out", others, len(given), clinical)
    return patients, source_sha256, found


def warn_of_lost_onsets(out: Path, patients: pl.DataFrame, found: pl.DataFrame) -> None:
    """Warn of patients whose onset is in the table kept so far, but not in the one that takes its place."""
    try:
        before = saved_clinical(out)
    except SchemaError:  # of another version, and replaced, or damaged, and refused by `save_clinical`
        return
    if before is None:
        return
    known = before.drop_nulls("onset_date").join(found, on="patient_id", how="semi")
    if lost := len(known.join(patients.drop_nulls("onset_date"), on="patient_id", how="anti")):
        _log.warning("%d patients whose onset was known have none in this table, which takes its place", lost)


def save_clinical(out: Path, clinical: pl.DataFrame, source_sha256: str) -> None:
    """Keep a table of `read_clinical` in an output folder, for later runs of ``infer`` and ``report``.

    Raises
    ------
    ConfigError
        If a file of that name lies there that is damaged or not ours.
    StoreError
        If it cannot be written.
    """
    path = out / CLINICAL.file_name
    if path.exists() and table_name(path) != CLINICAL.name:
        raise ConfigError(f"{path}: is damaged, or not from cohortseg; move it away")
    write_table(path, clinical, CLINICAL, {"source_sha256": source_sha256})


def keep_clinical_of(out: Path, patient_ids: Collection[str]) -> None:
    """Remove all other patients from the table that an output folder keeps, if any, and log how many they are.

    Raises
    ------
    StoreError
        If it is damaged, or cannot be written or removed.
    """
    clinical = saved_clinical(out)
    if clinical is None:
        return
    kept = clinical.filter(pl.col("patient_id").is_in(patient_ids))
    if gone := len(clinical) - len(kept):
        _log.warning("%d patients of %s are not in the cohort any more: removed from it", gone, CLINICAL.file_name)
    if kept.is_empty():
        remove_clinical(out)
    elif len(kept) < len(clinical):
        before = (out / CLINICAL.file_name).read_bytes()
        provenance = {"reduced_from_sha256": hashlib.sha256(before).hexdigest()}
        write_table(out / CLINICAL.file_name, kept, CLINICAL, provenance)


def remove_clinical(out: Path) -> None:
    """Remove the table that an output folder keeps.

    Raises
    ------
    StoreError
        If it cannot be removed.
    """
    path = out / CLINICAL.file_name
    with store_errors(path, "cannot be removed"):
        path.unlink()


def saved_clinical(out: Path) -> pl.DataFrame | None:
    """Return the table that an output folder keeps; None if it keeps none.

    Raises
    ------
    SchemaError
        If it is damaged, or not ours.
    """
    path = out / CLINICAL.file_name
    return read_table(path, CLINICAL) if path.exists() else None
