"""Names of files and folders in output folders."""

from typing import Final

DATA: Final = "data.safetensors"
MASKS: Final = "masks.zarr"
PAGE: Final = "page.html"
PICTURES: Final = "pictures"
REPORT: Final = "report.html"
RUN_JSON: Final = "run.json"
STATE: Final = ".state"
"""Folder from which a run of ``infer`` resumes."""
ATTEMPTS: Final = "attempts"
ROWS: Final = "rows"
SLICE_ROWS: Final = "slices"
STATE_FOLDERS: Final = (ATTEMPTS, ROWS, SLICE_ROWS)
