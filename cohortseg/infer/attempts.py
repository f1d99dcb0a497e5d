"""The log of attempts: each is noted before the dangerous work, so that what ends a process is known by its note.

OUT/.state/attempts/<key> holds one line an attempt at a series that has not ended.
"""

import os
from contextlib import suppress
from pathlib import Path

from cohortseg.errors import StoreError
from cohortseg.store.files import store_errors, write_file
from cohortseg.store.layout import ATTEMPTS, STATE


def suspects(out: Path) -> frozenset[str]:
    """Return the keys of all series with an attempt that did not end: their process died, or is still at it."""
    with store_errors(out):
        return frozenset(path.name for path in (out / STATE / ATTEMPTS).iterdir() if not path.name.startswith("."))


def count_attempts(out: Path, series_key: str, token: str, run_id: str) -> int:
    """Return how many attempts at this very result began in this run and did not end.

    Those of earlier runs do not count: whoever ended the whole run may have meant the run and not the series.
    """
    return _attempt_lines(out, series_key).count(f"{token} {run_id}")


def begin_attempt(out: Path, series_key: str, token: str, run_id: str) -> None:
    """Note on disk, before the dangerous work, that an attempt begins.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    with store_errors(out), _attempts(out, series_key).open("a", encoding="ascii") as file:
        file.write(f"{token} {run_id}\n")
        file.flush()
        os.fsync(file.fileno())


def withdraw_attempts(out: Path, series_key: str, run_id: str) -> None:
    """Take back what this run noted, where it ends in order, so that it is not held against the series.

    On a disk that takes no writes the note stays: the series is then done alone in the next run, no more.
    """
    with suppress(OSError, StoreError):
        rest = [line for line in _attempt_lines(out, series_key) if not line.endswith(f" {run_id}")]
        if rest:
            write_file(_attempts(out, series_key), "".join(f"{line}\n" for line in rest).encode("ascii"))
        else:
            _attempts(out, series_key).unlink(missing_ok=True)


def end_attempts(out: Path, series_key: str) -> None:
    """Forget the attempts at a series, which has a result now.

    Raises
    ------
    StoreError
        If the note cannot be removed.
    """
    with store_errors(out):
        _attempts(out, series_key).unlink(missing_ok=True)


def _attempts(out: Path, series_key: str) -> Path:
    return out / STATE / ATTEMPTS / series_key


def _attempt_lines(out: Path, series_key: str) -> list[str]:
    with store_errors(out):
        try:
            return _attempts(out, series_key).read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return []
