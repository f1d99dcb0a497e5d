"""From any tree of files to series: walk, read headers, group, drop copies, decide. Names and endings mean nothing."""

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Final

from cohortseg.dicom.copies import drop_copies
from cohortseg.dicom.headers import Header, SkippedFile, quiet_pydicom, read_header
from cohortseg.dicom.series import SeriesRecord, series_from_headers
from cohortseg.errors import ConfigError

Report = Callable[[int, int | None, str], None]
"""Takes what is done, of how much (None: not known yet), and a short text."""

FILES_PER_WORKER: Final = 4000
"""Below this number a further process costs more (about 1 s to start) than it saves (about 1 ms a file)."""
_CHUNK: Final = 200


@dataclass(frozen=True, kw_only=True)
class CohortScan:
    """What was found in a folder."""

    series: tuple[SeriesRecord, ...]
    """Every series, by patient, date and series UID."""
    skipped: tuple[SkippedFile, ...]
    """Every file (or unreadable folder) that belongs to no series, by path."""


def _silent(_done: int, _total: int | None, _text: str) -> None:
    """Report nothing."""


def scan_cohort(root: Path, report: Report = _silent, workers: int | None = None) -> CohortScan:
    """Find every DICOM series below a folder and decide which ones can be segmented.

    Parameters
    ----------
    root
        The cohort's folder; symbolic links are followed, each folder is read once.
    report
        Told about progress, in files.
    workers
        Processes that read headers; None: one for every 4000 files, up to the processors available.

    Returns
    -------
    CohortScan
        Every file below ``root`` is in exactly one place: in a series, dropped as a copy of one (counted in
        ``n_duplicates``), or skipped with a reason.

    Raises
    ------
    ConfigError
        If ``root`` is no readable folder, or holds no DICOM series.
    """
    if not root.is_dir():
        problem = "is a file; give the folder it lies in" if root.exists() else "does not exist"
        raise ConfigError(f"{root}: {problem}")
    paths, skipped = _walk(root)
    by_series: defaultdict[str, list[Header]] = defaultdict(list)
    for found in _read_headers(root, paths, report, workers):
        if isinstance(found, SkippedFile):
            skipped.append(found)
        else:
            by_series[found.series_instance_uid].append(found)
    if not by_series:
        raise ConfigError(f"{root}: no DICOM series found ({len(paths)} files looked at)")
    report(len(paths), len(paths), f"{len(by_series)} series")
    with quiet_pydicom():
        series = [_describe(root, headers) for headers in by_series.values()]
    series.sort(key=lambda record: (record.patient_id or "", record.study_date or date.min, record.series_instance_uid))
    return CohortScan(series=tuple(series), skipped=tuple(sorted(skipped, key=lambda file: file.path)))


def _describe(root: Path, headers: Sequence[Header]) -> SeriesRecord:
    kept = drop_copies(root, headers)
    return series_from_headers(kept, n_duplicates=len(headers) - len(kept))


def _walk(root: Path) -> tuple[list[str], list[SkippedFile]]:
    """Return all files below a folder, relative to it and sorted, and what could not be listed."""
    files: list[str] = []
    skipped: list[SkippedFile] = []
    visited: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in visited:  # a link back up, or to a folder already read
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                listed = sorted((entry.name, entry.is_dir()) for entry in entries)
        except OSError as error:
            if not folder:
                raise ConfigError(f"{root}: folder cannot be read: {error.strerror}") from error
            skipped.append(SkippedFile(folder, f"folder cannot be read: {error.strerror}"))
            continue
        for name, is_folder in listed:
            path = f"{folder}/{name}" if folder else name
            if not _is_utf8(path):
                readable = os.fsencode(path).decode("utf-8", "replace")
                skipped.append(SkippedFile(readable, "name is not UTF-8: rename it"))
            elif is_folder:
                pending.append(path)
            else:
                files.append(path)
    return sorted(files), skipped


def _is_utf8(path: str) -> bool:
    """Return whether a path can stand in a table; undecodable bytes of a name are lone surrogates in Python."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_headers(
    root: Path, paths: Sequence[str], report: Report, workers: int | None
) -> Iterator[Header | SkippedFile]:
    """Yield one result a file, in order; with several processes if there are many files."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)), len(paths) // FILES_PER_WORKER)
    report(0, len(paths), "reading headers")
    done = 0
    if workers <= 1:
        for chunk in chunks:
            yield from _read_chunk(root, chunk)
            done += len(chunk)
            report(done, len(paths), "reading headers")
        return
    # "spawn": forking a process in which Ray or a GPU already runs is not safe.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for chunk, found in zip(chunks, pool.map(partial(_read_chunk, root), chunks), strict=True):
            yield from found
            done += len(chunk)
            report(done, len(paths), "reading headers")


def _read_chunk(root: Path, paths: Sequence[str]) -> list[Header | SkippedFile]:
    with quiet_pydicom():
        return [read_header(root, path) for path in paths]
