"""Padding: pixels outside the scanner's circle, which were not measured, where the header declares none or too many."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortseg.volume import HU_MIN, beyond_circle

AIR_MAX_HU: Final = -900.0
"""Padding above this has the HU of tissue or lung: its value alone does not tell it from measured pixels."""
_CORNER_SHARE: Final = 0.95
_RING: Final = (0.85, 0.97)
_RING_SHARE: Final = 0.5


def joined_to_frame(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the parts of a (Y, X) mask that reach the image's outermost pixels."""
    # Imported here because it takes a seventh of a second, which reading headers need not spend.
    from cohortseg.lungs.morphology import Pieces, border_pixels

    pieces = Pieces.of(mask)
    return pieces.chosen(pieces.touching(border_pixels(mask.shape)))


def fill_undeclared_padding(volume_hu: NDArray[np.int16]) -> bool:
    """Set undeclared padding in the corners of slices to HU_MIN, in place.

    Corners are padding if they hold one value in all slices, which is not that of air, outside the circle that touches
    the image's sides (scanners reconstruct within it), while most pixels just inside the circle have other values.

    Parameters
    ----------
    volume_hu
        (Z, Y, X) int16, HU.

    Returns
    -------
    bool
        Whether any padding was found.
    """
    value = int(volume_hu[0, 0, 0])
    corners = volume_hu[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    if value <= AIR_MAX_HU or min(volume_hu.shape[1:]) < 16 or (corners != value).any():
        return False
    sides = 1 + 1 / min(volume_hu.shape[1:])  # the circle of some scanners is half a pixel wider
    outside, beyond, outer = (beyond_circle(volume_hu.shape[1:], radius) for radius in (sides, *_RING))
    ring = beyond & ~outer
    if (volume_hu[:, outside] == value).mean() < _CORNER_SHARE or (volume_hu[:, ring] == value).mean() > _RING_SHARE:
        return False
    for slice_hu in volume_hu:
        slice_hu[joined_to_frame(slice_hu == value) & beyond] = HU_MIN
    return True
