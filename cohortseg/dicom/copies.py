"""Files that repeat a slice: told by their pixels, dropped only if these are equal, cut off or not legible."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import CTImageStorage

from cohortseg.dicom.elements import READ_ERRORS, behind_pixels
from cohortseg.dicom.frames import ENHANCED_CT
from cohortseg.dicom.geometry import COSINE_ATOL
from cohortseg.dicom.guards import BoundedFile
from cohortseg.dicom.headers import Header, SkippedFile
from cohortseg.dicom.pixels import is_whole, stored_values
from cohortseg.errors import DicomError

_PLACE_MM: Final = 0.01
"""Positions this near are one: exports round."""
_SPACING_MM: Final = 1e-4
_OFTEN_LOST: Final = (
    "patient_id",
    "study_instance_uid",
    "convolution_kernel",
    "acquisition_number",
    "temporal_position",
    "stack_id",
    "cardiac_phase_pct",
)
"""What tells scans apart, and what one export of a slice may have where another lost it."""
_FIRST_OF_ALL: Final = ("patient_id", "study_date", "study_instance_uid")
"""Of copies that each lack something, the one that has these stays."""
_TOLD: Final = ("study_date", *_OFTEN_LOST, "series_description", "body_part", "image_type", "slice_thickness_mm")
"""All of which the more stays."""
_DAMAGED: Final = "damaged copy of a slice of its series that is there whole"
_UNDECODED: Final = "at the place of a slice that is there whole; its own pixels cannot be decoded: not compared"
_EQUAL: Final = "copy of a slice of its series, with the same pixels"
_LOSSY: Final = "lossy copy of a slice of its series that is there without loss"
_UNREAD: Final = "at the place of a slice that is there whole; it cannot be read any more: not compared"


class Copy(NamedTuple):
    """A file that repeats a slice."""

    file: SkippedFile
    of: str
    """Path of what it repeats, relative to the cohort."""
    other_date: bool
    """Whether it has another StudyDate: which of the two is right is not known."""


def drop_copies(root: Path, headers: Sequence[Header]) -> tuple[list[Header], list[Copy]]:
    """Return the files of one series without copies, and the copies; of several, the one that says most, or the first.

    Copies have the same place and the same pixels (for anything but CT: the same SOPInstanceUID and content), or
    pixels that are cut off, or that no decoder reads, where those of another are whole, or pixels compressed with loss
    where a file of the same SOPInstanceUID has them without. What has the same place and other pixels is kept: the
    series is then skipped as conflicting.

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
    rounded, told = _Rounding(headers), _told(headers)

    def lost(path: str) -> list[int]:
        """Return how often a file lacks its patient, its date, its study, and all that counts."""
        lacks = {name: sum(getattr(header, name) in (None, (), ("",)) for header in files[path]) for name in _TOLD}
        return [*(lacks[name] for name in _FIRST_OF_ALL), sum(lacks.values())]

    for path in files:
        groups[tuple(_place(header, rounded, told) for header in files[path])].append(path)
    kept: list[str] = []
    dropped: list[Copy] = []
    for group in groups.values():
        if len(group) == 1:
            kept += group
            continue
        group.sort(key=lambda path: (lost(path), path))
        decode = len({files[path][0].transfer_syntax_uid for path in group}) > 1
        contents = {path: _content(root / path, decode=decode) for path in group}
        first_whole = next((path for path, content in contents.items() if content.whole), None)
        lossy = {path for path in group if files[path][0].lossy}
        uids = {path: tuple(header.sop_instance_uid for header in files[path]) for path in group}
        exact: dict[tuple[str, ...], str] = {}
        for path, content in contents.items():
            if content.whole and path not in lossy:
                exact.setdefault(uids[path], path)
        seen: dict[str, str] = {}
        repeats: dict[str, tuple[SkippedFile, str]] = {}
        for path, content in contents.items():
            if first_whole is not None and not content.whole:
                reason = _UNREAD if content.unread else _UNDECODED if content.undecoded else _DAMAGED
                of = first_whole
            elif path in lossy and uids[path] in exact:
                reason, of = _LOSSY, exact[uids[path]]
            elif content.digest in seen:
                reason, of = _EQUAL, seen[content.digest]
            else:
                kept.append(path)
                seen[content.digest] = path
                continue
            repeats[path] = SkippedFile(path, reason, unreadable=content.unread), of
        for path, (file, of) in repeats.items():
            while of in repeats:  # what it repeats was dropped as a copy of another
                of = repeats[of][1]
            days = {files[one][0].study_date for one in (path, of)} - {None}
            dropped.append(Copy(file, of, len(days) > 1))
    return [header for path in sorted(kept) for header in files[path]], dropped


class _Rounding:
    """One number for numbers that differ by what rewriting a header does to them; fixed decimals would split some."""

    def __init__(self, headers: Sequence[Header]) -> None:
        fields = {
            "image_position_patient": _PLACE_MM,
            "image_orientation_patient": COSINE_ATOL,
            "pixel_spacing_mm": _SPACING_MM,
        }
        self._numbers = {
            name: _merged([number for header in headers for number in getattr(header, name) or ()], tolerance)
            for name, tolerance in fields.items()
        }

    def of(self, header: Header, name: str) -> tuple[float, ...] | None:
        """Return an attribute's numbers, each by the least of those that are as good as equal to it."""
        values = getattr(header, name)
        return None if values is None else tuple(self._numbers[name][value] for value in values)


def _merged(numbers: Sequence[float], tolerance: float) -> dict[float, float]:
    """Return for each number the least of its run of numbers that follow each other by no more than the tolerance."""
    merged: dict[float, float] = {}
    before, least = -math.inf, -math.inf
    for number in sorted(set(numbers)):
        least = least if number - before <= tolerance else number
        merged[number], before = least, number
    return merged


def _told(headers: Sequence[Header]) -> dict[tuple[str, str], Any]:
    """Return by SOPInstanceUID and name the attributes in which its files agree, but for those that lack them."""
    told: dict[tuple[str, str], Any] = {}
    for header in headers:
        for name in _OFTEN_LOST:
            value, key = getattr(header, name), (header.sop_instance_uid, name)
            if value is not None and told.setdefault(key, value) != value:
                told[key] = None
    return told


def _known(header: Header, name: str, told: Mapping[tuple[str, str], Any]) -> Any:
    """Return an attribute of a file, or what other files of its SOPInstanceUID tell."""
    value = getattr(header, name)
    return told.get((header.sop_instance_uid, name)) if value is None else value


def _place(header: Header, rounded: _Rounding, told: Mapping[tuple[str, str], Any]) -> Hashable:
    """Return what two copies of a slice share besides their pixels."""
    if header.sop_class_uid in (CTImageStorage, *ENHANCED_CT) and header.image_position_patient is not None:
        return (
            rounded.of(header, "image_position_patient"),
            rounded.of(header, "image_orientation_patient"),
            rounded.of(header, "pixel_spacing_mm"),
            header.rescale_slope,
            header.rescale_intercept,
            header.rows,
            header.columns,
            *(_known(header, name, told) for name in _OFTEN_LOST),
        )
    return header.sop_instance_uid


class _Content(NamedTuple):
    """What a file holds."""

    digest: str
    """Hash of the pixel data (decoded if its encoding differs between copies), else of the whole file."""
    whole: bool
    """Whether it holds as many pixels as its header says."""
    undecoded: bool = False
    """Whether no decoder reads them."""
    unread: bool = False
    """Whether the file has gone, or cannot be opened, since its header was read."""


def _content(path: Path, *, decode: bool) -> _Content:
    undecoded = False
    try:
        with BoundedFile(path) as file:
            dataset = read_partial(file, behind_pixels, force=True)
            if "PixelData" in dataset:
                return _Content(_pixel_digest(dataset, decode=decode), is_whole(dataset))
    except DicomError as error:
        if isinstance(error.__cause__, MemoryError):
            return _Content(f"unreadable {path}", whole=False, unread=True)
        undecoded = True
    except MemoryError:
        return _Content(f"unreadable {path}", whole=False, unread=True)
    except READ_ERRORS:
        pass  # damaged pixels: only an equal file is a copy
    try:
        return _Content(hashlib.sha256(path.read_bytes()).hexdigest(), whole=False, undecoded=undecoded)
    except OSError:
        return _Content(f"unreadable {path}", whole=False, unread=True)


def _pixel_digest(dataset: Dataset, *, decode: bool) -> str:
    digest = hashlib.sha256()
    if decode:
        for frame in range(int(dataset.get("NumberOfFrames") or 1)):
            digest.update(stored_values(dataset, "", frame).astype("<i4").tobytes())
    else:
        pixels = memoryview(dataset.PixelData)
        # Behind the pixels some exports pad.
        digest.update(pixels if dataset["PixelData"].is_undefined_length else pixels[: get_expected_length(dataset)])
    return digest.hexdigest()
