"""Step 2: the thoracic cavity of a slice, inside a closed curve found by dynamic programming in polar coordinates."""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cohortseg.lungs.aerated import LungSlice
from cohortseg.lungs.morphology import (
    Mask,
    Reals,
    closing,
    components,
    convex_hull,
    dilate,
    fill_holes,
    held_by,
    opening,
    select_components,
)

SIGN_HU: Final = -250.0
"""Below, inside the cavity: a sign that the tissue around is lung."""
_BONE_HU: Final = 180.0
"""Above: bone, or vessels full of contrast medium."""
_ANGLES: Final = 180
"""Directions in which the wall is looked for."""
_ALONG_MM: Final = 5.0
"""Standard deviation of the heights over which slices lend each other their ribs."""


def rib_cage_cavities(items: Sequence[LungSlice], heights_mm: Reals) -> list[Mask]:
    """Return step 2 for slices of one shape: the inside of the rib cage, all aerated lung included.

    A slice crosses ribs here and there only. What the wall costs is averaged over near slices (``heights_mm``, rising),
    so that it does not cut through dense lung, or bulge out of the cage, where a slice shows no rib.
    """
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    apart = np.abs(heights_mm[:, None] - heights_mm) / _ALONG_MM
    near = np.exp(-(apart**2) / 2)
    near /= near.sum(axis=1, keepdims=True)
    centres = [(float(row), float(column)) for row, column in near @ np.array([_centre(item) for item in items])]
    costs = np.stack(
        [_wall_cost(item, at, angles, int(210 / item.pixel_mm)) for item, at in zip(items, centres, strict=True)]
    )
    walls = _closed_paths(np.tensordot(near.astype(np.float32), costs, 1), reach=4, bend=0.04)
    return [
        _within(wall, centre, costs.shape[2], item.hu.shape) | item.aerated
        for item, centre, wall in zip(items, centres, walls, strict=True)
    ]


def _centre(item: LungSlice) -> tuple[float, float]:
    """Return (row, column): half way down the aerated lung, on the midline."""
    rows = np.flatnonzero(item.aerated.any(axis=1))
    return float(rows[0] + rows[-1]) / 2, item.midline


def _within(wall: NDArray[np.intp], centre: tuple[float, float], reach: int, shape: tuple[int, ...]) -> Mask:
    """Return the pixels inside a wall that is given by its radius at each angle, linear between."""
    room = (wall[:, None] - np.arange(reach) + 1).astype(np.float32)
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    inside: Mask = cv2.warpPolar(room, shape[::-1], centre[::-1], reach, flags) >= 1  # 0 beyond the reach
    return inside


def wall_room(item: LungSlice, cavity: Mask) -> Mask:
    """Return where in the cavity dense lung may lie: inside the line through the inner contour of ribs and spine.

    Bone that the curve cut off, or that stands beside the spine, is wall, and so is what no disc of 10 mm radius
    reaches that stays clear of it: the muscle between ribs and beside the spinous process.
    """
    px = item.pixel_mm
    labels, count = components(item.smooth > _BONE_HU)
    spine = np.zeros(cavity.shape, bool)
    beside = np.abs(np.arange(cavity.shape[1]) - item.midline) * px < 15
    spine[max(0, np.flatnonzero(cavity.any(axis=1))[-1] - int(25 / px)) :, beside] = True
    wall = held_by(labels, count, ~cavity | spine)
    bone = fill_holes(closing(select_components(labels, wall), 3 / px))
    labels, count = components(opening(cavity & ~dilate(bone, 1.0), 10 / px))
    return select_components(labels, held_by(labels, count, item.aerated))


def _wall_cost(item: LungSlice, centre: tuple[float, float], angles: Reals, reach: int) -> Reals:
    """Return (angle, radius): what it costs to put the wall of the cavity there."""
    px, radii = item.pixel_mm, np.arange(reach)
    at = [c + np.outer(f(angles), radii) for c, f in zip(centre, (np.sin, np.cos), strict=True)]
    rows_at, columns_at = (values.astype(np.float32) for values in at)

    def polar(image: Mask | Reals) -> Reals:
        return cv2.remap(image.astype(np.float32), columns_at, rows_at, cv2.INTER_LINEAR).astype(np.float32, copy=False)

    def outermost(mask: Mask) -> NDArray[np.intp]:
        return np.where(mask.any(axis=1), reach - 1 - mask[:, ::-1].argmax(axis=1), 0)

    columns = np.round(2 * item.midline - np.arange(item.hu.shape[1])).astype(int).clip(0, item.hu.shape[1] - 1)
    air = item.aerated | (item.cropped & item.body & ~item.airway & (item.smooth < SIGN_HU))
    lung = polar(air) > 0.5
    body: Mask = polar(item.body if not item.cropped else np.ones_like(item.body)) > 0.5
    skin = np.where(body.all(axis=1), reach - 1, (~body).argmax(axis=1)) - 6 / px
    mirrored = outermost(polar(item.aerated[:, columns]) > 0.5) - 8 / px
    expected = np.maximum(outermost(polar(convex_hull(item.aerated)) > 0.5), np.minimum(mirrored, skin))
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


def _closed_paths(costs: Reals, reach: int, bend: float) -> NDArray[np.intp]:
    """Return (slice, angle): the radius of the cheapest closed curve of each slice's (angle, radius) costs.

    Dynamic programming over one and a half turns, of which the middle turn is kept. Neighbouring radii differ by at
    most `reach`; a difference d costs ``bend * d**2``. All slices take each step together, which makes it fast.
    """
    count, angles, radii = costs.shape
    order = np.arange(angles + angles // 2) % angles
    penalty = (bend * np.arange(-reach, reach + 1) ** 2).astype(np.float32)
    totals = np.full((order.size, count, radii + 2 * reach), 1e9, np.float32)
    totals[0, :, reach:-reach] = costs[:, 0]
    for step, angle in enumerate(order[1:], start=1):
        before, total = totals[step - 1], totals[step, :, reach:-reach]
        np.add(before[:, :radii], penalty[0], out=total)
        for shift in range(1, penalty.size):
            np.minimum(total, before[:, shift : shift + radii] + penalty[shift], out=total)
        total += costs[:, angle]
    slices = np.arange(count)
    path = np.zeros((order.size, count), np.intp)
    path[-1] = totals[-1, :, reach:-reach].argmin(axis=1)
    for step in range(order.size - 1, 0, -1):
        near = path[step][:, None] + np.arange(penalty.size)
        path[step - 1] = path[step] - reach + (totals[step - 1][slices[:, None], near] + penalty).argmin(axis=1)
    kept = np.arange(angles // 4, angles // 4 + angles)
    result = np.empty((count, angles), np.intp)
    result[:, order[kept]] = path[kept].T
    return result
