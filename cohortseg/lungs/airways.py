"""Trachea and main bronchi: dark compact cores near the midline, and their continuations in neighbouring slices."""

from typing import Final

import numpy as np
from scipy import ndimage

from cohortseg.lungs.morphology import Image, Mask, Pieces, dilate, erode, opening

_CORE_MM2: Final = (40.0, 1200.0)
"""Smallest and largest area of a core."""
_LATERAL_MM: Final = 45.0
"""Largest distance of a core's middle from the midline."""
_WALL: Final = 1.5
"""Pixels from a core to the outside of its wall."""


def find_airways(hu: Image, smooth: Image, lung: Mask, midline: float, pixel_mm: float) -> Mask:
    """Return trachea and main bronchi of a slice, walls included: cores with tissue around more than half of them."""
    cores = Pieces.of(opening(smooth < _airway_level(hu, lung), 1.5))
    airway = np.zeros(lung.shape, bool)
    for index, (_, box_x) in enumerate(ndimage.find_objects(cores.labels)):
        core = cores.mask(index)
        lateral_mm = abs((box_x.start + box_x.stop - 1) / 2 - midline) * pixel_mm
        if not _CORE_MM2[0] < core.sum() * pixel_mm**2 < _CORE_MM2[1] or lateral_mm > _LATERAL_MM:
            continue
        wall = dilate(core, 3 / pixel_mm + 1) & ~dilate(core, _WALL)
        if np.count_nonzero(smooth[wall] > -500) > 0.5 * np.count_nonzero(wall):
            airway |= dilate(core, _WALL)
    return airway


def follow_airways(hu: Image, smooth: Image, lung: Mask, near: Mask, pixel_mm: float) -> Mask:
    """Return the continuation of a neighbouring slice's airways (``near``), also where their wall is too thin to see.

    A core that reaches beyond their walls by more than a pixel, or is more than half as large again as those that it
    overlaps, is lung.
    """
    around = dilate(near, 1.0)
    cores = Pieces.of(opening((smooth < _airway_level(hu, lung)) & dilate(around, 1.0), 1.0))
    before = Pieces.of(near)
    inner = before.areas(erode(near, _WALL))
    airway = np.zeros(lung.shape, bool)
    for index, area in enumerate(cores.areas()):
        core = cores.mask(index)
        area_before = inner[before.touching(core)].sum()
        if area * pixel_mm**2 > _CORE_MM2[0] and area <= 1.5 * area_before and not (core & ~around).any():
            airway |= dilate(core, _WALL)
    return airway


def _airway_level(hu: Image, lung: Mask) -> float:
    """Return the HU below which air is in an airway rather than in the lung."""
    inner = erode(lung, 2.0)
    return min(float(np.median(hu[inner])) - 70, -900.0) if inner.any() else -900.0
