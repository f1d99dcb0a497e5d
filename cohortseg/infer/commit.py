"""Results written so that a run is safe to kill: the marker that says "done" is the last file of each.

OUT/.state/ holds ``slices/<key>.arrow`` (a series' rows of the slices table) and ``rows/<key>.json`` (the marker: its
burden row, and what it was made from). Beside them lie ``attempts`` (`infer.attempts`), ``anew`` while a run with
``--no-resume`` has not ended, and ``unfinished`` (`store.output`). A series without a valid marker is done
again, and a second result replaces the first, so nothing is lost or doubled, whichever process dies when.
"""

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from cohortseg.errors import SchemaError, StoreError
from cohortseg.identity import SERIES_KEY
from cohortseg.infer.attempts import end_attempts, forget_attempts
from cohortseg.store.documents import parse_json
from cohortseg.store.files import store_errors, sweep_temporaries, visible_files, write_file
from cohortseg.store.layout import MASKS, PICTURES, REPORT, ROWS, RUN_JSON, SLICE_ROWS, STATE, STATE_FOLDERS
from cohortseg.store.masks import SeriesMasks, mask_sizes, remove_masks, write_masks
from cohortseg.store.schemas import BURDEN, SLICES
from cohortseg.store.tables import DAMAGED, frame_of, odd_columns, table_from_rows

_ANEW: Final = "anew"
"""Present while a run that began anew has not ended."""
_BATCH: Final = 128
_DATES: Final = [name for name, dtype in BURDEN.polars_schema.items() if dtype == pl.Date]
_MARKER_KEYS: Final = {"token", "final", "sizes", "burden"}
_WRONG_ROW: Final = (SchemaError, LookupError, TypeError, ValueError)
"""Errors raised when a marker that we did not write is turned into a row."""


@dataclass(frozen=True, kw_only=True)
class SeriesResult:
    """The result of segmenting one series."""

    burden: Mapping[str, Any]
    """One row of the burden table."""
    slices: tuple[Mapping[str, Any], ...] = ()
    """Rows of the slices table."""
    masks: SeriesMasks | None = None
    """None where nothing was segmented."""
    picture_png: bytes | None = None
    """The overlay, encoded."""
    final: bool = True
    """False: the next run tries again, since the cause may be gone by then (file server away, memory full)."""


def result_token(fingerprint: str, model_sha256: str, settings: Mapping[str, Any]) -> str:
    """Return the hash of all that a result depends on: input files, model, settings and versions."""
    document = json.dumps([fingerprint, model_sha256, dict(settings)], sort_keys=True, default=_plain)
    return hashlib.sha256(document.encode()).hexdigest()


def check_rows(result: SeriesResult) -> None:
    """Refuse rows that do not fit their table, before `commit` makes them permanent.

    Raises
    ------
    SchemaError
        If a value is not of its column's type.
    ValueError
        If a number is not finite, or a column that every row fills is null.
    """
    for rows, schema in ((result.slices, SLICES), ([result.burden], BURDEN)):
        if odd := odd_columns(table_from_rows(rows, schema), schema):
            raise ValueError(f"not finite, or null: {', '.join(odd)}")


def commit(out: Path, series_key: str, token: str, result: SeriesResult) -> None:
    """Make a result permanent: remove the old marker, write masks and picture, and the new marker last.

    Raises
    ------
    StoreError
        If it cannot be written; the series then counts as not done.
    """
    marker, picture, rows = _marker(out, series_key), _picture(out, series_key), io.BytesIO()
    table_from_rows(result.slices, SLICES).write_ipc(rows, compression="lz4")
    with store_errors(out):
        marker.unlink(missing_ok=True)
        if result.masks is None:
            remove_masks(out / MASKS, series_key)
        else:
            write_masks(out / MASKS, series_key, result.masks)
        if result.picture_png is None:
            picture.unlink(missing_ok=True)
        else:
            write_file(picture, result.picture_png)
        write_file(_slices(out, series_key), rows.getvalue())
        document = {
            "token": token,
            "final": result.final,
            "sizes": _sizes(out, series_key),
            "burden": dict(result.burden),
        }
        write_file(marker, json.dumps(document, default=_plain, allow_nan=False).encode())
    end_attempts(out, series_key)


def is_done(out: Path, series_key: str, token: str, *, with_picture: bool = False) -> bool:
    """Return whether this result has a final marker, and all its files with the sizes they were written with.

    ``with_picture``: a measured series must have its picture too, which a run without overlays does not make.
    """
    document = _read_marker(out, series_key)
    if document is None or document.get("token") != token or not document["final"]:
        return False
    if with_picture and document["burden"]["status"] == "ok" and not _picture(out, series_key).exists():
        return False
    with store_errors(out):
        return bool(document["sizes"] == _sizes(out, series_key))


def _sizes(out: Path, series_key: str) -> dict[str, int]:
    """Return the bytes of each file of a series' result, by path below the output folder."""
    sizes = {f"{MASKS}/{name}": size for name, size in mask_sizes(out / MASKS, series_key).items()}
    for name in (_slice_name(series_key), _picture_name(series_key)):
        with suppress(FileNotFoundError):
            sizes[name] = (out / name).stat().st_size
    return sizes


def committed_status(out: Path, series_key: str) -> str:
    """Return the status of a committed series.

    Raises
    ------
    StoreError
        If there is no marker.
    """
    return str(_required_marker(out, series_key)["burden"]["status"])


def read_committed(out: Path, tokens: Mapping[str, str]) -> pl.DataFrame:
    """Return the burden table of committed series, in the order of the keys.

    Parameters
    ----------
    out
        Output folder.
    tokens
        Token of the expected result by key: a worker that outlives its run may have written another one.

    Raises
    ------
    StoreError
        If a series has no marker, one of another result, or one without a burden row.
    """
    tables = [table_from_rows([], BURDEN)]
    # In batches, so that the rows of a large cohort are never all held as Python objects.
    for keys in _batches(list(tokens)):
        try:
            tables.append(_rows(out, keys, tokens))
        except _WRONG_ROW:
            tables += [_checked_row(out, key, tokens) for key in keys]
    return pl.concat(tables)


def _rows(out: Path, series_keys: Sequence[str], tokens: Mapping[str, str]) -> pl.DataFrame:
    markers = [_required_marker(out, key) for key in series_keys]
    for key, marker in zip(series_keys, markers, strict=True):
        if marker["token"] != tokens[key]:
            raise StoreError(f"{out}: series {key} has the result of another run; run the same command again")
    return table_from_rows([_burden_row(marker["burden"]) for marker in markers], BURDEN)


def _checked_row(out: Path, series_key: str, tokens: Mapping[str, str]) -> pl.DataFrame:
    """Return the burden table of one series; if it is damaged, remove its marker."""
    try:
        return _rows(out, [series_key], tokens)
    except _WRONG_ROW as error:
        raise _undone(out, series_key, _marker(out, series_key), str(error)) from error


def committed_slices(out: Path, series_keys: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield the slices table of committed series, in the order of the keys, in parts that fit into memory.

    Raises
    ------
    StoreError
        If the rows of a series are missing.
    """
    for keys in _batches(series_keys):
        yield pl.concat([_read_slices(out, key) for key in keys])


def _read_slices(out: Path, series_key: str) -> pl.DataFrame:
    """Return the slices table of one series; if it is damaged, remove its marker."""
    path = _slices(out, series_key)
    try:
        with store_errors(path):
            content = path.read_bytes() if path.exists() else b""
        with pa.ipc.open_file(pa.BufferReader(content)) as reader:
            table = frame_of(reader.read_all())
    except DAMAGED as error:
        raise _undone(out, series_key, path, str(error)) from error
    if table.schema != SLICES.polars_schema:
        raise _undone(out, series_key, path, "it is not a slices table")
    return table


def _undone(out: Path, series_key: str, path: Path, what: str) -> StoreError:
    """Remove the marker of a series with a damaged file, and return the error to raise."""
    with store_errors(out):
        _marker(out, series_key).unlink(missing_ok=True)
    advice = f"run the same command again, which does series {series_key} anew"
    return StoreError(f"{path}: cannot be read ({' '.join(what.split())}); {advice}")


def _batches(series_keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (series_keys[start : start + _BATCH] for start in range(0, len(series_keys), _BATCH))


def committed_keys(out: Path) -> set[str]:
    """Return the keys of all series with a marker, those of earlier runs too."""
    with store_errors(out):
        return {path.stem for path in visible_files(out / STATE / ROWS) if path.suffix == ".json"}


def forget_failed(out: Path) -> None:
    """Remove the markers of failed series, so that they are done again.

    Raises
    ------
    StoreError
        If one cannot be removed.
    """
    for series_key in committed_keys(out):
        document = _read_marker(out, series_key)
        if document is not None and document["burden"]["status"] == "failed":
            with store_errors(out):
                _marker(out, series_key).unlink(missing_ok=True)


def begin_anew(out: Path) -> None:
    """Remove all results and attempts, so that every series is done again and no other result is left.

    If such a run is interrupted, the next one continues it: until `end_anew`, nothing is removed again.

    Raises
    ------
    StoreError
        If something cannot be removed.
    """
    if (out / STATE / _ANEW).exists():
        return
    remove_results(out, kept=())
    forget_attempts(out)
    with store_errors(out):
        (out / STATE / _ANEW).touch()


def end_anew(out: Path) -> None:
    """Note that a run has done all series, so that the next may begin anew.

    Raises
    ------
    StoreError
        If the note cannot be removed.
    """
    with store_errors(out):
        (out / STATE / _ANEW).unlink(missing_ok=True)


def remove_results(out: Path, *, kept: Collection[str]) -> None:
    """Remove the results of all series but some; by name, not by marker: a killed run leaves masks without one.

    Raises
    ------
    StoreError
        If something cannot be removed.
    """
    with store_errors(out):
        for group in (out / MASKS).iterdir():
            if SERIES_KEY.fullmatch(group.name) and group.name not in kept:
                remove_masks(out / MASKS, group.name)
        for picture in (out / PICTURES).glob("*.png"):
            if SERIES_KEY.fullmatch(picture.stem) and picture.stem not in kept:
                picture.unlink()
        for name in (ROWS, SLICE_ROWS):
            for path in (out / STATE / name).iterdir():
                if path.stem not in kept:
                    path.unlink()


def sweep(out: Path) -> None:
    """Remove temporary files that killed runs left; in ``out`` itself only of our files: a user may keep others."""
    for folder in (out / STATE, *(out / STATE / name for name in STATE_FOLDERS), out / PICTURES):
        sweep_temporaries(folder)
    for name in ("*.parquet", RUN_JSON, REPORT):
        sweep_temporaries(out, name)


def _slice_name(series_key: str) -> str:
    return f"{STATE}/{SLICE_ROWS}/{series_key}.arrow"


def _picture_name(series_key: str) -> str:
    return f"{PICTURES}/{series_key}.png"


def _slices(out: Path, series_key: str) -> Path:
    return out / _slice_name(series_key)


def _picture(out: Path, series_key: str) -> Path:
    return out / _picture_name(series_key)


def _marker(out: Path, series_key: str) -> Path:
    return out / f"{STATE}/{ROWS}/{series_key}.json"


def _read_marker(out: Path, series_key: str) -> dict[str, Any] | None:
    """Return a marker; None if there is none, or it is invalid (for example cut off by a power failure)."""
    with store_errors(out):
        try:
            document = parse_json(_marker(out, series_key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
    ours = isinstance(document, dict) and document.keys() >= _MARKER_KEYS
    return document if ours and isinstance(document["burden"], dict) and "status" in document["burden"] else None


def _required_marker(out: Path, series_key: str) -> dict[str, Any]:
    document = _read_marker(out, series_key)
    if document is None:
        raise StoreError(f"{out}: series {series_key} has no result; run the same command again")
    return document


def _burden_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a burden row with its dates as dates: JSON holds them as text.

    Raises
    ------
    ValueError
        If its columns are not those of the table.
    """
    if row.keys() != BURDEN.polars_schema.keys():
        raise ValueError("it is not a burden row")
    return {**row, **{name: None if row[name] is None else date.fromisoformat(row[name]) for name in _DATES}}


def _plain(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a marker cannot hold {type(value).__name__}")
