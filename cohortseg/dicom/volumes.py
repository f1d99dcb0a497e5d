"""From the files of one series to its volumes, none of which mixes planes, frames of reference, kernels or kinds."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import date
from functools import lru_cache
from itertools import pairwise
from math import inf
from operator import attrgetter
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from cohortseg.dicom.geometry import (
    COSINE_ATOL,
    SAME_POSITION_MM,
    TILT_TOLERANCE_DEG,
    agree,
    irregular,
    is_orthonormal,
    on_grid,
    rounded,
    slice_normal,
    spacing_tolerance_mm,
    stack_slices,
)
from cohortseg.dicom.headers import PLACE, Header, common, common_spacing
from cohortseg.dicom.rules import image_kind
from cohortseg.dicom.visits import visit_numbers

Reals: TypeAlias = tuple[float, ...]
Reals64: TypeAlias = NDArray[np.float64]
_Item = TypeVar("_Item")

_PHASE: Final = "temporal_position"
_SCANS: Final = (
    "acquisition_number",
    _PHASE,
    "cardiac_phase_pct",
    "respiratory_phase_pct",
    "acquisition_time",
    "stack_id",
)
_NUMBERED: Final = (_PHASE, "respiratory_phase_pct", "cardiac_phase_pct", "acquisition_number")
_THICKNESS: Final = "slice_thickness_mm"
_OF_BOLUS: Final = ("acquisition_number", _THICKNESS, "series_description")
_KVP: Final = "kvp"
_DESCRIBED: Final = ("series_description", _THICKNESS, "image_type", _KVP)
MAX_VOLUMES: Final = 16
"""A patient's series that would split into more is left whole, and skipped as mixed: scanners make no such parts, but
for scans of more than two slices each, one of which reaches over nearly all: phases, or images beside a scan."""
MAX_LONE: Final = 2
"""It is left whole, too, if more single slices than this (scouts) would make up at least half of it."""
_FEW_LOST: Final = 1.25
"""Slices of one scan extend over at most this many times what they would if none were lost."""
_ORIGIN_MM: Final = 0.1
"""In-plane origins that differ by more than this belong to two scans."""
MAX_STRAYS: Final = 2
"""Up to this many slices without a position or an orientation are split off; with more, the series is skipped."""
_FEW: Final = 2
"""Up to this many slices that alternate with others are not a scan of their own."""
_LEAST_SCAN: Final = 10
"""With more slices than this a stack is a scan, and images of one place beside it are not slices that it lacks."""
_OTHER_SPACING_MM: Final = 2e-3
"""PixelSpacing that differs by more than this is that of another reconstruction; less is rounding (and the series is
skipped if it is more than `common_spacing` allows)."""
_BROKEN_MM: Final = 50.0
"""Slabs of one spacing that follow each other at up to this distance are one scan that lacks slices in between."""
_OVERLAP_SHARE: Final = 0.5
"""Slabs overlap by at most this part of the shortest; more are scans of nearly the same place."""
_SLAB_MM: Final = 240.0
"""A part this long or longer can hold all of the lungs, and is no slab."""
_LEAST_CHEST_MM: Final = 200.0
"""A shorter part does not hold the lungs of a grown person: half a chest must not stand for the whole."""
FRAGMENT_SHARE: Final = 0.2
"""A part of a series with fewer slices than this part of those of the largest part like it is a fragment."""
SERIES_COVERAGE_SHARE: Final = 0.8
"""A volume that extends over less than this part of all volumes of its series together covers it in part."""


def split_volumes(headers: Sequence[Header]) -> list[list[Header]]:
    """Return the slices of one series, volume by volume.

    One or two slices without a position or an orientation are split off. A volume has one patient, study, visit (study
    dates on both sides of midnight are one), orientation, frame of reference, kernel, image size, pixel spacing and
    kind (SOP class, scout, projection); but slices of one grid that were filed under several patients, studies or
    dates stay together, and are skipped. A scan may number its acquisitions slice by slice, and has a time for each
    slice; acquisitions and times therefore split a series only where each is a regular stack of several slices and all
    together are no regular stack, or alternate, or where all but one acquisition are images of one place.

    Parameters
    ----------
    headers
        With one SeriesInstanceUID, copies dropped, at least one.

    Returns
    -------
    list of list of Header
        The volume with most slices first; of equal ones the first phase, so that dates are compared at the same.
    """
    planes = rounded((header.image_orientation_patient for header in headers), COSINE_ATOL)
    planes |= {plane: None for plane in planes if not _is_usable(plane)}
    spacings = rounded((header.pixel_spacing_mm for header in headers), _OTHER_SPACING_MM)
    several_spacings = len(set(spacings.values()) - {None}) > 1
    known_planes = Counter(plane for header in headers if (plane := planes[header.image_orientation_patient]))
    main_plane = max(sorted(known_planes), key=known_planes.__getitem__, default=None)
    strays = Counter(image_kind(header) for header in headers if _is_stray(header))
    told_apart = [
        name for name in ("frame_of_reference_uid", "convolution_kernel") if len(_known_values(headers, name)) > 1
    ]
    visits = visit_numbers(header.study_date for header in headers)

    def part_of(header: Header) -> Hashable:
        kind = image_kind(header)
        part_strays = strays[kind] <= MAX_STRAYS
        return (
            kind,
            planes[header.image_orientation_patient] or (None if part_strays else main_plane),
            part_strays and _is_stray(header),
            *(getattr(header, name) for name in told_apart),
            header.rows,
            header.columns,
            # Where the known spacings agree, a slice without one is not split off: the series is skipped.
            spacings[header.pixel_spacing_mm] if several_spacings else None,
        )

    parts = _grouped(headers, part_of)
    for name in ("patient_id", "study_instance_uid"):
        parts = [scan for part in parts for scan in _filed_apart(part, attrgetter(name))]
    parts = [visit for part in parts for visit in _visits(part, visits)]
    persons = _grouped(parts, lambda part: part[0].patient_id)
    volumes = [volume for person in persons for part in _few_parts(person) for volume in _acquisitions(part)]
    return sorted(
        volumes, key=lambda volume: (-len(volume), _numbers(volume), min(header.sop_instance_uid for header in volume))
    )


def _numbers(volume: Sequence[Header]) -> list[float]:
    """Return phase, acquisition and so on, to sort by; infinity where slices do not share or state it."""
    return [inf if (value := common(volume, name)) is None else float(value) for name in _NUMBERED]


def _few_parts(parts: list[list[Header]]) -> list[list[Header]]:
    """Return the parts of one patient's series, or the whole if a scanner does not make such parts."""
    whole = [header for part in parts for header in part]
    lone = sum(len(part) == 1 for part in parts)
    return [whole] if len(parts) > MAX_VOLUMES or (lone > MAX_LONE and 2 * lone >= len(whole)) else parts


def _visits(headers: Sequence[Header], visits: Mapping[date | None, int]) -> list[list[Header]]:
    """Return slices by visit; all together if they are slices of one scan, but for few with another date than most."""

    def visit(header: Header) -> Hashable:
        return visits[header.study_date]

    groups = _grouped(headers, visit)
    if len(groups) == 1:
        return groups
    most = max(map(len, groups))
    few = [group for group in groups if len(group) < FRAGMENT_SHARE * most]
    large = [group for group in groups if len(group) >= FRAGMENT_SHARE * most]
    rest = [header for group in large for header in group]
    # The slices of one visit may happen to lie halfway between those of another.
    rest_mm = extent_mm(rest)
    are_whole = all(_is_regular(group) and _covers(group, rest_mm) for group in large)
    return [*(large if are_whole else _filed_apart(rest, visit)), *few]


def _filed_apart(headers: list[Header], key: Callable[[Header], Hashable]) -> list[list[Header]]:
    """Return slices by patient, study or visit; all together if they are slices of one scan filed under several."""
    return _grouped(headers, key) if _are_scans(headers, key) else [headers]


def _are_scans(headers: Sequence[Header], key: Callable[[Header], Hashable]) -> bool:
    """Return whether a key tells scans apart, rather than slices of one scan that were filed under two names.

    Slices of one scan share an in-plane origin, have different positions, and lie on one grid, of which a few may be
    lost.
    """
    groups = _grouped([header for header in headers if key(header) is not None], key)
    if len(groups) < 2:
        return False
    if any(all(map(_is_stray, group)) for group in groups):
        return True
    slices = [[header for header in group if not _is_stray(header)] for group in groups]
    normal = slice_normal(slices[0][0].image_orientation_patient or ())
    points = [np.array([header.image_position_patient for header in group]) for group in slices]
    origins = [np.median(group - np.outer(group @ normal, normal), axis=0) for group in points]
    if any(np.abs(origin - origins[0]).max() > _ORIGIN_MM for origin in origins):
        return True
    distances_mm = np.diff(np.sort(np.concatenate([group @ normal for group in points])))
    if distances_mm.min() <= SAME_POSITION_MM or distances_mm.max() > _BROKEN_MM:
        return True
    few_lost = np.median(distances_mm) * len(distances_mm) * _FEW_LOST >= distances_mm.sum()
    return not few_lost or not on_grid(distances_mm)


def _known_values(headers: Sequence[Header], name: str) -> set[str]:
    """Return the known values of an attribute; where there is only one, slices that lack it are not split off."""
    return {value for header in headers if (value := getattr(header, name)) is not None}


def _grouped(items: Iterable[_Item], key: Callable[[_Item], Hashable]) -> list[list[_Item]]:
    groups: defaultdict[Hashable, list[_Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())


def _acquisitions(headers: list[Header]) -> list[list[Header]]:
    """Return the slices, split by the first of acquisition, phase, time and so on that makes regular stacks of them.

    A regular whole is split by phases, unless they are slabs of one phase each, and by other attributes only if each
    part covers nearly all of it: those are scans whose slices happen to alternate (SliceThickness or KVP alone do not
    show that). A whole that is not regular is split by any scan attribute; descriptions, thickness, image type and KVP
    split it if each part covers nearly all of it; the first three also if one part holds all others, or if the parts
    follow each other and one can hold all of the lungs. Slabs of one scan with slices missing in between, or that
    overlap, are kept as a whole, so that none stands for the lungs.
    """
    regular = _is_regular(headers)
    if not regular and (parts := _scan_and_bolus(headers)):
        return parts
    # A scan may go on past midnight.
    scans = _SCANS if regular else (*_SCANS, "study_date")
    never_one = {_PHASE} if regular else {*scans}
    described = [name for name in _DESCRIBED if not (regular and name in (_THICKNESS, _KVP))]
    for name in (*scans, *described):
        parts = _regular_parts(headers, name)
        if not parts or (not regular and _are_one_broken_scan(parts)):
            continue
        if regular and name == _PHASE and _are_in_order(parts):
            continue
        whole_mm = extent_mm(headers)
        large = all(len(part) > _FEW for part in parts)
        apart = not regular and name != _KVP and (_follow_each_other(parts) or _are_within_one(parts))
        if name in never_one or (large and (apart or all(_covers(part, whole_mm) for part in parts))):
            return parts
    return [headers]


def _regular_parts(headers: Sequence[Header], name: str) -> list[list[Header]]:
    """Return the slices grouped by an attribute if the groups are several regular stacks; else nothing."""
    parts = _grouped(headers, attrgetter(name))
    fewest = min(map(len, parts))
    if len(parts) < 2 or fewest < 2 or not all(map(_is_regular, parts)):
        return []
    if len(parts) <= MAX_VOLUMES:
        return parts
    whole_mm = extent_mm(headers)
    return parts if fewest > _FEW and any(_covers(part, whole_mm) for part in parts) else []


def _follow_each_other(parts: Sequence[Sequence[Header]]) -> bool:
    """Return whether none of several stacks reaches into another, and one is long enough to hold all of the lungs."""
    return max(map(extent_mm, parts)) >= _LEAST_CHEST_MM and _are_in_order(parts)


def _are_within_one(parts: Sequence[Sequence[Header]]) -> bool:
    """Return whether one of several stacks reaches over all others, of which none is a fragment."""
    heights_mm = [_heights_mm(part) for part in parts]
    longest = max(heights_mm, key=np.ptp)
    low, high = longest.min() - SAME_POSITION_MM, longest.max() + SAME_POSITION_MM
    return all(
        heights.size >= FRAGMENT_SHARE * longest.size and low <= heights.min() and heights.max() <= high
        for heights in heights_mm
    )


def _are_in_order(parts: Sequence[Sequence[Header]]) -> bool:
    """Return whether none of several stacks reaches into another."""
    heights_mm = sorted((_heights_mm(part) for part in parts), key=np.min)
    return all(above.min() - below.max() > SAME_POSITION_MM for below, above in pairwise(heights_mm))


def _are_one_broken_scan(parts: Sequence[Sequence[Header]]) -> bool:
    """Return whether regular stacks are slabs of one spacing that follow each other, none of which can stand for all.

    Slices are missing in between, or the slabs are short and overlap.
    """
    whole_mm = extent_mm([header for part in parts for header in part])
    longest_mm = max(map(extent_mm, parts))
    if longest_mm >= _SLAB_MM or any(_covers(part, whole_mm) for part in parts):
        return False
    heights_mm = [np.sort(_heights_mm(part)) for part in parts]
    heights_mm.sort(key=lambda heights: float(heights[0]))
    steps_mm = np.concatenate([np.diff(heights) for heights in heights_mm])
    gaps_mm = [float(above[0] - below[-1]) for below, above in pairwise(heights_mm)]
    if max(gaps_mm) > _BROKEN_MM or not on_grid(steps_mm):
        return False
    spacing = float(np.median(steps_mm))
    tolerance_mm = spacing_tolerance_mm(spacing)
    # Two slices may be the ends of a slab of three that lost its middle one; more slices so far apart are another scan.
    if any(heights.size > 2 and np.diff(heights).min() > spacing + tolerance_mm for heights in heights_mm):
        return False
    if min(gaps_mm) < spacing - tolerance_mm:
        shortest_mm = min(map(extent_mm, parts))
        return longest_mm < _LEAST_CHEST_MM and -min(gaps_mm) <= _OVERLAP_SHARE * shortest_mm
    return float(steps_mm.max()) > spacing + tolerance_mm or max(gaps_mm) > spacing + tolerance_mm


def _scan_and_bolus(headers: Sequence[Header]) -> list[list[Header]]:
    """Return the scan of a series and the rest, if the rest show one place (to watch a bolus arrive); else nothing."""
    for name in _OF_BOLUS:
        groups = _grouped(headers, attrgetter(name))
        scan = max(groups, key=len)
        rest = [header for part in groups if part is not scan for header in part]
        places = {header.image_position_patient for header in rest}
        if len(places) != 1 or None in places or not len(rest) < len(scan) > _LEAST_SCAN or not _is_regular(scan):
            continue
        # A single image beyond the scan may be its last slice, after some that are lost.
        if len(rest) > 1 or extent_mm([*scan, *rest]) <= extent_mm(scan) + SAME_POSITION_MM:
            return [scan, rest]
    return []


def is_told_otherwise(volume: Sequence[Header], volumes: Sequence[Sequence[Header]]) -> bool:
    """Return whether slices of a volume are in others of the same visit with another orientation or spacing.

    SOPInstanceUID and position are the same: files were corrected and sent again, and which are right is not known. Few
    such copies (`FRAGMENT_SHARE`) contradict nothing.
    """
    others = {
        _identity(header): header for other in of_same_visit(volume, volumes) if other is not volume for header in other
    }
    count = sum(
        (other := others.get(_identity(header))) is not None and _is_corrected(header, other) for header in volume
    )
    return count >= FRAGMENT_SHARE * len(volume)


def _identity(header: Header) -> Hashable:
    return header.sop_instance_uid, header.frame, header.patient_id, header.study_instance_uid


def _is_corrected(header: Header, other: Header) -> bool:
    """Return whether two headers state one position, but two orientations or spacings; a missing one agrees."""
    agreed = {
        name: None in (values := [getattr(header, name), getattr(other, name)]) or agree(values, tolerance)
        for name, tolerance in PLACE.items()
    }
    return agreed.pop("image_position_patient") and not all(agreed.values())


def covers_in_part(volume: Sequence[Header], alike: Sequence[Sequence[Header]]) -> bool:
    """Return whether the volumes that are like this one (`volumes_like`) reach much farther along its normal."""
    return len(alike) > 1 and not _covers(volume, extent_mm([header for other in alike for header in other]))


def volumes_like(volume: Sequence[Header], volumes: Sequence[Sequence[Header]]) -> list[Sequence[Header]]:
    """Return the volumes of a series with the patient, study, kind and plane of this one, itself included."""
    planes = _planes(volume)
    if not planes:
        return [volume]
    alike = (other for other in volumes if _what(other[0]) == _what(volume[0]))
    return [
        other
        for other in alike
        if other is volume or ((others := _planes(other)) and agree([*planes, *others], 2 * COSINE_ATOL))
    ]


def _planes(volume: Sequence[Header]) -> set[Reals]:
    """Return the different direction cosines of a volume's slices, as far as they are usable."""
    planes = {header.image_orientation_patient for header in volume}
    return {plane for plane in planes if plane is not None and _is_usable(plane)}


def of_same_visit(volume: Sequence[Header], volumes: Sequence[Sequence[Header]]) -> list[Sequence[Header]]:
    """Return the volumes of a series whose study date belongs to the visit of this one, itself included."""
    visits = visit_numbers(header.study_date for other in volumes for header in other)
    return [other for other in volumes if visits[other[0].study_date] == visits[volume[0].study_date]]


def _what(header: Header) -> Hashable:
    """Return the patient, study and kind of an image."""
    return header.patient_id, header.study_instance_uid, image_kind(header)


def _covers(part: Sequence[Header], whole_mm: float) -> bool:
    """Return whether some slices cover most of the extent of the whole."""
    return extent_mm(part) >= SERIES_COVERAGE_SHARE * whole_mm


def extent_mm(headers: Sequence[Header]) -> float:
    """Return the extent of slices of one orientation along their normal, mm."""
    heights_mm = _heights_mm(headers)
    return float(np.ptp(heights_mm)) if heights_mm.size else 0.0


def _heights_mm(headers: Sequence[Header]) -> Reals64:
    """Return the heights along their normal, mm, of slices of one orientation, as far as they have a position."""
    plane = next(filter(_is_usable, (header.image_orientation_patient for header in headers)), None)
    if plane is None:
        return np.empty(0)
    points = [header.image_position_patient for header in headers if header.image_position_patient is not None]
    return np.array(points).reshape(-1, 3) @ slice_normal(plane)


def has_strays(volume: Sequence[Header], volumes: Sequence[Sequence[Header]]) -> bool:
    """Return whether slices of a volume's kind were split off because they lack a position or an orientation."""
    others = (other[0] for other in volumes if other is not volume and _what(other[0]) == _what(volume[0]))
    return any(map(_is_stray, others))


def _is_stray(header: Header) -> bool:
    """Return whether a slice lacks a position or a usable orientation."""
    return header.image_position_patient is None or not _is_usable(header.image_orientation_patient)


@lru_cache(maxsize=1024)
def _is_usable(orientation: Reals | None) -> bool:
    """Return whether an orientation is known and orthonormal; cached, since most slices of a series share one."""
    return orientation is not None and is_orthonormal(orientation)


def _is_regular(headers: Sequence[Header]) -> bool:
    """Return whether slices are one stack: every position once, even spacing, no tilt."""
    positions = [header.image_position_patient for header in headers if header.image_position_patient is not None]
    orientation, spacing = headers[0].image_orientation_patient, common_spacing(headers)
    if len(positions) < len(headers) or orientation is None or spacing is None or not _is_usable(orientation):
        return False
    stack = stack_slices(positions, orientation, spacing)
    regular = not len(irregular(stack.distances_mm)) and not (stack.distances_mm < SAME_POSITION_MM).any()
    return regular and stack.tilt_deg <= TILT_TOLERANCE_DEG
