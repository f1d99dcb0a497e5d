"""Files that repeat a slice: told by their pixels, dropped only if these are equal."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from cohortseg.dicom.elements import READ_ERRORS
from cohortseg.dicom.guards import BoundedFile
from cohortseg.dicom.headers import Header
from cohortseg.dicom.pixels import stored_values
from cohortseg.errors import DicomError

_PLACES: Final = 2
"""Decimals of a position in mm: exports round."""


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
    files: defaultdict[str, list[Header]] = defaultdict(list)
    for header in headers:
        files[header.path].append(header)  # several for a multi-frame file, which is compared as a whole
    groups: defaultdict[Hashable, list[str]] = defaultdict(list)
    for path in sorted(files):
        groups[_place(files[path][0])].append(path)
    kept: list[str] = []
    for group in groups.values():
        decode = len({files[path][0].transfer_syntax_uid for path in group}) > 1
        seen: set[str] = set()
        for path in group:
            digest = _content_digest(root / path, decode=decode) if len(group) > 1 else ""
            if digest not in seen:
                kept.append(path)
            seen.add(digest)
    return [header for path in sorted(kept) for header in files[path]]


def _place(header: Header) -> Hashable:
    """Return what two copies of a slice share besides their pixels."""
    if header.sop_class_uid == CTImageStorage and header.image_position_patient is not None:
        return (
            header.patient_id,
            header.study_instance_uid,
            tuple(round(coordinate, _PLACES) for coordinate in header.image_position_patient),
            header.image_orientation_patient,
            header.pixel_spacing_mm,
            header.rescale_slope,
            header.rescale_intercept,
        )
    return header.sop_instance_uid


def _content_digest(path: Path, *, decode: bool) -> str:
    """Return a hash of the pixel data (decoded if its encoding differs between copies), else of the whole file."""
    try:
        with BoundedFile(path) as file:
            dataset = pydicom.dcmread(file, force=True)
            if "PixelData" in dataset:
                return hashlib.sha256(_pixel_bytes(dataset, decode=decode)).hexdigest()
    except (*READ_ERRORS, DicomError):
        pass  # damaged pixels: only an equal file is a copy
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return f"unreadable {path}"  # never equal to another: nothing is dropped unseen


def _pixel_bytes(dataset: Dataset, *, decode: bool) -> bytes:
    if not decode:
        return bytes(dataset.PixelData)
    frames = (stored_values(dataset, "", frame) for frame in range(int(dataset.get("NumberOfFrames") or 1)))
    return b"".join(frame.astype("<i4").tobytes() for frame in frames)
