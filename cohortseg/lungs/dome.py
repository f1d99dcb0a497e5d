"""Step 4: removal of the top of the diaphragm from the lungs, by the slices below and above: one slice cannot tell."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortseg.lungs.aerated import NEAR_MM, LungSlice
from cohortseg.lungs.morphology import (
    Mask,
    Pieces,
    dilate,
    erode,
    opening,
)

_CAP_HU: Final = -720.0
"""Pixels above this hold some of the organ below the lung."""
_SOFT_HU: Final = -200.0
"""Pixels above this are tissue, rather than a mixture with lung or ground glass."""
_CAP_MM2: Final = 150.0
"""Smaller spots are vessels."""
_TAPER_MM: Final = 80.0
"""Smallest area, mm2, by which a dome narrows per mm of height: that of a sphere of 13 mm radius."""
_THICK_MM: Final = 4.5
"""Between slices farther apart than this, the slope of an organ is blurred into a rim around its visible part."""


def without_domes(lung: NDArray[np.bool_], slices: list[LungSlice], heights_mm: NDArray[np.float64]) -> Mask:
    """Return the lungs (Z, Y, X) without caps: dense pixels that lie on dense tissue and under aerated lung.

    Where the dome of the diaphragm (or the heart) ends within a slice, the slice shows a gray spot amid lung, like a
    lesion. The spot is a lesion if there is lung under it, if it goes on upwards for 10 mm, if it does not narrow
    upwards, or if it is ground glass in two slices. Tissue that borders on the organ in its own slice is a lesion too,
    except for a rim where slices are thick. Slices farther apart than `NEAR_MM` are left as they are.

    A lesion of less than 10 mm on the very top of the diaphragm looks the same, and is lost.
    """
    kept = lung.copy()
    clear = lung & np.stack([item.smooth < _CAP_HU for item in slices])
    for z in range(1, len(slices)):
        item, below, rise_mm = slices[z], slices[z - 1], heights_mm[z] - heights_mm[z - 1]
        top = int(np.searchsorted(heights_mm, heights_mm[z] + NEAR_MM))
        covered = lung[z] & ~clear[z] & clear[z + 1 : top].any(axis=0)
        if rise_mm > NEAR_MM or not covered.any():
            continue
        dense = below.body & ~below.airway & (below.smooth > _CAP_HU)
        base = dense & ~kept[z - 1]
        mixed = (item.smooth < _SOFT_HU) & ((below.smooth < _SOFT_HU) | ~clear[z + 1])
        caps = _islands(covered & erode(base, 1.0), base, lung[z], mixed, rise_mm, item)
        if rise_mm > _THICK_MM:
            caps |= _large(opening(covered & erode(dense & ~lung[z - 1], 1.0), 3 / item.pixel_mm), item)
        kept[z] &= ~(dilate(caps, 2.0) & (caps | (item.smooth > _CAP_HU - 100)))
    return kept


def _islands(spots: Mask, base: Mask, lung: Mask, mixed: Mask, rise_mm: float, item: LungSlice) -> Mask:
    """Return spots with lung all around that narrow like a dome from the piece of dense tissue below (``base``).

    ``mixed`` marks pixels that are no solid tissue here and in the slice below or above; a spot that is mostly mixed is
    ground glass.
    """
    spots = _large(opening(spots, 3 / item.pixel_mm), item)
    pieces, below = Pieces.of(spots), Pieces.of(base)
    apart = ~pieces.touching(dilate(~lung & ~item.airway, 1.5))
    area_mm2, below_mm2 = (found.areas() * item.pixel_mm**2 for found in (pieces, below))
    for index in np.flatnonzero(apart):
        spot = pieces.mask(index)
        tapers = area_mm2[index] < below_mm2[below.touching(spot)].max() - _TAPER_MM * rise_mm
        apart[index] = tapers and mixed[spot].mean() < 0.5
    return pieces.chosen(apart)


def _large(spots: Mask, item: LungSlice) -> Mask:
    pieces = Pieces.of(spots)
    return pieces.chosen(pieces.areas() * item.pixel_mm**2 >= _CAP_MM2)
