"""The right and the left lung, and the thirds of their height."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg.labels import LEFT, LOWER, RIGHT
from cohortseg.lungs.aerated import LungSlice
from cohortseg.lungs.morphology import Mask, Pieces

_CUT_SHARE: Final = 0.5
"""A lung's height is not known if the series' first or last slice holds more than this part of its largest area: some
40 mm or more of it were not scanned, and a fifth of its voxels would be in another third."""


def split_sides(lung: Mask, item: LungSlice) -> NDArray[np.uint8]:
    """Return 1 for the right and 2 for the left lung, separated along the brightest line where they touch."""
    px, middle = item.pixel_mm, item.midline
    columns = np.broadcast_to(np.arange(lung.shape[1]), lung.shape)
    pieces = Pieces.of(lung)
    sides = np.zeros(lung.shape, np.uint8)
    relief = np.clip((item.smooth + 1024) / 8, 0, 255).astype(np.uint8)
    for piece in map(pieces.mask, range(pieces.count)):
        x = columns[piece]
        if min(np.mean(x < middle - 12 / px), np.mean(x > middle + 12 / px)) < 0.1:
            sides[piece] = RIGHT if x.mean() < middle else LEFT
            continue
        markers = np.zeros(lung.shape, np.int16)
        markers[~piece] = -1
        markers[piece & (columns < middle - 25 / px)] = RIGHT
        markers[piece & (columns > middle + 25 / px)] = LEFT
        basins = ndimage.watershed_ift(relief, markers)
        sides[piece] = np.where(basins > 0, basins, np.where(columns < middle, RIGHT, LEFT))[piece]
    return sides


def zone_thirds(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the third of its lung's height in which each lung voxel lies, counted over the slices that hold the lung.

    Parameters
    ----------
    mask : (Z, Y, X) uint8
        As in `Lungs.mask`, all slices of the series; z rises to the head.

    Returns
    -------
    (Z, Y, X) uint8
        0 outside the lungs, 1 lower, 2 middle, 3 upper. Thirds of the lung's height, not of its volume; a slice belongs
        to the third that holds its middle. A lung on fewer than three slices, or cut off amid its height by the first
        or the last slice, has no thirds and stays 0.
    """
    zones = np.zeros(mask.shape, np.uint8)
    for side in (RIGHT, LEFT):
        area = (mask == side).sum(axis=(1, 2))
        held = np.flatnonzero(area)
        if held.size < 3 or max(area[0], area[-1]) > _CUT_SHARE * area.max():
            continue
        lowest, height = int(held[0]), int(held[-1] - held[0]) + 1
        for z in map(int, held):
            zones[z][mask[z] == side] = LOWER + 3 * (2 * (z - lowest) + 1) // (2 * height)
    return zones
