"""Rules for which series are one axial CT volume in HU, with the reason in plain words why others are not."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID, CTImageStorage, SecondaryCaptureImageStorage

from cohortseg import qc
from cohortseg.config import RESAMPLE, UNTILT
from cohortseg.dicom.frames import ENHANCED_CT
from cohortseg.dicom.geometry import (
    AXIS_TOLERANCE_DEG,
    SAME_POSITION_MM,
    TILT_TOLERANCE_DEG,
    Stack,
    angle_to_axis_deg,
    irregular,
    on_grid,
    plane_name,
    spacing_tolerance_mm,
)
from cohortseg.dicom.headers import Header, common_spacing
from cohortseg.dicom.names import names_spectral
from cohortseg.dicom.visits import MIDNIGHT_DAYS

MAX_WIDTH_MM: Final = 1000.0
"""Longest side of an image accepted: scanners reconstruct less than 800 mm; a longer one is not in mm."""
MIN_PIXEL_MM: Final = 0.1
"""Narrowest pixels accepted: 1024 of them in a child's chest have .2 mm; narrower ones are not in mm."""
MAX_SIDE: Final = 4096
"""Largest Rows and Columns accepted: four times what CT scanners write; guards memory against damaged headers."""
MAX_VOXELS: Final = 2**31
"""Largest volume accepted: 2048 slices of 1024 x 1024, 4 GiB as int16."""
MAX_BRIDGED_MM: Final = 10.0
"""Longest distance between slices over which resampling, if asked for, interpolates."""
MAX_SPACING_MM: Final = 50.0
"""Slices that are all farther apart make no volume: two slices 140 mm apart would stand for all that lies between."""
MAX_UNTILTED_DEG: Final = 30.0
"""Largest shear that is set upright, if asked for: gantries tilt no farther."""
MAX_FILLED: Final = 3.0
"""Most slices that resampling may make per slice that exists; more would be invented rather than measured."""
_OTHER_UNITS: Final = {"OD", "HU_MOD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}
_REFORMAT_WORDS: Final = {"DERIVED", "REFORMATTED", "MPR"}
# ImageType and FrameType of the vendors, and the terms of PS3.3 C.8.16.2: volume calculation, derived pixel contrast.
_PROJECTION_WORDS: Final = {
    *("MIP", "MINIP", "MAXIP", "MPROJECTION", "PROJECTION", "PROJECTIONIMAGE", "MAXIMUM", "MINIMUM", "MAX", "MIN"),
    *("VRT", "SSD", "VOLUMERENDERED", "VOLUMERENDER", "SURFACERENDER", "RENDERED"),
    *("CURVEDMPR", "SUBTRACTION", "STDDEVIATION", "MULTIPLICATION", "DIVISION", "PERFUSION"),
}
# ImageType of images computed from several energies (PS3.3 C.8.15.2.1.1.5). Those of the first set are not in HU.
_MATERIAL_WORDS: Final = {"MATSPECIFIC", "MATFRACTIONAL", "MATVALUEBASED", "EFFATOMICNUM", "ELECTRONDENSITY"}
_SPECTRAL_WORDS: Final = {"VMI", "MATREMOVED", "MATMODIFIED"}
_PROJECTION_NAME: Final = re.compile(
    r"(?<![A-Z])((LUNG ?)?(MIP|MINIP|MAXIP)(S|AX|COR|SAG)?|VRT|M(AX|IN)(IMUM)? ?(INTENSITY( PROJECTION)?|IPS?))"
    r"(?![A-Z])",
    re.IGNORECASE,
)
_PICTURE_WORDS: Final = {"SCREENSAVE", "SCREENCAPTURE", "PROT", "DOSEINFO"}
_SCOUT_WORDS: Final = {"LOCALIZER", "SCOUT", "TOPOGRAM", "TOP"}


@dataclass(frozen=True)
class Problem:
    """Why a series is skipped, and the flag that goes with it."""

    reason: str
    flag: str | None = None


def image_type_words(header: Header) -> frozenset[str]:
    """Return the values of ImageType and their words, in capitals, also without separators (MAX_IP, MAX IP: MAXIP).

    PERFUSION is left out of original images, which it says to be of a perfusion scan; a map made from them is derived.
    """
    return _words((*header.image_type, header.volume_calculation or ""))


@lru_cache
def _words(image_type: tuple[str, ...]) -> frozenset[str]:
    values = [value.upper() for value in image_type]
    words = {word for value in values for word in re.split(r"[^A-Z0-9]+", value)}
    words |= {re.sub(r"[^A-Z0-9]+", "", value) for value in values}
    return frozenset(words - {"", "PERFUSION" if "ORIGINAL" in words else ""})


def reformat_words(header: Header) -> frozenset[str]:
    """Return the words of ImageType by which an image is computed from others.

    DERIVED is none of them where a lossy compression explains it: that makes an original image DERIVED, and leaves it
    PRIMARY (PS3.3 C.7.6.1.1.2). (With PERFUSION it still counts as a map, as those are DERIVED and PRIMARY, too.)
    """
    words = image_type_words(header)
    return words & _REFORMAT_WORDS - ({"DERIVED"} if header.lossy and "PRIMARY" in words else set())


def names_projection(header: Header) -> bool:
    """Return whether the series' description names a projection or rendering."""
    return _PROJECTION_NAME.search(re.sub("[_-]", " ", header.series_description or "")) is not None


def is_spectral(header: Header) -> bool:
    """Return whether an image is computed from several energies, by ImageType or the series' description."""
    return bool(image_type_words(header) & _SPECTRAL_WORDS) or names_spectral(header.series_description)


def image_kind(header: Header) -> str:
    """Return the kind of image by ImageType, modality and SOP class; images of different kinds are never one volume."""
    words = image_type_words(header)
    kinds = (("scout", _SCOUT_WORDS), ("projection", _PROJECTION_WORDS), ("picture", _PICTURE_WORDS))
    kind = next((name for name, known in kinds if words & known), "slice")
    return f"{kind} {header.modality or 'CT'} {header.sop_class_uid}"


def content_problem(headers: Sequence[Header]) -> Problem | None:
    """Return why these files are not the slices of one CT image in HU (the first rule that they break), or None."""
    for rule in (_kind_problem, _source_problem, _image_type_problem, _pixel_problem, _rescale_problem):
        reason = rule(headers)
        if reason is not None:
            return Problem(reason)
    return None


def _shown(values: Iterable[object]) -> str:
    """Return header values as short plain text: a header can hold 10 kB of anything in place of a code."""
    return " and ".join(sorted(re.sub(r"[^A-Za-z0-9_ .-]", "?", str(value))[:32] for value in values))


def _kind_problem(headers: Sequence[Header]) -> str | None:
    """Return what is wrong with modality or SOP class, or None."""
    other = {header.modality for header in headers} - {"CT", None}
    if other:
        return f"modality is {_shown(other)}, not CT"
    classes = sorted({header.sop_class_uid for header in headers} - {CTImageStorage, *ENHANCED_CT}, key=str)
    if not classes:
        return None
    if classes[0] is None:
        return "SOPClassUID is missing: the kind of object is not known"
    if classes[0] == SecondaryCaptureImageStorage:
        return "secondary capture (a picture of a screen or a scanned page), not a CT image"
    return f"{_shown([UID(classes[0]).name])}, not a CT image"


def _source_problem(headers: Sequence[Header]) -> str | None:
    """Return why files are not of one patient, study, frame of reference, kernel, SOP class and date, or None."""
    for name, title, needed in (
        ("patient_id", "patients", "PatientID"),
        ("study_instance_uid", "studies", "StudyInstanceUID"),
        ("frame_of_reference_uid", "frames of reference", None),
        ("convolution_kernel", "kernels", None),
        ("sop_class_uid", "SOP classes", "SOPClassUID"),
    ):
        values = Counter(getattr(header, name) for header in headers)
        lacking = values.pop(None, 0)
        if len(values) > 1:
            return f"mixed: files of {len(values)} {title} share this SeriesInstanceUID"
        if needed and values and lacking:
            return f"mixed: {lacking} of {len(headers)} files lack the {needed} that the others have"
    dates = [header.study_date for header in headers if header.study_date is not None]
    if dates and (max(dates) - min(dates)).days > MIDNIGHT_DAYS:
        return f"mixed: files of {len(set(dates))} study dates share this SeriesInstanceUID"
    return None


def _image_type_problem(headers: Sequence[Header]) -> str | None:
    """Return why files are scouts, projections, maps or pictures, or None.

    ImageType decides; if it is absent or names a reformat, SeriesDescription can also name a projection.
    """
    words = set().union(*map(image_type_words, headers))
    if words & _SCOUT_WORDS:
        return "localizer (scout), not a slice"
    # Where ImageType says that slices are original, a description is no proof: it only raises a flag.
    by_name = (not words or any(map(reformat_words, headers))) and any(map(names_projection, headers))
    if words & _PROJECTION_WORDS or by_name:
        return "projection, rendering or map (for example MIP): its values are not those of one slice"
    if words & _MATERIAL_WORDS:
        return "map of a material, of atomic numbers or of electron density: its values are not HU"
    if words & _PICTURE_WORDS:
        return "screen capture or protocol page, not a slice"
    return None


def _pixel_problem(headers: Sequence[Header]) -> str | None:
    """Return what is wrong with pixel format or image size, or None."""
    if any(header.rows is None or header.columns is None for header in headers):
        return "no image: Rows or Columns are missing"
    if any(header.frame is None and header.sop_class_uid in ENHANCED_CT for header in headers):
        return "enhanced multi-frame CT whose functional groups are missing, damaged, or not one a frame"
    if any(header.frame is None and (header.number_of_frames or 1) > 1 for header in headers):
        return "multi-frame files of a single-frame SOP class: the place of each frame is not known"
    if any((header.samples_per_pixel or 1) != 1 for header in headers):
        return "colour image, not HU"
    kinds = {header.photometric_interpretation for header in headers} - {"MONOCHROME1", "MONOCHROME2"}
    if kinds:
        count = sum(header.photometric_interpretation in kinds for header in headers)
        return (
            f"PhotometricInterpretation is {_shown(kind or 'missing' for kind in kinds)} in {count} of {len(headers)} "
            "slices; CT in HU is MONOCHROME2 or MONOCHROME1"
        )
    sizes = sorted({(header.rows or 0, header.columns or 0) for header in headers})
    if len(sizes) > 1:
        return "different image sizes: " + ", ".join(f"{rows} x {columns}" for rows, columns in sizes[:4])
    if not all(1 <= side <= MAX_SIDE for side in sizes[0]):
        return f"image size must be 1 to {MAX_SIDE} pixels a side, got {sizes[0][0]} x {sizes[0][1]}"
    if len(headers) * sizes[0][0] * sizes[0][1] > MAX_VOXELS:
        return f"volume must be at most {MAX_VOXELS} voxels, got {len(headers)} x {sizes[0][0]} x {sizes[0][1]}"
    return None


def _rescale_problem(headers: Sequence[Header]) -> str | None:
    """Return why values are not Hounsfield units, or None."""
    if any(header.rescale_slope is None or header.rescale_intercept is None for header in headers):
        return "RescaleSlope or RescaleIntercept is missing, or not one number: values are not in HU"
    if any(header.rescale_slope == 0 for header in headers):
        return "RescaleSlope is 0: values are not in HU"
    # PS3.3 C.11.1.1.2. Absent means HU in CT (C.8.2.1); US ("unspecified") and free text are left to the HU check.
    types = {(header.rescale_type or "HU").upper() for header in headers} & _OTHER_UNITS
    return f"values are not in HU: RescaleType is {_shown(types)}" if types else None


def geometry_problem(
    headers: Sequence[Header], orientation: str | None, stack: Stack | None, repair: Sequence[str] = ()
) -> Problem | None:
    """Return why these slices are not one axial volume (the first rule that they break), or None.

    ``repair`` names findings that are resampled later, and so are no problem: see `needed_repairs`.
    """
    if orientation == "mixed":
        return Problem(_mixed_reason(headers), qc.MIXED_ORIENTATION)
    if orientation is None:
        return Problem("ImageOrientationPatient is missing or not two perpendicular unit vectors")
    if orientation != "axial":
        return Problem(_not_axial_reason(headers[0], orientation))
    narrowest_mm, width_mm = min(headers[0].pixel_spacing_mm or (0,)), _width_mm(headers[0])
    if common_spacing(headers) is None or narrowest_mm <= 0:
        return Problem("PixelSpacing is missing, not two positive numbers, or differs between slices")
    if narrowest_mm < MIN_PIXEL_MM:
        return Problem(f"PixelSpacing is {narrowest_mm:.3g} mm: less than in any CT of a chest")
    if width_mm > MAX_WIDTH_MM:
        return Problem(f"by its size and PixelSpacing the image is {width_mm:.0f} mm wide: more than any CT")
    if stack is None:
        missing = sum(header.image_position_patient is None for header in headers)
        return Problem(f"ImagePositionPatient is missing in {missing} of {len(headers)} files")
    # Of multi-frame files, only wholes with their frames in one order are compared: frames may be equal.
    there = "different pixels" if headers[0].frame is None else "several frames"
    checks: list[Callable[[Stack], Problem | None]] = [partial(_conflict, there)]
    checks += [] if UNTILT in repair and stack.tilt_deg <= MAX_UNTILTED_DEG else [_tilt]
    checks += [_shifted, _far_apart]
    checks += [] if RESAMPLE in repair and _can_be_resampled(stack.distances_mm) else [_uneven]
    problem = next((problem for check in checks if (problem := check(stack)) is not None), _repeated_uid(headers))
    if problem is not None and RESAMPLE in repair and problem.flag in (qc.SLICE_GAP, qc.UNEVEN_SPACING):
        limits = f"up to {MAX_BRIDGED_MM:g} mm apart, and to {MAX_FILLED:g} times the slices"
        return replace(problem, reason=f"{problem.reason}; too much to be resampled ({limits})")
    if problem is not None and UNTILT in repair and problem.flag == qc.GANTRY_TILT:
        return replace(problem, reason=f"{problem.reason}; up to {MAX_UNTILTED_DEG:g} can be set upright")
    return problem


def needed_repairs(stack: Stack, repair: Sequence[str]) -> dict[str, str | None]:
    """Return the repairs that are both needed and allowed by the user, each with the flag of the finding behind it."""
    checks = {UNTILT: _tilt, RESAMPLE: _uneven}
    problems = {name: check(stack) for name, check in checks.items() if name in repair}
    return {name: problem.flag for name, problem in problems.items() if problem is not None}


def _can_be_resampled(distances_mm: NDArray[np.float64]) -> bool:
    """Return whether distances are short enough to interpolate, and make at most `MAX_FILLED` times the slices.

    Near-copies of slices would make the median distance, which becomes the spacing, far too short.
    """
    if not distances_mm.size:
        return True
    filled = 1 + distances_mm.sum() / max(float(np.median(distances_mm)), SAME_POSITION_MM)
    return bool(distances_mm.max() <= MAX_BRIDGED_MM and filled <= MAX_FILLED * (distances_mm.size + 1))


def _width_mm(header: Header) -> float:
    """Return the longer side of the image, mm; 0 if the header does not state it."""
    sizes = zip(header.pixel_spacing_mm or (), (header.rows or 0, header.columns or 0), strict=False)
    return max((spacing * size for spacing, size in sizes), default=0.0)


def _mixed_reason(headers: Sequence[Header]) -> str:
    planes = [plane_name(header.image_orientation_patient) for header in headers if header.image_orientation_patient]
    counts = ", ".join(f"{planes.count(plane)} {plane}" for plane in sorted(set(planes)))
    return f"mixed orientations in one series: {counts}"


def _not_axial_reason(header: Header, orientation: str) -> str:
    noun = "reformat" if reformat_words(header) else "slices"
    angle = f" ({angle_to_axis_deg(header.image_orientation_patient or ()):.0f} degrees off the nearest axis)"
    limit = "" if orientation != "oblique" else f", up to {AXIS_TOLERANCE_DEG:g} degrees off, tilted ones too"
    return f"{orientation} {noun}{angle if orientation == 'oblique' else ''}: only axial series are segmented{limit}"


def _conflict(there: str, stack: Stack) -> Problem | None:
    count = int((stack.distances_mm < SAME_POSITION_MM).sum())
    if not count:
        return None
    return Problem(f"{there} at the same position ({count} of {len(stack.order)} slices)", qc.CONFLICTING_SLICES)


def _tilt(stack: Stack) -> Problem | None:
    if stack.tilt_deg <= TILT_TOLERANCE_DEG:
        return None
    return Problem(f"gantry tilt: slices are sheared by {stack.tilt_deg:.1f} degrees", qc.GANTRY_TILT)


def _shifted(stack: Stack) -> Problem | None:
    if stack.offset_mm <= spacing_tolerance_mm(stack.spacing_z_mm or 0.0):
        return None
    return Problem(f"slices are shifted against each other, by up to {stack.offset_mm:.1f} mm sideways")


def _far_apart(stack: Stack) -> Problem | None:
    if not stack.distances_mm.size or (least := float(stack.distances_mm.min())) <= MAX_SPACING_MM:
        return None
    return Problem(f"slices lie {least:.1f} mm or more apart; those of a volume at most {MAX_SPACING_MM:g} mm")


def _uneven(stack: Stack) -> Problem | None:
    """Return a problem if distances differ beyond tolerance: a gap where slices are missing, else uneven spacing.

    Where more than a third of the distances are wide, it is not said that slices are missing: rather two scans lie
    between each other, or positions were rounded.
    """
    odd = irregular(stack.distances_mm)
    if not len(odd):
        return None
    median = float(np.median(stack.distances_mm))
    multiples = np.rint(stack.distances_mm[odd] / median)
    if 3 * len(odd) <= len(stack.distances_mm) and (multiples >= 2).all() and on_grid(stack.distances_mm):
        first, missing = int(odd[0]), int((multiples - 1).sum())
        where = f"{stack.distances_mm[first]:.2f} mm after slice {first + 1} of {len(stack.order)}"
        return Problem(f"gap: {where}, spacing is {median:.2f} mm, {missing} slice(s) missing in all", qc.SLICE_GAP)
    low, high = float(stack.distances_mm.min()), float(stack.distances_mm.max())
    return Problem(f"uneven spacing: {low:.2f} to {high:.2f} mm between {len(stack.order)} slices", qc.UNEVEN_SPACING)


def _repeated_uid(headers: Sequence[Header]) -> Problem | None:
    count = len(headers) - len({(header.sop_instance_uid, header.frame) for header in headers})
    return Problem(f"{count} slice(s) carry the SOPInstanceUID of another slice") if count else None
