"""The log of attempts: each is noted before the dangerous work, so that what ends a process is known by its note.

OUT/.state/attempts/<run>/<key> holds one line an attempt of a run at a series that has not ended. The folder goes with
the run, however it ends; only one that was killed leaves it, and the next run gives it another name.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cohortseg.errors import StoreError
from cohortseg.store.files import remove_folder, store_errors, visible_files
from cohortseg.store.layout import ATTEMPTS, STATE

_OVER: Final = "-over"


@contextmanager
def attempts_noted(out: Path, run_id: str) -> Iterator[None]:
    """Let a run note its attempts within the block; once it ends, by an error too, none is held against a series.

    Workers of a cluster may live on for a moment: what they would note afterwards finds no folder. On a disk that takes
    no writes the notes stay: their series are then done alone in the next run, no more.

    Raises
    ------
    StoreError
        If the folder cannot be created.
    """
    folder = _folder(out, run_id)
    with store_errors(out):
        for other in _run_folders(out):  # of killed runs, some of whose workers may live on
            if not _notes(other):
                remove_folder(other)
            elif not other.name.endswith(_OVER):
                other.rename(other.with_name(f"{other.name}{_OVER}"))
        folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            remove_folder(folder)


def suspects(out: Path) -> frozenset[str]:
    """Return the keys of all series with an attempt that did not end: their process died, or is still at it."""
    return frozenset(path.name for folder in _run_folders(out) for path in _notes(folder))


def count_attempts(out: Path, series_key: str, token: str, run_id: str) -> int:
    """Return how many attempts at this very result began in this run and did not end.

    Those of earlier runs do not count: whoever ended the whole run may have meant the run and not the series.
    """
    with store_errors(out):
        try:
            text = (_folder(out, run_id) / series_key).read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return 0
    return text.splitlines().count(token)


def begin_attempt(out: Path, series_key: str, token: str, run_id: str) -> None:
    """Note on disk, before the dangerous work, that an attempt begins.

    Raises
    ------
    StoreError
        If it cannot be written, or the run has ended.
    """
    with store_errors(out), (_folder(out, run_id) / series_key).open("a", encoding="ascii") as file:
        file.write(f"{token}\n")
        file.flush()
        os.fsync(file.fileno())


def require_run(out: Path, run_id: str) -> None:
    """Refuse to go on for a run that has ended, or after which another one has begun.

    Raises
    ------
    StoreError
        If it has.
    """
    with store_errors(out):
        goes_on = _folder(out, run_id).is_dir()
    if not goes_on:
        raise StoreError(f"{out}: the run of this worker has ended")


def end_attempts(out: Path, series_key: str) -> None:
    """Forget the attempts of all runs at a series, which has a result now.

    Raises
    ------
    StoreError
        If a note cannot be removed.
    """
    for folder in _run_folders(out):
        with store_errors(out):
            (folder / series_key).unlink(missing_ok=True)


def forget_attempts(out: Path) -> None:
    """Remove the notes of all runs that were killed.

    Raises
    ------
    StoreError
        If one cannot be removed.
    """
    for folder in _run_folders(out):
        with store_errors(out):
            remove_folder(folder)


def _folder(out: Path, run_id: str) -> Path:
    return out / STATE / ATTEMPTS / run_id


def _run_folders(out: Path) -> list[Path]:
    with store_errors(out):
        return [path for path in visible_files(out / STATE / ATTEMPTS) if path.is_dir()]


def _notes(folder: Path) -> list[Path]:
    with store_errors(folder):
        try:
            return visible_files(folder)
        except FileNotFoundError:  # that run has ended meanwhile
            return []
