"""What a user knows of the patients beside their scans: the day of the first symptoms."""

import io
from pathlib import Path
from typing import Final

import polars as pl

from cohortseg.errors import ConfigError, DataError
from cohortseg.store.schemas import CLINICAL
from cohortseg.store.tables import read_table, table_name, write_table

_SEPARATORS: Final = (",", ";", "\t")
_FORMATS: Final = ("%Y-%m-%d", "%Y%m%d", "%Y/%m/%d")
_MOST_ROWS_NAMED: Final = 5


def read_clinical(path: Path) -> pl.DataFrame:
    """Read a user's table of patients: text with columns ``patient_id`` and ``onset_date``; others are left out.

    Parameters
    ----------
    path
        UTF-8 text with a header, and commas, semicolons or tabs between the columns. Dates have the year first. An
        empty date: not known.

    Returns
    -------
    pl.DataFrame
        Schema ``CLINICAL``, a row a patient.

    Raises
    ------
    DataError
        If it cannot be read, lacks a column, or has a date that is none, or two for one patient. Patients are named by
        their row, counted from 1 below the header.
    """
    try:
        content = path.read_bytes()
        header = content.decode("utf-8-sig").partition("\n")[0]
        separator = max(_SEPARATORS, key=header.count)
        table = pl.read_csv(io.BytesIO(content), separator=separator, infer_schema=False)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    except pl.exceptions.PolarsError:  # its text quotes what stands in the file
        raise DataError(f"{path}: cannot be read as a table: its rows differ in length, or it is empty") from None
    names = {name.strip().casefold(): name for name in table.columns}
    missing = [column.name for column in CLINICAL.columns if column.name not in names]
    if missing:
        raise DataError(
            f"{path}: lacks the column {' and '.join(missing)}; its columns are {', '.join(map(repr, table.columns))}"
        )
    texts = table.select(
        pl.col(names[column.name]).str.strip_chars().replace("", None).alias(column.name) for column in CLINICAL.columns
    ).with_row_index("row", offset=1)
    return _checked(path, texts)


def _checked(path: Path, texts: pl.DataFrame) -> pl.DataFrame:
    dated = texts.with_columns(
        pl.coalesce(pl.col("onset_date").str.to_date(form, strict=False) for form in _FORMATS)
    ).with_columns(texts["onset_date"].alias("text"))
    _refuse(path, dated.filter(pl.col("patient_id").is_null()), "without patient_id")
    no_date = dated.filter(pl.col("text").is_not_null() & pl.col("onset_date").is_null())
    _refuse(path, no_date, "whose onset_date is no date of the form 2020-03-31")
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


def save_clinical(out: Path, clinical: pl.DataFrame) -> None:
    """Keep the table in an output folder, so that later runs of ``infer`` and ``report`` go by it too.

    Raises
    ------
    ConfigError
        If a file of that name lies there that is not ours.
    StoreError
        If it cannot be written.
    """
    path = out / CLINICAL.file_name
    if path.exists() and table_name(path) != CLINICAL.name:
        raise ConfigError(f"{path}: is not from cohortseg; move it away")
    write_table(path, clinical, CLINICAL, {})


def saved_clinical(out: Path) -> pl.DataFrame | None:
    """Return the table that an output folder keeps; None if it keeps none.

    Raises
    ------
    SchemaError
        If it is damaged, or not ours.
    """
    path = out / CLINICAL.file_name
    return read_table(path, CLINICAL) if path.exists() else None
