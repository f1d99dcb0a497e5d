"""One file's header: what the scan needs to know of it, without its pixels."""

import math
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom.datadict import tag_for_keyword
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, MediaStorageDirectoryStorage

from cohortseg.dicom.elements import PIXEL_TAGS, READ_ERRORS, Attributes, first_attributes
from cohortseg.dicom.frames import ENHANCED_CT, GROUP_SEQUENCES, frame_datasets
from cohortseg.dicom.guards import BoundedFile, archive_kind, inflates_too_far

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
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "BodyPartExamined",
    "SliceThickness",
    "ConvolutionKernel",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "StackID",
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
    "VolumeBasedCalculationTechnique",
    *GROUP_SEQUENCES,
)
_TAGS: Final = [tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None]


_SPACING_RTOL: Final = 1e-4
_LOSSY_SYNTAXES: Final = (JPEGBaseline8Bit, JPEGExtended12Bit)
_PACKED: Final = (".nii.gz", ".xlsx", ".docx", ".pptx", ".odt", ".ods", ".jar", ".npz", ".whl", ".epub")
"""Endings of files that are archives only inside."""
_START: Final = 1 << 16
"""Bytes read first of every file: most headers end within them."""


@dataclass(frozen=True)
class SkippedFile:
    """A file that belongs to no series."""

    path: str
    """Relative to the cohort."""
    reason: str
    """Why, for people."""
    unreadable: bool = False
    """Whether it may have been a slice: damaged, empty, closed or without a usable name."""
    archive: bool = False
    """Whether it may hold slices, packed."""


@dataclass(frozen=True, kw_only=True, slots=True)
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
    acquisition_time: str | None
    """TM as it stands: only whether two slices agree in it matters."""
    temporal_position: int | None
    """TemporalPositionIdentifier (0020,0100): the phase of a scan in time."""
    stack_id: str | None
    """StackID (0020,9056) of a frame: frames that belong together."""
    cardiac_phase_pct: float | None
    """NominalPercentageOfCardiacPhase (0020,9241): slabs of one scan may each have their own."""
    patient_id: str | None
    patient_facts: tuple[str | None, str | None, str | None]
    """IssuerOfPatientID, PatientBirthDate, PatientSex: never written, they only tell persons of one PatientID apart."""
    study_date: date | None
    modality: str | None
    series_description: str | None
    body_part: str | None
    image_type: tuple[str, ...]
    volume_calculation: str | None
    """VolumeBasedCalculationTechnique (0008,9207) of an enhanced CT: MAX_IP, VOLUME_RENDER, ..."""
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
    """LossyImageCompression (0028,2110) is "01", or the transfer syntax is never without loss."""


def common(headers: Sequence[Header], name: str) -> Any:
    """Return the value of an attribute that all files share, else None."""
    values = {getattr(header, name) for header in headers}
    return values.pop() if len(values) == 1 else None


def common_spacing(headers: Sequence[Header]) -> tuple[float, ...] | None:
    """Return the PixelSpacing (2,) that all files share to within rounding, mm, else None."""
    first = headers[0].pixel_spacing_mm
    spacings = {header.pixel_spacing_mm for header in headers}
    shared = first is not None and all(other is not None and same_spacing(other, first) for other in spacings)
    return first if shared else None


def same_spacing(one: Sequence[float], other: Sequence[float], rtol: float = _SPACING_RTOL) -> bool:
    """Return whether two PixelSpacing (2,), mm, are the same to within rounding."""
    return all(math.isclose(a, b, rel_tol=rtol) for a, b in zip(one, other, strict=True))


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
            return SkippedFile(path, "empty file", unreadable=_named_like_a_slice(path))
        with BoundedFile(root / path) as file:
            return _headers_from_file(file, path, status)
    except OSError as error:
        return SkippedFile(path, f"cannot be read: {error.strerror or 'input/output error'}", unreadable=True)


def _named_like_a_slice(path: str) -> bool:
    """Tell slices that lost their content from marks of a finished copy (``_SUCCESS``), notes, and hidden files."""
    if "/." in f"/{path}":
        return False
    name = path.rpartition("/")[2]
    stem, _, ending = name.rpartition(".")
    if ending.lower() in ("dcm", "dicom", "ima"):
        return True
    numbered = any(character.isdigit() for character in name)
    return numbered and (not stem or ending.isdigit())


def _headers_from_file(file: BinaryIO, path: str, status: os.stat_result) -> list[Header] | SkippedFile:
    """Tell DICOM from other files by its first bytes, then parse."""
    start = file.read(_START)
    is_part10 = start[128:132] == b"DICM"
    # Files without the 128-byte preamble exist; they start with group 0002 or 0008, little endian.
    if start[:4] == b"DICM":
        return SkippedFile(path, "DICOM that lost its first 128 bytes: copy it again", unreadable=True)
    if not is_part10 and start[:2] not in (b"\x02\x00", b"\x08\x00"):
        kind = archive_kind(start)
        if kind is None or path.lower().endswith(_PACKED):
            return SkippedFile(path, "not DICOM")
        return SkippedFile(path, f"not DICOM ({kind} archive: unpack it first)", archive=True)
    file.seek(0)
    if inflates_too_far(file):
        return SkippedFile(path, "deflated DICOM that expands beyond 1 GiB", unreadable=True)
    try:
        meta, slices = _read(file, start if is_part10 else None)
        found = [_header(item, path, status, meta.text("TransferSyntaxUID"), frame) for frame, item in slices]
    except MemoryError:
        return SkippedFile(path, "memory ran out while its header was read", unreadable=True)
    except READ_ERRORS:
        # The error's text is left out: it can quote the header.
        return SkippedFile(path, "damaged DICOM header" if is_part10 else "not DICOM", unreadable=is_part10)
    headers = [header for header in found if header is not None]
    if headers:
        return headers
    if meta.text("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return SkippedFile(path, "DICOMDIR: an index, not an image")
    reason = "DICOM without SeriesInstanceUID or SOPInstanceUID" if is_part10 else "not DICOM"
    return SkippedFile(path, reason, unreadable=is_part10)


def _read(file: BinaryIO, start: bytes | None) -> tuple[Attributes, list[tuple[int | None, Attributes]]]:
    """Return the file meta information, and the attributes of the file's slice, or of each frame and its number.

    ``start`` holds the first bytes of a file with preamble.
    """
    first = None if start is None else first_attributes(start, _TAGS)
    if first is not None and first[1].text("SOPClassUID") not in ENHANCED_CT:
        return first[0], [(None, first[1])]
    dataset = read_partial(file, _header_ends, specific_tags=[*_TAGS], force=start is None)
    meta, attributes = Attributes.of(dataset.file_meta), Attributes.of(dataset)
    if attributes.text("SOPClassUID") in ENHANCED_CT:
        with suppress(*READ_ERRORS):  # one header without frame numbers: the rules name it
            return meta, list(enumerate(map(Attributes.of, frame_datasets(dataset)), 1))
    return meta, [(None, attributes)]


def _header_ends(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    """Tell whether the pixels begin; what goes on with zeros (a copy that was not finished) would take hours to walk.

    Raises
    ------
    InvalidDicomError
        At zeros.
    """
    if int(tag) == 0:
        raise InvalidDicomError("zeros where an element should be")
    return int(tag) in PIXEL_TAGS


def _header(
    item: Attributes, path: str, status: os.stat_result, syntax: str | None, frame: int | None
) -> Header | None:
    """Return the header, or None without the two UIDs that place a file in a series."""
    series_uid, sop_uid = item.text("SeriesInstanceUID"), item.text("SOPInstanceUID")
    if series_uid is None or sop_uid is None:
        return None
    return Header(
        path=path,
        frame=frame,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        transfer_syntax_uid=syntax,
        sop_class_uid=item.text("SOPClassUID"),
        sop_instance_uid=sop_uid,
        study_instance_uid=item.text("StudyInstanceUID"),
        series_instance_uid=series_uid,
        acquisition_number=item.whole("AcquisitionNumber"),
        acquisition_time=item.text("AcquisitionTime") or item.text("AcquisitionDateTime"),
        temporal_position=item.whole("TemporalPositionIdentifier"),
        stack_id=item.text("StackID"),
        cardiac_phase_pct=item.real("NominalPercentageOfCardiacPhase"),
        patient_id=item.text("PatientID"),
        patient_facts=(item.text("IssuerOfPatientID"), item.text("PatientBirthDate"), item.text("PatientSex")),
        study_date=item.date("StudyDate"),
        modality=item.text("Modality"),
        series_description=item.text("SeriesDescription"),
        body_part=item.text("BodyPartExamined"),
        image_type=item.texts("ImageType"),
        volume_calculation=item.text("VolumeBasedCalculationTechnique"),
        manufacturer=item.text("Manufacturer"),
        convolution_kernel=item.text("ConvolutionKernel"),
        slice_thickness_mm=_positive(item.real("SliceThickness")),
        image_position_patient=item.reals("ImagePositionPatient", 3),
        image_orientation_patient=item.reals("ImageOrientationPatient", 6),
        frame_of_reference_uid=item.text("FrameOfReferenceUID"),
        samples_per_pixel=item.whole("SamplesPerPixel"),
        photometric_interpretation=item.text("PhotometricInterpretation"),
        number_of_frames=item.whole("NumberOfFrames"),
        rows=item.whole("Rows"),
        columns=item.whole("Columns"),
        pixel_spacing_mm=item.reals("PixelSpacing", 2),
        rescale_slope=item.real("RescaleSlope"),
        rescale_intercept=item.real("RescaleIntercept"),
        rescale_type=item.text("RescaleType"),
        lossy=item.text("LossyImageCompression") == "01" or syntax in _LOSSY_SYNTAXES,
    )


def _positive(value: float | None) -> float | None:
    """Return a length, or None for what cannot be one: some exports write 0 or -1 where they do not know it."""
    return value if value is not None and value > 0 else None
