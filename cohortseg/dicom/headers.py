"""One file's header: the attributes that the scan needs, without the pixels."""

import os
import stat
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, MediaStorageDirectoryStorage

from cohortseg.dicom.elements import PIXEL_TAGS, READ_ERRORS, Attributes, first_attributes, tag_of
from cohortseg.dicom.frames import ENHANCED_CT, GROUP_SEQUENCES, frame_datasets
from cohortseg.dicom.geometry import COSINE_ATOL, PIXEL_SPACING_MM, PLACE_MM, agree
from cohortseg.dicom.guards import BoundedFile, archive_kind, inflates_too_far

LOSSY_SYNTAXES: Final = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
"""Transfer syntaxes of which every image counts as lossy; JPEG 2000 may be either."""
_PACKED: Final = (".nii.gz", ".xlsx", ".docx", ".pptx", ".odt", ".ods", ".jar", ".npz", ".whl", ".epub")
"""Endings of file formats that are archives only internally."""
_START: Final = 1 << 16
"""Bytes of every file that are read first: most headers end within them."""
_Asked = TypeVar("_Asked", str, tuple[str, ...])
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class SkippedFile:
    """A file that belongs to no series."""

    path: str
    """Relative to the cohort."""
    reason: str
    """Why, in words for people."""
    unreadable: bool = False
    """Whether it may have been a slice: damaged, empty, not accessible, without a usable name, or not understood."""
    archive: bool = False
    """Whether it is an archive that may hold slices."""


def _from(reader: Callable[[Attributes, _Asked], _Value], asked: _Asked) -> _Value:
    """Return a field of `Header` that a reader fills from one attribute or several, given by keyword."""
    made: _Value = field(metadata={"reader": reader, "asked": asked})
    return made


def _first(
    reader: Callable[[Attributes, str], _Value | None],
) -> Callable[[Attributes, tuple[str, ...]], _Value | None]:
    """Return a reader of several attributes that gives the first value that is known."""
    return lambda item, keywords: next(filter(None, (reader(item, keyword) for keyword in keywords)), None)


def _facts(item: Attributes, keywords: tuple[str, ...]) -> tuple[Hashable, ...]:
    """Return a date as such, however it is written, and other values as text."""
    return tuple(item.date(keyword) or item.text(keyword) for keyword in keywords)


def _reals(count: int) -> Callable[[Attributes, str], tuple[float, ...] | None]:
    return lambda item, keyword: item.reals(keyword, count)


def _positive(item: Attributes, keyword: str) -> float | None:
    """Return a length or voltage, or None if it is not positive: some exports write 0 or -1 for an unknown one."""
    value = item.real(keyword)
    return value if value is not None and value > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """One slice without its pixels: a file, or one of its frames. None stands for absent, empty or unreadable."""

    path: str
    """Relative to the cohort, with forward slashes."""
    frame: int | None = None
    """Number of the frame in a multi-frame file, from 1; None for a file that is one image."""
    size_bytes: int
    mtime_ns: int
    transfer_syntax_uid: str | None
    sop_class_uid: str | None = _from(Attributes.text, "SOPClassUID")
    sop_instance_uid: str
    study_instance_uid: str | None = _from(Attributes.text, "StudyInstanceUID")
    series_instance_uid: str
    acquisition_number: int | None = _from(Attributes.whole, "AcquisitionNumber")
    acquisition_time: str | None = _from(_first(Attributes.text), ("AcquisitionTime", "AcquisitionDateTime"))
    """The time (TM or DT) as written: only whether two slices agree in it matters."""
    temporal_position: int | None = _from(Attributes.whole, "TemporalPositionIdentifier")
    """TemporalPositionIdentifier (0020,0100): the phase of a scan in time."""
    stack_id: str | None = _from(Attributes.text, "StackID")
    """StackID (0020,9056) of a frame: frames that belong together."""
    cardiac_phase_pct: float | None = _from(Attributes.real, "NominalPercentageOfCardiacPhase")
    """NominalPercentageOfCardiacPhase (0020,9241): slabs of one scan may each have their own."""
    respiratory_phase_pct: float | None = _from(Attributes.real, "NominalPercentageOfRespiratoryPhase")
    """NominalPercentageOfRespiratoryPhase (0020,9245): the phase of a scan gated by breathing."""
    concatenation_uid: str | None = _from(Attributes.text, "ConcatenationUID")
    part_of_file: int | None = _from(Attributes.whole, "InConcatenationNumber")
    """InConcatenationNumber (0020,9162): a multi-frame file that was too long is written in several parts."""
    parts_of_file: int | None = _from(Attributes.whole, "InConcatenationTotalNumber")
    """InConcatenationTotalNumber (0020,9163)."""
    patient_id: str | None = _from(Attributes.text, "PatientID")
    patient_facts: tuple[Hashable, ...] = _from(_facts, ("IssuerOfPatientID", "PatientBirthDate", "PatientSex"))
    """IssuerOfPatientID, PatientBirthDate, PatientSex: only to tell apart persons of one PatientID; never written."""
    study_date: date | None = _from(Attributes.date, "StudyDate")  # noqa: RUF009 (a field, not a date)
    acquisition_date: date | None = _from(_first(Attributes.date), ("AcquisitionDate", "AcquisitionDateTime"))  # noqa: RUF009
    modality: str | None = _from(Attributes.text, "Modality")
    series_description: str | None = _from(Attributes.text, "SeriesDescription")
    body_part: str | None = _from(Attributes.text, "BodyPartExamined")
    protocol_name: str | None = _from(Attributes.text, "ProtocolName")
    study_description: str | None = _from(Attributes.text, "StudyDescription")
    image_type: tuple[str, ...] = _from(Attributes.texts, "ImageType")
    volume_calculation: str | None = _from(Attributes.text, "VolumeBasedCalculationTechnique")
    """VolumeBasedCalculationTechnique (0008,9207) of an enhanced CT: MAX_IP, VOLUME_RENDER, ..."""
    manufacturer: str | None = _from(Attributes.text, "Manufacturer")
    manufacturer_model: str | None = _from(Attributes.text, "ManufacturerModelName")
    kvp: float | None = _from(_positive, "KVP")
    contrast_agent: str | None = _from(Attributes.text, "ContrastBolusAgent")
    convolution_kernel: str | None = _from(Attributes.text, "ConvolutionKernel")
    slice_thickness_mm: float | None = _from(_positive, "SliceThickness")
    image_position_patient: tuple[float, ...] | None = _from(_reals(3), "ImagePositionPatient")
    """(3,) mm, LPS."""
    image_orientation_patient: tuple[float, ...] | None = _from(_reals(6), "ImageOrientationPatient")
    """(6,) direction cosines: of a row, then of a column."""
    frame_of_reference_uid: str | None = _from(Attributes.text, "FrameOfReferenceUID")
    samples_per_pixel: int | None = _from(Attributes.whole, "SamplesPerPixel")
    photometric_interpretation: str | None = _from(Attributes.text, "PhotometricInterpretation")
    burned_in_annotation: str | None = _from(Attributes.text, "BurnedInAnnotation")
    number_of_frames: int | None = _from(Attributes.whole, "NumberOfFrames")
    rows: int | None = _from(Attributes.whole, "Rows")
    columns: int | None = _from(Attributes.whole, "Columns")
    pixel_spacing_mm: tuple[float, ...] | None = _from(_reals(2), "PixelSpacing")
    """(2,) mm: between rows (y), then between columns (x)."""
    rescale_slope: float | None = _from(Attributes.real, "RescaleSlope")
    rescale_intercept: float | None = _from(Attributes.real, "RescaleIntercept")
    rescale_type: str | None = _from(Attributes.text, "RescaleType")
    lossy: bool
    """LossyImageCompression (0028,2110) is "01", or the transfer syntax is lossy (JPEG-LS: even if its loss is 0)."""


_READ: Final = [(item.name, *item.metadata.values()) for item in fields(Header) if item.metadata]
_UIDS: Final = ("SOPInstanceUID", "SeriesInstanceUID")
_KEYWORDS: Final = (
    *("SpecificCharacterSet", *_UIDS, "LossyImageCompression", "ContrastBolusAgentSequence", *GROUP_SEQUENCES),
    *(keyword for _, _, asked in _READ for keyword in ((asked,) if isinstance(asked, str) else asked)),
)
_TAGS: Final = [tag_of(keyword) for keyword in _KEYWORDS]


PLACE: Final = {
    "image_position_patient": PLACE_MM,
    "image_orientation_patient": COSINE_ATOL,
    "pixel_spacing_mm": PIXEL_SPACING_MM,
}
"""Attributes that place an image, with the tolerance within which exports round them differently."""


def common(headers: Sequence[Header], name: str) -> Any:
    """Return the value of an attribute if all headers share it, else None."""
    values = {getattr(header, name) for header in headers}
    return values.pop() if len(values) == 1 else None


def common_spacing(headers: Sequence[Header]) -> tuple[float, ...] | None:
    """Return the PixelSpacing (2,), mm, if all headers share it to within rounding, else None."""
    spacings = {header.pixel_spacing_mm for header in headers}
    known = [spacing for spacing in spacings if spacing is not None]
    shared = len(known) == len(spacings) and agree(known, PIXEL_SPACING_MM)
    return headers[0].pixel_spacing_mm if shared else None


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
        One header per file, or one per frame of an enhanced CT; a SkippedFile with the reason if the file is not
        DICOM, is damaged, or belongs to no series.
    """
    try:
        status = (root / path).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
            return SkippedFile(path, "not a regular file")
        if status.st_size == 0:
            return SkippedFile(path, "empty file", unreadable=_named_like_a_slice(path))
        with BoundedFile(root / path) as file:
            return _headers_from_file(file, path, status)
    except OSError as error:
        return SkippedFile(path, f"cannot be read: {error.strerror or 'input/output error'}", unreadable=True)


def _named_like_a_slice(path: str) -> bool:
    """Return whether an empty file is named like a slice, not like a marker (``_SUCCESS``), note or hidden file."""
    if "/." in f"/{path}":
        return False
    name = path.rpartition("/")[2]
    stem, _, ending = name.rpartition(".")
    if ending.lower() in ("dcm", "dicom", "ima"):
        return True
    numbered = any(character.isdigit() for character in name)
    return numbered and (not stem or ending.isdigit())


def _headers_from_file(file: BinaryIO, path: str, status: os.stat_result) -> list[Header] | SkippedFile:
    """Recognise DICOM by the first bytes of a file, then parse its header."""
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
    """Return the file meta information, and the number (None for a single image) and attributes of each frame.

    ``start`` holds the first bytes of a file with preamble.
    """
    first = None if start is None else first_attributes(start, _TAGS)
    if first is not None and first[1].text("SOPClassUID") not in ENHANCED_CT:
        return first[0], [(None, first[1])]
    dataset = read_partial(file, _header_ends, specific_tags=[*_TAGS], force=start is None)
    meta, attributes = Attributes.of(dataset.file_meta), Attributes.of(dataset)
    if attributes.text("SOPClassUID") in ENHANCED_CT:
        with suppress(*READ_ERRORS):  # on damage, one header without frame number: the rules give the reason
            return meta, list(enumerate(map(Attributes.of, frame_datasets(dataset)), 1))
    return meta, [(None, attributes)]


def _header_ends(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    """Return whether the pixels begin at an element, and refuse zeros in its place.

    Raises
    ------
    InvalidDicomError
        At a tag of zeros: a file that goes on with zeros (an unfinished copy) would take hours to walk through.
    """
    if int(tag) == 0:
        raise InvalidDicomError("zeros where an element should be")
    return int(tag) in PIXEL_TAGS


def _header(
    item: Attributes, path: str, status: os.stat_result, syntax: str | None, frame: int | None
) -> Header | None:
    """Return the header, or None if SOPInstanceUID or SeriesInstanceUID is missing."""
    sop_uid, series_uid = map(item.text, _UIDS)
    if series_uid is None or sop_uid is None:
        return None
    return Header(
        path=path,
        frame=frame,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        transfer_syntax_uid=syntax,
        sop_instance_uid=sop_uid,
        series_instance_uid=series_uid,
        lossy=item.text("LossyImageCompression") == "01" or syntax in LOSSY_SYNTAXES,
        **{name: reader(item, asked) for name, reader, asked in _READ},
    )
