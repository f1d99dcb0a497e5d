"""The coarse working grid on which lungs are found, and the way back to the voxels of the series."""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cohortseg.labels import LEFT, RIGHT
from cohortseg.lungs.aerated import AIR_HU
from cohortseg.lungs.morphology import Image, Mask
from cohortseg.volume import HU_MIN

_GRID_MM: Final = 2.0
"""In-plane working resolution; coarser slices are worked on as they are."""
_FEWEST: Final = 16
"""Fewest pixels per side of a working grid, if the slice has as many."""
_AIR_SHARE: Final = 0.25
"""A pixel darker than `AIR_HU` is lung if the interpolated share of lung is above this."""
_TISSUE_SHARE: Final = 0.7
"""Any other pixel is lung if the share is above this: a pixel of the working grid that is half pleura counts as air."""
_SLICE_STEP_MM: Final = 5.0
"""Of thinner slices, only some at about this distance are worked on; masks between them are interpolated."""


def working_planes(count: int, spacing_z_mm: float | None) -> NDArray[np.intp]:
    """Return the slices to work on: all, or every n-th of thin ones, always with the first and the last."""
    step = 1 if spacing_z_mm is None else max(1, int(_SLICE_STEP_MM / spacing_z_mm))
    return np.unique(np.append(np.arange(0, count, step), count - 1))


def working_shape(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
    """Return the size (y, x) of the working grid over a slice, pixels: never more than the slice itself."""
    y, x = (
        min(size, max(_FEWEST, round(size * spacing / _GRID_MM)))
        for size, spacing in zip(shape, spacing_mm, strict=True)
    )
    return y, x


def area_mean(plane: NDArray[np.int16], shape: tuple[int, int]) -> Image:
    """Return the mean HU over each pixel of a working grid of this shape; padding is not mixed with its surroundings.

    A pixel that is at least half padding becomes padding; in any other, padding does not count.
    """
    means: Image = _shrunk(plane, shape)
    padding = plane <= HU_MIN
    if not padding.any():
        return means
    share = np.minimum(_shrunk(padding, shape), np.float32(0.5))
    return np.where(share < 0.5, (means - share * HU_MIN) / (1 - share), np.float32(HU_MIN))


def _shrunk(plane: NDArray[np.int16] | Mask, shape: tuple[int, int]) -> Image:
    return cv2.resize(plane.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA).astype(
        np.float32, copy=False
    )


def to_full_grid(
    coarse: NDArray[np.uint8], planes: NDArray[np.intp], volume_hu: NDArray[np.int16]
) -> NDArray[np.uint8]:
    """Return the mask on the original grid: linear between working slices and pixels, with edges fitted to the air."""
    full = np.zeros(volume_hu.shape, np.uint8)
    fine_size = volume_hu.shape[:0:-1]
    positions = np.interp(np.arange(volume_hu.shape[0]), planes, np.arange(planes.size))
    for z, position in enumerate(positions):
        low = int(position)
        high, part = min(low + 1, planes.size - 1), np.float32(position - low)
        if not (coarse[low].any() or coarse[high].any()):
            continue
        right, left = (
            cv2.resize((coarse[low] == side) * (1 - part) + (coarse[high] == side) * part, fine_size)
            for side in (RIGHT, LEFT)
        )
        least = np.where(volume_hu[z] < AIR_HU, np.float32(_AIR_SHARE), np.float32(_TISSUE_SHARE))
        full[z] = np.where(left > right, np.uint8(LEFT), np.uint8(RIGHT)) * (np.maximum(left, right) > least)
    return full
