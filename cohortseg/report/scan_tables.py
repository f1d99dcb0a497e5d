"""The tables of a scan, the same for ``scan`` and for ``infer``."""

import glob
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from cohortseg.dicom.scan import CohortScan
from cohortseg.store.files import sweep_temporaries
from cohortseg.store.schemas import FILES, MANIFEST
from cohortseg.store.tables import tables_from_rows, write_table

_KILLED_S: Final = 3600.0
"""No scan is still writing a table that it began so long ago."""


def write_scan(
    scan: CohortScan, provenance: Mapping[str, Any], *, manifest: Path | None = None, files: Path | None = None
) -> None:
    """Write what a scan found: the manifest, and where every file went; a table without a path is not written.

    Temporary files of theirs that a killed scan left are removed.

    Raises
    ------
    StoreError
        If one cannot be written.
    """
    for path in filter(None, (manifest, files)):
        sweep_temporaries(path.parent, glob.escape(path.name), older_than_s=_KILLED_S)
    if manifest is not None:
        write_table(manifest, tables_from_rows(map(asdict, scan.series), MANIFEST), MANIFEST, provenance)
    if files is not None:
        write_table(files, tables_from_rows(file_rows(scan), FILES), FILES, provenance)


def file_rows(scan: CohortScan) -> Iterator[dict[str, str | None]]:
    """Yield the rows of the files table: where each file went, by path.

    A multi-frame file whose frames make several volumes has a row for each.
    """
    went: list[tuple[tuple[str, ...], str, str, str]] = [
        (record.files, record.series_key, record.decision, record.reason or "") for record in scan.series
    ]
    for went_to, files in (("copy", scan.copies), ("no series", scan.skipped)):
        went += [((file.path,), "", went_to, file.reason) for file in files]
    went.sort(key=lambda group: min(group[0], default=""))
    # A cohort can have millions of files, and most series a folder of their own: only groups that overlap are sorted.
    places: list[tuple[str, str, str, str]] = []
    last = ""
    for paths, series_key, went_to, reason in went:
        if places and min(paths, default="") > last:
            yield from map(_file_row, sorted(places))
            places = []
        places += [(path, series_key, went_to, reason) for path in dict.fromkeys(paths)]
        last = max(last, *paths)
    yield from map(_file_row, sorted(places))


def _file_row(place: tuple[str, str, str, str]) -> dict[str, str | None]:
    path, series_key, went_to, reason = place
    return {"path": path, "went_to": went_to, "series_key": series_key or None, "reason": reason or None}
