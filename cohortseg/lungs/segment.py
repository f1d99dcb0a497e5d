"""Both lungs of a series: the steps in order on the working grid."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg.lungs.aerated import (
    aerated_slice,
    lung_ends,
    slice_view,
    supported_slices,
    with_gray_slices,
)
from cohortseg.lungs.cage import dense_behind, lung_depths, rib_cage_cavities
from cohortseg.lungs.dense import LeftOut, dense_lung
from cohortseg.lungs.dome import without_domes
from cohortseg.lungs.findings import FEWEST_SLICES, find_flags
from cohortseg.lungs.grid import area_mean, to_full_grid, working_planes, working_shape
from cohortseg.lungs.morphology import Mask, padded_box
from cohortseg.lungs.zones import split_sides

LUNG_METHOD: Final = "cohortseg-threshold 15"
"""Name and version of the method; the version rises whenever masks change."""
_LEAST_MM2: Final = 1500.0
"""With less than this in the largest slice of a stack, what was found is no lung: the sinuses of a head have 11 cm2."""
_MARGIN_MM: Final = 15.0
"""Margin that is cut out with a cavity: pixels farther away do not change the lung found within."""


@dataclass(frozen=True, kw_only=True)
class Lungs:
    """The lungs of one series."""

    mask: NDArray[np.uint8]
    """(Z, Y, X) uint8: 0 none, 1 the patient's right lung, 2 the left. Includes vessels and lesions, excludes main
    airways."""
    flags: tuple[str, ...]
    """Findings, keys of `qc.PIXEL_FLAGS`."""


def segment_lungs(volume_hu: NDArray[np.int16], spacing_mm: tuple[float | None, float, float]) -> Lungs:
    """Return both lungs of a chest CT, consolidated lung included.

    Parameters
    ----------
    volume_hu : (Z, Y, X) int16, HU
        Upright: row 0 anterior, column 0 the patient's right, z rising to the head; padding already air.
    spacing_mm : (z, y, x) mm, > 0
        z is None for a single slice.

    Returns
    -------
    Lungs
        Without lung in view, or with less than 15 cm2 of it in each slice of a stack, the mask is zero throughout and
        there are no flags.

    Raises
    ------
    ValueError
        If the volume is not three-dimensional, a spacing is not positive, or that of several slices is unknown.
    """
    if volume_hu.ndim != 3:
        raise ValueError(f"volume_hu must be (Z, Y, X), got shape {volume_hu.shape}")
    if not all(value is None or value > 0 for value in spacing_mm):
        raise ValueError(f"spacing_mm must be positive, got {spacing_mm}")
    if spacing_mm[0] is None and len(volume_hu) > 1:
        raise ValueError(f"{len(volume_hu)} slices need a spacing along z")
    planes = working_planes(volume_hu.shape[0], spacing_mm[0])
    shape = working_shape(volume_hu.shape[1:], spacing_mm[1:])
    pixel_mm = math.sqrt(math.prod(spacing_mm[1:]) * math.prod(volume_hu.shape[1:]) / math.prod(shape))
    views = [slice_view(area_mean(volume_hu[z], shape), pixel_mm) for z in planes]
    cropped = bool(np.mean([view.looks_cropped for view in views]) > 0.5)  # one field of view for all
    slices = [aerated_slice(view, pixel_mm, cropped=cropped) for view in views]
    heights_mm = (planes * (spacing_mm[0] or 0.0)).astype(np.float64)
    air = np.stack([item.aerated for item in slices])
    slices = with_gray_slices(supported_slices(slices, heights_mm), heights_mm)
    held = [z for z, item in enumerate(slices) if item.aerated.any()]
    if not held:
        return Lungs(mask=np.zeros(volume_hu.shape, np.uint8), flags=())
    lung = np.zeros((len(slices), *slices[0].hu.shape), bool)
    boxes, left_out = {}, [LeftOut()] * len(slices)
    depths = lung_depths([slices[z] for z in held])
    cavities = rib_cage_cavities([slices[z] for z in held], heights_mm[held], dense_behind(depths))
    middle_mm = heights_mm[[held[0], held[-1]]].mean()
    for z, cavity in zip(held, cavities, strict=True):
        boxes[z] = box = padded_box(cavity, int(_MARGIN_MM / pixel_mm) + 1)
        low = len(held) >= FEWEST_SLICES and heights_mm[z] < middle_mm
        lung[z][box], left_out[z] = dense_lung(slices[z].part(box), cavity[box], near_abdomen=low)
    lung = without_domes(lung, slices, heights_mm)
    box = padded_box(np.logical_or.reduce(lung), 1)
    lung[:, *box] |= _enclosed(lung[:, *box], np.stack([item.airway[box] for item in slices]))
    for z, end in lung_ends(slices, lung, heights_mm).items():
        lung[z], boxes[z] = end, padded_box(end, 1)
    coarse = np.zeros(lung.shape, np.uint8)
    for z, box in boxes.items():
        coarse[z][box] = split_sides(lung[z][box], slices[z].part(box))
    largest_mm2 = np.count_nonzero(coarse, axis=(1, 2)).max() * pixel_mm**2
    if len(slices) >= FEWEST_SLICES and largest_mm2 < _LEAST_MM2:
        return Lungs(mask=np.zeros(volume_hu.shape, np.uint8), flags=())
    mask = to_full_grid(coarse, planes, volume_hu)
    flags = find_flags(
        mask,
        spacing_mm,
        coarse,
        slices,
        heights_mm,
        air=air,
        left_out=left_out,
        depths=dict(zip(held, depths, strict=True)),
    )
    return Lungs(mask=mask, flags=flags)


def _enclosed(lung: Mask, airway: Mask) -> Mask:
    """Return dense tissue with lung or airway on all sides (Z, Y, X), above and below too: a solid lesion."""
    pieces, count = ndimage.label(~(lung | airway))
    enclosed = np.ones(count + 1, bool)
    for part in (np.s_[0], pieces[[0, -1]], pieces[:, [0, -1]], pieces[:, :, [0, -1]]):
        enclosed[part] = False
    found: Mask = enclosed[pieces]
    return found
