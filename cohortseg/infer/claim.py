"""One run at a time in an output folder: OUT/.state/ holds ``lock``, and ``owner.json``, which tells who holds it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cohortseg.errors import ConfigError
from cohortseg.store.documents import parse_json
from cohortseg.store.files import locked, write_file
from cohortseg.store.layout import ATTEMPTS, MASKS, PICTURES, REPORT, RUN_JSON, STATE, STATE_FOLDERS
from cohortseg.store.provenance import read_run_json
from cohortseg.store.schemas import OUTPUT_TABLES
from cohortseg.store.tables import table_name

_OWNER: Final = "owner.json"
_LOCK: Final = "lock"


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Lock an output folder, created if need be, so that no second run writes into it.

    Raises
    ------
    ConfigError
        If it is no output folder, but holds files that a run would replace.
    StoreError
        If another run holds it, or it cannot be created.
    """
    existed = out.exists()
    _refuse_foreign(out)
    with locked(
        out,
        out / STATE / _LOCK,
        use="an output folder",
        busy=lambda: f"{out}: another cohortseg run is writing here{_owner(out)}; wait for it, or choose another -o",
        folders=[*(out / STATE / name for name in STATE_FOLDERS), out / PICTURES],
    ):
        try:
            owner = {
                "process": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat("T", "seconds"),
            }
            write_file(out / STATE / _OWNER, json.dumps(owner).encode())
            yield
        finally:
            with suppress(OSError):
                (out / STATE / _OWNER).unlink()
            if not existed:
                _remove_if_unused(out)


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that is no output folder but holds files with names that a run replaces.

    Our own tables are allowed: ``scan`` writes a manifest anywhere.
    """
    if (out / STATE / ATTEMPTS).is_dir() or read_run_json(out).get("command") == "infer":
        return
    tables = {schema.file_name: schema.name for schema in OUTPUT_TABLES}
    for name in (*tables, MASKS, RUN_JSON, REPORT):
        if (out / name).exists() and (name not in tables or table_name(out / name) != tables[name]):
            raise ConfigError(f"{out}: holds a {name} that is not of an output folder of infer; choose another -o")


def _remove_if_unused(out: Path) -> None:
    """Remove a new output folder in which no work began: the cohort holds no DICOM, or a rule leaves nothing."""
    with suppress(OSError):
        if (out / MASKS).exists():
            return
        for name in STATE_FOLDERS:
            (out / STATE / name).rmdir()
        (out / PICTURES).rmdir()
        (out / STATE / _LOCK).unlink(missing_ok=True)
        (out / STATE).rmdir()
        out.rmdir()


def _owner(out: Path) -> str:
    """Return who holds the lock, as far as the note beside it tells."""
    try:
        owner = parse_json((out / STATE / _OWNER).read_bytes())
        return f" (process {owner['process']} on {owner['host']} since {owner['since']})"
    except (OSError, ValueError, LookupError, TypeError):
        return ""
