"""The log of attempts: each is noted before the dangerous work, so that a series that ends a process leaves a note.

OUT/.state/attempts/<run>/<key> holds one line per attempt of a run at a series, until the series has a result. The run
removes its folder when it ends, by an error too; a killed run leaves it, and the next run renames it. One more folder
holds a note for each series that was given up.
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
_GIVEN_UP: Final = f"given-up{_OVER}"
"""In place of a run: holds a note for each series that was given up, until it has another result."""


@contextmanager
def attempts_noted(out: Path, run_id: str) -> Iterator[None]:
    """Let a run note its attempts within the block; when it ends, by an error too, its notes are removed.

    Workers of a cluster may live on for a moment: for later notes they find no folder. On a disk that takes no writes
    the notes stay; the only effect is that the next run does their series alone.

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
    """Return the keys of all series with an attempt that did not end: their process died, or is still at work.

    Those that were given up are among them, in case they are tried again.
    """
    return frozenset(path.name for folder in _run_folders(out) for path in _notes(folder))


def count_attempts(out: Path, series_key: str, token: str, run_id: str) -> int:
    """Return how many attempts at this result began in this run and did not end.

    Those of earlier runs do not count: they may have been killed for other reasons than the series.
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
    """Refuse to continue for a run that has ended, or after which another one has begun.

    Raises
    ------
    StoreError
        If it has ended.
    """
    with store_errors(out):
        goes_on = _folder(out, run_id).is_dir()
    if not goes_on:
        raise StoreError(f"{out}: this run has ended, or another one has begun there")


def end_attempts(out: Path, series_key: str) -> None:
    """Remove the notes of all runs about a series that has a result now.

    Raises
    ------
    StoreError
        If a note cannot be removed.
    """
    for folder in _run_folders(out):
        with store_errors(out):
            (folder / series_key).unlink(missing_ok=True)


def note_given_up(out: Path, series_key: str) -> None:
    """Note that a series has ended its process too often, so that it stays among the `suspects`.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    folder = _folder(out, _GIVEN_UP)
    with store_errors(out):
        folder.mkdir(exist_ok=True)
        (folder / series_key).touch()


def forget_attempts(out: Path) -> None:
    """Remove all notes, of runs that were killed and of series that were given up.

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
