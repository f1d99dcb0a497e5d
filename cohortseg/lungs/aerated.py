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
    blur,
    centroids,
    components,
    dilate,
    erode,
    fill_holes,
    frame_pixels,
    held_by,
    opening,
    select_components,
)

AIR_HU: Final = -400.0
"""Below: aerated, ground glass included."""
NEAR_MM: Final = 10.5
"""Slices so far apart tell of each other: 10 mm, with room for what scanners vary."""
_GAP_MM: Final = 25.0
"""Slices without aerated lung over more than this part the colon from the lungs."""
_REST_SHARE: Final = 0.3
"""What lies below such a gap is lung all the same if it is more than this part of what lies above (white lungs)."""


@dataclass(frozen=True, kw_only=True)
class LungSlice:
    """A slice on the working grid (Y, X) with its aerated lung."""

    hu: Image
    smooth: Image
    body: Mask
    aerated: Mask
    airway: Mask
    cropped: bool
    """Whether the frame lies within the body, with hardly any air around it."""
    midline: float
    pixel_mm: float

    def part(self, box: tuple[slice, slice]) -> Self:
        """Return the part of the slice within rows and columns."""
        maps = {name: getattr(self, name)[box] for name in ("hu", "smooth", "body", "aerated", "airway")}
        return replace(self, **maps, midline=self.midline - box[1].start)


def aerated_slice(hu: Image, pixel_mm: float) -> LungSlice:
    """Return step 1: the aerated lung of a slice, and the midline of the body."""
    smooth = blur(hu, 0.7)
    outside = _outside(hu, smooth)
    cropped = bool(outside.mean() < 0.12)
    body = _body(hu, smooth, outside, cropped, pixel_mm)
    columns = np.flatnonzero(body.any(axis=0))
    midline = float(columns[[0, -1]].mean()) if columns.size else hu.shape[1] / 2
    air = (smooth < AIR_HU) & body
    if not cropped and air.any():
        air &= ~dilate(outside, 6 / pixel_mm)
    aerated = _lung_pieces(hu, air, midline, cropped, pixel_mm)
    found = np.flatnonzero(aerated.any(axis=0))
    if found.size and (found[0] - midline) * (found[-1] - midline) < 0:
        midline = 0.5 * midline + 0.25 * float(found[0] + found[-1])
    airway = find_airways(hu, smooth, aerated, midline, pixel_mm) & body
    return LungSlice(
        hu=hu,
        smooth=smooth,
        body=body,
        aerated=aerated & ~airway,
        airway=airway,
        cropped=cropped,
        midline=midline,
        pixel_mm=pixel_mm,
    )


def _outside(hu: Image, smooth: Image) -> Mask:
    """Return padding and air around the body.

    Lung that touches the frame is not outside. Outside air holds a corner of the image and is small or runs along most
    of the frame, or it runs along much of it (or of the padding's border) and is darker than lung.
    """
    outside = np.zeros(hu.shape, bool)
    frame = frame_pixels(hu.shape)
    for air in (hu < -1023.5, smooth < -500):
        edge = (frame | dilate(outside, 1.5)) & ~outside
        labels, count = components(air & ~outside)
        hits = np.bincount(labels[edge], minlength=count + 1)
        area = np.bincount(labels.ravel(), minlength=count + 1)
        corner = np.isin(np.arange(count + 1), labels[[0, 0, -1, -1], [0, -1, 0, -1]])
        share = hits / max(1, edge.sum())
        found = corner & ((share > 0.5) | (area < 0.03 * hu.size))
        for label in np.flatnonzero((share > 0.3) & ~found):
            found[label] = np.median(hu[labels == label]) < -940
        outside |= select_components(labels, found)
    return outside


def _body(hu: Image, smooth: Image, outside: Mask, cropped: bool, pixel_mm: float) -> Mask:
    """Return the largest body of tissue with the air in it, and lung that the field of view cuts off, or almost.

    Such lung still has chest wall in front and behind, or on both sides and is not as dark as air; air in the table, or
    between arm and chest, has and is neither.
    """
    labels, count = components(opening((smooth > AIR_HU) & ~outside, 2.5 / pixel_mm))
    if count == 0:
        return np.zeros(smooth.shape, bool)
    tissue = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    body = fill_holes(tissue)
    labels, count = components((smooth < AIR_HU) & ~body & ~outside)
    padding = padded_pixels(hu) & outside
    # a wall that the opening took away was up to 5 mm wide: from its one side to the other it is a pixel more
    cut = held_by(labels, count, dilate(frame_pixels(smooth.shape) | padding, 5 / pixel_mm + 1))
    area = np.bincount(labels.ravel(), minlength=count + 1)
    walled, flanked = (
        np.bincount(labels[where], minlength=count + 1) > 0.7 * area
        for where in (_between(tissue.T).T, _between(tissue))
    )
    for label in np.flatnonzero(cut & flanked & ~walled):
        walled[label] = np.median(hu[labels == label]) > -940
    return dilate(body | select_components(labels, cut & (cropped | walled)), 1.0) & ~outside


def _between(tissue: Mask) -> Mask:
    """Return what of each row lies from its first pixel of tissue to its last."""
    columns = np.arange(tissue.shape[1])
    first, last = tissue.argmax(axis=1), columns[-1] - tissue[:, ::-1].argmax(axis=1)
    between: Mask = (columns >= first[:, None]) & (columns <= last[:, None])
    between[~tissue.any(axis=1)] = False
    return between


def padded_pixels(hu: Image) -> Mask:
    """Return where nothing was measured: regions at the lowest HU, too thick to be noise."""
    return opening(hu < -1023.5, 3.0)


def _lung_pieces(hu: Image, air: Mask, midline: float, cropped: bool, pixel_mm: float) -> Mask:
    """Return the pieces of air that are lung: large ones with vessels in them, and small ones beside those.

    Gas is dark throughout (95th percentile below -840 HU); lung, even emphysema, holds vessels. A cropped picture is
    one of lungs, where a dark lateral piece is a bulla rather than stomach.
    """
    labels, count = components(air)
    if count == 0:
        return air
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:] * pixel_mm**2
    core = np.where(erode(air, 1.5), labels, 0)
    lateral = np.abs(centroids(labels, count)[:, 1] - midline) * pixel_mm
    thin = np.bincount(core.ravel(), minlength=count + 1)[1:] == 0
    gas = np.zeros(count, bool)
    for i in np.flatnonzero(~thin & (area > 30)):
        inner = hu[core == i + 1]
        gas[i] = np.median(inner) < -920 and np.percentile(inner, 95) < -840
    if cropped:
        gas &= (lateral < 45) & (area < 2500)
    large = (area > 800) & ~gas & ~thin
    if not large.any():
        return np.zeros_like(air)
    lung = select_components(labels, np.append(False, large))
    near = held_by(labels, count, dilate(lung, 15 / pixel_mm))
    small = (area >= 12) & ~gas & (lateral >= 35)
    return lung | select_components(
        labels, np.append(False, small) & (near | np.append(False, ~thin & (area > 60)) | cropped)
    )


def supported_slices(slices: list[LungSlice], heights_mm: NDArray[np.float64]) -> list[LungSlice]:
    """Return the slices with one smoothed midline, and without aerated pieces that are no lung in the whole volume.

    Those are pieces that are small in it, a stool-filled colon (what lies far below the lungs, apart from them), and
    how airways of the slices around go on. ``heights_mm`` are the slices' heights, rising.
    """
    aerated = np.stack([item.aerated for item in slices])
    if len(slices) >= 3:
        labels, count = ndimage.label(aerated)
        size = np.bincount(labels.ravel(), minlength=count + 1)
        aerated = select_components(labels, size > 0.02 * size[1:].max(initial=0)) if count else aerated
    aerated[: _first_of_lungs(aerated, heights_mm)] = False
    airways = _airways_throughout(slices, heights_mm)
    held = aerated.any(axis=(1, 2))
    midlines = np.array([item.midline for item in slices])
    if held.any():
        midlines[held] = ndimage.median_filter(midlines[held], size=min(9, int(held.sum())), mode="nearest")
    return [
        replace(item, aerated=lung & ~airway, airway=airway, midline=float(midline))
        for item, lung, airway, midline in zip(slices, aerated, airways, midlines, strict=True)
    ]


def _airways_throughout(slices: list[LungSlice], heights_mm: NDArray[np.float64]) -> list[Mask]:
    """Return the airways of each slice with what goes on from those of slices near by, downwards, then upwards."""
    airways = [item.airway for item in slices]
    for step in (-1, 1):
        for z in range(len(slices))[::step][1:]:
            item, near = slices[z], airways[z - step]
            if near.any() and abs(heights_mm[z] - heights_mm[z - step]) <= NEAR_MM:
                lung = item.aerated | item.airway
                airways[z] = airways[z] | (follow_airways(item.hu, item.smooth, lung, near, item.pixel_mm) & item.body)
    return airways


def _first_of_lungs(aerated: NDArray[np.bool_], heights_mm: NDArray[np.float64]) -> int:
    """Return the lowest slice above which no gap parts a small lower rest from the lungs."""
    area = aerated.sum(axis=(1, 2)).astype(float)
    held = np.flatnonzero(area)
    first = 0
    for low, high in pairwise(held):
        apart = high - low > 2 and heights_mm[high] - heights_mm[low] > _GAP_MM
        if apart and area[: low + 1].sum() < _REST_SHARE * area[high:].sum():
            first = int(high)
    return first
