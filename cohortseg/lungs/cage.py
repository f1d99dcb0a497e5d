"""Step 2: the thoracic cavity of a slice, inside a closed curve found by dynamic programming in polar coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from cohortseg.lungs.aerated import LungSlice
from cohortseg.lungs.morphology import (
    Mask,
    Pieces,
    Reals,
    closing,
    convex_hull,
    dilate,
    fill_holes,
    opening,
)

SIGN_HU: Final = -250.0
"""Pixels of the cavity below this are a sign that the tissue around them is lung."""
_BONE_HU: Final = 180.0
"""Pixels above this are bone, or vessels full of contrast medium."""
_ANGLES: Final = 180
"""Number of directions in which the wall is searched for."""
_ALONG_MM: Final = 5.0
"""Standard deviation of the Gaussian along z by which neighbouring slices contribute their ribs to a slice."""
_OFF_MM: Final = 3.0
"""Unit of the distance from the expected wall."""
_BACK_SHARE: Final = 0.73
"""Lungs ending before this are dense behind; aerated ones end at .74 to .91 of the body without fat, front to back."""
_FRONT_SHARE: Final = 0.19
"""Lungs that begin behind this are dense in front; aerated ones begin before .1 of the body without fat."""
_FEWEST_WIDE: Final = 3
"""With fewer wide slices the front is not judged."""
_WIDE_SHARE: Final = 0.75
"""A slice is wide if its aerated lung has more than this part of the largest width."""
_DENSE_SHARE: Final = 0.2
"""Lungs count as dense behind only if at least this part of the wide slices looks so."""
_BACK_MM: Final = 25.0
"""Thickness of muscle and ribs behind the lungs."""
_FAT_HU: Final = -40.0
"""Pixels above this are muscle, not fat."""
_SKIN_MM: Final = 4.0
"""Radius of a disc that fits into muscle, but not into skin."""
_LUNG_LEFT_OUT: Final = 0.6
"""Cost of a pixel of lung beyond the wall."""
_BEYOND_BODY: Final = 5.0
"""Cost of a wall outside the skin."""


class _Weights(NamedTuple):
    """Weights of a wall's cost; a cropped slice has its own, as it shows few ribs, and lung nearly to its frame."""

    too_far: float
    """Cost of one unit beyond the expected wall."""
    too_near: float
    """Cost of one unit short of it."""
    bone: float
    """Cost of bone on the inner side; on the outer side bone lowers the cost by 1.5 times as much."""


_WHOLE: Final = _Weights(too_far=0.05, too_near=0.08, bone=1.0)
_CROPPED: Final = _Weights(too_far=0.03, too_near=0.12, bone=0.5)


class Depths(NamedTuple):
    """Start and end of aerated lung, as parts of the body without its fat from front (0) to back (1)."""

    start: float
    end: float


def rib_cage_cavities(items: Sequence[LungSlice], heights_mm: Reals, dense: Sequence[bool]) -> list[Mask]:
    """Return the result of step 2 for slices of one shape: the inside of the rib cage, with all aerated lung.

    A slice crosses ribs only here and there. The cost of the wall is averaged over nearby slices (``heights_mm``,
    rising), so that it neither cuts through dense lung nor bulges out of the cage where a slice shows no rib. ``dense``
    says in which slices both lungs may be dense behind (`dense_behind`): there the wall is expected near the muscles of
    the back.
    """
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    apart = np.abs(heights_mm[:, None] - heights_mm) / _ALONG_MM
    with np.errstate(under="ignore"):  # far apart, it is 0, whatever else a program that calls this asks of NumPy
        near = np.exp(-(apart**2) / 2)
        near /= near.sum(axis=1, keepdims=True)
        centres = [(float(row), float(column)) for row, column in near @ np.array([_centre(item) for item in items])]
        costs = np.stack(
            [
                _wall_cost(item, at, angles, int(210 / item.pixel_mm), dense_back=dense_back)
                for item, at, dense_back in zip(items, centres, dense, strict=True)
            ]
        )
        walls = _closed_paths(np.tensordot(near.astype(np.float32), costs, 1), reach=4, bend=0.04)
    return [
        _within(wall, centre, costs.shape[2], item.hu.shape) | item.aerated
        for item, centre, wall in zip(items, centres, walls, strict=True)
    ]


def lung_depths(items: Sequence[LungSlice]) -> list[Depths | None]:
    """Return where aerated lung begins and ends in each slice, as parts of the body without its fat, front to back.

    None where the lung is not wide, and for a cropped slice, whose body is not known.
    """
    widths = [int(np.ptp(np.flatnonzero(item.aerated.any(axis=0)))) for item in items]
    return [
        _depths(item) if width > _WIDE_SHARE * max(widths) and not item.cropped else None
        for item, width in zip(items, widths, strict=True)
    ]


def _depths(item: LungSlice) -> Depths:
    lung, body = (np.flatnonzero(mask.any(axis=1)) for mask in (item.aerated, _lean(item)))
    if body.size < 2:
        return Depths(0.0, 1.0)
    return Depths(*((lung[[0, -1]] - body[0]) / (body[-1] - body[0])).tolist())


def dense_behind(depths: Sequence[Depths | None]) -> list[bool]:
    """Return for each slice whether both lungs may be dense behind: aerated lung ends far before the back muscles.

    Only wide slices count, and only if at least a fifth of them look so, because shoulders make single slices look so.
    """
    short = [depth is not None and depth.end < _BACK_SHARE for depth in depths]
    num_wide = sum(depth is not None for depth in depths)
    return short if sum(short) >= _DENSE_SHARE * num_wide else [False] * len(depths)


def is_dense_before(depths: Sequence[Depths | None]) -> bool:
    """Return whether both lungs may be dense in front: in wide slices, aerated lung begins far behind the front."""
    starts = [depth.start for depth in depths if depth is not None]
    return len(starts) >= _FEWEST_WIDE and bool(np.median(starts) > _FRONT_SHARE)


def _lean(item: LungSlice) -> Mask:
    """Return the body without fat and skin (Y, X): muscle, organs and bone."""
    return opening(item.body & (item.smooth > _FAT_HU), _SKIN_MM / item.pixel_mm)


def _centre(item: LungSlice) -> tuple[float, float]:
    """Return the point (row, column) half way down the aerated lung, on the midline."""
    rows = np.flatnonzero(item.aerated.any(axis=1))
    return float(rows[0] + rows[-1]) / 2, item.midline


def _within(wall: NDArray[np.intp], centre: tuple[float, float], reach: int, shape: tuple[int, ...]) -> Mask:
    """Return the pixels inside a wall given by its radius at each angle, interpolated linearly between angles."""
    room = (wall[:, None] - np.arange(reach) + 1).astype(np.float32)
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    inside: Mask = cv2.warpPolar(room, shape[::-1], centre[::-1], reach, flags) >= 1  # 0 beyond the reach
    return inside


def wall_room(item: LungSlice, cavity: Mask) -> Mask:
    """Return where in the cavity dense lung may lie: inside the line through the inner contour of ribs and spine.

    Bone that the curve cut off, or that stands beside the spine, is wall. So are pixels that a disc of 10 mm radius
    cannot cover without touching that bone: muscle between the ribs and beside the spinous process.
    """
    px = item.pixel_mm
    dense = Pieces.of(item.smooth > _BONE_HU)
    spine = np.zeros(cavity.shape, bool)
    beside = np.abs(np.arange(cavity.shape[1]) - item.midline) * px < 15
    spine[max(0, np.flatnonzero(cavity.any(axis=1))[-1] - int(25 / px)) :, beside] = True
    bone = fill_holes(closing(dense.chosen(dense.touching(~cavity | spine)), 3 / px))
    rooms = Pieces.of(opening(cavity & ~dilate(bone, 1.0), 10 / px))
    return rooms.chosen(rooms.touching(item.aerated))


@dataclass(frozen=True)
class _Polar:
    """Polar view (angle, radius) of a slice from a point."""

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]

    @classmethod
    def around(cls, centre: tuple[float, float], angles: Reals, reach: int) -> Self:
        """Return the view from a point (row, column) in these directions, ``reach`` pixels far."""
        radii = np.arange(reach)
        at = (c + np.outer(f(angles), radii) for c, f in zip(centre, (np.sin, np.cos), strict=True))
        return cls(*(values.astype(np.float32) for values in at))

    def of(self, image: Mask | Reals) -> Reals:
        """Return the values (angle, radius) of an image (Y, X); 0 beyond it."""
        values = cv2.remap(image.astype(np.float32), self.columns, self.rows, cv2.INTER_LINEAR)
        return values.astype(np.float32, copy=False)

    def holds(self, mask: Mask) -> Mask:
        """Return a mask (Y, X) as seen in the view (angle, radius)."""
        held: Mask = self.of(mask) > 0.5
        return held


def _outermost(mask: Mask) -> NDArray[np.intp]:
    """Return the largest radius of a mask (angle, radius) at each angle; 0 where it has none."""
    return np.where(mask.any(axis=1), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1), 0)


def _wall_cost(item: LungSlice, centre: tuple[float, float], angles: Reals, reach: int, *, dense_back: bool) -> Reals:
    """Return the cost (angle, radius) of putting the wall of the cavity at each point.

    Cost rises with the distance from the expected wall, with bone inside rather than outside of the wall, with lung
    left out, and beyond the body.
    """
    px, radii = item.pixel_mm, np.arange(reach)
    polar, weights = _Polar.around(centre, angles, reach), _CROPPED if item.cropped else _WHOLE
    lung = polar.holds(item.aerated | (item.cropped & item.body & ~item.airway & (item.smooth < SIGN_HU)))
    skin = _skin(item, polar)
    expected = _expected_wall(item, polar, skin)
    if dense_back:
        behind = _outermost(polar.holds(_lean(item))) - _BACK_MM / px
        expected = np.where(np.sin(angles) > 0.5, np.maximum(expected, behind), expected)
    off = (radii - expected[:, None]) * px / _OFF_MM
    bone = polar.of(np.clip((item.smooth - 100) / 80, 0, 1))
    cost: Reals = np.where(off > 0, weights.too_far, weights.too_near) * np.abs(off)
    cost += weights.bone * (_window_mean(bone, -6 / px) - 1.5 * _window_mean(bone, 8 / px))
    cost += _LUNG_LEFT_OUT * np.cumsum(lung[:, ::-1], axis=1)[:, ::-1]
    cost += _BEYOND_BODY * (radii > np.maximum(skin, _outermost(lung))[:, None])
    return cost


def _skin(item: LungSlice, polar: _Polar) -> Reals:
    """Return the radius of the skin at each angle, less 6 mm; where the body is cropped, that of the image's edge."""
    body = polar.holds(np.ones_like(item.body) if item.cropped else item.body)
    radii: Reals = np.where(body.all(axis=1), body.shape[1] - 1, (~body).argmax(axis=1)) - 6 / item.pixel_mm
    return radii


def _expected_wall(item: LungSlice, polar: _Polar, skin: Reals) -> Reals:
    """Return the radius at which the wall is expected, at each angle.

    That is the convex hull of the aerated lung, or its mirror image less 8 mm if that is wider, since one lung may be
    dense; in a cropped slice a rounded rectangle in the frame, if that is wider still.
    """
    height, width = item.hu.shape
    columns = np.round(2 * item.midline - np.arange(width)).astype(int).clip(0, width - 1)
    mirrored = _outermost(polar.holds(item.aerated[:, columns])) - 8 / item.pixel_mm
    hull = _outermost(polar.holds(convex_hull(item.aerated)))
    expected: Reals = np.maximum(hull, np.minimum(mirrored, skin))
    if item.cropped:
        y, x = ((at - (half - 0.5)) / half for at, half in ((polar.rows, height / 2), (polar.columns, width / 2)))
        expected = np.maximum(expected, _outermost(np.abs(y) ** 2.6 + np.abs(x) ** 2.6 <= 0.95))
    return expected


def _window_mean(values: Reals, width: float) -> Reals:
    """Return the mean over the following (width > 0) or the preceding columns."""
    size = max(1, round(abs(width)))
    pad = ((0, 0), (1, size)) if width > 0 else ((0, 0), (size + 1, 0))
    total = np.cumsum(np.pad(values, pad), axis=1)
    count = values.shape[1]
    means: Reals = (total[:, size : size + count] - total[:, :count]) / size
    return means


def _closed_paths(costs: Reals, reach: int, bend: float) -> NDArray[np.intp]:
    """Return the radii (slice, angle) of a cheap closed curve through each slice's costs (angle, radius).

    Dynamic programming runs over one and a half turns, of which the middle turn is kept: it nearly closes, but where
    costs hardly differ its ends can lie apart. Neighbouring radii differ by at most `reach`; a difference d costs
    ``bend * d**2``. All slices take each step together, which makes it fast.
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
