"""Files that repeat a slice: told by their pixels, dropped only if these are equal."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import CTImageStorage

from cohortseg.dicom.headers import READ_ERRORS, Header

_PIXEL_DATA = 0x7FE00010


def drop_copies(root: Path, headers: Sequence[Header]) -> list[Header]:
    """Return the files of one series without copies; of several, the first path stays.

    Copies have the same place and the same pixels (for anything but CT slices: the same SOPInstanceUID and content).
    What has the same place and other pixels is kept: the series is then skipped as conflicting.

    Parameters
    ----------
    root
        The cohort's folder.
    headers
        Files with one SeriesInstanceUID.
    """
    groups: defaultdict[Hashable, list[Header]] = defaultdict(list)
    for header in sorted(headers, key=lambda header: header.path):
        groups[_place(header)].append(header)
    kept: list[Header] = []
    for group in groups.values():
        decode = len({header.transfer_syntax_uid for header in group}) > 1
        seen: set[str] = set()
        for header in group:
            digest = _content_digest(root / header.path, decode=decode) if len(group) > 1 else ""
            if digest not in seen:
                kept.append(header)
            seen.add(digest)
    return sorted(kept, key=lambda header: header.path)


def _place(header: Header) -> Hashable:
    """Return what two copies of a slice share besides their pixels."""
    if header.sop_class_uid == CTImageStorage and header.image_position_patient is not None:
        return (
            header.image_position_patient,
            header.image_orientation_patient,
            header.pixel_spacing_mm,
            header.rescale_slope,
            header.rescale_intercept,
        )
    return header.sop_instance_uid


def _content_digest(path: Path, *, decode: bool) -> str:
    """Return a hash of the pixel data (decoded if its encoding differs between copies), else of the whole file."""
    try:
        dataset = pydicom.dcmread(path, force=True)
        if "PixelData" in dataset:
            return hashlib.sha256(_pixel_bytes(dataset, decode=decode)).hexdigest()
    except READ_ERRORS:
        pass  # damaged pixels: only an equal file is a copy
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return f"unreadable {path}"  # never equal to another: nothing is dropped unseen


def _pixel_bytes(dataset: Dataset, *, decode: bool) -> bytes:
    return pixel_array(dataset, raw=True).tobytes() if decode else bytes(dataset.PixelData)
