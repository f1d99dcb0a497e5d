"""Lung masks from CT in HU, made so that dense disease stays inside: the denominator of burden.

A plain threshold at -500 HU loses consolidated lung, which is no longer air. Here each slice goes three steps:

1. *Aerated lung*: air inside the body, without outside air, bowel gas, trachea and main bronchi.
2. *Thoracic cavity*: a closed curve around it by dynamic programming in polar coordinates. It wants rib just outside
   and none just inside, leaves no aerated lung out, and keeps near the convex hull of both lungs and to the mirror
   image of the other lung.
3. *Dense lung*: soft tissue of that cavity near signs of air (dark inclusions such as air bronchograms count), unless
   it lies in a thick homogeneous core: heart, great vessels, liver, or effusion.

A large homogeneous region without a sign of air cannot be told from effusion by HU alone; it is left out, and flagged.
All lengths are in mm, so that spacing does not matter; a slice is segmented alike alone and within its volume, but for
the midline (smoothed along z) and for small pieces that nothing above or below supports.

Axes: Z Y X; row 0 anterior, column 0 the patient's right, z rising to the head.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

RIGHT: Final = 1
"""Value of the patient's right lung."""
LEFT: Final = 2
"""Value of the patient's left lung."""
LUNG_METHOD: Final = "cohortseg-threshold 1"
"""Name and version of the method; the version rises whenever masks change."""
LUNG_FLAGS: Final[dict[str, str]] = {
    "lung_cut_by_field_of_view": "lung touches the edge of the image: part of it may lie outside",
    "lung_cut_at_end_slice": "the first or last slice still holds much lung: part of it was not scanned",
    "one_lung": "one side holds less than 5 % of the lung found",
    "dense_region_excluded": "a large homogeneous dorsal region was left out: effusion, atelectasis or consolidation",
}
"""Flags that `segment_lungs` may raise, and what they mean."""
UPPER, MIDDLE, LOWER = 3, 2, 1
"""Values of `zone_thirds`."""

Mask = NDArray[np.bool_]
Image = NDArray[np.float32]
Reals = NDArray[np.floating]

_GRID_MM: Final = 1.5
"""In-plane working resolution."""
_SLICE_STEP_MM: Final = 5.0
"""Thinner slices are skipped to about this distance; masks between are interpolated."""
_AIR_HU: Final = -400.0
"""Below: aerated, ground glass included."""
_SIGN_HU: Final = -250.0
"""Below, inside the cavity: a sign that the tissue around is lung."""
_REACH_MM: Final = (10.0, 25.0)
"""Dense lung reaches so far from a sign of air: ventral, dorsal (where consolidation gathers)."""


@dataclass(frozen=True, kw_only=True)
class Lungs:
    """The lungs of one series."""

    mask: NDArray[np.uint8]
    """(Z, Y, X) uint8: 0 none, 1 the patient's right lung, 2 the left. Vessels and lesions in, main airways out."""
    flags: tuple[str, ...]
    """Findings, keys of `LUNG_FLAGS`."""


@dataclass(frozen=True, kw_only=True)
class _Slice:
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
        If the volume is not three-dimensional or a spacing is not positive.
    """
    if volume_hu.ndim != 3:
        raise ValueError(f"volume_hu must be (Z, Y, X), got shape {volume_hu.shape}")
    if not all(value is None or value > 0 for value in spacing_mm):
        raise ValueError(f"spacing_mm must be positive, got {spacing_mm}")
    planes = _working_planes(volume_hu.shape[0], spacing_mm[0])
    factor = tuple(max(1, round(_GRID_MM / spacing)) for spacing in spacing_mm[1:])
    pixel_mm = float(np.sqrt(spacing_mm[1] * factor[0] * spacing_mm[2] * factor[1]))
    slices = [_aerated_slice(_block_mean(volume_hu[z], factor), pixel_mm) for z in planes]
    slices = _supported(slices)
    if not any(item.aerated.any() for item in slices):
        return Lungs(mask=np.zeros(volume_hu.shape, np.uint8), flags=())
    filled = [_dense_slice(item) for item in slices]
    coarse = np.stack([side for side, _ in filled])
    mask = _to_full(coarse, planes, factor, volume_hu)
    excluded_mm2 = [area for _, area in filled]
    return Lungs(mask=mask, flags=_flags(mask, coarse, planes, excluded_mm2))


def zone_thirds(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the third by height of each lung voxel, for each side over the slices that hold that lung.

    Parameters
    ----------
    mask : (Z, Y, X) uint8
        As in `Lungs.mask`; z rises to the head.

    Returns
    -------
    (Z, Y, X) uint8
        0 outside the lungs, 1 lower, 2 middle, 3 upper. Thirds of the lung's height, not of its volume. A lung on
        fewer than three slices has no thirds and stays 0.
    """
    zones = np.zeros(mask.shape, np.uint8)
    for side in (RIGHT, LEFT):
        held = np.flatnonzero((mask == side).any(axis=(1, 2)))
        if held.size == 0 or held[-1] - held[0] < 2:
            continue
        for z in held:
            third = LOWER + 3 * (int(z) - int(held[0])) // (int(held[-1]) - int(held[0]) + 1)
            zones[z][mask[z] == side] = third
    return zones


def _working_planes(count: int, spacing_z_mm: float | None) -> NDArray[np.intp]:
    """Return the slices to work on: all, or every n-th of thin ones, first and last always among them."""
    step = 1 if spacing_z_mm is None else max(1, int(_SLICE_STEP_MM / spacing_z_mm))
    return np.unique(np.append(np.arange(0, count, step), count - 1))


def _block_mean(plane: NDArray[np.int16], factor: tuple[int, ...]) -> Image:
    """Return the means of blocks of pixels; the last row and column are repeated to fill the last blocks."""
    pad = [(0, -size % f) for size, f in zip(plane.shape, factor, strict=True)]
    rows, columns = (size + p[1] for size, p in zip(plane.shape, pad, strict=True))
    blocks = np.pad(plane, pad, mode="edge").reshape(rows // factor[0], factor[0], columns // factor[1], factor[1])
    means: Image = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means


def _box(mask: Mask, margin: int) -> tuple[slice, slice]:
    """Return the bounding box of a mask that is not empty, with a margin."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1) for found in (rows, columns))  # type: ignore[return-value]


def _dilate(mask: Mask, radius: float) -> Mask:
    """Return the mask grown by a disc of this radius, pixels."""
    grown: Mask = np.zeros(mask.shape, bool)
    if mask.any():
        box = _box(mask, int(np.ceil(radius)))
        grown[box] = ndimage.distance_transform_edt(~mask[box]) <= radius
    return grown


def _erode(mask: Mask, radius: float) -> Mask:
    """Return the mask shrunk by a disc; what touches the frame counts as going on beyond it."""
    shrunk: Mask = mask.copy()
    if mask.any() and not mask[box := _box(mask, 1)].all():
        shrunk[box] = ndimage.distance_transform_edt(mask[box]) > radius
    return shrunk


def _open(mask: Mask, radius: float) -> Mask:
    """Return the parts of the mask into which a disc of this radius fits."""
    return _dilate(_erode(mask, radius), radius) & mask


def _close(mask: Mask, radius: float) -> Mask:
    """Return the mask with gaps closed into which no disc fits."""
    pad = int(np.ceil(radius)) + 1
    return _erode(_dilate(np.pad(mask, pad), radius), radius)[pad:-pad, pad:-pad] | mask


def _select(labels: NDArray[np.signedinteger], keep: NDArray[np.bool_]) -> Mask:
    """Return the components whose entry in `keep` (by label, 0 for the background) is true."""
    kept: Mask = (keep & (np.arange(keep.size) > 0))[labels]
    return kept


def _frame(shape: tuple[int, ...]) -> Mask:
    """Return the outermost pixels."""
    return ~np.pad(np.ones((shape[0] - 2, shape[1] - 2), bool), 1)


def _outside(hu: Image, smooth: Image) -> Mask:
    """Return padding and air around the body.

    Lung that touches the frame is not outside. Outside air holds a corner of the image and is small or runs along most
    of the frame, or it runs along much of it (or of the padding's border) and is darker than lung.
    """
    outside = np.zeros(hu.shape, bool)
    frame = _frame(hu.shape)
    for air in (hu < -1023.5, smooth < -500):
        edge = (frame | _dilate(outside, 1.5)) & ~outside
        labels, count = ndimage.label(air & ~outside)
        hits = np.bincount(labels[edge], minlength=count + 1)
        area = np.bincount(labels.ravel(), minlength=count + 1)
        corner = np.isin(np.arange(count + 1), labels[[0, 0, -1, -1], [0, -1, 0, -1]])
        share = hits / max(1, edge.sum())
        dark = np.append(0, ndimage.median(hu, labels, np.arange(1, count + 1))) < -940
        outside |= _select(labels, (corner & ((share > 0.5) | (area < 0.03 * hu.size))) | ((share > 0.3) & dark))
    return outside


def _body(hu: Image, smooth: Image, outside: Mask, cropped: bool, pixel_mm: float) -> Mask:
    """Return the largest body of tissue with the air in it, and lung that the field of view cuts off, or almost.

    Such lung still has chest wall in front and behind; air in the table has not.
    """
    labels, count = ndimage.label(_open((smooth > _AIR_HU) & ~outside, 2.5 / pixel_mm))
    if count == 0:
        return np.zeros(smooth.shape, bool)
    tissue = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    body = ndimage.binary_fill_holes(tissue)
    labels, count = ndimage.label((smooth < _AIR_HU) & ~body & ~outside)
    padding = _open(outside & (hu < -1023.5), 3.0)
    cut = np.isin(np.arange(count + 1), labels[_dilate(_frame(smooth.shape) | padding, 5 / pixel_mm)])
    between = np.maximum.accumulate(tissue, axis=0) & np.maximum.accumulate(tissue[::-1], axis=0)[::-1]
    walled = np.append(0, ndimage.mean(between, labels, np.arange(1, count + 1))) > 0.7
    return _dilate(body | _select(labels, cut & (cropped | walled)), 1.0) & ~outside


def _aerated_slice(hu: Image, pixel_mm: float) -> _Slice:
    """Return step 1: the aerated lung of a slice, and the midline of the body."""
    smooth = ndimage.gaussian_filter(hu, 0.7)
    outside = _outside(hu, smooth)
    cropped = bool(outside.mean() < 0.12)
    body = _body(hu, smooth, outside, cropped, pixel_mm)
    columns = np.flatnonzero(body.any(axis=0))
    midline = float(columns[[0, -1]].mean()) if columns.size else hu.shape[1] / 2
    air = (smooth < _AIR_HU) & body
    if not cropped and air.any():
        air &= ndimage.distance_transform_edt(~outside) > 6 / pixel_mm
    aerated = _lung_pieces(hu, air, midline, cropped, pixel_mm)
    found = np.flatnonzero(aerated.any(axis=0))
    if found.size and (found[0] - midline) * (found[-1] - midline) < 0:
        midline = 0.5 * midline + 0.25 * float(found[0] + found[-1])
    airway = _airway(hu, smooth, aerated, midline, pixel_mm) & body
    return _Slice(
        hu=hu,
        smooth=smooth,
        body=body,
        aerated=aerated & ~airway,
        airway=airway,
        cropped=cropped,
        midline=midline,
        pixel_mm=pixel_mm,
    )


def _lung_pieces(hu: Image, air: Mask, midline: float, cropped: bool, pixel_mm: float) -> Mask:
    """Return the pieces of air that are lung: large ones with vessels in them, and small ones beside those.

    Gas is dark throughout (95th percentile below -840 HU); lung, even emphysema, holds vessels. A cropped picture is
    one of lungs, where a dark lateral piece is a bulla rather than stomach.
    """
    labels, count = ndimage.label(air)
    index = np.arange(1, count + 1)
    if count == 0:
        return air
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:] * pixel_mm**2
    core = np.where(_erode(air, 1.5), labels, 0)
    lateral = np.abs(np.array(ndimage.center_of_mass(air, labels, index)).reshape(-1, 2)[:, 1] - midline) * pixel_mm
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
    lung = _select(labels, np.append(False, large))
    near = np.append(False, ndimage.minimum(ndimage.distance_transform_edt(~lung), labels, index) * pixel_mm < 15)
    small = (area >= 12) & ~gas & (lateral >= 35)
    return lung | _select(labels, np.append(False, small) & (near | np.append(False, ~thin & (area > 60)) | cropped))


def _airway(hu: Image, smooth: Image, lung: Mask, midline: float, pixel_mm: float) -> Mask:
    """Return trachea and main bronchi: dark compact cores near the midline, walled by tissue, with their walls."""
    inner = _erode(lung, 2.0)
    level = min(float(np.median(hu[inner])) - 70, -900.0) if inner.any() else -900.0
    labels, _ = ndimage.label(_open(smooth < level, 2.0))
    airway = np.zeros(lung.shape, bool)
    for i, (_, box_x) in enumerate(ndimage.find_objects(labels), start=1):
        core = labels == i
        lateral_mm = abs((box_x.start + box_x.stop - 1) / 2 - midline) * pixel_mm
        if not 40 < core.sum() * pixel_mm**2 < 1200 or lateral_mm > 45:
            continue
        wall = _dilate(core, 3 / pixel_mm + 1) & ~_dilate(core, 1.5)
        if np.mean(smooth[wall] > -500) > 0.5:
            airway |= _dilate(core, 1.5)
    return airway


def _supported(slices: list[_Slice]) -> list[_Slice]:
    """Return the slices with one smoothed midline, and without aerated pieces that are small in the whole volume."""
    aerated = np.stack([item.aerated for item in slices])
    if len(slices) >= 3:
        labels, count = ndimage.label(aerated)
        size = np.bincount(labels.ravel(), minlength=count + 1)
        aerated = _select(labels, size > 0.02 * size[1:].max(initial=0)) if count else aerated
    held = aerated.any(axis=(1, 2))
    midlines = np.array([item.midline for item in slices])
    if held.any():
        midlines[held] = ndimage.median_filter(midlines[held], size=min(9, int(held.sum())), mode="nearest")
    return [
        replace(item, aerated=lung, midline=float(midline))
        for item, lung, midline in zip(slices, aerated, midlines, strict=True)
    ]


def _dense_slice(item: _Slice) -> tuple[NDArray[np.uint8], float]:
    """Return steps 2 and 3 for a slice: its sides (Y, X) and the area of homogeneous dorsal tissue left out, mm2."""
    if not item.aerated.any():
        return np.zeros(item.hu.shape, np.uint8), 0.0
    px = item.pixel_mm
    cavity = _cavity(item)
    dorsal, lateral, medial = _compartments(item, cavity)
    signs = _air_signs(item, cavity, dorsal, lateral)
    dense = cavity & ~signs & ~item.airway
    core, dorsal_core = _homogeneous_cores(item, dense, dorsal, lateral, medial)
    reach = np.where(dorsal, _REACH_MM[1], _REACH_MM[0])
    apart = np.abs(np.arange(cavity.shape[1]) - item.midline) * px > 18
    near = ndimage.distance_transform_edt(~signs) * px < reach
    free = dense & near & ~dorsal_core & ~core & apart
    hull = _side_hulls(signs, item.midline)
    taken = _open(free & hull, 2.5 / px) | _open(free & (dorsal | hull), 3.5 / px)
    lung = _close(signs | taken, 4 / px) & cavity & ~core & ~dorsal_core & ~item.airway
    lung = _open(lung | signs, 1.5) | item.aerated
    lung &= ~_open(item.smooth > 250, 1.0)
    lung = _fill_small_holes(lung, core | dorsal_core, item.airway, px)
    return _sides(lung, item), float((dorsal_core & dorsal).sum() * px**2)


def _cavity(item: _Slice) -> Mask:
    """Return step 2: the inside of the rib cage, all aerated lung included."""
    rows = np.flatnonzero(item.aerated.any(axis=1))
    centre = ((rows[0] + rows[-1]) / 2, item.midline)
    angles = np.arange(180) * (2 * np.pi / 180)
    cost = _wall_cost(item, centre, angles, int(210 / item.pixel_mm))
    wall = _closed_path(cost, reach=4, bend=0.04).astype(float)
    yy, xx = np.indices(item.hu.shape)
    angle = np.arctan2(yy - centre[0], xx - centre[1]) % (2 * np.pi)
    radius = np.interp(angle, np.append(angles, 2 * np.pi), np.append(wall, wall[0]))
    inside: Mask = np.hypot(yy - centre[0], xx - centre[1]) <= radius
    return inside | item.aerated


def _wall_cost(item: _Slice, centre: tuple[float, float], angles: Reals, reach: int) -> Reals:
    """Return (angle, radius): what it costs to put the wall of the cavity there."""
    px, radii = item.pixel_mm, np.arange(reach)
    at = [c + np.outer(f(angles), radii) for c, f in zip(centre, (np.sin, np.cos), strict=True)]

    def polar(image: Mask | Reals) -> Reals:
        values: Reals = ndimage.map_coordinates(image.astype(np.float32), at, order=1, mode="constant")
        return values

    def outermost(mask: Mask) -> NDArray[np.intp]:
        return np.where(mask.any(axis=1), reach - 1 - mask[:, ::-1].argmax(axis=1), 0)

    columns = np.round(2 * item.midline - np.arange(item.hu.shape[1])).astype(int).clip(0, item.hu.shape[1] - 1)
    air = item.aerated | (item.cropped & item.body & ~item.airway & (item.smooth < _SIGN_HU))
    lung = polar(air) > 0.5
    body: Mask = polar(item.body if not item.cropped else np.ones_like(item.body)) > 0.5
    skin = np.where(body.all(axis=1), reach - 1, (~body).argmax(axis=1)) - 6 / px
    mirrored = outermost(polar(item.aerated[:, columns]) > 0.5) - 8 / px
    expected = np.maximum(outermost(polar(_convex_hull(item.aerated)) > 0.5), np.minimum(mirrored, skin))
    if item.cropped:
        half = np.array(item.hu.shape) / 2
        ellipse = sum(np.abs((a - (h - 0.5)) / h) ** 2.6 for a, h in zip(at, half, strict=True)) <= 0.95
        expected = np.maximum(expected, outermost(ellipse))
    bone = polar(np.clip((item.smooth - 100) / 80, 0, 1))
    off = (radii - expected[:, None]) * px / 3
    cost: Reals = np.where(off > 0, 0.03 if item.cropped else 0.05, 0.12 if item.cropped else 0.08) * np.abs(off)
    weight = 0.5 if item.cropped else 1.0
    cost += weight * (_window_mean(bone, -6 / px) - 1.5 * _window_mean(bone, 8 / px))
    cost += 0.6 * np.cumsum(lung[:, ::-1], axis=1)[:, ::-1]
    cost += 5.0 * (radii > np.maximum(skin, outermost(lung))[:, None])
    return cost


def _window_mean(values: Reals, width: float) -> Reals:
    """Return the mean over the next (width > 0) or the last columns."""
    size = max(1, round(abs(width)))
    pad = ((0, 0), (1, size)) if width > 0 else ((0, 0), (size + 1, 0))
    total = np.cumsum(np.pad(values, pad), axis=1)
    count = values.shape[1]
    means: Reals = (total[:, size : size + count] - total[:, :count]) / size
    return means


def _closed_path(cost: Reals, reach: int, bend: float) -> NDArray[np.intp]:
    """Return the radius at each angle of the cheapest closed curve.

    Dynamic programming over one and a half turns, of which the middle turn is kept. Neighbouring radii differ by at
    most `reach`; a difference d costs ``bend * d**2``.
    """
    angles, radii = cost.shape
    order = np.arange(angles + angles // 2) % angles
    steps = np.arange(-reach, reach + 1)
    total, back = cost[0].copy(), []
    for angle in order[1:]:
        padded = np.pad(total, reach, constant_values=1e9)
        options = np.lib.stride_tricks.sliding_window_view(padded, radii) + (bend * steps**2)[:, None]
        best = options.argmin(axis=0)
        back.append(best)
        total = options[best, np.arange(radii)] + cost[angle]
    path = np.zeros(order.size, np.intp)
    path[-1] = total.argmin()
    for i in range(order.size - 1, 0, -1):
        path[i - 1] = path[i] + steps[back[i - 1][path[i]]]
    kept = np.arange(angles // 4, angles // 4 + angles)
    result = np.empty(angles, np.intp)
    result[order[kept]] = path[kept]
    return result


def _convex_hull(mask: Mask) -> Mask:
    """Return the convex hull of a mask."""
    points = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    hull: Mask = mask.copy()
    if len(points) < 3 or np.ptp(points, axis=0).min() == 0:
        return hull
    box = _box(mask, 0)
    yy, xx = np.ogrid[box]
    inside: Mask = np.ones(mask[box].shape, bool)
    for a, b, c in spatial.ConvexHull(points).equations:
        inside &= a * yy + b * xx <= 1e-6 - c
    hull[box] = inside
    return hull


def _side_hulls(signs: Mask, midline: float) -> Mask:
    """Return the convex hulls of the signs of air on either side of the midline: what lung surrounds is lung."""
    right = np.arange(signs.shape[1]) < midline
    hulls: Mask = np.zeros(signs.shape, bool)
    for side in (right, ~right):
        if (signs & side).any():
            hulls |= _convex_hull(signs & side) & side
    return hulls


def _compartments(item: _Slice, cavity: Mask) -> tuple[Mask, Mask, Mask]:
    """Return three overlapping regions: dorsal (lung, no heart), lateral (all but the middle), medial (mediastinum).

    Dorsal is behind the front of the vertebral body and beside the spine. Medial is all that is not dorsal, and a strip
    beside the spine, wider where the descending aorta runs.
    """
    yy, xx = np.indices(cavity.shape)
    rows = np.flatnonzero(cavity.any(axis=1))
    front = rows[-1] - 0.33 * (rows[-1] - rows[0])
    depth = np.clip((yy - front) / (rows[-1] - front + 1), 0, 1)
    lateral_mm = (xx - item.midline) * item.pixel_mm
    limit = np.where(lateral_mm > 0, 34 - 14 * depth, 26 - 4 * depth)
    lateral = np.abs(lateral_mm) > limit
    dorsal = (yy > front) & lateral
    strip = np.where((lateral_mm > 0) & (depth < 0.4), 45, 28)
    return dorsal, lateral, ~dorsal | (np.abs(lateral_mm) < strip)


def _air_signs(item: _Slice, cavity: Mask, dorsal: Mask, lateral: Mask) -> Mask:
    """Return the signs of lung in the cavity: aerated lung, dense ground glass, and thin dark inclusions.

    Inclusions (air bronchograms, bubbles) are 130 HU darker than the tissue that closes over them. Near the midline
    signs apart from the lung are oesophagus and bronchi.
    """
    px = item.pixel_mm
    signs = item.aerated | ((item.smooth < _SIGN_HU) & cavity & item.body & ~item.airway)
    labels, count = ndimage.label(signs)
    if count:
        centre = np.array(ndimage.center_of_mass(signs, labels, np.arange(1, count + 1))).reshape(-1, 2)
        behind = np.any(dorsal, axis=1)[centre[:, 0].astype(int)]
        central = np.abs(centre[:, 1] - item.midline) * px < np.where(behind, 25, 40)
        held = ndimage.maximum(item.aerated, labels, np.arange(1, count + 1)) > 0
        signs = _select(labels, np.append(False, held | ~central))
    disc = np.hypot(*(np.indices((7, 7)) - 3)) <= 3
    contrast = ndimage.grey_closing(item.hu, footprint=disc) - item.hu
    dark = (contrast > 130) & (item.hu < np.where(dorsal, -130, -200)) & cavity & lateral & ~item.airway
    return signs | (dark & (ndimage.uniform_filter(dark.astype(np.float32), 3) > 0.25))


def _homogeneous_cores(item: _Slice, dense: Mask, dorsal: Mask, lateral: Mask, medial: Mask) -> tuple[Mask, Mask]:
    """Return thick tissue without a sign of air: that of mediastinum and liver, and the thickest beside the spine.

    A core is what a disc fits into: of 10 mm radius where it reaches the midline, 14 mm where it lies laterally in
    front (liver), 24 mm behind, where consolidation is common.
    """
    px = item.pixel_mm
    offset_mm = (np.indices(dense.shape)[1] - item.midline) * px
    labels, _ = ndimage.label(_open(dense & medial, 10 / px))
    core = np.isin(labels, np.setdiff1d(labels[np.abs(offset_mm) < 25], [0]))
    labels, count = ndimage.label(_open(dense & lateral & ~core & ~dorsal, 14 / px))
    core |= _select(labels, np.bincount(labels.ravel(), minlength=count + 1) * px**2 > 1000)
    return core, _open(dense & lateral, 24 / px)


def _fill_small_holes(lung: Mask, core: Mask, airway: Mask, pixel_mm: float) -> Mask:
    """Return the lung with vessels and lesions inside it filled, but not the liver's dome or an airway."""
    labels, count = ndimage.label(~lung)
    size = count + 1
    kept = np.isin(np.arange(size), labels[_frame(lung.shape)])
    kept |= np.bincount(labels[core], minlength=size) * pixel_mm**2 >= 400
    kept |= np.bincount(labels[airway], minlength=size) > 0
    return lung | _select(labels, ~kept)


def _sides(lung: Mask, item: _Slice) -> NDArray[np.uint8]:
    """Return 1 for the right and 2 for the left lung; where they touch they part along the brightest line."""
    px, middle = item.pixel_mm, item.midline
    columns = np.broadcast_to(np.arange(lung.shape[1]), lung.shape)
    labels, count = ndimage.label(lung)
    sides = np.zeros(lung.shape, np.uint8)
    relief = np.clip((item.smooth + 1024) / 8, 0, 255).astype(np.uint8)
    for i in range(1, count + 1):
        piece = labels == i
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


def _to_full(
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
            y, x = _box(share > 0, 0)
            fine = rows[:, y] @ share[y, x].astype(np.float32) @ columns[:, x].T
            fine += 0.25 * ((volume_hu[z] < _AIR_HU) & (fine > 0))
            full[z][fine > best] = side
            best = np.maximum(best, fine)
    return full


def _interpolation(count: int, blocks: int, factor: int) -> Image:
    """Return the (count, blocks) weights that interpolate block means, taken at the blocks' centres, to pixels."""
    position = np.clip((np.arange(count) - (factor - 1) / 2) / factor, 0, blocks - 1)
    weights: Image = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(blocks))).astype(np.float32)
    return weights


def _flags(
    mask: NDArray[np.uint8], coarse: NDArray[np.uint8], planes: NDArray[np.intp], excluded_mm2: list[float]
) -> tuple[str, ...]:
    """Return the findings about a mask that holds lung."""
    area = (coarse > 0).sum(axis=(1, 2))
    held = np.flatnonzero(area)
    sides = [int((mask == side).sum()) for side in (RIGHT, LEFT)]
    # the liver fills the dorsal recesses below: only the upper 60 % of the lungs' height tells
    upper = slice(held[0] + int(0.4 * (held[-1] - held[0] + 1)), held[-1] + 1)
    found = {
        "lung_cut_by_field_of_view": bool((coarse[:, _frame(coarse.shape[1:])] > 0).any()),
        "lung_cut_at_end_slice": planes.size >= 3 and bool(max(area[0], area[-1]) > 0.25 * area.max()),
        "one_lung": min(sides) < 0.05 * sum(sides),
        "dense_region_excluded": max(excluded_mm2[upper]) > 1500,
    }
    return tuple(name for name in LUNG_FLAGS if found[name])
