"""A CT volume in HU with its geometry. Axes are Z Y X (slice, row, column) throughout; patient space is LPS, mm."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

HU_MIN = -1024
"""Lowest HU kept; padding outside the field of view is set to it (air)."""
HU_MAX = 3071
"""Highest HU kept: the top of the 12-bit scale with intercept -1024."""
SMALLEST_CIRCLE = 0.9
"""Radius of the smallest circle that scanners measure, as a part of half the image's width."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One series, decoded: slices ordered so that index z rises towards the patient's head for axial series."""

    volume_hu: NDArray[np.int16]
    """(Z, Y, X) int16, HU, clipped to [HU_MIN, HU_MAX]."""
    affine: NDArray[np.float64]
    """(4, 4): array index (z, y, x) to patient space (LPS, mm); a single slice has the unit normal as first column."""
    spacing_mm: tuple[float | None, float, float]
    """Distance between slice centres (None for a single slice), rows and columns: (z, y, x), mm."""
    series_instance_uid: str
    """SeriesInstanceUID (0020,000E)."""
    sop_instance_uids: tuple[str, ...]
    """SOPInstanceUID (0008,0018) of each slice, in array order."""
    frame_of_reference_uid: str | None = None
    """FrameOfReferenceUID (0020,0052)."""
    qc_flags: tuple[str, ...] = ()
    """Findings while reading, for example ``single_slice``."""

    def __post_init__(self) -> None:
        """Refuse arrays of the wrong shape."""
        if self.volume_hu.ndim != 3:
            raise ValueError(f"volume_hu must be (Z, Y, X), got shape {self.volume_hu.shape}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"affine must be (4, 4), got shape {self.affine.shape}")

    @property
    def pixel_area_mm2(self) -> float:
        """Area of one pixel in its slice, mm2."""
        return self.spacing_mm[1] * self.spacing_mm[2]

    @property
    def voxel_volume_ml(self) -> float | None:
        """Volume of one voxel, mL; None for a single slice, whose extent along the normal is not known."""
        if self.spacing_mm[0] is None:
            return None
        return self.spacing_mm[0] * self.pixel_area_mm2 / 1000.0


@lru_cache(maxsize=16)
def beyond_circle(shape: tuple[int, ...], radius: float) -> NDArray[np.bool_]:
    """Return the pixels (Y, X) outside a circle that touches the sides if the radius is 1 (if not square: an ellipse).

    The mask is read-only, since it is cached.
    """
    y, x = (np.linspace(-1, 1, size) for size in shape)
    beyond: NDArray[np.bool_] = np.hypot(y[:, None], x) > radius
    beyond.flags.writeable = False
    return beyond


def bounding_box(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> tuple[slice, ...]:
    """Return the bounding box of what is not zero in an array of any number of axes; an empty box if all is zero."""
    axes = range(mask.ndim)
    held = (np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes)
    return tuple(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0) for found in held)
