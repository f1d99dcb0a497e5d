"""Shapes of two-dimensional masks: growing and shrinking by discs, pieces, bounding box and hull; blurring.

All radii are in pixels. OpenCV does the work: on a slice it is many times faster than scipy.ndimage.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Image = NDArray[np.float32]
Reals = NDArray[np.floating]

cv2.setNumThreads(1)  # a slice is too small to share, and the network needs the other cores

_LARGEST_DISC = 4.5
"""Up to this radius a disc is moved over the mask; beyond, the distance transform does nearly the same at less cost."""


def padded_box(mask: Mask, margin: int) -> tuple[slice, slice]:
    """Return the bounding box, with a margin in pixels, of a mask that is not empty."""
    x, y, width, height = cv2.boundingRect(_bytes(mask))
    return slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin)


def dilate(mask: Mask, radius: float) -> Mask:
    """Return the mask grown by a disc of this radius, pixels."""
    grown: Mask = np.zeros(mask.shape, bool)
    if mask.any():
        box = padded_box(mask, int(np.ceil(radius)))
        if radius <= _LARGEST_DISC:
            grown[box] = cv2.dilate(_bytes(mask[box]), disc(radius))
        else:
            grown[box] = _distance(~mask[box]) <= radius
    return grown


def erode(mask: Mask, radius: float) -> Mask:
    """Return the mask shrunk by a disc; parts that touch the frame count as going on beyond it."""
    shrunk: Mask = mask.copy()
    if mask.any() and not mask[box := padded_box(mask, 1)].all():
        if radius <= _LARGEST_DISC:
            shrunk[box] = cv2.erode(_bytes(mask[box]), disc(radius))
        else:
            shrunk[box] = _distance(mask[box]) > radius
    return shrunk


def distance_to(mask: Mask) -> Image:
    """Return the distance of each pixel to the nearest one of the mask; infinite if the mask is empty."""
    return _distance(~mask) if mask.any() else np.full(mask.shape, np.inf, np.float32)


def opening(mask: Mask, radius: float) -> Mask:
    """Return the parts of the mask into which a disc of this radius fits."""
    return dilate(erode(mask, radius), radius) & mask


def closing(mask: Mask, radius: float) -> Mask:
    """Return the mask with those gaps closed into which no disc of this radius fits."""
    pad = int(np.ceil(radius)) + 1
    padded = cv2.copyMakeBorder(_bytes(mask), pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0).view(bool)
    return erode(dilate(padded, radius), radius)[pad:-pad, pad:-pad] | mask


@dataclass(frozen=True)
class Pieces:
    """The connected pieces of a mask; measurements are arrays with one entry per piece."""

    labels: NDArray[np.signedinteger]
    """0 outside the pieces, 1 in the first, 2 in the second, ..."""
    count: int

    @classmethod
    def of(cls, mask: Mask) -> Self:
        """Return the pieces of a mask, whose pixels are connected by their sides."""
        count, labels = cv2.connectedComponents(_bytes(mask), connectivity=4, ltype=cv2.CV_32S)
        return cls(labels.astype(np.int32, copy=False), count - 1)

    def areas(self, where: Mask | None = None) -> NDArray[np.intp]:
        """Return the number of pixels of each piece; with a mask, of those in it."""
        labels = self.labels.ravel() if where is None else self.labels[where]
        return np.bincount(labels, minlength=self.count + 1)[1:]

    def touching(self, where: Mask) -> NDArray[np.bool_]:
        """Return which pieces have a pixel in a mask."""
        touched: Mask = np.zeros(self.count + 1, bool)
        touched[self.labels[where]] = True
        return touched[1:]

    def centres(self) -> Reals:
        """Return the mean row and column of each piece, (count, 2)."""
        rows, columns = np.nonzero(self.labels)
        found = self.labels[rows, columns]
        sums = [np.bincount(found, at, minlength=self.count + 1)[1:] for at in (rows, columns)]
        means: Reals = np.stack(sums, axis=1) / np.maximum(self.areas(), 1)[:, None]
        return means

    def mask(self, index: int) -> Mask:
        """Return one piece as a mask."""
        piece: Mask = self.labels == index + 1
        return piece

    def chosen(self, keep: NDArray[np.bool_]) -> Mask:
        """Return the pieces whose entry is true, as one mask."""
        kept: Mask = np.append(np.False_, keep).take(self.labels)
        return kept


@lru_cache(maxsize=64)
def border_pixels(shape: tuple[int, ...]) -> Mask:
    """Return a mask of the outermost pixels; read-only, since it is cached."""
    frame: Mask = np.ones(shape, bool)
    frame[1:-1, 1:-1] = False
    frame.flags.writeable = False
    return frame


@lru_cache(maxsize=64)
def corner_pixels(shape: tuple[int, ...]) -> Mask:
    """Return a mask of the four corners; read-only, since it is cached."""
    corners: Mask = np.zeros(shape, bool)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    corners.flags.writeable = False
    return corners


def fill_holes(mask: Mask) -> Mask:
    """Return the mask with all that it encloses filled."""
    holes = Pieces.of(~mask)
    return mask | holes.chosen(~holes.touching(border_pixels(mask.shape)))


def blur(image: Image, sigma: float) -> Image:
    """Return the image blurred by a Gaussian of this sigma in pixels, cut off at four sigma, mirrored at the frame."""
    size = 2 * int(4 * sigma + 0.5) + 1
    blurred: Image = cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REFLECT).astype(np.float32)
    return blurred


def convex_hull(mask: Mask) -> Mask:
    """Return the convex hull of a mask: the pixels whose centres lie in the hull of its pixels' centres."""
    outlines, _ = cv2.findContours(_bytes(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull: Mask = mask.copy()
    if not outlines:
        return hull
    corners = cv2.convexHull(np.concatenate(outlines))[:, 0].astype(np.intp)
    # From a topmost corner down one side to a bottommost one, and up the other; the ends of each row are interpolated.
    x, y = np.roll(corners, -corners[:, 1].argmin(), axis=0).T
    lowest = y.argmax()
    rows = np.arange(y[0], y[lowest] + 1)
    down = np.interp(rows, y[: lowest + 1], x[: lowest + 1])
    up = np.interp(rows, np.append(y[0], y[lowest:][::-1]), np.append(x[0], x[lowest:][::-1]))
    left, right = np.minimum(down, up), np.maximum(down, up)
    for end in (0, -1):  # a horizontal side: its row has two corners
        level = x[y == rows[end]]
        left[end], right[end] = level.min(), level.max()
    columns = np.arange(mask.shape[1])
    hull[rows] = (columns >= left[:, None] - 1e-6) & (columns <= right[:, None] + 1e-6)
    return hull


@lru_cache(maxsize=64)
def disc(radius: float) -> NDArray[np.uint8]:
    """Return a square of pixels that is 1 within this distance of the middle one, else 0."""
    reach = np.arange(-int(radius), int(radius) + 1)
    inside: Mask = np.hypot(reach[:, None], reach) <= radius
    return _bytes(inside)


def _bytes(mask: Mask) -> NDArray[np.uint8]:
    return np.ascontiguousarray(mask).view(np.uint8)


def _distance(mask: Mask) -> Image:
    """Return the distance of each pixel of the mask to the nearest one outside, accurate to 2 %."""
    distance: Image = cv2.distanceTransform(_bytes(mask), cv2.DIST_L2, cv2.DIST_MASK_5).astype(np.float32)
    return distance
