"""From any tree of files to series: walk, read headers, group, drop copies, decide. File names play no part."""

import errno
import logging
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Final

from cohortseg import qc
from cohortseg.config import ScanConfig
from cohortseg.dicom.copies import Copy, drop_copies
from cohortseg.dicom.elements import quiet_pydicom
from cohortseg.dicom.headers import Header, SkippedFile, read_headers
from cohortseg.dicom.persons import Persons
from cohortseg.dicom.select_rules import parse_rules
from cohortseg.dicom.selection import STACK_MM, select_series
from cohortseg.dicom.series import SeriesRecord, series_from_headers
from cohortseg.dicom.volumes import (
    FRAGMENT_SHARE,
    covers_in_part,
    extent_mm,
    has_strays,
    is_told_otherwise,
    of_same_visit,
    split_volumes,
    volumes_like,
)
from cohortseg.errors import ConfigError, StoreError, WorkerError, unexpected
from cohortseg.identity import series_key
from cohortseg.processors import (
    NO_PROCESS,
    SecondProcess,
    can_begin_processes,
    num_processors,
    process_pool,
    uninterrupted,
)
from cohortseg.progress import Report, silent

_log: Final = logging.getLogger(__name__)

FILES_PER_WORKER: Final = 4000
"""With fewer files, a further process costs more (about 1 s to start) than it saves (about .35 ms a file)."""
_CHUNK: Final = 200
_TOLD_OTHERWISE: Final = (
    "another volume of this series has its slices (SOPInstanceUID) with another PixelSpacing or orientation: "
    "remove the files that are wrong"
)


@dataclass(frozen=True, kw_only=True)
class CohortScan:
    """Series and files found in a cohort's folder."""

    series: tuple[SeriesRecord, ...]
    """Every volume of every series, by patient, date, series UID and volume."""
    skipped: tuple[SkippedFile, ...]
    """Every file (or unreadable folder) that belongs to no series, by path."""
    copies: tuple[SkippedFile, ...]
    """Every file dropped because it repeats a slice of its series, and why, by path."""

    @property
    def selected(self) -> tuple[SeriesRecord, ...]:
        """Series to be segmented."""
        return tuple(record for record in self.series if record.decision == "selected")

    @property
    def num_unreadable(self) -> int:
        """Files and folders that could not be read, and may have held slices."""
        return sum(file.unreadable for file in (*self.skipped, *self.copies))

    @property
    def num_archives(self) -> int:
        """Archives that were not looked into."""
        return sum(file.archive for file in self.skipped)


def scan_cohort(
    root: Path, report: Report = silent, workers: int | None = None, config: ScanConfig | None = None
) -> CohortScan:
    """Find every DICOM series below a folder and decide which ones can be segmented.

    Parameters
    ----------
    root
        The cohort's folder; symbolic links are followed, each folder is read once.
    report
        Told about progress, in files, then in series.
    workers
        Processes that read headers; None: one for every 4000 files, up to the processors available.
    config
        Which usable series are selected, and what may be repaired; None: the defaults.

    Returns
    -------
    CohortScan
        Every file below ``root`` is in exactly one place: in the volumes of one series, dropped as a copy (counted in
        ``n_duplicates``), or skipped with a reason.

    Raises
    ------
    ConfigError
        If ``root`` is no readable folder, holds no DICOM series, or a selection rule is not valid.
    StoreError
        If the cohort's folder goes while it is read.
    WorkerError
        If a process that reads headers is killed.
    """
    config = config or ScanConfig()
    parse_rules(config.select)  # before the work
    require_folder(root)
    paths, skipped = _walk(root)
    by_series: defaultdict[str, list[Header]] = defaultdict(list)
    persons = Persons()
    for found in _headers_of(root, paths, report, workers):
        if isinstance(found, SkippedFile):
            skipped.append(found)
        else:
            for header in found:
                by_series[header.series_instance_uid].append(header)
                persons.add(header)
    if any(file.unreadable for file in skipped):
        require_cohort(root)
    if not by_series:
        reasons = Counter(file.reason for file in skipped).most_common(1)
        mostly = f"; most often: {reasons[0][0]} ({reasons[0][1]})" if reasons else ""
        raise ConfigError(f"{root}: no DICOM series found ({len(paths)} files looked at{mostly})")
    unreadable = {posixpath.dirname(file.path) for file in skipped if file.unreadable}
    series: list[SeriesRecord] = []
    with quiet_pydicom(), SecondProcess() as second:
        sorted_out = []
        for number, headers in enumerate(by_series.values()):
            report(number, len(by_series), "series: order of slices, and copies by their pixels")
            with _costing_no_other(headers, skipped):
                sorted_out.append((*drop_copies(root, headers, second), _incomplete(headers)))
        copies = [copy.file for _, dropped, _ in sorted_out for copy in dropped]
        unreadable |= {posixpath.dirname(copy.path) for copy in copies if copy.unreadable}
        for kept, dropped, incomplete in sorted_out:
            with _costing_no_other(kept, skipped):
                series += _describe(kept, dropped, incomplete, config.repair, persons, unreadable)
        report(len(by_series), len(by_series), "series")
    if any(file.unreadable for file in (*skipped, *copies)):
        require_cohort(root)
    series.sort(
        key=lambda record: (
            *(record.patient_id is None, record.patient_id or ""),
            *(record.study_date is None, record.study_date or date.max),
            record.series_instance_uid,
            record.volume,
        )
    )
    return CohortScan(
        series=tuple(select_series(series, config)),
        skipped=tuple(sorted(skipped, key=lambda file: file.path)),
        copies=tuple(sorted(copies, key=lambda file: file.path)),
    )


def require_folder(root: Path) -> None:
    """Refuse a cohort that is not a folder.

    Raises
    ------
    ConfigError
        If it is a file, or does not exist; the message says which.
    """
    if not root.is_dir():
        problem = "is a file; give the folder it lies in" if root.exists() else "does not exist"
        raise ConfigError(f"{root}: {problem}")


def require_cohort(root: Path) -> None:
    """Refuse to go on with a cohort of which files cannot be read because its folder has gone, as with a lost mount.

    Raises
    ------
    StoreError
        If the folder is not there, or empty, as the place of such a mount is.
    """
    try:
        with os.scandir(root) as entries:
            gone = next(entries, None) is None
    except OSError as error:
        gone = error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    if gone:
        raise StoreError(f"{root}: the cohort has gone; make it reachable and run the command again")


def _describe(
    kept: Sequence[Header],
    dropped: Sequence[Copy],
    incomplete: Collection[str | None],
    repair: Sequence[str],
    persons: Persons,
    unreadable: Collection[str],
) -> list[SeriesRecord]:
    """Return a record for each volume of one series, from its kept headers and its dropped copies.

    ``incomplete`` are the ConcatenationUIDs of files of which parts are not there.
    """
    volumes = split_volumes(kept)
    of_study: defaultdict[Hashable, list[list[Header]]] = defaultdict(list)
    for volume in volumes:
        of_study[_study(volume)].append(volume)
    copies = Counter(copy.of for copy in dropped)
    otherwise_dated = {copy.of for copy in dropped if copy.other_date}
    records = []
    for number, volume in enumerate(volumes, 1):
        beside = of_study[_study(volume)]
        alike = volumes_like(volume, beside)
        record = series_from_headers(
            volume,
            # A multi-frame file can be in several volumes: its copies count once.
            n_duplicates=sum(copies.pop(header.path, 0) for header in volume),
            volume=number,
            repair=repair,
            findings=_findings(volume, beside, alike, persons, unreadable, otherwise_dated, incomplete)
            | ({qc.SPLIT_SERIES} if len(volumes) > 1 else set()),
        )
        if record.decision == "selected" and _is_fragment(volume, alike):
            most = max(map(len, alike))
            reason = f"fragment: {record.n_slices} slice(s) apart from the {most} of another volume of this series"
            record = replace(record, decision="skipped", reason=reason)
        if record.decision == "selected" and qc.CONFLICTING_SLICES in record.qc_flags:
            record = replace(record, decision="skipped", reason=_TOLD_OTHERWISE)
        records.append(record)
    return records


@contextmanager
def _costing_no_other(headers: Sequence[Header], skipped: list[SkippedFile]) -> Iterator[None]:
    """Leave out the files of a series on which the block fails unexpectedly: the rest of the cohort must go on."""
    try:
        yield
    except (WorkerError, MemoryError, OSError):  # no fault of the series
        raise
    except Exception as error:  # noqa: BLE001 - a boundary
        reason, frames = unexpected(error)
        key = series_key(headers[0].series_instance_uid)
        _log.warning("series %s is left out: %s; please report it", key, reason)
        _log.debug("series %s\n%s", key, frames)
        skipped += [SkippedFile(path, reason, unreadable=True) for path in dict.fromkeys(item.path for item in headers)]


def _study(volume: Sequence[Header]) -> Hashable:
    return volume[0].patient_id, volume[0].study_instance_uid


def _is_fragment(volume: Sequence[Header], alike: Sequence[Sequence[Header]]) -> bool:
    """Return whether a volume is a few slices of little height, split off from a far larger volume like it.

    Such a volume must not stand for the larger one. If it has another study date (mistyped, or not corrected with the
    others), it must not count as a visit.
    """
    return _is_few(volume, alike) and extent_mm(volume) < STACK_MM and covers_in_part(volume, alike)


def _is_few(volume: Sequence[Header], alike: Sequence[Sequence[Header]]) -> bool:
    """Return whether a volume has far fewer slices than the largest one like it."""
    return len(volume) < FRAGMENT_SHARE * max(map(len, alike))


def _findings(
    volume: Sequence[Header],
    beside: Sequence[Sequence[Header]],
    alike: Sequence[Sequence[Header]],
    persons: Persons,
    unreadable: Collection[str],
    otherwise_dated: Collection[str],
    incomplete: Collection[str | None],
) -> set[str]:
    """Return the flags that other files raise for a volume.

    ``beside`` are the volumes of its series and study, itself included, ``alike`` those like it (`volumes_like`),
    ``unreadable`` names folders with unreadable files,
    ``otherwise_dated`` files whose copies have another date, ``incomplete`` concatenations that lack parts.
    """
    same_visit = of_same_visit(volume, alike)
    of_visit = set(map(id, same_visit))  # comparing volumes compares all their headers
    found = {
        qc.PARTIAL_COVERAGE: covers_in_part(volume, same_visit),
        qc.CONFLICTING_SLICES: is_told_otherwise(volume, beside),
        qc.FILES_UNREADABLE: any(posixpath.dirname(header.path) in unreadable for header in volume)
        or has_strays(volume, beside),
        qc.CONCATENATION_INCOMPLETE: any(header.concatenation_uid in incomplete for header in volume),
        qc.STUDY_DATE_CONFLICT: any(header.path in otherwise_dated for header in volume)
        or persons.has_two_dates(volume)
        # wherever they lie: slices of both ends are no fragment, and lacked by the others all the same
        or any(id(other) not in of_visit and _is_few(other, alike) for other in alike),
        qc.TWO_PATIENT_IDS: persons.has_two_ids(volume),
        qc.PATIENT_CONFLICT: any(persons.conflict(header.patient_id) for header in volume),
    }
    return {name for name, holds in found.items() if holds}


def _incomplete(headers: Iterable[Header]) -> set[str | None]:
    """Return the ConcatenationUIDs of files that are parts of a longer one, other parts of which are not there.

    ``headers`` are those of one series, copies included: of two exports, parts of either may be kept. If the number of
    all parts is not stated, it is at least the highest number of a part.
    """
    parts: defaultdict[str | None, set[int]] = defaultdict(set)
    needed: Counter[str | None] = Counter()
    for header in headers:
        if header.part_of_file is not None or header.parts_of_file is not None:
            uid, number = header.concatenation_uid, header.part_of_file or 0
            parts[uid].add(number)
            needed[uid] = max(needed[uid], number, header.parts_of_file or 0)
    return {uid for uid, there in parts.items() if len(there) < needed[uid]}


def _walk(root: Path) -> tuple[list[str], list[SkippedFile]]:
    """Return all files below a folder, relative to it and sorted, and the entries that cannot be used."""
    files: list[str] = []
    skipped: list[SkippedFile] = []
    first: dict[tuple[int, int], str] = {}
    others: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            status = (root / folder).stat()
            number = status.st_dev, status.st_ino
            # A link back up, or to a folder already read? Folders of several disks below one FUSE can share a number.
            if number in first:
                real = os.path.realpath(root / folder)
                if real in others[number] or real == os.path.realpath(root / first[number]):
                    continue
                others[number].add(real)
            first.setdefault(number, folder)
            with os.scandir(root / folder) as entries:
                listed = sorted((entry.name, _is_folder(entry)) for entry in entries)
        except OSError as error:
            if not folder:
                raise ConfigError(f"{root}: folder cannot be read: {error.strerror}") from error
            skipped.append(SkippedFile(folder, f"folder cannot be read: {error.strerror}", unreadable=True))
            continue
        for name, is_folder in listed:
            path = f"{folder}/{name}" if folder else name
            if not _is_utf8(path):
                readable = os.fsencode(path).decode("utf-8", "backslashreplace")
                skipped.append(SkippedFile(readable, "name is not UTF-8: rename it", unreadable=True))
            elif is_folder:
                pending.append(path)
            else:
                files.append(path)
    return sorted(files), skipped


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder; a broken or circular link counts as a file, which then cannot be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_utf8(path: str) -> bool:
    """Return whether a path can be written to a table; undecodable bytes of a name are lone surrogates in Python."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _headers_of(
    root: Path, paths: Sequence[str], report: Report, workers: int | None
) -> Iterator[list[Header] | SkippedFile]:
    """Yield one result per file, in order; several processes read if there are many files."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    if workers is None:
        workers = min(num_processors(), len(paths) // FILES_PER_WORKER)
    report(0, len(paths), "reading headers")
    done = 0
    for found in _read_chunks(root, chunks, workers):
        yield from found
        done += len(found)
        report(done, len(paths), "reading headers")


def _read_chunks(
    root: Path, chunks: Sequence[Sequence[str]], workers: int
) -> Iterator[list[list[Header] | SkippedFile]]:
    """Yield the results of each chunk, read by several processes, or by this one if no other can begin."""
    read, num_read = partial(_read_chunk, root), 0
    if workers > 1 and can_begin_processes():
        try:
            with process_pool(workers) as pool:
                with uninterrupted():
                    results = pool.map(read, chunks)
                for found in results:
                    yield found
                    num_read += 1
        except BrokenProcessPool as error:
            if num_read:
                raise WorkerError(
                    "a process that reads headers was ended from outside (short of memory?) after "
                    f"{sum(map(len, chunks[:num_read]))} of {sum(map(len, chunks))} files; make room and run the same "
                    "command again"
                ) from error
            _log.warning(NO_PROCESS, "headers are read")
        except AssertionError:  # in daemons of multiprocessing
            if num_read:
                raise
            _log.warning(NO_PROCESS, "headers are read")
    yield from map(read, chunks[num_read:])


def _read_chunk(root: Path, paths: Sequence[str]) -> list[list[Header] | SkippedFile]:
    with quiet_pydicom():
        return [read_headers(root, path) for path in paths]
