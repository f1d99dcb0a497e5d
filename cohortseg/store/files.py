"""Single files, written whole or not at all."""

import os
import uuid
from pathlib import Path
from typing import Final

from cohortseg.errors import StoreError

_TEMPORARY: Final = ".tmp"


def write_file(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary name, on disk before it appears.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path.name}: cannot be written: {error}") from error


def sweep_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what killed runs left under the temporary names of files in a folder, ``name`` being a pattern."""
    for path in folder.glob(f".{name}.*{_TEMPORARY}"):
        if path.is_file():
            path.unlink(missing_ok=True)
