"""What a scan found, as tables: those of ``scan`` and of ``infer`` are the same."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from cohortseg.dicom.scan import CohortScan, file_rows
from cohortseg.store.files import sweep_temporaries
from cohortseg.store.schemas import FILES, MANIFEST
from cohortseg.store.tables import tables_from_rows, write_table

_KILLED_S: Final = 3600.0
"""No scan is still writing a table that it began so long ago."""


def write_scan(
    scan: CohortScan, provenance: Mapping[str, Any], *, manifest: Path | None = None, files: Path | None = None
) -> None:
    """Write what a scan found: the manifest, and where every file went; what has no path is not written.

    What a killed scan left under a temporary name of these files is removed.

    Raises
    ------
    StoreError
        If one cannot be written.
    """
    for path in filter(None, (manifest, files)):
        sweep_temporaries(path.parent, path.name, older_than_s=_KILLED_S)
    if manifest is not None:
        write_table(manifest, tables_from_rows(map(asdict, scan.series), MANIFEST), MANIFEST, provenance)
    if files is not None:
        write_table(files, tables_from_rows(file_rows(scan), FILES), FILES, provenance)
