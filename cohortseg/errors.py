"""The errors a user can repair; anything else that escapes is a bug and keeps its traceback."""

import traceback
from pathlib import Path
from typing import ClassVar


class CohortSegError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code: ClassVar[int] = 1
    """Exit code of the command line: 1 for a failed run, 2 for wrong usage, configuration or unreadable input."""


def unexpected(error: Exception) -> tuple[str, str]:
    """Return type and place of an unexpected error, and the stack's frames; not its text, which can quote a header."""
    stack = traceback.extract_tb(error.__traceback__)
    what = f"unexpected {type(error).__name__} in {Path(stack[-1].filename).name}:{stack[-1].lineno}"
    return what, "".join(traceback.format_list(stack))


class ConfigError(CohortSegError, ValueError):
    """Wrong usage or configuration."""

    exit_code = 2


class DataError(CohortSegError):
    """A training image, mask or data folder that cannot be used."""

    exit_code = 2


class DicomError(CohortSegError):
    """A DICOM file or series that cannot be read."""

    exit_code = 2


class GeometryError(CohortSegError, ValueError):
    """Slices that do not form a volume, or an orientation that is not axial."""

    exit_code = 2


class NotEvaluableError(CohortSegError):
    """A readable series in which burden cannot be measured, for example without lung."""

    exit_code = 2

    def __init__(self, message: str, *, qc_flags: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.qc_flags = qc_flags
        """Findings for the series' row."""


class ModelError(CohortSegError):
    """A model file that is missing, damaged, or not made by cohortseg."""

    exit_code = 2


class DivergedError(CohortSegError):
    """Training whose losses are no longer finite numbers: running it again would end the same way."""


class StoreError(CohortSegError):
    """An output folder, mask store or table that cannot be read or written."""


class WorkerError(CohortSegError):
    """A worker process, one of Ray's included, that did not start or ended early."""


class SchemaError(StoreError, ValueError):
    """A file that is no table, or whose columns or types are not those of its schema."""

    exit_code = 2
