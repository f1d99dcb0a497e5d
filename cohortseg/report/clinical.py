"""What a user knows of the patients beside their scans: the day of the first symptoms."""

import csv
import hashlib
import io
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import polars as pl

from cohortseg.errors import ConfigError, DataError, StoreError
from cohortseg.store.schemas import CLINICAL
from cohortseg.store.tables import read_table, table_name, write_table

_SEPARATORS: Final = (",", ";", "\t")
_DATE: Final = r"^(\d{4})([-/]?)(\d{2})([-/]?)(\d{2})$"
_FIRST_DAY: Final = date(2019, 1, 1)
"""No COVID-19 began before."""
_MOST_ROWS_NAMED: Final = 5


def read_clinical(path: Path) -> pl.DataFrame:
    """Read a user's table of patients: text with columns ``patient_id`` and ``onset_date``; others are left out.

    Parameters
    ----------
    path
        UTF-8 text with a header, and commas, semicolons or tabs between the columns. Dates have the year first. An
        empty date: not known. Rows with neither are passed over.

    Returns
    -------
    pl.DataFrame
        Schema ``CLINICAL``, a row a patient.

    Raises
    ------
    DataError
        If it cannot be read, lacks a column, or has a date that is none or cannot be, or two for one patient. Patients
        are named by their row, counted from 1 below the header.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig").lstrip("\r\n")
        separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
        rows = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator)
        # Polars renames the second of two columns of one name, and fills short rows with nulls at their end.
        names = [name.strip().casefold() for name in next(rows, [])]
        short = [
            number for number, row in enumerate(rows, start=1) if any(map(str.strip, row)) and len(row) < len(names)
        ]
        _refuse(path, pl.DataFrame({"row": short}), "with fewer columns than the header")
        table = pl.read_csv(io.BytesIO(content), separator=separator, infer_schema=False)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    except (csv.Error, pl.exceptions.PolarsError):  # the text of Polars quotes what stands in the file
        raise DataError(f"{path}: cannot be read as a table: its rows differ in length, or it is empty") from None
    missing = [column.name for column in CLINICAL.columns if column.name not in names]
    if missing:  # without the names of the others: a table without header has a patient there
        raise DataError(f"{path}: its first line must name the columns, and lacks {' and '.join(missing)}")
    if len(set(filter(None, names))) < sum(map(bool, names)):
        raise DataError(f"{path}: two columns have the same name")
    texts = table.select(
        pl.nth(names.index(column.name)).str.strip_chars().replace("", None).alias(column.name)
        for column in CLINICAL.columns
    ).with_row_index("row", offset=1)
    blank = pl.all_horizontal(pl.col(CLINICAL.polars_schema.names()).is_null())  # spreadsheets add such rows
    return _checked(path, texts.filter(~blank))


def _checked(path: Path, texts: pl.DataFrame) -> pl.DataFrame:
    digits = pl.when(pl.col("text").str.contains(_DATE)).then(pl.col("text").str.replace_all("[-/]", ""))
    dated = texts.with_columns(pl.col("onset_date").alias("text")).with_columns(
        digits.str.to_date("%Y%m%d", strict=False).alias("onset_date")
    )
    _refuse(path, dated.filter(pl.col("patient_id").is_null()), "without patient_id")
    no_date = dated.filter(pl.col("text").is_not_null() & pl.col("onset_date").is_null())
    _refuse(path, no_date, "whose onset_date is no date of the form 2020-03-31")
    absurd = dated.filter((pl.col("onset_date") < _FIRST_DAY) | (pl.col("onset_date") > datetime.now(UTC).date()))
    _refuse(path, absurd, f"whose onset_date is before {_FIRST_DAY} or in the future")
    known = dated.drop_nulls("onset_date")
    twice = known.filter(pl.col("onset_date").n_unique().over("patient_id") > 1)
    _refuse(path, twice, "with another onset_date for the same patient")
    # A patient with one date and rows without keeps the date.
    patients = dated.sort("onset_date", nulls_last=True, maintain_order=True).unique("patient_id", keep="first")
    return patients.select(CLINICAL.polars_schema.names()).sort("patient_id")


def _refuse(path: Path, rows: pl.DataFrame, what: str) -> None:
    if len(rows):
        more = ", ..." if len(rows) > _MOST_ROWS_NAMED else ""
        named = ", ".join(map(str, rows["row"].head(_MOST_ROWS_NAMED)))
        raise DataError(f"{path}: {len(rows)} rows {what}: {named}{more} (counted from 1 below the header)")


def save_clinical(out: Path, clinical: pl.DataFrame, source: Path) -> None:
    """Keep a table that was read from ``source`` in an output folder: later runs of ``infer`` and ``report`` go by it.

    Raises
    ------
    ConfigError
        If a file of that name lies there that is not ours.
    StoreError
        If it cannot be written.
    OSError
        If the source cannot be read any more.
    """
    path = out / CLINICAL.file_name
    if path.exists() and table_name(path) != CLINICAL.name:
        raise ConfigError(f"{path}: is not from cohortseg; move it away")
    write_table(path, clinical, CLINICAL, {"source_sha256": hashlib.sha256(source.read_bytes()).hexdigest()})


def remove_clinical(out: Path) -> None:
    """Remove the table that an output folder keeps.

    Raises
    ------
    StoreError
        If it cannot be removed.
    """
    path = out / CLINICAL.file_name
    try:
        path.unlink()
    except OSError as error:
        raise StoreError(f"{path}: cannot be removed: {error}") from error


def saved_clinical(out: Path) -> pl.DataFrame | None:
    """Return the table that an output folder keeps; None if it keeps none.

    Raises
    ------
    SchemaError
        If it is damaged, or not ours.
    """
    path = out / CLINICAL.file_name
    return read_table(path, CLINICAL) if path.exists() else None
