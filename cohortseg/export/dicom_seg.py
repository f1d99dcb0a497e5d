"""Lesions as a DICOM Segmentation (PS3.3 A.51) that refers to the slices it was made from."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import highdicom as hd
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag
from pydicom.uid import CTImageStorage, generate_uid
from pydicom.valuerep import DA, TM, DSfloat

from cohortseg.dicom.decode import slices_of
from cohortseg.dicom.elements import READ_ERRORS
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import DicomError
from cohortseg.labels import LESIONS, Lesion
from cohortseg.store.masks import MaskFacts, SeriesMasks

_SERIES_NUMBER: Final = 7000
"""Far above those of scanners, so that viewers list it last."""
_CATEGORY: Final = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_LUNG: Final = Code("39607008", "SCT", "Lung")
_MAY_BE_EMPTY: Final = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
"""Attributes of type 2 (PS3.3 C.7.1.1, C.7.2.1): empty where not known; de-identified files lack some."""
_IDENTITY_GROUPS: Final = frozenset({0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040})
"""Tag groups of the attributes of patient, study and scanner (PS3.3 C.7.1, C.7.2, C.7.5), and of the frame of
reference."""
_SEXES: Final = frozenset(str(sex.value) for sex in hd.PatientSexValues)
_DATES: Final[dict[str, Callable[[Any], Any]]] = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
_CHARACTER_SETS: Final = frozenset(str(term.value) for term in hd.SpecificCharacterSetValues)


def segmentation_bytes(masks: SeriesMasks, sources: Sequence[Dataset], record: SeriesRecord) -> bytes:
    """Return the lesions of one series as a binary DICOM SEG file, one segment per class.

    Identity (patient, study, frame of reference) is that of the source. A class that the series does not have gets no
    segment, since viewers stumble over empty ones, and the others are numbered from 1 (PS3.3 C.8.20.2); frames without
    lesion are kept, since viewers expect them. Each frame lies where its slice lies and refers to it, even if slices
    are not quite evenly spaced; those of a repaired series lie on its own grid. The same masks on the same slices of
    the same patient always get the same UIDs, so that sending them twice does not duplicate them.

    Parameters
    ----------
    masks
        Masks and geometry of a series with a lesion.
    sources
        Headers of the files that the masks were made from; they are completed in place.
    record
        The series as the scan saw it.

    Raises
    ------
    DicomError
        If the source's headers do not allow a segmentation.
    """
    series_key = record.series_key
    present = [label for label in LESIONS if (masks.labels == label.value).any()]
    facts = masks.facts
    spacing_z = facts.spacing_mm[0]
    single = spacing_z is None
    for source in sources:
        if source.get("SOPClassUID") == CTImageStorage:
            source.pop("NumberOfFrames", None)  # 1, or the scan would have refused it; highdicom goes by its presence
    if any("NumberOfFrames" in source for source in sources) and len(sources) > 1:
        raise DicomError(
            f"series {series_key}: a DICOM SEG can refer to one multi-frame file only; use --format nifti or png"
        )
    slices = slices_of(record, sources)
    if single and not np.isfinite(_number(slices[0], "SliceThickness")):
        raise DicomError(
            f"series {series_key}: a single slice without SliceThickness, which a DICOM SEG must say; "
            "use --format nifti or png"
        )
    numbered = np.zeros_like(masks.labels)
    for number, label in enumerate(present, start=1):
        numbered[masks.labels == label.value] = number
    identity = [
        identity_hash(sources[0]),
        series_key,
        facts.model_sha256,
        hashlib.sha256(masks.labels.tobytes()).hexdigest(),
        # Position of the masks, and their source slices: an archive keeps the object it already has under a UID.
        *map(json.dumps, (facts.affine, facts.spacing_mm, facts.sop_instance_uids)),
        facts.version,
    ]
    segments = [_segment(number, label, facts.version) for number, label in enumerate(present, start=1)]
    file = io.BytesIO()
    try:
        _complete(sources, facts.frame_of_reference_uid, record.frames)
        segmentation = Segmentation(
            source_images=sources,
            pixel_array=numbered,
            plane_positions=[
                hd.PlanePositionSequence(hd.CoordinateSystemNames.PATIENT, position)
                for position in (_grid_positions(facts) if record.repairs else _positions(slices))
            ],
            # Must be given beside positions; the source's own replace them.
            pixel_measures=hd.PixelMeasuresSequence(facts.spacing_mm[1:], slice_thickness=spacing_z),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(entropy_srcs=["series", *identity]),
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *identity]),
            series_number=_SERIES_NUMBER,
            instance_number=1,
            manufacturer="cohortseg",
            manufacturer_model_name="cohortseg",
            software_versions=facts.version,
            device_serial_number=facts.model_sha256[:16],
            series_description="cohortseg: GGO and consolidation",
            content_label="LESIONS",
            content_description="Research software, not a medical device",
            omit_empty_frames=False,
        )
        measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.pop("SpacingBetweenSlices", None)  # the source's, which need not be true
        if spacing_z is not None:
            measures.SpacingBetweenSlices = DSfloat(spacing_z, auto_format=True)
            if "SliceThickness" not in measures:  # type 1C (PS3.3 C.7.6.16.2.1): readers refuse a file without
                measures.SliceThickness = DSfloat(spacing_z, auto_format=True)
        _refer_to_own_frames(segmentation, record)
        for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
            item.DimensionOrganizationUID = generate_uid(entropy_srcs=["dimensions", *identity])
        segmentation.save_as(file)
    except MemoryError:
        raise
    except READ_ERRORS as error:
        # Without the error's text, which can quote a header.
        raise DicomError(
            f"series {series_key}: its headers do not allow a DICOM SEG ({type(error).__name__}: most often patient, "
            "study or frame of reference are missing or malformed); --format nifti or png does without"
        ) from error
    return file.getvalue()


def _refer_to_own_frames(segmentation: Segmentation, record: SeriesRecord) -> None:
    """Let frames refer to frames of the series alone: highdicom names all at a position, of other stacks too."""
    for frame in segmentation.PerFrameFunctionalGroupsSequence if record.frames else ():
        for derivation in frame.get("DerivationImageSequence", ()):
            sources = derivation.SourceImageSequence
            derivation.SourceImageSequence = [item for item in sources if item.ReferencedFrameNumber in record.frames]


def identity_hash(source: Dataset) -> str:
    """Return a hash of all attributes that may identify patient and study, many of which a segmentation copies."""
    tags = [tag for tag in sorted(source.keys()) if tag.group in _IDENTITY_GROUPS]
    return hashlib.sha256(json.dumps([(tag, _text(source, tag)) for tag in tags]).encode()).hexdigest()


def _text(source: Dataset, tag: BaseTag) -> str | None:
    """Return a value as text; None if it is malformed."""
    try:
        return str(source[tag].value)
    except READ_ERRORS:
        return None


def _complete(sources: Sequence[Dataset], frame_of_reference_uid: str | None, frames: Sequence[int]) -> None:
    """Add required attributes that may be empty, and mend what highdicom refuses but the masks do not depend on.

    Invalid dates, times, sexes and thicknesses become empty. All slices get the orientation of the first, from which
    they differ by rounding only (the scan has checked this), and the frame of reference of the volume. What the frames
    of the volume (numbers from 1; none: all) state of their common grid, as the scan has checked, moves to the shared
    groups; a multi-frame file may hold other stacks, with grids of their own. Text is written as UTF-8 where the
    standard does not know the name of its character set.
    """
    source = sources[0]
    if "PerFrameFunctionalGroupsSequence" in source:
        _share_grid(source, frames[0] - 1 if frames else 0)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, None)
    for keyword, kind in _DATES.items():
        try:
            kind(source.get(keyword))
        except ValueError:
            setattr(source, keyword, None)
    sex = str(source.PatientSex or "").strip().upper()
    source.PatientSex = sex if sex in _SEXES else None
    for slice_ in sources:
        if frame_of_reference_uid is not None:  # some of them may lack it
            slice_.FrameOfReferenceUID = frame_of_reference_uid
        if "ImageOrientationPatient" in source:
            slice_.ImageOrientationPatient = source.ImageOrientationPatient
        if not np.isfinite(_number(slice_, "SliceThickness")):
            slice_.SliceThickness = None
    if "SpecificCharacterSet" in source and not source.SpecificCharacterSet:
        del source.SpecificCharacterSet
    names = source.get("SpecificCharacterSet") or ()
    if not {*([names] if isinstance(names, str) else names)} <= _CHARACTER_SETS:
        source.decode()
        source.SpecificCharacterSet = "ISO_IR 192"


def _share_grid(source: Dataset, first: int) -> None:
    """Move the functional groups of orientation and pixel spacing of one frame (from 0) to the shared ones."""
    if not source.get("SharedFunctionalGroupsSequence"):
        source.SharedFunctionalGroupsSequence = [Dataset()]
    shared, frames = source.SharedFunctionalGroupsSequence[0], source.PerFrameFunctionalGroupsSequence
    for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if keyword not in shared:
            shared[keyword] = frames[first][keyword]
            for frame in frames:
                del frame[keyword]


def _number(source: Dataset, keyword: str) -> float:
    """Return a number, NaN if there is none."""
    try:
        return float(source.get(keyword))
    except READ_ERRORS:
        return np.nan


def _positions(slices: Sequence[Dataset]) -> NDArray[np.float64]:
    """Return ImagePositionPatient of each slice, (Z, 3) mm."""
    return np.array([slice_.ImagePositionPatient for slice_ in slices], dtype=np.float64)


def _grid_positions(facts: MaskFacts) -> NDArray[np.float64]:
    """Return the position of each slice of the masks' own, even grid, (Z, 3) mm."""
    affine = np.asarray(facts.affine)
    positions: NDArray[np.float64] = affine[:3, 3] + np.arange(len(facts.sop_instance_uids))[:, None] * affine[:3, 0]
    return positions


def _segment(number: int, label: Lesion, version: str) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=label.title,
        segmented_property_category=_CATEGORY,
        segmented_property_type=Code(label.snomed_code, "SCT", label.snomed_meaning),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="cohortseg", family=codes.DCM.ArtificialIntelligence, version=version
        ),
        anatomic_regions=[_LUNG],
        display_color=hd.color.CIELabColor.from_rgb(*label.rgb),
    )
