"""Checked Parquet: a table is written whole or not at all, with its schema's version and provenance inside."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cohortseg import __version__
from cohortseg.errors import SchemaError
from cohortseg.identity import SERIES_KEY
from cohortseg.store.documents import parse_json
from cohortseg.store.files import replacing, store_errors
from cohortseg.store.schemas import TableSchema

DAMAGED: Final = (OSError, pa.ArrowException, ValueError, pl.exceptions.PolarsError)
"""What pyarrow and Polars raise on damaged files."""
_TYPES: Final = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer),
    *(pa.types.is_floating, pa.types.is_date, pa.types.is_boolean, pa.types.is_list, pa.types.is_large_list),
)
ROWS_A_PART: Final = 50_000
"""Rows of a part: some 25 MB as plain values; a row with a list counts as many rows as the list is long."""


def table_from_rows(rows: Iterable[Mapping[str, Any]], schema: TableSchema) -> pl.DataFrame:
    """Return a data frame with exactly the schema's columns; a column that a row does not name is null.

    Raises
    ------
    SchemaError
        If a row names a column that the schema does not have, or a value has the wrong type.
    """
    rows = [dict(row) for row in rows]
    unknown = sorted({name for row in rows for name in row} - set(schema.polars_schema))
    if unknown:
        raise SchemaError(f"table {schema.name}: unknown column(s) {', '.join(unknown)}")
    try:
        return pl.DataFrame(rows, schema=schema.polars_schema, orient="row", strict=True)
    except (pl.exceptions.PolarsError, TypeError) as error:  # its text can quote a value
        wrong = [name for name, dtype in schema.polars_schema.items() if not _is_column(rows, name, dtype)]
        raise SchemaError(f"table {schema.name}: values of another type in {', '.join(wrong)}") from error


def _is_column(rows: Sequence[Mapping[str, Any]], name: str, dtype: pl.DataType) -> bool:
    try:
        pl.DataFrame([{name: row.get(name)} for row in rows], schema={name: dtype}, orient="row", strict=True)
    except (pl.exceptions.PolarsError, TypeError):
        return False
    return True


def tables_from_rows(rows: Iterable[Mapping[str, Any]], schema: TableSchema) -> Iterator[pl.DataFrame]:
    """Yield a large table in parts of `ROWS_A_PART`, for `write_table`; without rows, one empty part.

    Raises
    ------
    SchemaError
        As `table_from_rows`.
    """
    part: list[Mapping[str, Any]] = []
    size = written = 0
    for row in rows:
        part.append(row)
        size += max([1, *(len(value) for value in row.values() if isinstance(value, (list, tuple)))])
        if size >= ROWS_A_PART:
            yield table_from_rows(part, schema)
            written += len(part)
            part, size = [], 0
    if part or not written:
        yield table_from_rows(part, schema)


def write_table(
    path: Path, frame: pl.DataFrame | Iterable[pl.DataFrame], schema: TableSchema, provenance: Mapping[str, Any]
) -> None:
    """Write a Parquet file under a temporary name first, so that a reader never sees half of it.

    Parameters
    ----------
    path
        The ``.parquet`` file; an existing one is replaced.
    frame
        Columns and types as in ``schema``; for a large table, its parts in order, one at a time in memory.
    schema
        The table's schema.
    provenance
        Stored as JSON under the key ``cohortseg`` of the Parquet metadata, with the schema's name and version. Each
        column's metadata holds its meaning as ``description``.

    Raises
    ------
    SchemaError
        If the columns or types differ from the schema.
    StoreError
        If the file cannot be written.
    """
    document = {"table": schema.name, "schema_version": schema.version, "version": __version__, **provenance}
    metadata = {"cohortseg": json.dumps(document, sort_keys=True, default=str)}
    empty = _arrow(pl.DataFrame(schema=schema.polars_schema)).schema
    described = [
        field.with_metadata({"description": column.meaning})
        for field, column in zip(empty, schema.columns, strict=True)
    ]
    schema_with_metadata = pa.schema(described, metadata)
    # An open file, not a path: pyarrow would take "a:b" for a URI.
    with (
        replacing(path) as file,
        pq.ParquetWriter(file, schema_with_metadata, compression="zstd") as writer,
    ):
        for part in [frame] if isinstance(frame, pl.DataFrame) else frame:
            if part.schema != schema.polars_schema:
                raise SchemaError(f"table {schema.name}: columns must be {schema.polars_schema}, got {part.schema}")
            writer.write_table(_arrow(part).replace_schema_metadata(metadata))


def frame_of(table: pa.Table) -> pl.DataFrame:
    """Return a pyarrow table as a data frame.

    Raises
    ------
    ValueError
        If a column has a type that none of our tables has, as in a damaged file; Polars panics on some.
    """
    for field in table.schema:
        if not any(is_ours(field.type) for is_ours in _TYPES):
            raise ValueError(f"column {field.name} is of type {field.type}")
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # from an array alone it makes a series
    return frame


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def table_name(path: Path) -> str | None:
    """Return the name of our table that a file holds; None if it holds none."""
    try:
        with path.open("rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        document = parse_json(metadata.get(b"cohortseg", b"{}"))
    except (OSError, pa.ArrowException, ValueError):
        return None
    return document.get("table") if isinstance(document, dict) else None


def read_table(path: Path, schema: TableSchema) -> pl.DataFrame:
    """Read a Parquet file and check it against its schema.

    Raises
    ------
    StoreError
        If the file is missing or cannot be read.
    SchemaError
        If it is damaged or no Parquet, or its columns or types differ from the schema, or a value is one that is never
        written: NaN, null where a row must say something, or a path out of the folders of run and cohort.
    """
    with store_errors(path, "cannot be read"):
        file = path.open("rb")
    with file:
        try:  # not by Polars, which panics or aborts on damaged files
            # No threads: one that lets go of the file last needs Python, and aborts the program if that has ended.
            # pq.read_table first loads pyarrow's datasets for .4 s.
            frame = frame_of(pq.ParquetFile(file).read(use_threads=False))
        except DAMAGED as error:
            raise SchemaError(f"{path}: cannot be read as Parquet: {error}") from error
    if frame.schema != schema.polars_schema:
        raise SchemaError(
            f"{path}: not a {schema.name} table of schema version {schema.version}: {_difference(frame.schema, schema)}"
            "; if another version of cohortseg made it, run the command that made it again"
        )
    if odd := odd_columns(frame, schema):
        raise SchemaError(f"{path}: was changed: {', '.join(odd)} hold NaN, or null where every row must say something")
    if leading := _leading_out(frame):
        raise SchemaError(f"{path}: was changed: {', '.join(leading)} would lead out of the folder of run or cohort")
    return frame


def _leading_out(frame: pl.DataFrame) -> list[str]:
    """Return the columns that hold names never written: absolute paths, paths with ``..``, or invalid series keys."""
    wrong = {
        "series_key": ~pl.col("series_key").str.contains(f"^{SERIES_KEY.pattern}$"),
        "files": pl.col("files").list.eval(pl.element().str.contains(r"^/|(^|/)\.\.(/|$)")).list.any(),
    }
    return [name for name in wrong if name in frame.columns and frame.select(wrong[name]).to_series().any()]


def odd_columns(frame: pl.DataFrame, schema: TableSchema) -> list[str]:
    """Return the columns that hold what is never written: numbers that are not finite, or null where none may be."""
    reals = [name for name, dtype in frame.schema.items() if dtype.is_float()]
    odd = [name for name in reals if not frame[name].drop_nulls().is_finite().all()]
    return odd + [name for name in schema.never_null if frame[name].null_count()]


def _difference(found: pl.Schema, schema: TableSchema) -> str:
    expected = schema.polars_schema
    texts = {
        "lacks": [name for name in expected if name not in found],
        "has besides": [name for name in found if name not in expected],
        "has another type of": [name for name in expected if name in found and found[name] != expected[name]],
    }
    told = [f"{text} {', '.join(names)}" for text, names in texts.items() if names]
    return "; ".join(told) or "its columns are in another order"
