"""Findings about the lungs of a series, from their mask and the steps that led to it."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg import qc
from cohortseg.labels import LEFT, RIGHT
from cohortseg.lungs.aerated import EMPTY_HU, NEAR_MM, LungSlice, padded_pixels
from cohortseg.lungs.cage import Depths, dense_behind, is_dense_before
from cohortseg.lungs.dense import LeftOut
from cohortseg.lungs.morphology import Mask, Pieces, blur, border_pixels, dilate, opening

_EMPTY_DISC_MM: Final = 10.0
_EMPTY_SHARE: Final = 0.02
"""More than this part of the lung in discs of that radius that are as dark as air throughout is flagged."""
_BEHIND_MM: Final = 10.0
"""Lung that goes on farther than this behind its last air is dense there."""
_DORSAL_MM2: Final = 1500.0
_ONE_SIDED_MM2: Final = 4500.0
"""Areas of dense tissue left out above which it may be lung: a lobe."""
FEWEST_SLICES: Final = 3
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
_ONE_LUNG_SHARE: Final = 0.05
"""There is one lung, perhaps, if the smaller one is less than this part of both."""
_APART_ML: Final = 20.0
"""Air below and apart from both lungs that is flagged: bowel. In 18 real chests with COVID-19 it is up to 12 mL."""
_PLAUSIBLE_ML: Final = (800.0, 9000.0)


def find_flags(
    mask: NDArray[np.uint8],
    spacing_mm: tuple[float | None, float, float],
    coarse: NDArray[np.uint8],
    slices: Sequence[LungSlice],
    heights_mm: NDArray[np.float64],
    *,
    air: Mask,
    left_out: Sequence[LeftOut],
    depths: Mapping[int, Depths | None],
) -> tuple[str, ...]:
    """Return the findings about lungs as keys of `qc.PIXEL_FLAGS`, in its order.

    Parameters
    ----------
    mask : (Z, Y, X) uint8
        The lungs at full size, `RIGHT` and `LEFT`; it holds lung.
    spacing_mm : (z, y, x) mm
        Spacing of ``mask``; z is None for a single slice.
    coarse : (z, y, x) uint8
        The same on the working grid, on which all that follows lies.
    slices
        The slices, after all steps.
    heights_mm : (z,) mm
        Their heights, rising.
    air : (z, y, x) bool
        Aerated lung as each slice by itself shows it: before pieces without support were left out.
    left_out
        The dense parts of each slice that were left out.
    depths
        Depths of the lungs in those slices that hold aerated lung (`lung_depths`).
    """
    area = (coarse > 0).sum(axis=(1, 2))
    sides = [int((mask == side).sum()) for side in (RIGHT, LEFT)]
    z_mm, y_mm, x_mm = spacing_mm
    volume_ml = None if z_mm is None else sum(sides) * z_mm * y_mm * x_mm / 1000
    pixel_mm = slices[0].pixel_mm
    empty_mm2 = sum(_empty_mm2(coarse[z], item) for z, item in enumerate(slices))
    found = {
        qc.LUNG_CUT_BY_FIELD_OF_VIEW: any(_is_cut(coarse[z], item) for z, item in enumerate(slices)),
        qc.LUNG_CUT_AT_END_SLICE: _is_cut_at_end(area),
        qc.LUNG_LOST_BETWEEN: _is_lost_between(area),
        qc.AIR_WITHOUT_VESSELS: empty_mm2 > _EMPTY_SHARE * area.sum() * pixel_mm**2,
        qc.AIR_BELOW_LUNGS: _below_ml(air, coarse, heights_mm, pixel_mm) > _APART_ML,
        qc.ONE_LUNG: min(sides) < _ONE_LUNG_SHARE * sum(sides) or _meet_widely(coarse),
        qc.LUNG_VOLUME_IMPLAUSIBLE: volume_ml is not None and not _PLAUSIBLE_ML[0] <= volume_ml <= _PLAUSIBLE_ML[1],
        qc.DENSE_REGION_EXCLUDED: _may_lack_dense_lung(coarse, slices, left_out, heights_mm, depths),
    }
    assert qc.PIXEL_FLAGS.keys() >= found.keys(), "a flag of pixels stands in another dictionary"
    return tuple(flag for flag in qc.PIXEL_FLAGS if found.get(flag))


def _is_cut(sides: NDArray[np.uint8], item: LungSlice) -> bool:
    """Return whether lung (Y, X) reaches the edge of the image, or within 9 mm of padding (step 1 stays 6 mm away)."""
    edge = border_pixels(sides.shape) | dilate(padded_pixels(item.hu), 9 / item.pixel_mm)
    return bool((edge & (sides > 0)).any())


def _below_ml(air: Mask, coarse: NDArray[np.uint8], heights_mm: NDArray[np.float64], pixel_mm: float) -> float:
    """Return the volume of air that is part of the mask (Z, Y, X), but apart from the lungs, mL.

    Its pieces lie in the lower half of their height. Between slices farther apart than `NEAR_MM` they are not followed.
    """
    held = np.flatnonzero(coarse.any(axis=(1, 2)))
    steps_mm = np.diff(heights_mm)
    if held.size < FEWEST_SLICES or steps_mm.max() > NEAR_MM:
        return 0.0
    pieces = Pieces(*ndimage.label(air))
    pixels = pieces.areas(coarse > 0)
    upper = np.zeros(air.shape, bool)
    upper[(held[0] + held[-1]) // 2 :] = True
    below = ~pieces.touching(upper)
    for side in (RIGHT, LEFT):
        below[pieces.areas(coarse == side).argmax()] = False
    return float(pixels[below].sum() * np.median(steps_mm) * pixel_mm**2 / 1000)


def _meet_widely(coarse: NDArray[np.uint8]) -> bool:
    """Return whether right and left lung (Z, Y, X) adjoin over much of their depth: a border within one lung."""
    meeting = coarse[:, :, 1:] * coarse[:, :, :-1] == RIGHT * LEFT
    return bool(meeting.any(axis=2).sum() > _MEETING_SHARE * coarse.any(axis=2).sum())


def _may_lack_dense_lung(
    coarse: NDArray[np.uint8],
    slices: Sequence[LungSlice],
    left_out: Sequence[LeftOut],
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
        or (len(held) >= FEWEST_SLICES and max(item.one_sided for item in left_out[above]) > _ONE_SIDED_MM2)
        or sum(behind) >= min(2, len(held))
        # If only the bases are in view, the heart lies in front.
        or (not _is_cut_at_end(area) and is_dense_before([*depths.values()]))
        or _ends_abruptly(area, slices, heights_mm)
    )


def _is_cut_at_end(area: NDArray[np.intp]) -> bool:
    return len(area) >= 2 and bool(max(area[0], area[-1]) > _END_SHARE * area.max())


def _ends_abruptly(area: NDArray[np.intp], slices: Sequence[LungSlice], heights_mm: NDArray[np.float64]) -> bool:
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
