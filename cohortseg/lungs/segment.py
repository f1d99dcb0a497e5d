"""Both lungs of a series: the steps in order on the working grid, and findings about the result."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg import qc
from cohortseg.labels import LEFT, RIGHT
from cohortseg.lungs.aerated import (
    EMPTY_HU,
    NEAR_MM,
    LungSlice,
    aerated_slice,
    padded_pixels,
    slice_view,
    supported_slices,
    with_gray_slices,
)
from cohortseg.lungs.cage import Depths, dense_behind, is_dense_before, lung_depths, rib_cage_cavities
from cohortseg.lungs.dense import LeftOut, dense_lung
from cohortseg.lungs.dome import without_domes
from cohortseg.lungs.grid import area_mean, to_full_grid, working_planes, working_shape
from cohortseg.lungs.morphology import Mask, Pieces, blur, dilate, frame_pixels, opening, padded_box
from cohortseg.lungs.zones import split_sides

LUNG_METHOD: Final = "cohortseg-threshold 14"
"""Name and version of the method; the version rises whenever masks change."""
_MARGIN_MM: Final = 15.0
"""Margin that is cut out with a cavity: pixels farther away do not change the lung found within."""
_EMPTY_DISC_MM: Final = 10.0
_EMPTY_SHARE: Final = 0.02
"""More than this part of the lung in discs of that radius that are as dark as air throughout is flagged."""
_BEHIND_MM: Final = 10.0
"""Lung that goes on farther than this behind its last air is dense there."""
_DORSAL_MM2: Final = 1500.0
_ONE_SIDED_MM2: Final = 4500.0
"""Areas of dense tissue left out above which it may be lung: a lobe."""
_FEWEST_SLICES: Final = 3
"""With fewer slices of lung it is not known which lie above the liver, or near the stomach."""
_NEXT_MM: Final = 6.0
"""Between slices farther apart, lungs may end at any width."""
_END_SHARE: Final = 0.25
"""The first or last slice holds much lung if its area is more than this part of the largest."""
_ABRUPT_SHARE: Final = 0.3
"""Lungs end abruptly with more than this part of the largest area in their last slice. Healthy lungs end with .07 in
slices 5 mm apart, with .28 in slices 10 mm apart."""
_MEETING_SHARE: Final = 0.4
"""Both sides are one lung, perhaps, if they meet in more than this part of the rows that hold lung: in 20 real chests
it is up to .09, in a single lung divided amid its width .44 or more."""
_APART_ML: Final = 20.0
"""Air below and apart from both lungs that is flagged: bowel. In 18 real chests with COVID-19 it is up to 10 mL."""
_PLAUSIBLE_ML: Final = (800.0, 9000.0)


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
        Without lung in view the mask is zero throughout and there are no flags.

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
        low = len(held) >= _FEWEST_SLICES and heights_mm[z] < middle_mm
        lung[z][box], left_out[z] = dense_lung(slices[z].part(box), cavity[box], near_abdomen=low)
    lung = without_domes(lung, slices, heights_mm)
    box = padded_box(np.logical_or.reduce(lung), 1)
    lung[:, *box] |= _enclosed(lung[:, *box], np.stack([item.airway[box] for item in slices]))
    coarse = np.zeros(lung.shape, np.uint8)
    for z, box in boxes.items():
        coarse[z][box] = split_sides(lung[z][box], slices[z].part(box))
    mask = to_full_grid(coarse, planes, volume_hu)
    found = _findings(coarse, slices) | _findings_of_whole(mask, spacing_mm)
    found[qc.AIR_BELOW_LUNGS] = _below_ml(air, coarse, heights_mm, pixel_mm) > _APART_ML
    found[qc.ONE_LUNG] |= _meet_widely(coarse)
    found[qc.DENSE_REGION_EXCLUDED] = _may_lack_dense_lung(
        coarse, slices, left_out, heights_mm, dict(zip(held, depths, strict=True))
    )
    assert qc.PIXEL_FLAGS.keys() >= found.keys(), "a flag of pixels stands in another dictionary"
    return Lungs(mask=mask, flags=tuple(flag for flag in qc.PIXEL_FLAGS if found.get(flag)))


def _enclosed(lung: Mask, airway: Mask) -> Mask:
    """Return dense tissue with lung or airway on all sides (Z, Y, X), above and below too: a solid lesion."""
    pieces, count = ndimage.label(~(lung | airway))
    enclosed = np.ones(count + 1, bool)
    for part in (np.s_[0], pieces[[0, -1]], pieces[:, [0, -1]], pieces[:, :, [0, -1]]):
        enclosed[part] = False
    found: Mask = enclosed[pieces]
    return found


def _is_cut(sides: NDArray[np.uint8], item: LungSlice) -> bool:
    """Return whether lung (Y, X) reaches the edge of the image, or within 9 mm of padding (step 1 stays 6 mm away)."""
    edge = frame_pixels(sides.shape) | dilate(padded_pixels(item.hu), 9 / item.pixel_mm)
    return bool((edge & (sides > 0)).any())


def _findings(
    coarse: NDArray[np.uint8],
    slices: list[LungSlice],
) -> dict[str, bool]:
    """Return the flags that are judged on the working grid, for a mask that holds lung."""
    area = (coarse > 0).sum(axis=(1, 2))
    empty_mm2 = [_empty_mm2(coarse[z], item) for z, item in enumerate(slices)]
    return {
        qc.LUNG_CUT_BY_FIELD_OF_VIEW: any(_is_cut(coarse[z], item) for z, item in enumerate(slices)),
        qc.LUNG_CUT_AT_END_SLICE: _is_cut_at_end(area),
        qc.LUNG_LOST_BETWEEN: _is_lost_between(area),
        qc.AIR_WITHOUT_VESSELS: sum(empty_mm2) > _EMPTY_SHARE * area.sum() * slices[0].pixel_mm ** 2,
    }


def _below_ml(air: Mask, coarse: NDArray[np.uint8], heights_mm: NDArray[np.float64], pixel_mm: float) -> float:
    """Return the volume of the largest piece of air that is part of the mask (Z, Y, X), but apart from the lungs, mL.

    It lies in the lower half of their height. Between slices farther apart than `NEAR_MM` pieces are not followed.
    """
    held = np.flatnonzero(coarse.any(axis=(1, 2)))
    steps_mm = np.diff(heights_mm)
    if held.size < _FEWEST_SLICES or steps_mm.max() > NEAR_MM:
        return 0.0
    pieces = Pieces(*ndimage.label(air))
    pixels = pieces.pixels(coarse > 0)
    upper = np.zeros(air.shape, bool)
    upper[(held[0] + held[-1]) // 2 :] = True
    below = ~pieces.touching(upper)
    for side in (RIGHT, LEFT):
        below[pieces.pixels(coarse == side).argmax()] = False
    return float(pixels[below].max(initial=0) * np.median(steps_mm) * pixel_mm**2 / 1000)


def _meet_widely(coarse: NDArray[np.uint8]) -> bool:
    """Return whether right and left lung (Z, Y, X) adjoin over much of their depth: a border within one lung."""
    meeting = coarse[:, :, 1:] * coarse[:, :, :-1] == RIGHT * LEFT
    return bool(meeting.any(axis=2).sum() > _MEETING_SHARE * coarse.any(axis=2).sum())


def _findings_of_whole(mask: NDArray[np.uint8], spacing_mm: tuple[float | None, float, float]) -> dict[str, bool]:
    """Return the flags that are judged by volumes, for a mask that holds lung."""
    sides = [int((mask == side).sum()) for side in (RIGHT, LEFT)]
    z_mm, y_mm, x_mm = spacing_mm
    volume_ml = None if z_mm is None else sum(sides) * z_mm * y_mm * x_mm / 1000
    return {
        qc.ONE_LUNG: min(sides) < 0.05 * sum(sides),
        qc.LUNG_VOLUME_IMPLAUSIBLE: volume_ml is not None and not _PLAUSIBLE_ML[0] <= volume_ml <= _PLAUSIBLE_ML[1],
    }


def _may_lack_dense_lung(
    coarse: NDArray[np.uint8],
    slices: list[LungSlice],
    left_out: list[LeftOut],
    heights_mm: NDArray[np.float64],
    depths: Mapping[int, Depths | None],
) -> bool:
    """Return whether large dense parts, in any place, may be missing from a mask (Z, Y, X) that holds lung.

    ``depths`` are those of the slices with aerated lung (`lung_depths`).
    """
    area = (coarse > 0).sum(axis=(1, 2))
    held = np.flatnonzero(area)
    # The liver fills the dorsal recesses below: areas are judged in the upper 60 % of the lungs' height only, dorsal
    # ones without the apex, where muscle closes in.
    above = slice(held[0] + int(0.4 * (held[-1] - held[0] + 1)), None)
    upper = slice(above.start, np.flatnonzero(area > 0.3 * area.max())[-1] + 1)
    dense = zip(depths, dense_behind([*depths.values()]), strict=True)
    behind = [_reaches_behind_air(coarse[z], slices[z]) for z, is_dense in dense if is_dense]
    return (
        max((item.dorsal for item in left_out[upper]), default=0) > _DORSAL_MM2
        or (len(held) >= _FEWEST_SLICES and max(item.one_sided for item in left_out[above]) > _ONE_SIDED_MM2)
        or sum(behind) >= min(2, len(held))
        # If only the bases are in view, the heart lies in front.
        or (not _is_cut_at_end(area) and is_dense_before([*depths.values()]))
        or _ends_abruptly(area, slices, heights_mm)
    )


def _is_cut_at_end(area: NDArray[np.intp]) -> bool:
    return len(area) >= 2 and bool(max(area[0], area[-1]) > _END_SHARE * area.max())


def _ends_abruptly(area: NDArray[np.intp], slices: list[LungSlice], heights_mm: NDArray[np.float64]) -> bool:
    """Return whether a slice with much lung lies near a slice of the body with none: lungs taper towards their ends."""
    held = np.flatnonzero(area)
    ends = ((held[0], held[0] - 1), (held[-1], held[-1] + 1))
    return any(
        area[end] > _ABRUPT_SHARE * area.max() and abs(heights_mm[end] - heights_mm[beyond]) <= _NEXT_MM
        for end, beyond in ends
        if 0 <= beyond < len(area) and slices[beyond].body.any()
    )


def _reaches_behind_air(sides: NDArray[np.uint8], item: LungSlice) -> bool:
    """Return whether lung (Y, X) goes on behind its last aerated row, by more than in a thick patient."""
    lung, aerated = (np.flatnonzero(mask.any(axis=1)) for mask in (sides > 0, item.aerated))
    return bool(lung.size) and bool((lung[-1] - aerated[-1]) * item.pixel_mm > _BEHIND_MM)


def _is_lost_between(area: NDArray[np.intp]) -> bool:
    """Return whether a slice holds far less lung than others both below and above it, which no real lung does."""
    below, above = np.maximum.accumulate(area), np.maximum.accumulate(area[::-1])[::-1]
    beside = np.minimum(below, above)
    return bool(((beside > 0.1 * area.max()) & (area < 0.3 * beside)).any())


def _empty_mm2(sides: NDArray[np.uint8], item: LungSlice) -> float:
    """Return the area of the lung (Y, X), mm2, covered by discs as dark as air, without any vessel."""
    dark = (sides > 0) & (item.smooth < EMPTY_HU)
    if np.count_nonzero(dark) * item.pixel_mm**2 < _EMPTY_DISC_MM**2:
        return 0.0
    dark = (sides > 0) & (blur(item.hu, 2.0) < EMPTY_HU)
    return float(np.count_nonzero(opening(dark, _EMPTY_DISC_MM / item.pixel_mm)) * item.pixel_mm**2)
