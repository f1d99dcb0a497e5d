"""One file's header: what the scan needs to know of it, without its pixels."""

import math
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import pydicom
from pydicom.config import disable_value_validation
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue

from cohortseg.dicom.frames import ENHANCED_CT, GROUP_SEQUENCES, frame_datasets
from cohortseg.dicom.guards import START_BYTES, BoundedFile, archive_kind, inflates_too_far

READ_ERRORS: Final = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    BytesLengthException,
    struct.error,
    zlib.error,
)
"""What pydicom raises on damaged files; found by damaging files at random (see the tests)."""

_REMEMBERED_BYTES: Final = 256
"""Longer values are parsed each time: what is remembered must not fill memory."""
_KEYWORDS: Final = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "Modality",
    "Manufacturer",
    "SeriesDescription",
    "PatientID",
    "SliceThickness",
    "ConvolutionKernel",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "LossyImageCompression",
    *GROUP_SEQUENCES,
)
_TAGS: Final = [tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None]
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class SkippedFile:
    """A file that belongs to no series."""

    path: str
    """Relative to the cohort."""
    reason: str
    """Why, for people."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """One slice without its pixels: a file, or a frame of one. None: absent, empty or unreadable."""

    path: str
    """Relative to the cohort, with forward slashes."""
    frame: int | None = None
    """Number of the frame in a multi-frame file, from 1; None: the file is one image."""
    size_bytes: int
    mtime_ns: int
    transfer_syntax_uid: str | None
    sop_class_uid: str | None
    sop_instance_uid: str
    study_instance_uid: str | None
    series_instance_uid: str
    acquisition_number: int | None
    patient_id: str | None
    study_date: date | None
    modality: str | None
    series_description: str | None
    image_type: tuple[str, ...]
    manufacturer: str | None
    convolution_kernel: str | None
    slice_thickness_mm: float | None
    image_position_patient: tuple[float, ...] | None
    """(3,) mm, LPS."""
    image_orientation_patient: tuple[float, ...] | None
    """(6,) direction cosines: of a row, then of a column."""
    frame_of_reference_uid: str | None
    samples_per_pixel: int | None
    photometric_interpretation: str | None
    number_of_frames: int | None
    rows: int | None
    columns: int | None
    pixel_spacing_mm: tuple[float, ...] | None
    """(2,) mm: between rows (y), then between columns (x)."""
    rescale_slope: float | None
    rescale_intercept: float | None
    rescale_type: str | None
    lossy: bool
    """LossyImageCompression (0028,2110) is "01"."""


def common(headers: Sequence[Header], name: str) -> Any:
    """Return the value of an attribute that all files share, else None."""
    values = {getattr(header, name) for header in headers}
    return values.pop() if len(values) == 1 else None


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings about odd values: they quote the values, which can be a patient's name."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def read_headers(root: Path, path: str) -> list[Header] | SkippedFile:
    """Read one file's header, whatever the file is.

    Parameters
    ----------
    root
        The cohort's folder.
    path
        The file, relative to ``root``.

    Returns
    -------
    list of Header or SkippedFile
        One header a file, or one a frame of an enhanced CT. SkippedFile with its reason if the file is no DICOM, is
        damaged, or belongs to no series.
    """
    try:
        status = (root / path).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return SkippedFile(path, "not a regular file")
        if status.st_size == 0:
            return SkippedFile(path, "empty file")
        with BoundedFile(root / path) as file:
            return _headers_from_file(file, path, status)
    except OSError as error:
        return SkippedFile(path, f"cannot be read: {error.strerror or 'input/output error'}")


def _headers_from_file(file: BinaryIO, path: str, status: os.stat_result) -> list[Header] | SkippedFile:
    """Tell DICOM from other files by its first bytes, then parse."""
    start = file.read(START_BYTES)
    file.seek(0)
    is_part10 = start[128:132] == b"DICM"
    # Files without the 128-byte preamble exist; they start with group 0002 or 0008, little endian.
    if not is_part10 and start[:2] not in (b"\x02\x00", b"\x08\x00"):
        kind = archive_kind(start)
        return SkippedFile(path, f"not DICOM ({kind} archive: unpack it first)" if kind else "not DICOM")
    if inflates_too_far(file):
        return SkippedFile(path, "deflated DICOM that expands beyond 1 GiB")
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=not is_part10)
        headers = _headers_from_dataset(dataset, path, status)
    except READ_ERRORS:
        # The error's text is left out: it can quote the header.
        return SkippedFile(path, "damaged DICOM header" if is_part10 else "not DICOM")
    if headers:
        return headers
    if text(dataset.file_meta, "MediaStorageSOPClassUID") == pydicom.uid.MediaStorageDirectoryStorage:
        return SkippedFile(path, "DICOMDIR: an index, not an image")
    return SkippedFile(path, "DICOM without SeriesInstanceUID or SOPInstanceUID" if is_part10 else "not DICOM")


def _headers_from_dataset(dataset: Dataset, path: str, status: os.stat_result) -> list[Header]:
    """Return one header, or one a frame; none without the two UIDs that place a file in a series."""
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    found = [_header_from_dataset(dataset, path, status, syntax)]
    if text(dataset, "SOPClassUID") in ENHANCED_CT and found[0] is not None:
        try:
            frames = frame_datasets(dataset)
        except READ_ERRORS:
            pass  # one header without frame numbers: the rules name it
        else:
            found = [_header_from_dataset(frame, path, status, syntax, index) for index, frame in enumerate(frames, 1)]
    return [header for header in found if header is not None]


def _header_from_dataset(
    dataset: Dataset, path: str, status: os.stat_result, syntax: str | None, frame: int | None = None
) -> Header | None:
    """Return the header, or None without the two UIDs that place a file in a series."""
    series_uid, sop_uid = text(dataset, "SeriesInstanceUID"), text(dataset, "SOPInstanceUID")
    if series_uid is None or sop_uid is None:
        return None
    return Header(
        path=path,
        frame=frame,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        transfer_syntax_uid=syntax,
        sop_class_uid=text(dataset, "SOPClassUID"),
        sop_instance_uid=sop_uid,
        study_instance_uid=text(dataset, "StudyInstanceUID"),
        series_instance_uid=series_uid,
        acquisition_number=_whole(dataset, "AcquisitionNumber"),
        patient_id=text(dataset, "PatientID"),
        study_date=_date(text(dataset, "StudyDate")),
        modality=text(dataset, "Modality"),
        series_description=text(dataset, "SeriesDescription"),
        image_type=_texts(dataset, "ImageType"),
        manufacturer=text(dataset, "Manufacturer"),
        convolution_kernel=text(dataset, "ConvolutionKernel"),
        slice_thickness_mm=_real(dataset, "SliceThickness"),
        image_position_patient=reals(dataset, "ImagePositionPatient", 3),
        image_orientation_patient=reals(dataset, "ImageOrientationPatient", 6),
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
        samples_per_pixel=_whole(dataset, "SamplesPerPixel"),
        photometric_interpretation=text(dataset, "PhotometricInterpretation"),
        number_of_frames=_whole(dataset, "NumberOfFrames"),
        rows=_whole(dataset, "Rows"),
        columns=_whole(dataset, "Columns"),
        pixel_spacing_mm=reals(dataset, "PixelSpacing", 2),
        rescale_slope=_real(dataset, "RescaleSlope"),
        rescale_intercept=_real(dataset, "RescaleIntercept"),
        rescale_type=text(dataset, "RescaleType"),
        lossy=text(dataset, "LossyImageCompression") == "01",
    )


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    """Return an attribute's values; an empty list if it is absent, empty or cannot be parsed."""
    try:
        raw = dataset.get_item(keyword)
        encoding = dataset.original_character_set
        if isinstance(raw, RawDataElement) and encoding and len(raw.value or b"") <= _REMEMBERED_BYTES:
            alike = raw._replace(value_tell=0)  # wherever they lie in their files
            value = _converted(alike, encoding if isinstance(encoding, str) else tuple(encoding))
        else:
            value = dataset.get(keyword)
    except READ_ERRORS:
        return []
    if value is None:
        return []
    return list(value) if isinstance(value, (MultiValue, list)) else [value]


@lru_cache(maxsize=1024)
def _converted(raw: RawDataElement, encoding: str | tuple[str, ...]) -> Any:
    """Return an element's value as pydicom parses it; remembered, since the files of a series agree in most of them."""
    return convert_raw_data_element(raw, encoding=encoding if isinstance(encoding, str) else list(encoding)).value


def _texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    # Control characters would reach terminals (--show-ids) and tables.
    values = (_CONTROL.sub("", str(value)).strip() for value in _values(dataset, keyword))
    # Bytes of an undeclared character set must not break the table, which is UTF-8.
    return tuple(value.encode("utf-8", "replace").decode("utf-8") for value in values)


def text(dataset: Dataset, keyword: str) -> str | None:
    """Return an attribute as text, several values joined by backslashes; None if it is absent, empty or unreadable."""
    return "\\".join(_texts(dataset, keyword)) or None


def reals(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return exactly ``count`` finite numbers of an attribute, or None."""
    try:
        numbers = tuple(float(value) for value in _values(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _real(dataset: Dataset, keyword: str) -> float | None:
    numbers = reals(dataset, keyword, 1)
    return None if numbers is None else numbers[0]


def _whole(dataset: Dataset, keyword: str) -> int | None:
    number = _real(dataset, keyword)
    return None if number is None else int(number)


def _date(value: str | None) -> date | None:
    """Parse DA: YYYYMMDD, or YYYY.MM.DD of the standard before DICOM 3."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", value or "")
    if match is None:
        return None
    try:
        return date(*map(int, match.groups()))
    except ValueError:
        return None
