"""The canonical slice, the only form of input for training and inference, and the way back to a slice's own grid.

A canonical slice is axial, anterior up, the patient's right on the image's left, cropped to the lungs with a margin,
on one intensity scale (a lung window mapped to [0, 1]) and of one size. DICOM slices arrive with their geometry and HU;
8-bit images are turned upright by the known orientation of their source, and brought to HU by landmarks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from cohortseg.config import CanonicalConfig, ImageOrientation
from cohortseg.errors import DataError, GeometryError
from cohortseg.volume import HU_MAX, HU_MIN, SMALLEST_CIRCLE, beyond_circle, bounding_box

AXIAL_TOLERANCE_DEG = 20.0
"""An image counts as axial when its normal leans less than this from the body's long axis."""

AIR_LANDMARK_HU = -900.0
"""HU of the lower landmark of an 8-bit image: the 10th percentile of its dark (lung) pixels."""
TISSUE_LANDMARK_HU = 50.0
"""HU of the upper landmark of an 8-bit image: the commonest value of its bright (soft tissue) pixels."""

Pixel = TypeVar("Pixel", bound=np.generic)
_CORNERS: Final = ((0, 0, -1, -1), (0, -1, 0, -1))
_LARGEST: Final = 1.03
"""Radius of the largest circle that scanners measure, which touches the sides, with room for rounding."""
_PADDED: Final = 0.95
"""Corners are padded if more than this part of the pixels beyond that circle is at HU_MIN; of air, fewer are."""
_THICK: Final = np.ones((3, 3), np.uint8)
"""Square that fits into padding, but not into the noise of air."""
_AROUND_HU: Final = -300.0
"""Air around the body is below this; the skin and the tissue beneath it are not."""
_WIDER: Final = 1.08
"""Factor by which the lungs' convex hull is widened (about 1 cm); pixels inside are shown as they are."""
_BLACK: Final = 8
"""Gray value up to which a frame is black: JPEG leaves some noise in it."""
_AIR_SHARE: Final = 0.05
"""Where more than this part of what a frame surrounds is black as well, the black is air."""
_SATURATED: Final = 4
"""Number of topmost gray values that count as cut off by the window."""
_AIR_RANK: Final = 0.1
"""Rank of the air landmark among the dark pixels: `AIR_LANDMARK_HU` is that of such a pixel of lung."""
_NOT_CUT_OFF: Final = 0.4
"""If more of the bright pixels than this lie below the topmost gray values, soft tissue is looked for there."""
_PEAK_SIGMA: Final = 2.0
"""Gray values over which the histogram is smoothed before its peak is taken."""
_LEAST_CONTRAST: Final = 20
"""Gray values between the landmarks; in the wide windows of COVID-SemiSeg they are about 90 apart."""


@dataclass(frozen=True)
class Orientation:
    """Orientation of a stored slice: a transposition, then flips, set it upright."""

    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False

    def to_upright(self, array: NDArray[Pixel]) -> NDArray[Pixel]:
        """Return a view of (..., Y, X) set upright: row 0 anterior, column 0 the patient's right."""
        if self.transpose:
            array = np.swapaxes(array, -1, -2)
        return array[..., :: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def upright_spacing(self, spacing_mm: tuple[float | None, float, float]) -> tuple[float | None, float, float]:
        """Return the spacing (z, y, x) of a stored volume once it is set upright."""
        z, y, x = spacing_mm
        return (z, x, y) if self.transpose else (z, y, x)

    def from_upright(self, array: NDArray[Pixel]) -> NDArray[Pixel]:
        """Return a view of an upright (..., Y, X) as it was stored, undoing `to_upright`."""
        array = array[..., :: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        return np.swapaxes(array, -1, -2) if self.transpose else array


UPRIGHT = Orientation()
TRANSPOSED = Orientation(transpose=True)
"""Anterior left, the patient's right on top: COVID-SemiSeg's labelled and radiopaedia images."""
QUARTER_TURNED = Orientation(transpose=True, flip_y=True)
"""Spine left; a quarter turn counter-clockwise sets it upright: COVID-SemiSeg's coronacases images."""
ORIENTATIONS: Final[dict[ImageOrientation, Orientation]] = {
    "upright": UPRIGHT,
    "transposed": TRANSPOSED,
    "quarter-turned": QUARTER_TURNED,
}
"""Orientations by the name that a user gives."""


@dataclass(frozen=True)
class CropBox:
    """Pixels [y0, y1) x [x0, x1) of an upright slice; those that `lung_boxes` returns never reach beyond it."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def index(self) -> tuple[slice, slice]:
        """Index of the pixels in an upright slice."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def moved(self, y: int, x: int) -> "CropBox":
        """Return the same box of an image with so many more rows above and columns before."""
        return CropBox(self.y0 + y, self.y1 + y, self.x0 + x, self.x1 + x)


def orientation_from_affine(affine: NDArray[np.float64]) -> Orientation:
    """Return the orientation of the slices of an axial volume.

    Parameters
    ----------
    affine
        (4, 4) array index (z, y, x) to patient space (LPS, mm).

    Raises
    ------
    GeometryError
        If the slices are not axial within `AXIAL_TOLERANCE_DEG`.
    """
    down, right = (affine[:3, axis] / np.linalg.norm(affine[:3, axis]) for axis in (1, 2))
    tilt_deg = float(np.degrees(np.arccos(np.clip(abs(np.cross(right, down)[2]), 0, 1))))
    if tilt_deg > AXIAL_TOLERANCE_DEG:
        raise GeometryError(f"slices must be axial within {AXIAL_TOLERANCE_DEG:g} degrees, they lean {tilt_deg:.0f}")
    transpose = abs(down[0]) > abs(down[1])
    if transpose:
        down, right = right, down
    return Orientation(transpose=bool(transpose), flip_y=bool(down[1] < 0), flip_x=bool(right[0] < 0))


def lung_boxes(lungs: NDArray[np.bool_], config: CanonicalConfig) -> list[CropBox | None]:
    """Return the crop of each slice: its lungs plus a margin, and never much smaller than the crop of the whole series.

    Parameters
    ----------
    lungs
        (Z, Y, X) bool, upright.
    config
        ``margin`` and ``min_box`` are used.

    Returns
    -------
    list of CropBox or None
        One entry per slice; None where the slice holds no lung.
    """
    whole = _bounds(np.any(lungs, axis=0), config.margin)
    if whole is None:
        return [None] * len(lungs)
    smallest = (config.min_box * (whole.y1 - whole.y0), config.min_box * (whole.x1 - whole.x0))
    boxes = (_bounds(slice_, config.margin) for slice_ in lungs)
    return [None if box is None else _within(_grown(box, smallest), lungs.shape[1:]) for box in boxes]


def _bounds(mask: NDArray[np.bool_], margin: float) -> CropBox | None:
    rows, columns = bounding_box(mask)
    if rows.stop == 0:
        return None
    border_y, border_x = (round(margin * (held.stop - held.start)) for held in (rows, columns))
    return CropBox(rows.start - border_y, rows.stop + border_y, columns.start - border_x, columns.stop + border_x)


def _grown(box: CropBox, smallest: tuple[float, float]) -> CropBox:
    grow_y = max(0, round((smallest[0] - (box.y1 - box.y0)) / 2))
    grow_x = max(0, round((smallest[1] - (box.x1 - box.x0)) / 2))
    return CropBox(box.y0 - grow_y, box.y1 + grow_y, box.x0 - grow_x, box.x1 + grow_x)


def _within(box: CropBox, shape: tuple[int, ...]) -> CropBox:
    """Return a box cut off at the slice's edges: pixels invented beyond (repeated edges, air) are in no real slice."""
    return CropBox(max(box.y0, 0), min(box.y1, shape[0]), max(box.x0, 0), min(box.x1, shape[1]))


def canonical_batch(
    slices_hu: NDArray[np.int16] | NDArray[np.float32],
    lungs: NDArray[np.bool_],
    boxes: Sequence[CropBox],
    config: CanonicalConfig,
) -> torch.Tensor:
    """Return upright slices as network input.

    Air around the body, which is in the crop if the body is thin or turned, and padding beyond the circle that a
    scanner measured are set to soft tissue, which mostly lies there. As air, which hardly any training image has there,
    they make the model see up to twice the lesion.

    Parameters
    ----------
    slices_hu
        (B, Y, X) HU, upright.
    lungs
        (B, Y, X) bool; in a slice without lung, air around the body is not known, and is left as it is.
    boxes
        The crop of each slice.
    config
        ``size`` and ``window_hu`` are used.

    Returns
    -------
    torch.Tensor
        (B, 1, size, size) float32 in [0, 1].
    """
    low, high = config.window_hu
    batch = torch.empty(len(boxes), 1, config.size, config.size, dtype=torch.float32, device="cpu")
    for index, (slice_hu, lung, box) in enumerate(zip(slices_hu, lungs, boxes, strict=True)):
        crop = slice_hu[box.index].astype(np.float32)
        crop[_around(lung[box.index]) & (crop < _AROUND_HU)] = TISSUE_LANDMARK_HU
        if _has_padded_corners(slice_hu):
            near = beyond_circle(slice_hu.shape, SMALLEST_CIRCLE)[box.index]
            padding = cv2.morphologyEx((near & (crop == HU_MIN)).view(np.uint8), cv2.MORPH_OPEN, _THICK)
            crop[padding > 0] = TISSUE_LANDMARK_HU
        image = ((torch.from_numpy(crop) - low) / (high - low)).clamp_(0, 1)
        batch[index] = functional.interpolate(
            image[None, None], size=(config.size, config.size), mode="bilinear", antialias=True, align_corners=False
        )[0]
    return batch


def _around(lung: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels outside the slightly widened convex hull of a slice's lungs (Y, X); none without lung."""
    rows = np.flatnonzero(lung.any(axis=1))
    if rows.size == 0:
        return np.zeros_like(lung)
    first = lung[rows].argmax(axis=1)
    last = lung.shape[1] - 1 - lung[rows, ::-1].argmax(axis=1)
    hull = cv2.convexHull(np.concatenate([np.c_[first, rows], np.c_[last, rows]]).astype(np.float32))
    middle = hull.mean(axis=0)
    wider = np.rint(middle + _WIDER * (hull - middle)).astype(np.int32)
    outside = np.ones(lung.shape, np.uint8)
    cv2.fillConvexPoly(outside, wider, 0)
    outside[lung] = 0  # with its corners rounded, the hull of a very small lung can miss some of it
    return outside.view(np.bool_)


def _has_padded_corners(slice_hu: NDArray[np.int16] | NDArray[np.float32]) -> bool:
    """Return whether pixels beyond the circle that touches the sides were not measured."""
    if not (slice_hu[_CORNERS] == HU_MIN).all():  # decides quickly for most slices
        return False
    return bool((slice_hu[beyond_circle(slice_hu.shape, _LARGEST)] == HU_MIN).mean() > _PADDED)


def canonical_labels(labels: NDArray[np.uint8], box: CropBox, size: int) -> NDArray[np.uint8]:
    """Return an upright label map (Y, X) on the canonical grid (size, size) by nearest neighbour: invents no class."""
    crop = torch.from_numpy(np.ascontiguousarray(labels[box.index]))
    # "nearest-exact" samples at pixel centres, as the image's interpolation does; "nearest" would shift by half a pixel
    resized = functional.interpolate(crop[None, None].float(), size=(size, size), mode="nearest-exact")
    return resized[0, 0].to(torch.uint8).numpy()


def restore(prob: torch.Tensor, box: CropBox, shape: tuple[int, int]) -> torch.Tensor:
    """Return class probabilities on the upright slice's own grid: the inverse of the crop and the resizing.

    Parameters
    ----------
    prob
        (C, size, size) probabilities of the canonical slice; class 0 is background.
    box
        The crop that made the canonical slice.
    shape
        (Y, X) of the upright slice.

    Returns
    -------
    torch.Tensor
        (C, Y, X) float32; outside the crop the background has probability 1.
    """
    result = torch.zeros(prob.shape[0], *shape, dtype=torch.float32, device="cpu")
    result[0] = 1.0
    result[:, *box.index] = restore_crop(prob, box)
    return result


def restore_crop(maps: torch.Tensor, box: CropBox) -> torch.Tensor:
    """Return maps (C, size, size) of a canonical slice on the pixels of its crop, (C, y1 - y0, x1 - x0) float32."""
    height, width = box.y1 - box.y0, box.x1 - box.x0
    shrinks = height < maps.shape[-2] or width < maps.shape[-1]
    return functional.interpolate(
        maps[None].float(), size=(height, width), mode="bilinear", antialias=shrinks, align_corners=False
    )[0]


def whole_hu(hu: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return HU of any shape as in a decoded volume: int16, rounded and clipped to [HU_MIN, HU_MAX]."""
    whole: NDArray[np.int16] = np.rint(hu).clip(HU_MIN, HU_MAX).astype(np.int16)
    return whole


def within_black_frame(gray: NDArray[np.uint8]) -> CropBox:
    """Return the part of an 8-bit image (Y, X) within a frame of black rows and columns, as letterboxing leaves.

    All of it if there is no frame, or if air is black too and so cannot be told from one.
    """
    rows, columns = bounding_box(gray > _BLACK)
    whole = CropBox(0, gray.shape[0], 0, gray.shape[1])
    content = CropBox(rows.start, rows.stop, columns.start, columns.stop)
    inside = gray[content.index]
    return content if inside.size and (inside <= _BLACK).mean() < _AIR_SHARE else whole


def hu_from_image(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bring an 8-bit CT image of unknown window to HU by two landmarks of its own, lung air and soft tissue.

    Parameters
    ----------
    gray
        (Y, X) uint8, a lung slice in any window that shows both lung and soft tissue.

    Returns
    -------
    (Y, X) float32
        HU, approximate; what the image's window had cut off stays cut off.

    Raises
    ------
    DataError
        If the image has no two landmarks (blank, or nearly one value).
    """
    histogram = np.bincount(gray.ravel(), minlength=256).astype(np.float64)
    if np.count_nonzero(histogram) < 2:
        raise DataError("the image is blank: no lung air and soft tissue to tell its intensity scale by")
    split = int(cv2.threshold(gray, 0, 255, cv2.THRESH_OTSU)[0])  # the last value of the darker class
    dark, bright = histogram[: split + 1], histogram[split + 1 :]
    air = float(np.searchsorted(np.cumsum(dark), _AIR_RANK * dark.sum()))
    # Where the window cuts bone off, the topmost value is a spike, not soft tissue, unless nearly all is cut off.
    if bright[:-_SATURATED].sum() > _NOT_CUT_OFF * bright.sum():
        bright = bright[:-_SATURATED]
    tissue = split + 1 + int(np.argmax(ndimage.gaussian_filter1d(bright, _PEAK_SIGMA, mode="nearest")))
    if tissue - air < _LEAST_CONTRAST:
        raise DataError("the image has too little contrast to tell lung air from soft tissue")
    slope = (TISSUE_LANDMARK_HU - AIR_LANDMARK_HU) / (tissue - air)
    return (AIR_LANDMARK_HU + slope * (gray.astype(np.float32) - air)).astype(np.float32)
