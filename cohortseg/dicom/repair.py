"""Resampling on request: sheared slices are set upright, uneven slices brought to one spacing."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import shift

from cohortseg.volume import HU_MIN


def untilt(
    volume_hu: NDArray[np.int16], positions: NDArray[np.float64], affine: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Return sheared slices on an upright grid, each shifted in its plane by linear interpolation.

    Parameters
    ----------
    volume_hu : (Z, Y, X) int16, HU
        Slices in order.
    positions : (Z, 3) mm, LPS
        Centre of each slice's first voxel.
    affine : (4, 4)
        Its columns for y and x are used.

    Returns
    -------
    volume_hu : (Z, Y', X') int16, HU
        Larger by as much as the slices are shifted, so that nothing is cut off; HU_MIN beyond each slice.
    positions : (Z, 3) mm, LPS
        Centres of the first voxels of the new grid, all on one normal.
    """
    steps = [affine[:3, axis] / np.linalg.norm(affine[:3, axis]) ** 2 for axis in (1, 2)]
    offsets = np.stack([(positions - positions[0]) @ step for step in steps], axis=1)  # in pixels: y, x
    offsets[np.abs(offsets) < 1e-3] = 0.0
    lowest = np.floor(offsets.min(axis=0))
    grown = np.ceil(offsets.max(axis=0) - lowest).astype(int)
    upright = np.full((len(volume_hu), *(np.array(volume_hu.shape[1:]) + grown)), HU_MIN, dtype=np.int16)
    for z, slice_hu in enumerate(volume_hu):
        padded = np.pad(slice_hu, [(0, extra) for extra in grown], constant_values=HU_MIN).astype(np.float32)
        moved = shift(padded, offsets[z] - lowest, order=1, mode="constant", cval=HU_MIN)
        upright[z] = np.rint(moved)
    in_plane = (offsets - lowest) @ np.stack([affine[:3, 1], affine[:3, 2]])
    return upright, positions - in_plane


def resample_z(
    volume_hu: NDArray[np.int16], distances_mm: NDArray[np.float64], spacing_mm: float
) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Return slices at one spacing, linearly interpolated between their neighbours.

    Parameters
    ----------
    volume_hu : (Z, Y, X) int16, HU
        Slices in order.
    distances_mm : (Z - 1,) mm
        From each slice to the next, > 0.
    spacing_mm
        Spacing of the result, > 0.

    Returns
    -------
    volume_hu : (Z', Y, X) int16, HU
        From the first slice to the last multiple of the spacing within the stack.
    nearest : (Z',)
        Index of the nearest input slice to each.
    """
    known = np.concatenate([[0.0], np.cumsum(distances_mm)])
    wanted = np.arange(int(np.floor(known[-1] / spacing_mm + 1e-6)) + 1) * spacing_mm
    below = np.clip(np.searchsorted(known, wanted + 1e-6, side="right") - 1, 0, len(known) - 2)
    weight = np.clip((wanted - known[below]) / distances_mm[below], 0.0, 1.0)
    even = np.empty((len(wanted), *volume_hu.shape[1:]), dtype=np.int16)
    for z, (index, part) in enumerate(zip(below, weight, strict=True)):
        even[z] = np.rint((1 - part) * volume_hu[index] + part * volume_hu[index + 1])
    return even, np.where(weight > 0.5, below + 1, below)
