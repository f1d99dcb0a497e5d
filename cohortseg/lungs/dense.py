"""Step 3: the lung of a slice, including dense lung, which is soft tissue of the cavity near signs of air."""

from typing import Final, NamedTuple

import cv2
import numpy as np

from cohortseg.lungs.aerated import AIR_HU, LungSlice
from cohortseg.lungs.cage import SIGN_HU, wall_room
from cohortseg.lungs.morphology import (
    Mask,
    Pieces,
    blur,
    border_pixels,
    closing,
    convex_hull,
    dilate,
    disc,
    distance_to,
    erode,
    opening,
)

_REACH_MM: Final = (10.0, 25.0)
"""Largest distance of dense lung from a sign of air: ventral, and dorsal (where consolidation gathers)."""
_MIDLINE_MM: Final = 18.0
"""Soft tissue this near to the midline is mediastinum, whatever lies beside it."""
_SURROUNDED_MM: Final = 2.5
"""Radius of a disc that must fit into soft tissue surrounded by lung ..."""
_BESIDE_MM: Final = 3.5
"""... and into soft tissue beside ill lung: thinner tissue is pleura."""
_JOIN_MM: Final = 4.0
"""Gaps between signs of air into which no disc of this radius fits are lung."""
_BESIDE_HEART_MM: Final = 50.0
"""Distance from the midline beyond which there is mostly neither heart nor mediastinum."""
_GAS_HU: Final = -850.0
_GAS_MM: Final = 4.0
"""Gas is darker than this, and a disc of this radius fits into it."""
_GAS_WALL_MM: Final = 4.0
"""Thickness of the wall between gas and lung, which is gray because it is thin."""
_BONE_HU: Final = 250.0
_WALL_HU: Final = 40.0
"""HU of muscle in the chest wall."""


class _Regions(NamedTuple):
    """Overlapping parts of the cavity."""

    dorsal: Mask
    """Behind the front of the vertebral body and beside the spine: lung, not heart."""
    lateral: Mask
    """All but the middle."""
    medial: Mask
    """Mediastinum: all that is not dorsal, and a strip beside the spine, wider where the descending aorta runs."""


class _Cores(NamedTuple):
    """Thick tissue without a sign of air, which is not taken for lung."""

    front: Mask
    """Mediastinum and liver."""
    back: Mask
    """The thickest tissue off the midline: effusion, atelectasis, or consolidation without any air."""

    @property
    def both(self) -> Mask:
        return self.front | self.back


class LeftOut(NamedTuple):
    """Areas of dense tissue that are not taken for lung, mm2."""

    dorsal: float = 0.0
    """Homogeneous cores at the back."""
    one_sided: float = 0.0
    """Thick tissue beside the mediastinum: its excess on one side over the other."""


def dense_lung(item: LungSlice, cavity: Mask, *, near_abdomen: bool) -> tuple[Mask, LeftOut]:
    """Return the lung of a slice that holds aerated lung, and the areas left out that may be lung.

    A cropped slice often lacks the ribs and spine that a tight outline needs; there, all that may be lung is kept.
    ``near_abdomen`` says that black air beside the lung is gas in stomach or bowel rather than a bulla.
    """
    px = item.pixel_mm
    regions = _regions(item, cavity)
    signs = _air_signs(item, cavity, regions, near_abdomen=near_abdomen)
    dense = cavity & ~signs & ~item.airway
    cores = _homogeneous_cores(item, dense, regions)
    barred = cores.both | (item.airway if item.cropped else dilate(item.airway, 1.5))
    room = cavity if item.cropped else wall_room(item, cavity)
    soft = _soft_lung(item, dense & ~barred & room, signs, regions)
    lung = closing(signs | soft, _JOIN_MM / px) & cavity & ~barred
    lung = opening(lung | signs, 1.5) | item.aerated
    lung &= ~opening(item.smooth > _BONE_HU, 1.0)
    if not item.cropped:
        lung = _rounded(lung, signs, item)
        lung &= ~_wall_rim(lung, item)
    lung = _fill_small_holes(lung, cores.both, item.airway, px)
    return lung, LeftOut(float((cores.back & regions.dorsal).sum() * px**2), _one_sided_mm2(item, room & ~lung))


def _one_sided_mm2(item: LungSlice, left_out: Mask) -> float:
    """Return the excess of thick tissue left out on one side over the other, beside the mediastinum, mm2."""
    px = item.pixel_mm
    lateral_mm = (np.arange(left_out.shape[1]) - item.midline) * px
    columns = opening(left_out & ~item.airway, 8 / px).sum(axis=0) * px**2
    return abs(float(columns[lateral_mm > _BESIDE_HEART_MM].sum() - columns[lateral_mm < -_BESIDE_HEART_MM].sum()))


def _regions(item: LungSlice, cavity: Mask) -> _Regions:
    """Return the regions of a slice by distances from its midline, set by eye on adult chests (COVID-SemiSeg)."""
    rows = np.flatnonzero(cavity.any(axis=1))
    front = rows[-1] - 0.33 * (rows[-1] - rows[0])  # of the vertebral body
    y = np.arange(cavity.shape[0])[:, None]
    depth = np.clip((y - front) / (rows[-1] - front + 1), 0, 1)
    lateral_mm = (np.arange(cavity.shape[1]) - item.midline) * item.pixel_mm
    # half the width of the middle, mm: the aorta lies on the patient's left in front of the spine, and leaves it behind
    limit = np.where(lateral_mm > 0, 34 - 14 * depth, 26 - 4 * depth)
    lateral = np.abs(lateral_mm) > limit
    dorsal = (y > front) & lateral
    # half the width of the strip beside the spine, mm
    strip = np.where((lateral_mm > 0) & (depth < 0.4), 45, 28)
    return _Regions(dorsal, lateral, ~dorsal | (np.abs(lateral_mm) < strip))


def _air_signs(item: LungSlice, cavity: Mask, regions: _Regions, *, near_abdomen: bool) -> Mask:
    """Return the signs of lung in the cavity: aerated lung, dense ground glass, and thin dark inclusions.

    Inclusions (air bronchograms, bubbles) are 130 HU darker than the tissue that closes over them. Signs apart from the
    aerated lung are left out near the midline (oesophagus, bronchi) and where they are black (bowel gas). Gas under a
    thin diaphragm is not apart: its wall is no darker than ground glass.
    """
    px = item.pixel_mm
    airway = item.airway if item.cropped else dilate(item.airway, 2.5)
    signs = item.aerated | ((item.smooth < SIGN_HU) & cavity & item.body & ~airway)
    if near_abdomen and not item.cropped:
        signs &= ~_gas(item)
    pieces = Pieces.of(signs)
    rows, columns = pieces.centres().T
    behind = np.any(regions.dorsal, axis=1)[rows.astype(int)]
    central = np.abs(columns - item.midline) * px < np.where(behind, 25, 40)
    held = pieces.touching(item.aerated)
    apart = ~held & ~central
    if not item.cropped:
        for index in np.flatnonzero(apart):
            apart[index] = np.median(item.hu[pieces.mask(index)]) >= -850
    signs = pieces.chosen(held | apart)
    contrast = cv2.morphologyEx(item.hu, cv2.MORPH_CLOSE, disc(3.0), borderType=cv2.BORDER_REFLECT) - item.hu
    dark = (contrast > 130) & (item.hu < np.where(regions.dorsal, -130, -200)) & cavity & regions.lateral & ~item.airway
    crowded = cv2.blur(dark.astype(np.float32), (3, 3), borderType=cv2.BORDER_REFLECT) > 0.25
    return signs | (dark & crowded)


def _gas(item: LungSlice) -> Mask:
    """Return the black air that step 1 left out, with its wall."""
    px = item.pixel_mm
    air = (item.smooth < AIR_HU) & item.body & ~item.aerated & ~item.airway
    pieces = Pieces.of(air)
    gas = pieces.chosen(pieces.touching(opening(air & (item.smooth < _GAS_HU), _GAS_MM / px)))
    return dilate(gas, _GAS_WALL_MM / px) & ~item.aerated


def _homogeneous_cores(item: LungSlice, dense: Mask, regions: _Regions) -> _Cores:
    """Return the cores of dense tissue: the parts into which a disc fits.

    Its radius is 10 mm for cores that reach the midline, 14 mm for lateral ones in front (liver), and 24 mm behind,
    where consolidation is common.
    """
    px = item.pixel_mm
    middle = np.abs(np.arange(dense.shape[1]) - item.midline) * px < 25
    central = Pieces.of(opening(dense & regions.medial, 10 / px))
    front = central.chosen(central.touching(np.broadcast_to(middle, dense.shape)))
    lateral = Pieces.of(opening(dense & regions.lateral & ~front & ~regions.dorsal, 14 / px))
    front |= lateral.chosen(lateral.areas() * px**2 > 1000)
    return _Cores(front, opening(dense & regions.lateral, 24 / px))


def _soft_lung(item: LungSlice, free: Mask, signs: Mask, regions: _Regions) -> Mask:
    """Return the free soft tissue that is lung: near a sign of air, and surrounded by lung or beside ill lung.

    Tissue beside ill lung counts only at the back, and only where that is the nearest lung.
    """
    px = item.pixel_mm
    distance = distance_to(signs)
    apart = np.abs(np.arange(free.shape[1]) - item.midline) * px > _MIDLINE_MM
    near = free & apart & (distance * px < np.where(regions.dorsal, _REACH_MM[1], _REACH_MM[0]))
    surrounded = _side_hulls(signs, item.midline)
    beside = regions.dorsal & (distance_to(signs & _borders_ill_lung(item, signs)) <= distance)
    return opening(near & surrounded, _SURROUNDED_MM / px) | opening(near & (beside | surrounded), _BESIDE_MM / px)


def _borders_ill_lung(item: LungSlice, signs: Mask) -> Mask:
    """Return where more than 40 % of the lung around is denser than -650 HU: soft tissue next to it may be lung.

    Soft tissue next to lung that is black up to its border is chest wall.
    """
    sigma = 6 / item.pixel_mm
    ill = blur((signs & (item.smooth > -650)).astype(np.float32), sigma)
    share: Mask = ill > 0.4 * blur(signs.astype(np.float32), sigma)
    return share


def _side_hulls(signs: Mask, midline: float) -> Mask:
    """Return the convex hulls of the signs of air on both sides of the midline: tissue inside is surrounded by lung."""
    right = np.arange(signs.shape[1]) < midline
    hulls: Mask = np.zeros(signs.shape, bool)
    for side in (right, ~right):
        if (signs & side).any():
            hulls |= convex_hull(signs & side) & side
    return hulls


def _rounded(lung: Mask, signs: Mask, item: LungSlice) -> Mask:
    """Return the lung without corners of soft tissue, and without pieces below 100 mm2 that hold no aerated lung.

    A corner is a part that a disc of 5 mm radius does not reach.
    """
    px = item.pixel_mm
    lung = opening(lung, 5 / px) | opening(lung & closing(signs, 4 / px), 1.5) | item.aerated
    pieces = Pieces.of(lung)
    return pieces.chosen(pieces.touching(item.aerated) | (pieces.areas() * px**2 >= 100))


def _wall_rim(lung: Mask, item: LungSlice) -> Mask:
    """Return the outermost pixels that hold more wall than lung: their HU is beyond half way between the two.

    Ground glass may be as dense as a pixel cut by the pleura, so half way is counted from the HU of the lung next to
    the pixel.
    """
    sigma = 6 / item.pixel_mm
    inner = erode(item.aerated, 1.0).astype(np.float32)
    share = blur(inner, sigma)
    lung_hu = blur(inner * item.smooth, sigma) / np.maximum(share, 1e-6)
    mixed = (item.smooth > (lung_hu + _WALL_HU) / 2) & (item.smooth < SIGN_HU) & ~item.aerated & (share > 0.01)
    rim: Mask = lung & ~erode(lung, 1.0) & mixed
    return rim


def _fill_small_holes(lung: Mask, core: Mask, airway: Mask, pixel_mm: float) -> Mask:
    """Return the lung with vessels and lesions inside it filled, but not the liver's dome or an airway."""
    holes = Pieces.of(~lung)
    kept = holes.touching(border_pixels(lung.shape) | airway) | (holes.areas(core) * pixel_mm**2 >= 400)
    return lung | holes.chosen(~kept)
