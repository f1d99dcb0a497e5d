"""Step 1: the aerated lung of each slice, which is air inside the body but not bowel gas, trachea or main bronchi."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg.lungs.airways import find_airways, follow_airways
from cohortseg.lungs.morphology import (
    Image,
    Mask,
    Pieces,
    blur,
    border_pixels,
    closing,
    corner_pixels,
    dilate,
    erode,
    fill_holes,
    opening,
)
from cohortseg.volume import HU_MIN, SMALLEST_CIRCLE, beyond_circle

AIR_HU: Final = -400.0
"""Pixels below this are aerated, ground glass included."""
_PADDING_HU: Final = HU_MIN + 0.5
"""Pixels below this were not measured."""
NEAR_MM: Final = 10.5
"""Slices up to this far apart are compared: 10 mm, with room for variation between scanners."""
_GAP_MM: Final = 25.0
"""A gap without aerated lung that is higher than this separates gas of the colon from the lungs."""
_ROOM_HU: Final = -865.0
"""Air around the body, with cloth and table foam in it, is darker than this; only the most airy lung is, too."""
_VESSEL_HU: Final = -800.0
"""More than 5 % of lung is above this (its vessels); of air it is less."""
_STRIP_MM: Final = 40.0
"""A region less deep than this on average, from the frame inwards, is a strip of room, even with cloth in it."""
_OPENED_MM2: Final = 2000.0
_OPENED_MM: Final = 18.0
"""Smallest area of lung that is searched for behind an opening in the body wall, and the radius of a disc that must fit
into it: lung is thicker than a mattress, which has the HU of lung."""
EMPTY_HU: Final = -950.0
_DENSE_HU: Final = -600.0
"""More than half of lung lies between `EMPTY_HU` and this: outside air is darker, borders of air are brighter."""
_GRAY_HU: Final = (-550.0, -200.0)
"""Lung without aerated parts has a 25th percentile above the first value, and lies below the second throughout."""
_SMALL_LUNG_MM2: Final = 800.0
"""Larger pieces of air with vessels in them are lung by themselves."""
_WIDE_MM2: Final = 60.0
"""Smaller pieces of air are lung only near larger ones."""
_GAP_WIDTH_MM: Final = 16.0
"""Gaps in the body wall up to this width are closed."""
_WALL_MM: Final = 24.0
"""Tissue this near to the body, however thin (skin over air), is part of the wall when gaps are closed."""
_WALL_SHARE: Final = 0.08
"""Lungs farther from the top and bottom of the image than this part of its height have their walls in view."""
_BLURRED: Final = 1.5
"""Blur of a border between two regions, pixels."""
_REST_SHARE: Final = 0.3
"""Air below such a gap is lung all the same if there is more of it than this part of that above (white lungs) ..."""
_GAP_SHARE: Final = 0.5
"""... or if the slice just below the gap has more than this part of the largest area: lung was lost in the gap."""


@dataclass(frozen=True, kw_only=True)
class LungSlice:
    """A slice on the working grid (Y, X) with its aerated lung."""

    hu: Image
    smooth: Image
    body: Mask
    aerated: Mask
    small: Mask
    """Other pieces of air, no gas, that are too small to be lung by themselves."""
    airway: Mask
    cropped: bool
    """Whether the field of view lies within the body; decided for the whole volume."""
    midline: float
    pixel_mm: float

    def part(self, box: tuple[slice, slice]) -> Self:
        """Return the part of the slice within a box of rows and columns."""
        maps = {name: getattr(self, name)[box] for name in ("hu", "smooth", "body", "aerated", "small", "airway")}
        return replace(self, **maps, midline=self.midline - box[1].start)


@dataclass(frozen=True, kw_only=True)
class SliceView:
    """A slice on the working grid (Y, X), and which parts of it are body, outside or not measured."""

    hu: Image
    smooth: Image
    tissue: Mask
    """The body without the air in it."""
    outside: Mask
    """Padding, and air and table around the body."""
    unmeasured: Mask
    """Padding beyond the circle that was measured."""
    looks_cropped: bool
    """Whether the frame lies within the body, as far as this slice tells."""


def slice_view(hu: Image, pixel_mm: float) -> SliceView:
    """Return a slice with its masks of tissue, outside and unmeasured pixels."""
    smooth = blur(hu, 0.7)
    tissue = _tissue(smooth, pixel_mm)
    padding = _padding_around(hu)
    # Beyond the circle only: air that has the lowest HU reaches as far as the skin.
    unmeasured = padding & beyond_circle(padding.shape, SMALLEST_CIRCLE)
    outside = _outside(hu, smooth, tissue, padding, pixel_mm)
    return SliceView(
        hu=hu,
        smooth=smooth,
        tissue=tissue,
        outside=outside,
        unmeasured=unmeasured,
        looks_cropped=_is_cropped(smooth, outside, unmeasured),
    )


def aerated_slice(view: SliceView, pixel_mm: float, *, cropped: bool) -> LungSlice:
    """Return the result of step 1: aerated lung, airways and midline; ``cropped`` is that of the volume."""
    hu, smooth = view.hu, view.smooth
    body = _body(view, cropped, pixel_mm)
    columns = np.flatnonzero(body.any(axis=0))
    midline = float(columns[[0, -1]].mean()) if columns.size else hu.shape[1] / 2
    air = (smooth < AIR_HU) & body
    if not cropped and air.any():
        air &= ~dilate(view.outside & ~view.unmeasured, 6 / pixel_mm) & ~dilate(view.unmeasured, _BLURRED)
    aerated, small = _lung_pieces(hu, air, midline, cropped, pixel_mm)
    found = np.flatnonzero(aerated.any(axis=0))
    if found.size and (found[0] - midline) * (found[-1] - midline) < 0:
        midline = 0.5 * midline + 0.25 * float(found[0] + found[-1])
    airway = find_airways(hu, smooth, aerated, midline, pixel_mm) & body
    return LungSlice(
        hu=hu,
        smooth=smooth,
        body=body,
        aerated=aerated & ~airway,
        small=small & ~airway,
        airway=airway,
        cropped=cropped,
        midline=midline,
        pixel_mm=pixel_mm,
    )


def _tissue(smooth: Image, pixel_mm: float) -> Mask:
    """Return the largest piece of tissue: the body without the air in it.

    It includes lungs where air under the skin, or a drain, opens the wall of the body.
    """
    pieces = Pieces.of(opening(smooth > AIR_HU, 2.5 / pixel_mm))
    if not pieces.count:
        return np.zeros(smooth.shape, bool)
    tissue = pieces.mask(int(pieces.areas().argmax()))
    aerated, body = (smooth > EMPTY_HU) & (smooth < _DENSE_HU), fill_holes(tissue)
    least = _OPENED_MM2 / pixel_mm**2
    if np.count_nonzero(aerated & ~body) < least / 2:
        return tissue
    wall = tissue | ((smooth > AIR_HU) & dilate(tissue, _WALL_MM / pixel_mm))
    inside = fill_holes(closing(wall, _GAP_WIDTH_MM / 2 / pixel_mm)) & ~body
    pieces = Pieces.of(opening(inside, _OPENED_MM / pixel_mm))
    area = pieces.areas()
    opened = pieces.chosen((area >= least) & (pieces.areas(aerated) > 0.5 * area))
    return tissue | (dilate(opened, _OPENED_MM / pixel_mm) & inside)


def _padding_around(hu: Image) -> Mask:
    """Return regions at the lowest HU that hold a corner of the image, or run along much of its frame."""
    pieces, border = Pieces.of(hu < _PADDING_HU), border_pixels(hu.shape)
    return pieces.chosen((pieces.areas(border) > 0.3 * border.sum()) | pieces.touching(corner_pixels(hu.shape)))


def _outside(hu: Image, smooth: Image, tissue: Mask, padding: Mask, pixel_mm: float) -> Mask:
    """Return padding and air around the body.

    Lung that touches the frame is not outside. Air is outside if it holds a corner of the image and either is small or
    runs along most of the frame (or of the padding's border), or if it runs along much of the frame and is darker than
    lung. Room and table in front of and behind the body are outside, too: lung there would have lost its chest wall
    with the rest of the picture.
    """
    edge = (border_pixels(hu.shape) | dilate(padding, _BLURRED)) & ~padding
    pieces = Pieces.of((smooth < -500) & ~padding & ~tissue)
    area, along = pieces.areas(), pieces.areas(edge)
    share = along / max(1, edge.sum())
    walled = pieces.areas(_between(tissue.T).T) > 0.7 * area
    found = pieces.touching(corner_pixels(hu.shape)) & ((share > 0.5) | (area < 0.03 * hu.size))
    for index in np.flatnonzero(share > 0):
        inner = hu[erode(pieces.mask(index), _BLURRED)]
        if inner.size:
            median, bright = np.percentile(inner, (50, 95))
            strip = area[index] * pixel_mm < _STRIP_MM * along[index]
            room = median < _ROOM_HU and (bright < _VESSEL_HU or strip)
            found[index] |= (median < -940 and share[index] > 0.3) or (room and not walled[index])
    return padding | pieces.chosen(found)


def _is_cropped(smooth: Image, outside: Mask, unmeasured: Mask) -> bool:
    """Return whether the frame lies within the body, so that the walls of the chest are not in view.

    In that case little of the frame is outside air, there is hardly any in the middle in front of or behind the body,
    and the lungs come near the frame there. A circular field of view set to the lungs, recognised by the padding in the
    corners, mostly has the walls in view.
    """
    edge = (border_pixels(outside.shape) | dilate(unmeasured, _BLURRED)) & ~unmeasured
    air = outside & ~unmeasured
    if unmeasured.mean() > 0.1 or air.mean() >= 0.12 or air[edge].mean() >= 0.3:
        return False
    height, width = outside.shape
    columns = np.arange(width)[int(0.3 * width) : int(0.7 * width) + 1]
    measured = ~unmeasured[:, columns]
    ends = measured.argmax(axis=0), height - 1 - measured[::-1].argmax(axis=0)
    if any(air[rows, columns].mean() >= 0.2 for rows in ends):
        return False
    inner = np.flatnonzero(opening((smooth < AIR_HU) & ~outside, _BLURRED).any(axis=1))
    return inner.size == 0 or bool(min(inner[0], height - 1 - inner[-1]) < _WALL_SHARE * height)


def _body(view: SliceView, cropped: bool, pixel_mm: float) -> Mask:
    """Return the body with the air in it, and lung that is cut off by the field of view, or nearly so.

    Such lung has chest wall in front and behind; or has chest wall on both sides and is not as dark as air; or is large
    and has the HU of lung. None of this is true of air in the table, or between arm and chest.
    """
    hu, tissue, outside = view.hu, view.tissue, view.outside
    if not tissue.any():
        return tissue
    body = fill_holes(tissue)
    pieces = Pieces.of((view.smooth < AIR_HU) & ~body & ~outside)
    padding = padded_pixels(hu) & outside
    # the opening removes walls up to 5 mm wide; from one side of such a wall to the other it is a pixel more
    cut = pieces.touching(dilate(border_pixels(hu.shape) | padding, 5 / pixel_mm + 1))
    area = pieces.areas()
    walled, flanked = (pieces.areas(where) > 0.7 * area for where in (_between(tissue.T).T, _between(tissue)))
    for index in np.flatnonzero(cut & ~walled & (not cropped)):
        median = np.median(hu[pieces.mask(index)])
        large = area[index] * pixel_mm**2 > _SMALL_LUNG_MM2
        walled[index] = (flanked[index] and median > -940) or (large and median > -860)
    return dilate(body | pieces.chosen(cut & (cropped | walled)), 1.0) & ~outside


def _between(tissue: Mask) -> Mask:
    """Return the pixels of each row from its first pixel of tissue to its last."""
    columns = np.arange(tissue.shape[1])
    first, last = tissue.argmax(axis=1), columns[-1] - tissue[:, ::-1].argmax(axis=1)
    between: Mask = (columns >= first[:, None]) & (columns <= last[:, None])
    between[~tissue.any(axis=1)] = False
    return between


def padded_pixels(hu: Image) -> Mask:
    """Return the pixels where nothing was measured: regions at the lowest HU that are too thick to be noise."""
    return opening(hu < _PADDING_HU, 3.0)


def _lung_pieces(hu: Image, air: Mask, midline: float, cropped: bool, pixel_mm: float) -> tuple[Mask, Mask]:
    """Return the pieces of air that are lung: large ones with vessels in them, and small ones beside those.

    The second mask has the other pieces that are neither gas nor narrow: lung, perhaps, if the next slices hold lung.

    Gas is dark throughout (95th percentile below -840 HU); lung, even emphysema, holds vessels. A cropped image shows
    mostly lungs, so that a dark lateral piece in it is a bulla rather than stomach.
    """
    pieces, inner = Pieces.of(air), erode(air, 1.5)
    area_mm2 = pieces.areas() * pixel_mm**2
    lateral_mm = np.abs(pieces.centres()[:, 1] - midline) * pixel_mm
    thin = ~pieces.touching(inner)
    gas = np.zeros(pieces.count, bool)
    for index in np.flatnonzero(~thin & (area_mm2 > 30)):
        median, bright = np.percentile(hu[pieces.mask(index) & inner], (50, 95))
        gas[index] = median < -920 and bright < -840
    if cropped:
        gas &= (lateral_mm < 45) & (area_mm2 < 2500)
    large = (area_mm2 > _SMALL_LUNG_MM2) & ~gas & ~thin
    wide = ~thin & (area_mm2 > _WIDE_MM2)
    if not large.any():
        return pieces.chosen(large), pieces.chosen(wide & ~gas)
    small = (area_mm2 >= 12) & ~gas & (lateral_mm >= 35)
    near = pieces.touching(dilate(pieces.chosen(large), 15 / pixel_mm))
    lung = large | (small & (near | wide | cropped))
    return pieces.chosen(lung), pieces.chosen(wide & ~gas & ~lung)


def supported_slices(slices: list[LungSlice], heights_mm: NDArray[np.float64]) -> list[LungSlice]:
    """Return the slices with a midline smoothed along z, and without aerated pieces that are no lung in the volume.

    Those are pieces that are small in the volume, a stool-filled colon (air far below the lungs and apart from them),
    and continuations of the airways of neighbouring slices. ``heights_mm`` are the slices' heights, rising.
    """
    aerated = np.stack([item.aerated for item in slices])
    if len(slices) >= 3:
        pieces = Pieces(*ndimage.label(aerated))
        size = pieces.areas()
        aerated = pieces.chosen(size > 0.02 * size.max(initial=0))
    aerated[: _first_of_lungs(aerated, heights_mm)] = False
    airways = _airways_throughout(slices, heights_mm)
    held = aerated.any(axis=(1, 2))
    midlines = np.array([item.midline for item in slices])
    if held.any():
        midlines[held] = ndimage.median_filter(midlines[held], size=min(9, int(held.sum())), mode="nearest")
    return [
        replace(item, aerated=lung & ~airway, small=item.small & ~airway, airway=airway, midline=float(midline))
        for item, lung, airway, midline in zip(slices, aerated, airways, midlines, strict=True)
    ]


def with_gray_slices(slices: list[LungSlice], heights_mm: NDArray[np.float64]) -> list[LungSlice]:
    """Return the slices, with gray lung added to those without aerated lung where it continues the next slice's lung.

    Bases full of dense ground glass look like this. Gas in bowel, which may lie there, has a darker part.
    """
    slices = list(slices)
    for step in (-1, 1):
        for z in range(len(slices))[::step][1:]:
            item, near = slices[z], slices[z - step]
            if item.aerated.any() or not near.aerated.any() or abs(heights_mm[z] - heights_mm[z - step]) > NEAR_MM:
                continue
            px = item.pixel_mm
            around = dilate(fill_holes(closing(near.aerated, 6 / px)), 4 / px)
            gray = Pieces.of(opening((item.smooth < _GRAY_HU[1]) & item.body & ~item.airway & around, 4 / px))
            keep = gray.areas() * px**2 > _SMALL_LUNG_MM2
            for index in np.flatnonzero(keep):
                keep[index] = np.percentile(item.smooth[gray.mask(index)], 25) > _GRAY_HU[0]
            slices[z] = replace(item, aerated=gray.chosen(keep))
    return slices


def lung_ends(slices: list[LungSlice], lung: Mask, heights_mm: NDArray[np.float64]) -> dict[int, Mask]:
    """Return lung of slices beyond the ends of the lungs (Z, Y, X), where its pieces are too small to be told by size.

    Above the highest slice of a mask that holds lung, and below the lowest, they lie over or under lung of the slice
    before, no larger than that, and at most `NEAR_MM` away. Airways, and gas of bowel, are no such pieces.
    """
    held = np.flatnonzero(lung.any(axis=(1, 2)))
    found: dict[int, Mask] = {}
    for end, beyond in ((held[0], range(held[0])[::-1]), (held[-1], range(held[-1] + 1, len(slices)))):
        before = lung[end]
        for z in beyond:
            item = slices[z]
            pieces = Pieces.of(item.small)
            tip = pieces.chosen(pieces.areas(dilate(before, 4 / item.pixel_mm)) > 0.5 * pieces.areas())
            is_tip = 0 < np.count_nonzero(tip) <= np.count_nonzero(before)
            if not is_tip or abs(heights_mm[z] - heights_mm[end]) > NEAR_MM:
                break
            before = tip
            found[z] = fill_holes(closing(tip, 3 / item.pixel_mm)) & ~item.airway
    return found


def _airways_throughout(slices: list[LungSlice], heights_mm: NDArray[np.float64]) -> list[Mask]:
    """Return the airways of each slice, with continuations of those in nearby slices, downwards and then upwards."""
    airways = [item.airway for item in slices]
    for step in (-1, 1):
        for z in range(len(slices))[::step][1:]:
            item, near = slices[z], airways[z - step]
            if near.any() and abs(heights_mm[z] - heights_mm[z - step]) <= NEAR_MM:
                lung = item.aerated | item.airway
                airways[z] = airways[z] | (follow_airways(item.hu, item.smooth, lung, near, item.pixel_mm) & item.body)
    return airways


def _first_of_lungs(aerated: NDArray[np.bool_], heights_mm: NDArray[np.float64]) -> int:
    """Return the index of the lungs' lowest slice: a small rest of air below a large gap is not lung."""
    area = aerated.sum(axis=(1, 2)).astype(float)
    held = np.flatnonzero(area)
    first = 0
    for low, high in pairwise(held):
        apart = high - low > 2 and heights_mm[high] - heights_mm[low] > _GAP_MM
        small = area[: low + 1].sum() < _REST_SHARE * area[high:].sum()
        if apart and small and area[low] < _GAP_SHARE * area.max():
            first = int(high)
    return first
