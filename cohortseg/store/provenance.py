"""``run.json``: what ran, with which versions, settings and model.

It holds no identifier of a patient, unless the user's own ``select`` rules do, and, for ``infer``, no path, since
folders can bear patients' names; the commands that train and evaluate name the folder of their data.
"""

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from cohortseg import __version__
from cohortseg.store.documents import parse_json
from cohortseg.store.files import write_file
from cohortseg.store.layout import RUN_JSON

_PACKAGES: Final = (
    *("torch", "numpy", "scipy", "opencv-python-headless", "pydicom", "pylibjpeg-openjpeg", "python-gdcm"),
    *("polars", "ray", "zarr", "highdicom", "nibabel"),
)


def versions() -> dict[str, str | None]:
    """Return the versions of cohortseg, Python, and the packages that results depend on; None: not found."""
    packages = {name: _version(name) for name in _PACKAGES}
    return {"cohortseg": __version__, "python": platform.python_version()} | packages


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # a build of OpenCV with windows, for example
        return None


def read_run_json(folder: Path) -> dict[str, Any]:
    """Return the record that a command left in a folder; empty if there is none that can be read."""
    try:
        document = parse_json((folder / RUN_JSON).read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def write_run_json(folder: Path, command: str, facts: Mapping[str, Any], *, finished: bool = True) -> None:
    """Write the record of one command.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"command": command, "finished": when if finished else None, "versions": versions(), **facts}
    write_file(folder / RUN_JSON, (json.dumps(document, indent=2, default=str) + "\n").encode())
