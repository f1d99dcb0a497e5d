"""Odd DICOM as hospitals send it, one folder per quirk, with a table of what cohortseg must make of it.

::

    OUT/dicom/<quirk>/...     the files
    OUT/quirks.parquet        one row per volume, or group of files, of each quirk

A row whose ``repair`` is not empty holds for a scan with these repairs, any other for the defaults.
"""

from pathlib import Path
from typing import Any

import cohortseg.synthetic.quirk_pixels
import cohortseg.synthetic.quirk_series  # noqa: F401 - both register their quirks
from cohortseg.dicom.elements import quiet_pydicom
from cohortseg.progress import Report
from cohortseg.store.files import store_errors
from cohortseg.store.schemas import QUIRKS
from cohortseg.store.tables import table_from_rows, write_table
from cohortseg.synthetic.cohort import empty_folder
from cohortseg.synthetic.quirk_registry import QUIRKS_KNOWN, Expected, Quirk


def write_quirks(out: Path, report: Report) -> Path:
    """Write every quirk and the table of what each must become.

    Parameters
    ----------
    out
        Folder to fill; it is created, or must be empty.
    report
        Called with the number of quirks done, their total, and a text.

    Returns
    -------
    Path
        The table, ``out/quirks.parquet``.

    Raises
    ------
    ConfigError
        If ``out`` is a file or holds anything.
    StoreError
        If something cannot be written.
    """
    empty_folder(out)
    rows: list[dict[str, Any]] = []
    for done, known in enumerate(QUIRKS_KNOWN, 1):
        # pydicom would warn of the very things that are odd here
        with store_errors(out, "cannot be written"), quiet_pydicom():
            found = known.write(out / "dicom" / known.name)
        rows += [_row(known, expected, out / "dicom") for expected in found]
        report(done, len(QUIRKS_KNOWN), "quirks")
    path = out / "quirks.parquet"
    write_table(path, table_from_rows(rows, QUIRKS), QUIRKS, {"sample": {"quirks": True}})
    return path


def _row(quirk: Quirk, expected: Expected, root: Path) -> dict[str, Any]:
    row = {"quirk": quirk.name, "meaning": quirk.meaning, **vars(expected)}
    row["files"] = sorted(path.relative_to(root).as_posix() for path in expected.files)
    return row | {name: list(row[name]) for name in ("qc_flags", "repair")}
