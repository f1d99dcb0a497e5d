"""Single files, written whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from cohortseg.errors import StoreError

_TEMPORARY: Final = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` once the block ends well, on disk before it appears.

    Raises
    ------
    StoreError
        If it cannot be written; ``path`` is as it was then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


def sweep_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what killed runs left under the temporary names of files in a folder, ``name`` being a pattern."""
    for path in folder.glob(f".{name}.*{_TEMPORARY}"):
        if path.is_file():
            path.unlink(missing_ok=True)
