"""Names in output folders, and how one of ``infer`` is known."""

from pathlib import Path
from typing import Final

from cohortseg.errors import ConfigError
from cohortseg.store.schemas import BURDEN

DATA: Final = "data.safetensors"
LOCK: Final = ".lock"
MASKS: Final = "masks.zarr"
PAGE: Final = "page.html"
PICTURES: Final = "pictures"
REPORT: Final = "report.html"
RUN_JSON: Final = "run.json"
STATE: Final = ".state"
"""Of a run of ``infer``: what it goes on from."""
ATTEMPTS: Final = "attempts"
ROWS: Final = "rows"
SLICE_ROWS: Final = "slices"
STATE_FOLDERS: Final = (ATTEMPTS, ROWS, SLICE_ROWS)


def require_output(out: Path) -> None:
    """Refuse a folder that no finished run of ``infer`` has written.

    Raises
    ------
    ConfigError
        If it holds no burden table.
    """
    if not (out / BURDEN.file_name).is_file():
        raise ConfigError(f"{out}: no {BURDEN.file_name} here; give an output folder of 'cohortseg infer'")
