"""What makes a run safe to kill: attempts are counted before the work, the marker that says "done" is written last.

OUT/.state/ holds ``lock`` (one run at a time), ``attempts/<key>`` (one line an attempt that has not ended) and
``rows/<key>.json`` (the marker: the series' rows, and what they were made from). A series without a valid marker is
done again; done twice it is replaced, so nothing is lost or doubled, whoever died when.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import filelock
import polars as pl

from cohortseg.errors import StoreError
from cohortseg.store.masks import SeriesMasks, has_masks, remove_masks, write_masks
from cohortseg.store.schemas import BURDEN, SLICES
from cohortseg.store.tables import table_from_rows

MASKS: Final = "masks.zarr"
PICTURES: Final = "pictures"
_STATE: Final = ".state"
_BATCH: Final = 128


@dataclass(frozen=True, kw_only=True)
class SeriesResult:
    """What segmentation leaves of one series."""

    burden: Mapping[str, Any]
    """One row of the burden table."""
    slices: tuple[Mapping[str, Any], ...] = ()
    """Rows of the slices table."""
    masks: SeriesMasks | None = None
    """None where nothing was segmented."""
    picture_png: bytes | None = None
    """The overlay, encoded."""


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold an output folder, created if need be, so that no second run writes into it.

    Raises
    ------
    StoreError
        If another run holds it, or it cannot be created.
    """
    try:
        for name in ("attempts", "rows"):
            (out / _STATE / name).mkdir(parents=True, exist_ok=True)
        (out / PICTURES).mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{out}: cannot be used as an output folder: {error}") from error
    lock = filelock.FileLock(out / _STATE / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreError(f"{out}: another cohortseg run is writing here; wait for it or choose another -o") from None
    try:
        yield
    finally:
        lock.release()


def result_token(fingerprint: str, model_sha256: str, settings: Mapping[str, Any]) -> str:
    """Return the hash of all that a result depends on: input files, model, settings and versions."""
    document = json.dumps([fingerprint, model_sha256, dict(settings)], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()


def count_attempts(out: Path, series_key: str, token: str) -> int:
    """Return how many attempts at this very result began and did not end: those that ended their process."""
    try:
        return _attempts(out, series_key).read_text(encoding="ascii").split().count(token)
    except FileNotFoundError:
        return 0


def begin_attempt(out: Path, series_key: str, token: str) -> None:
    """Note on disk, before the dangerous work, that an attempt begins.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    try:
        with _attempts(out, series_key).open("a", encoding="ascii") as file:
            file.write(f"{token}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{out}: cannot be written: {error}") from error


def withdraw_attempt(out: Path, series_key: str, token: str) -> None:
    """Take back one attempt that was interrupted from outside, so that it is not held against the series."""
    rest = count_attempts(out, series_key, token) - 1
    _write(_attempts(out, series_key), (f"{token}\n" * max(rest, 0)).encode("ascii"))


def commit(out: Path, series_key: str, token: str, result: SeriesResult) -> None:
    """Make a result permanent: old marker away, masks and picture in place, new marker last.

    Raises
    ------
    StoreError
        If it cannot be written; the series then counts as not done.
    """
    marker, picture = _marker(out, series_key), out / PICTURES / f"{series_key}.png"
    marker.unlink(missing_ok=True)
    if result.masks is None:
        remove_masks(out / MASKS, series_key)
    else:
        write_masks(out / MASKS, series_key, result.masks)
    if result.picture_png is None:
        picture.unlink(missing_ok=True)
    else:
        _write(picture, result.picture_png)
    document = {
        "token": token,
        "has_masks": result.masks is not None,
        "burden": dict(result.burden),
        "slices": [dict(row) for row in result.slices],
    }
    _write(marker, json.dumps(document, default=_plain, allow_nan=False).encode())
    _attempts(out, series_key).unlink(missing_ok=True)


def is_done(out: Path, series_key: str, token: str) -> bool:
    """Return whether a marker of this very result exists, with its masks."""
    document = _read_marker(out, series_key)
    if document is None or document.get("token") != token:
        return False
    return not document["has_masks"] or has_masks(out / MASKS, series_key)


def committed_status(out: Path, series_key: str) -> str:
    """Return the status of a committed series.

    Raises
    ------
    StoreError
        If there is no marker.
    """
    return str(_required_marker(out, series_key)["burden"]["status"])


def read_committed(out: Path, series_keys: Iterable[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the burden and slices tables of committed series, in the order of the keys.

    Raises
    ------
    StoreError
        If a series has no marker.
    """
    keys = list(series_keys)
    burdens, slices = [table_from_rows([], BURDEN)], [table_from_rows([], SLICES)]
    # In batches, so that the rows of a large cohort are never all held as Python objects.
    for start in range(0, len(keys), _BATCH):
        documents = [_required_marker(out, key) for key in keys[start : start + _BATCH]]
        burdens.append(table_from_rows([_dated(document["burden"]) for document in documents], BURDEN))
        slices.append(table_from_rows([row for document in documents for row in document["slices"]], SLICES))
    return pl.concat(burdens), pl.concat(slices)


def forget(out: Path) -> None:
    """Remove all markers and attempts, so that every series is done again."""
    for name in ("attempts", "rows"):
        for path in (out / _STATE / name).iterdir():
            path.unlink()


def sweep(out: Path) -> None:
    """Remove what killed runs left under temporary names in the state and picture folders."""
    for folder in (out / _STATE / "rows", out / _STATE / "attempts", out / PICTURES):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _attempts(out: Path, series_key: str) -> Path:
    return out / _STATE / "attempts" / series_key


def _marker(out: Path, series_key: str) -> Path:
    return out / _STATE / "rows" / f"{series_key}.json"


def _read_marker(out: Path, series_key: str) -> dict[str, Any] | None:
    """Return a marker; None if there is none, or it is no JSON (cut off by a power failure): then it never was."""
    try:
        document: dict[str, Any] = json.loads(_marker(out, series_key).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return document


def _required_marker(out: Path, series_key: str) -> dict[str, Any]:
    document = _read_marker(out, series_key)
    if document is None:
        raise StoreError(f"{out}: series {series_key} has no result; run the same command again")
    return document


def _dated(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a burden row with its date as a date again: JSON has none."""
    text = row["study_date"]
    return {**row, "study_date": None if text is None else date.fromisoformat(text)}


def _plain(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a marker cannot hold {type(value).__name__}")


def _write(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary name, on disk before it appears."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path.name}: cannot be written: {error}") from error
