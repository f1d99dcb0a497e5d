"""From the headers of one volume to its manifest row: identity, geometry, findings, and whether it is segmented."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal

import numpy as np

from cohortseg import qc
from cohortseg.config import RESAMPLE, UNTILT
from cohortseg.dicom.geometry import (
    AXIS_TOLERANCE_DEG,
    COSINE_ATOL,
    SPACING_DIGITS,
    Stack,
    agree,
    irregular,
    is_orthonormal,
    plane_name,
    stack_slices,
)
from cohortseg.dicom.headers import Header, common, common_spacing
from cohortseg.dicom.names import named_after_other_study, names_expiration, names_other_parts
from cohortseg.dicom.rules import (
    content_problem,
    geometry_problem,
    is_spectral,
    names_projection,
    needed_repairs,
    reformat_words,
)
from cohortseg.dicom.visits import MIDNIGHT_DAYS
from cohortseg.identity import series_key

THICK_MM: Final = 5.05
"""Slices thicker or farther apart than this are thick: 5 mm, with room for rounding."""
SPARSE_RATIO: Final = 1.5
"""Slices are sparse if their spacing is more than this many times their thickness."""
COARSE_PIXEL_MM: Final = 4.0
"""Wider pixels are coarse: at 2.8 mm a quarter more lesion is found in mildly ill lungs, at 5.7 mm three times as much;
attenuation scans of PET have 4 mm at most."""

_NOT_ALPHANUMERIC: Final = re.compile(r"[\W_]+")
_PLACEHOLDER: Final = re.compile(
    r"ANON(YM(OUS|E|I[SZ]ED?)?)?(PATIENT)?|DEID(ENTIFIED)?|REDACTED|REMOVED|DELETED|DUMMY|UNKNOWN(PATIENT)?|UNSPECIFIED|"
    r"MISSING|EMPTY|BLANK|NONE|NULL|NA|NOTAVAILABLE|NO(PATIENT)?(ID|NAME)|ID|PATIENT(ID)?|TEST|X+|0+"
)
"""Placeholders that tools write as PatientID of any patient, in capitals, reduced to letters and digits."""

_PHASES: Final = {
    "temporal_position": "temporal position {}",
    "cardiac_phase_pct": "cardiac {:g} %",
    "respiratory_phase_pct": "respiratory {:g} %",
}
_FIRST_CT: Final = date(1972, 1, 1)
_COS_AXIS_TOLERANCE: Final = math.cos(math.radians(AXIS_TOLERANCE_DEG))


Decision = Literal["selected", "alternative", "excluded", "skipped"]
"""What becomes of a series: it is measured; another of its study is; --select excludes it; it is not usable."""


@dataclass(frozen=True, kw_only=True)
class SeriesRecord:
    """One row of the manifest; the fields are its columns (meanings: ``store/schemas.py``)."""

    patient_id: str | None
    study_date: date | None
    study_instance_uid: str | None
    series_instance_uid: str
    volume: int
    series_description: str | None
    body_part: str | None
    modality: str | None
    sop_class_uid: str | None
    image_type: tuple[str, ...]
    orientation: str | None
    acquisition_date: date | None
    phase: str | None
    manufacturer: str | None
    manufacturer_model: str | None
    kvp: float | None
    contrast_agent: str | None
    convolution_kernel: str | None
    slice_thickness_mm: float | None
    n_files: int
    n_slices: int
    n_duplicates: int
    extent_mm: float | None
    lowest_z_mm: float | None
    highest_z_mm: float | None
    rows: int | None
    columns: int | None
    spacing_z_mm: float | None
    spacing_y_mm: float | None
    spacing_x_mm: float | None
    qc_flags: tuple[str, ...]
    repairs: tuple[str, ...]
    decision: Decision
    reason: str | None
    series_key: str
    files: tuple[str, ...]
    frames: tuple[int, ...]
    fingerprint: str


def record_from_row(row: Mapping[str, Any]) -> SeriesRecord:
    """Return a manifest row as the record that the scan made."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return SeriesRecord(**fields)


def series_from_headers(
    headers: Sequence[Header],
    *,
    n_duplicates: int = 0,
    volume: int = 1,
    repair: Sequence[str] = (),
    findings: Collection[str] = (),
) -> SeriesRecord:
    """Return the record of one volume of a series, with the decision whether it can be segmented.

    Parameters
    ----------
    headers
        Slices of one volume of a series, copies already dropped, at least one.
    n_duplicates
        Number of files that were dropped as copies.
    volume
        Number of the volume in its series, from 1.
    repair
        Repairs (`RESAMPLE`, `UNTILT`) that the user allows in place of skipping.
    findings
        Flags raised by other files.

    Returns
    -------
    SeriesRecord
        Files in slice order if the slices form a stack, else in the order given.
    """
    orientation = _orientation(headers)
    stack = _stack(headers) if orientation not in (None, "mixed") else None
    if stack is not None:
        headers = [headers[index] for index in stack.order]
    first = headers[0]
    problem = content_problem(headers) or geometry_problem(headers, orientation, stack, repair)
    repairs = needed_repairs(stack, repair) if problem is None and stack is not None else {}
    spacing = common_spacing(headers) or (None, None)
    spacing_z = stack.spacing_z_mm if stack is not None and not len(irregular(stack.distances_mm)) else None
    if stack is not None and RESAMPLE in repairs:
        spacing_z = round(float(np.median(stack.distances_mm)), SPACING_DIGITS)
    positions = [header.image_position_patient for header in headers]
    heights_mm = [position[2] for position in positions if position is not None] if orientation == "axial" else []
    record = SeriesRecord(
        patient_id=common(headers, "patient_id"),
        study_date=_earliest_date(headers),
        study_instance_uid=common(headers, "study_instance_uid"),
        series_instance_uid=first.series_instance_uid,
        volume=volume,
        series_description=first.series_description,
        body_part=_joined(header.body_part for header in headers),
        modality=first.modality,
        sop_class_uid=first.sop_class_uid,
        image_type=first.image_type,
        orientation=orientation,
        acquisition_date=_most_frequent(header.acquisition_date for header in headers),
        phase=_phase(headers),
        manufacturer=first.manufacturer,
        manufacturer_model=first.manufacturer_model,
        kvp=common(headers, "kvp"),
        contrast_agent=_joined(header.contrast_agent for header in headers),
        convolution_kernel=first.convolution_kernel,
        slice_thickness_mm=common(headers, "slice_thickness_mm"),
        n_files=len({header.path for header in headers}) + n_duplicates,
        n_slices=len(headers),
        n_duplicates=n_duplicates,
        extent_mm=None if stack is None else round(float(stack.distances_mm.sum()), SPACING_DIGITS),
        lowest_z_mm=min(heights_mm, default=None),
        highest_z_mm=max(heights_mm, default=None),
        rows=common(headers, "rows"),
        columns=common(headers, "columns"),
        spacing_z_mm=spacing_z or None,  # 0 if all slices are at one position
        spacing_y_mm=spacing[0],
        spacing_x_mm=spacing[1],
        qc_flags=(),
        repairs=tuple(repairs),
        decision="selected" if problem is None else "skipped",
        reason=None if problem is None else problem.reason,
        series_key=series_key(first.series_instance_uid, volume),
        files=tuple(header.path for header in headers),
        frames=tuple(header.frame for header in headers if header.frame is not None),
        fingerprint=_fingerprint(headers, tuple(repairs)),
    )
    found = {*findings, *repairs.values(), None if problem is None else problem.flag}
    return replace(record, qc_flags=_flags(record, headers, found, selected=problem is None))


def _earliest_date(headers: Sequence[Header]) -> date | None:
    """Return the earliest StudyDate: a study that runs past midnight can carry two."""
    return min((header.study_date for header in headers if header.study_date is not None), default=None)


def _joined(texts: Iterable[str | None]) -> str | None:
    """Return the different texts that slices state, joined by a semicolon; None if there are none."""
    return "; ".join(sorted({text for text in texts if text})) or None


def _most_frequent(dates: Iterable[date | None]) -> date | None:
    """Return the date that most slices have, the earlier of equals; None if none has one."""
    counts = Counter(day for day in dates if day is not None)
    return max(sorted(counts), key=counts.__getitem__, default=None)


def _phase(headers: Sequence[Header]) -> str | None:
    """Return the phase that all slices state, as text; None if they state none or differ."""
    shared = {text: common(headers, name) for name, text in _PHASES.items()}
    return "; ".join(text.format(value) for text, value in shared.items() if value is not None) or None


def _are_days_apart(one: date | None, other: date | None) -> bool:
    """Return whether two known dates differ by more than a night."""
    return one is not None and other is not None and abs(one - other) > timedelta(days=MIDNIGHT_DAYS)


def _fingerprint(headers: Sequence[Header], repairs: tuple[str, ...]) -> str:
    """Return a SHA-256 by which a changed input is recognised: over file, identity and geometry of each slice in order.

    Values of the header are included because it can be changed in place, keeping the file's size and time.
    """
    digest = hashlib.sha256()
    for header in headers:
        frame = "" if header.frame is None else f"#{header.frame}"
        placed = (
            *(header.sop_instance_uid, header.transfer_syntax_uid, header.frame_of_reference_uid),
            *(header.image_position_patient, header.image_orientation_patient, header.pixel_spacing_mm),
            *(header.rescale_slope, header.rescale_intercept),
        )
        digest.update(f"{header.path}{frame}\0{header.size_bytes}\0{header.mtime_ns}\0{placed}\n".encode())
    digest.update("".join(f"repair {name}\n" for name in repairs).encode())
    return digest.hexdigest()


def _is_placeholder(patient_id: str | None) -> bool:
    if patient_id is None:
        return False
    letters = _NOT_ALPHANUMERIC.sub("", patient_id).upper()
    return not letters or _PLACEHOLDER.fullmatch(letters) is not None


def _orientation(headers: Sequence[Header]) -> str | None:
    """Return axial, coronal, sagittal, oblique or mixed; None if a file has no usable orientation."""
    cosines = list(dict.fromkeys(header.image_orientation_patient for header in headers))
    usable = [values for values in cosines if values is not None and is_orthonormal(values)]
    if len(usable) < len(cosines):
        return None
    if not agree(usable, 2 * COSINE_ATOL):
        return "mixed"
    return plane_name(usable[0])


def _stack(headers: Sequence[Header]) -> Stack | None:
    """Return the geometry of slices of one orientation, or None if orientation, spacing or a position is missing."""
    positions = [header.image_position_patient for header in headers]
    known = [position for position in positions if position is not None]
    orientation, spacing = headers[0].image_orientation_patient, headers[0].pixel_spacing_mm
    if len(known) < len(positions) or orientation is None or spacing is None:
        return None
    return stack_slices(known, orientation, spacing)


def _flags(
    record: SeriesRecord, headers: Sequence[Header], findings: Collection[str | None], *, selected: bool
) -> tuple[str, ...]:
    """Return all flags, those given and those found in the headers, in the order of `qc.HEADER_FLAGS`."""
    thickness, spacing = record.slice_thickness_mm or 0.0, record.spacing_z_mm or 0.0
    cosines = headers[0].image_orientation_patient
    found: dict[str, bool] = {
        qc.SINGLE_SLICE: selected and len(headers) == 1,
        qc.DERIVED_REFORMAT: selected and any(map(reformat_words, headers)),
        qc.SPECTRAL_IMAGE: selected and any(map(is_spectral, headers)),
        qc.LOSSY_COMPRESSION: any(header.lossy for header in headers),
        qc.BURNED_IN_ANNOTATION: selected and any(header.burned_in_annotation == "YES" for header in headers),
        qc.THICK_SLICES: selected and max(thickness, spacing) > THICK_MM,
        qc.SPARSE_SLICES: selected and 0 < round(SPARSE_RATIO * thickness, SPACING_DIGITS) < spacing,
        qc.COARSE_PIXELS: selected and max(record.spacing_y_mm or 0.0, record.spacing_x_mm or 0.0) > COARSE_PIXEL_MM,
        qc.OTHER_BODY_PART: selected and names_other_parts(record.series_description, record.body_part),
        qc.STUDY_OF_OTHER_PART: selected
        and named_after_other_study(
            (record.series_description, record.body_part), (headers[0].protocol_name, headers[0].study_description)
        ),
        qc.EXPIRATION: selected and names_expiration(record.series_description),
        qc.MAYBE_PROJECTION: selected and any(names_projection(header) for header in headers),
        qc.ROTATED_IN_PLANE: selected and cosines is not None and max(map(abs, cosines[:3])) < _COS_AXIS_TOLERANCE,
        qc.TRANSFER_SYNTAX_MISSING: any(header.transfer_syntax_uid is None for header in headers),
        qc.MONOCHROME1: any(header.photometric_interpretation == "MONOCHROME1" for header in headers),
        qc.RESAMPLED: RESAMPLE in record.repairs,
        qc.UNTILTED: UNTILT in record.repairs,
        qc.DUPLICATES_DROPPED: record.n_duplicates > 0,
        qc.MISSING_PATIENT_ID: all(header.patient_id is None for header in headers),
        qc.PLACEHOLDER_PATIENT_ID: _is_placeholder(record.patient_id),
        qc.MISSING_STUDY_DATE: record.study_date is None,
        qc.EARLY_STUDY_DATE: (record.study_date or date.max) < _FIRST_CT,
        qc.ACQUIRED_ON_ANOTHER_DATE: _are_days_apart(record.study_date, record.acquisition_date),
        qc.FUTURE_STUDY_DATE: (record.study_date or date.min) > datetime.now(UTC).date() + timedelta(days=1),
    }
    assert qc.HEADER_FLAGS.keys() >= {*found, *findings} - {None}, "a flag of headers stands in another dictionary"
    return tuple(flag for flag in qc.HEADER_FLAGS if found.get(flag) or flag in findings)
