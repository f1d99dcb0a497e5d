"""Slices in space: orientation, order and spacing, from positions and direction cosines only."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PLACE_MM: Final = 0.01
"""Positions that differ by no more than this are the same: exports round them."""
PIXEL_SPACING_MM: Final = 1.05e-3
"""PixelSpacing that differs by no more than this is the same: exports round it, or cut it off, to three decimals."""
AXIS_TOLERANCE_DEG: Final = 10.0
"""A series is axial, coronal or sagittal if its normal is within this angle of a patient axis; oblique otherwise."""
COSINE_ATOL: Final = 1e-3
"""Tolerance for direction cosines to be equal, of unit length or perpendicular (0.06 degrees)."""
_SPACING_RTOL: Final = 0.05
_SPACING_ATOL_MM: Final = 0.1
SPACING_DIGITS: Final = 6
"""Decimals of a spacing in mm: further ones are rounding error, and would decide a rule like spacing_z_mm<=0.7."""
SAME_POSITION_MM: Final = 0.01
"""Slices nearer than this to each other along the normal are at the same position."""
TILT_TOLERANCE_DEG: Final = 0.5
"""Slices are sheared if the stack's direction and the slice normal differ by more than this angle."""

_PLANES: Final = ("sagittal", "coronal", "axial")  # normal along LPS x, y, z


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices in order along their normal, which points towards the patient's left, back or head."""

    order: tuple[int, ...]
    """Index of each slice in the input, in stack order."""
    distances_mm: NDArray[np.float64]
    """(N - 1,) mm, >= 0: from each slice to the next, along the normal."""
    spacing_z_mm: float | None
    """Mean of the distances; None for a single slice."""
    tilt_deg: float
    """Angle between first-to-last slice and the normal; 0 for a single slice."""
    offset_mm: float
    """Largest sideways distance of a slice from the line through first and last, mm."""
    affine: NDArray[np.float64]
    """(4, 4): array index (z, y, x) to LPS, mm. For a single slice the first column is the unit normal."""


def rounded(
    vectors: Iterable[tuple[float, ...] | None], tolerance: float
) -> dict[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return for each vector the one that stands for all that differ from it only by rounding, whatever their order.

    Each number becomes the smallest of its run, in which successive numbers differ by at most the tolerance; rounding
    to fixed decimals would separate some. None stands for itself.
    """
    known = {vector for vector in vectors if vector is not None}
    least_of: dict[float, float] = {}
    before, least = -math.inf, -math.inf
    for number in sorted({number for vector in known for number in vector}):
        least = least if number - before <= tolerance else number
        least_of[number], before = least, number
    return {None: None} | {vector: tuple(least_of[number] for number in vector) for vector in known}


def agree(vectors: Collection[Sequence[float]], tolerance: float) -> bool:
    """Return whether no two vectors differ by more than the tolerance in a component."""
    return all(max(column) - min(column) <= tolerance for column in zip(*vectors, strict=True))


def is_orthonormal(orientation: Sequence[float]) -> bool:
    """Return whether ImageOrientationPatient (6,) holds two perpendicular unit vectors."""
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    return bool(np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=2 * COSINE_ATOL, rtol=0))


def slice_normal(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Return the slices' unit normal (3,), pointing towards the patient's left, back or head.

    Parameters
    ----------
    orientation : (6,) direction cosines
        ImageOrientationPatient (0020,0037).
    """
    normal: NDArray[np.float64] = np.cross(
        np.asarray(orientation[:3], dtype=float), np.asarray(orientation[3:], dtype=float)
    )
    if normal[np.abs(normal).argmax()] < 0:
        normal = -normal
    return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def angle_to_axis_deg(orientation: Sequence[float]) -> float:
    """Return the angle between the normal and the nearest patient axis, degrees."""
    return math.degrees(math.acos(min(1.0, float(np.abs(slice_normal(orientation)).max()))))


def plane_name(orientation: Sequence[float]) -> str:
    """Return axial, coronal, sagittal or oblique."""
    if angle_to_axis_deg(orientation) > AXIS_TOLERANCE_DEG:
        return "oblique"
    return _PLANES[int(np.abs(slice_normal(orientation)).argmax())]


def stack_slices(
    positions: Sequence[Sequence[float]], orientation: Sequence[float], pixel_spacing_mm: Sequence[float]
) -> Stack:
    """Order slices along their normal and return their geometry.

    Parameters
    ----------
    positions : (N, 3) mm, LPS
        ImagePositionPatient (0020,0032) of each slice, in any order.
    orientation : (6,) direction cosines
        ImageOrientationPatient (0020,0037), the same for all.
    pixel_spacing_mm : (2,) mm
        PixelSpacing (0028,0030): between rows (y), then between columns (x).

    Returns
    -------
    Stack
        The distances are as found, regular or not: see ``irregular``.

    References
    ----------
    DICOM PS3.3, Equation C.7.6.2.1-1. Its columns are (column index, row index); here they are in array order, with the
    step from slice to slice first.
    """
    points = np.asarray(positions, dtype=float)
    cosines = np.asarray(orientation, dtype=float)
    normal = slice_normal(orientation)
    projections = points @ normal
    order = np.argsort(projections, kind="stable")
    points, projections = points[order], projections[order]
    step, spacing, tilt, offset = normal, None, 0.0, 0.0
    if len(points) > 1:
        step = (points[-1] - points[0]) / (len(points) - 1)
        spacing = float(step @ normal)
        tilt = math.degrees(math.atan2(float(np.linalg.norm(step - spacing * normal)), spacing))
        offset = _largest_offset_mm(points, projections, normal)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = cosines[3:] * pixel_spacing_mm[0]
    affine[:3, 2] = cosines[:3] * pixel_spacing_mm[1]
    affine[:3, 3] = points[0]
    return Stack(
        order=tuple(order.tolist()),
        distances_mm=np.diff(projections),
        spacing_z_mm=None if spacing is None else round(spacing, SPACING_DIGITS),
        tilt_deg=tilt,
        offset_mm=offset,
        affine=affine,
    )


def _largest_offset_mm(
    points: NDArray[np.float64], projections: NDArray[np.float64], normal: NDArray[np.float64]
) -> float:
    """Return the largest in-plane distance of a slice from the line through the first and the last, mm."""
    sideways = points - np.outer(projections, normal)
    extent = projections[-1] - projections[0]
    share = (projections - projections[0]) / extent if extent > 0 else np.zeros(len(points))
    line = sideways[0] + np.outer(share, sideways[-1] - sideways[0])
    return float(np.linalg.norm(sideways - line, axis=1).max())


def irregular(distances_mm: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the distances that differ from their median beyond the tolerance."""
    if not len(distances_mm):
        return np.empty(0, dtype=np.int64)
    median = np.median(distances_mm)
    return np.flatnonzero(np.abs(distances_mm - median) > spacing_tolerance_mm(float(median)))


def on_grid(distances_mm: NDArray[np.float64]) -> bool:
    """Return whether distances are whole multiples of their median, within the tolerance, as where slices are lost."""
    spacing = float(np.median(distances_mm)) if len(distances_mm) else 0.0
    if spacing <= SAME_POSITION_MM:
        return False
    multiples = np.maximum(np.rint(distances_mm / spacing), 1)
    return bool((np.abs(distances_mm - multiples * spacing) <= spacing_tolerance_mm(spacing)).all())


def spacing_tolerance_mm(spacing_mm: float) -> float:
    """Return the tolerance for distances between slices to differ from their median, mm."""
    return _SPACING_ATOL_MM + _SPACING_RTOL * spacing_mm
