"""How identifiers become keys: nothing that names a patient ever becomes a path or a log line."""

import hashlib


def series_key(series_instance_uid: str) -> str:
    """Return the key of a series in paths, Zarr groups, progress and logs.

    Parameters
    ----------
    series_instance_uid
        SeriesInstanceUID (0020,000E), any string.

    Returns
    -------
    str
        First 16 hexadecimal digits of the SHA-256 of the UID: safe as a file name whatever the header holds.
    """
    return hashlib.sha256(series_instance_uid.encode("utf-8", "surrogateescape")).hexdigest()[:16]
