"""Patient identifiers kept out of paths and logs: identifiers become keys, and messages lose their leading paths."""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

SERIES_KEY: Final = re.compile(r"[0-9a-f]{16}")
"""Pattern of the keys that `series_key` returns."""


def series_key(series_instance_uid: str, volume: int = 1) -> str:
    """Return the key of a series in paths, Zarr groups, progress and logs.

    Parameters
    ----------
    series_instance_uid
        SeriesInstanceUID (0020,000E), any string.
    volume
        Number of the volume in its series, from 1.

    Returns
    -------
    str
        First 16 hexadecimal digits of the SHA-256 of the UID (for a further volume, of the UID, "#" and its
        number): safe as a file name whatever the header holds.
    """
    if volume > 1:
        series_instance_uid = f"{series_instance_uid}#{volume}"
    return hashlib.sha256(series_instance_uid.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def without_path(message: str, paths: Iterable[str]) -> str:
    """Return a message without the path at its beginning, since folders are often named after patients.

    Parameters
    ----------
    message
        Text, or a path, a colon and text.
    paths
        Paths that it can begin with.
    """
    prefixes = (f"{path}: " for path in sorted(paths, key=len, reverse=True))  # one may be the beginning of another
    return next((message.removeprefix(prefix) for prefix in prefixes if message.startswith(prefix)), message)
