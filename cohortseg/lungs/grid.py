"""The working grid, on which lungs are found: coarser than the series, and the way back to its voxels."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortseg.lungs.aerated import AIR_HU
from cohortseg.lungs.morphology import Image, bounding_box
from cohortseg.lungs.zones import LEFT, RIGHT

_GRID_MM: Final = 1.5
"""In-plane working resolution."""
_SLICE_STEP_MM: Final = 5.0
"""Thinner slices are skipped to about this distance; masks between are interpolated."""


def working_planes(count: int, spacing_z_mm: float | None) -> NDArray[np.intp]:
    """Return the slices to work on: all, or every n-th of thin ones, first and last always among them."""
    step = 1 if spacing_z_mm is None else max(1, int(_SLICE_STEP_MM / spacing_z_mm))
    return np.unique(np.append(np.arange(0, count, step), count - 1))


def block_factor(spacing_mm: tuple[float, float]) -> tuple[int, int]:
    """Return how many pixels (y, x) make one of the working grid."""
    y, x = (max(1, round(_GRID_MM / spacing)) for spacing in spacing_mm)
    return y, x


def block_mean(plane: NDArray[np.int16], factor: tuple[int, ...]) -> Image:
    """Return the means of blocks of pixels; the last row and column are repeated to fill the last blocks."""
    pad = [(0, -size % f) for size, f in zip(plane.shape, factor, strict=True)]
    rows, columns = (size + p[1] for size, p in zip(plane.shape, pad, strict=True))
    blocks = np.pad(plane, pad, mode="edge").reshape(rows // factor[0], factor[0], columns // factor[1], factor[1])
    means: Image = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means


def to_full_grid(
    coarse: NDArray[np.uint8], planes: NDArray[np.intp], factor: tuple[int, ...], volume_hu: NDArray[np.int16]
) -> NDArray[np.uint8]:
    """Return the mask on the original grid: linear between the working slices and pixels, edges drawn to the air."""
    full = np.zeros(volume_hu.shape, np.uint8)
    rows, columns = (_interpolation(volume_hu.shape[axis], coarse.shape[axis], factor[axis - 1]) for axis in (1, 2))
    positions = np.interp(np.arange(volume_hu.shape[0]), planes, np.arange(planes.size))
    for z, position in enumerate(positions):
        low = int(position)
        high, part = min(low + 1, planes.size - 1), np.float32(position - low)
        best = np.full(volume_hu.shape[1:], 0.5, np.float32)
        for side in (RIGHT, LEFT):
            share = (coarse[low] == side) * (1 - part) + (coarse[high] == side) * part
            if not share.any():
                continue
            y, x = bounding_box(share > 0, 0)
            fine = rows[:, y] @ share[y, x].astype(np.float32) @ columns[:, x].T
            fine += 0.25 * ((volume_hu[z] < AIR_HU) & (fine > 0))
            full[z][fine > best] = side
            best = np.maximum(best, fine)
    return full


def _interpolation(count: int, blocks: int, factor: int) -> Image:
    """Return the (count, blocks) weights that interpolate block means, taken at the blocks' centres, to pixels."""
    position = np.clip((np.arange(count) - (factor - 1) / 2) / factor, 0, blocks - 1)
    weights: Image = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(blocks))).astype(np.float32)
    return weights
