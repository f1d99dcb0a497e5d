"""Files and folders, written whole or not at all."""

import errno
import filecmp
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import filelock

from cohortseg.errors import ConfigError, StoreError

LOCK: Final = ".lock"
"""File that is locked while a command works in its output folder."""
_TEMPORARY: Final = ".tmp"
_OURS: Final = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_RENAME_ATTEMPTS: Final = 5
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _temporary_beside(path: Path) -> Path:
    """Return a new name beside a path that `_OURS` recognises."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` if the block ends without error, on disk before it appears.

    If it holds the same bytes, ``path`` stays untouched, so that tools that compare file times see no change.

    Raises
    ------
    StoreError
        If it cannot be written; ``path`` then stays as it was.
    """
    temporary = _temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not (path.is_file() and filecmp.cmp(temporary, path, shallow=False)):
            temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_by_name(path: Path) -> Iterator[Path]:
    """Yield a path whose file replaces ``path`` if the block ends without error, for writers that open files by name.

    Raises
    ------
    StoreError
        If it cannot be written; ``path`` then stays as it was.
    """
    folder = _temporary_beside(path)
    written = folder / path.name
    try:
        folder.mkdir()
        written.touch()
        mode = written.stat().st_mode  # that of the user's umask, whoever makes the file again
        yield written
        written.chmod(mode)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path``, a folder or nothing, if the block ends without error.

    A reader sees the whole old folder, none, or the whole new one, which is on disk before it appears.

    Raises
    ------
    StoreError
        If it cannot be written; ``path`` then stays as it was, or is gone.
    """
    temporary = _temporary_beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        _put_in_place(temporary, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``, and remove it at the end; of a killed process, `held` removes it.

    Raises
    ------
    StoreError
        If it cannot be made.
    """
    folder = _temporary_beside(path)
    with store_errors(folder, "cannot be made"):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a folder to its final name; a worker left over from a killed run may be doing the same."""
    for attempt in range(_RENAME_ATTEMPTS):
        remove_folder(path)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _RENAME_ATTEMPTS - 1:
                raise
        else:
            return


def remove_folder(path: Path) -> None:
    """Remove a folder if there is one; it vanishes at once, as it is renamed before its files are removed.

    Raises
    ------
    OSError
        If it cannot be renamed.
    """
    if path.is_dir():
        aside = _temporary_beside(path)
        with suppress(FileNotFoundError):
            path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def store_errors(path: Path, what: str = "cannot be read or written") -> Iterator[None]:
    """Turn an error of the file system into a `StoreError` that names the path and the problem."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {what}: {error}") from error


@contextmanager
def locked(
    folder: Path, lock: Path, *, use: str, busy: Callable[[], str], folders: Iterable[Path] = ()
) -> Iterator[None]:
    """Lock a folder for the duration of the block; the lock ends with its process, however that ends.

    Parameters
    ----------
    folder
        The folder to lock.
    lock
        The lock file, somewhere in it.
    use
        What the folder is used as, for the message.
    busy
        Makes the message if another process holds the lock.
    folders
        Folders to create first, the lock's own among them.

    Raises
    ------
    StoreError
        If another process holds it, or it cannot be used.
    """
    file_lock = filelock.FileLock(lock, fallback_to_soft=False)  # a soft lock outlives its process
    try:
        for path in folders:
            path.mkdir(parents=True, exist_ok=True)
        file_lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreError(busy()) from None
    except OSError as error:
        advice = "; its storage has no file locks: choose another" if error.errno in _NO_LOCKS else ""
        raise StoreError(f"{folder}: cannot be used as {use}: {error}{advice}") from error
    try:
        yield
    finally:
        file_lock.release()


@contextmanager
def held(folder: Path, command: str, *, folders: Iterable[Path] = ()) -> Iterator[None]:
    """Lock the output folder of a command, created if need be, and remove what killed runs left half-written.

    ``folders`` are its subfolders that the command writes into.

    Raises
    ------
    StoreError
        As `locked`.
    """
    busy = f"{folder}: another cohortseg {command} is at work here; wait for it, or choose another -o"
    all_folders = [folder, *folders]
    with locked(folder, folder / LOCK, use="an output folder", busy=lambda: busy, folders=all_folders):
        for path in all_folders:
            sweep_temporaries(path)
        yield


def require_utf8(path: Path, what: str) -> None:
    """Refuse a path whose bytes are not UTF-8: tables, safetensors and Ray take no other.

    Raises
    ------
    ConfigError
        Naming the path, with what is not UTF-8 replaced.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode(errors="replace")
        raise ConfigError(f"{shown}: {what} must be UTF-8; rename it, or choose another") from error


def visible_files(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, sorted, without hidden ones.

    Hidden ones are ours, such as `LOCK` and temporary ones, or a desktop's, such as a Mac's ``.DS_Store`` and ``._*``.
    """
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def file_sizes(root: Path, folder: str) -> Iterator[tuple[str, int]]:
    """Yield the path below ``root`` and the bytes of each file at any depth of a folder, without hidden ones.

    ``os.scandir``, not ``Path.rglob``: a resume looks at every file of every series.
    """
    with os.scandir(f"{root}/{folder}") as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from file_sizes(root, f"{folder}/{entry.name}")
            elif entry.is_file():
                yield f"{folder}/{entry.name}", entry.stat().st_size


def sweep_temporaries(folder: Path, name: str = "*", *, older_than_s: float = 0.0) -> None:
    """Remove temporary files and folders that killed runs left; ``name`` is a pattern for the final names.

    Call it only with the folder locked, or with an age: another process may be writing one.
    """
    for path in folder.glob(f".{name}.*{_TEMPORARY}"):
        if not _OURS.fullmatch(path.name) or _age_s(path) < older_than_s:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:  # it has been put in place
        return 0.0
