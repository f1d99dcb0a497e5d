"""Step 4: the top of diaphragm and heart out of the lungs, by what lies under it: one slice alone cannot tell."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortseg.lungs.aerated import LungSlice
from cohortseg.lungs.morphology import Mask, components, dilate, erode, opening, select_components

_CAP_MM: Final = 10.0
"""Height of a cap at most, if slices are thin enough to tell; what goes on higher is taken for consolidation."""
_CAP_HU: Final = -720.0
"""Above: a pixel that holds some of the organ below the lung."""
_CAP_MM2: Final = 150.0
"""Smaller spots are vessels."""


def without_domes(lung: NDArray[np.bool_], slices: list[LungSlice], heights_mm: NDArray[np.float64]) -> Mask:
    """Return the lungs (Z, Y, X) without caps: dense pixels that lie on dense tissue and under aerated lung.

    Where the dome of the diaphragm (or the heart) ends within a slice, the slice shows a gray spot amid lung, like a
    lesion. It is one if it goes on upwards, or if there is lung under it.
    """
    lung = lung.copy()
    clear = lung & np.stack([item.smooth < _CAP_HU for item in slices])
    for z in range(1, len(slices)):
        item, below = slices[z], slices[z - 1]
        spots = lung[z] & ~clear[z]
        top = int(np.searchsorted(heights_mm, heights_mm[z] + _CAP_MM + 0.01))
        if not spots.any() or top == z + 1 or heights_mm[z - 1] < heights_mm[z] - _CAP_MM - 0.01:
            continue
        solid = erode(below.body & ~lung[z - 1] & ~below.airway & (below.smooth > _CAP_HU), 1.0)
        spots &= solid & clear[z + 1 : top].any(axis=0)
        spots = opening(spots, 3 / item.pixel_mm)
        labels, count = components(spots)
        area_mm2 = np.bincount(labels.ravel(), minlength=count + 1) * item.pixel_mm**2
        caps = select_components(labels, area_mm2 >= _CAP_MM2)
        lung[z] &= ~(dilate(caps, 2.0) & (caps | (item.smooth > _CAP_HU - 100)))
    return lung
