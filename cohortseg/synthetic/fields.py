"""Signed distances, their soft coverage of a voxel, and smooth noise: what the phantom is drawn with.

Every function takes points, as arrays of x (to the patient's left) and y (to the back) in mm, so the same shape can be
drawn on any grid. A signed distance is in mm, negative inside.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]

OUTSIDE_MM: Final = 1e3
"""Distance given where a shape does not reach the plane at all."""
_NOISE_CELLS: Final = 40


def cover(distance_mm: Floats, width_mm: float) -> Floats:
    """Return the part (0 to 1) of a voxel inside a shape, one half at its surface, for a border of the given width."""
    return np.clip(0.5 - distance_mm / width_mm, 0.0, 1.0)


def smoothstep(values: Floats, low: float, high: float) -> Floats:
    """Return 0 below ``low``, 1 above ``high``, and a smooth cubic between (one half in the middle)."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def union(first: Floats, second: Floats, rounding_mm: float) -> Floats:
    """Return the signed distance of two shapes together, with their seam filled by a fillet."""
    h = np.maximum(rounding_mm - np.abs(first - second), 0.0) / rounding_mm
    return np.minimum(first, second) - h * h * rounding_mm / 4.0


def intersection(first: Floats, second: Floats, rounding_mm: float) -> Floats:
    """Return the signed distance of what two shapes share, with rounded edges."""
    return -union(-first, -second, rounding_mm)


def ellipse(x: Floats, y: Floats, center: tuple[float, float], axes: tuple[float, float], power: float = 2.0) -> Floats:
    """Return the signed distance, to first order, of an ellipse (power 2) or a superellipse.

    Parameters
    ----------
    x, y
        Points, mm.
    center
        (x, y), mm.
    axes
        Half width and half depth, mm; where one is not positive there is no ellipse.
    power
        2 for an ellipse; more makes it squarer.
    """
    if min(axes) <= 0.5:
        return np.full(np.broadcast_shapes(x.shape, y.shape), OUTSIDE_MM)
    u, v = np.abs(x - center[0]) / axes[0] + 1e-6, np.abs(y - center[1]) / axes[1] + 1e-6
    radius = (u**power + v**power) ** (1.0 / power)
    slope = radius ** (1.0 - power) * np.hypot(u ** (power - 1.0) / axes[0], v ** (power - 1.0) / axes[1])
    return np.asarray((radius - 1.0) / slope)


def ellipsoid(
    x: Floats, y: Floats, z: float, center: tuple[float, float, float], axes: tuple[float, float, float]
) -> Floats:
    """Return the signed distance of an ellipsoid's section at height z (all in mm)."""
    part = 1.0 - ((z - center[2]) / axes[2]) ** 2
    shrink = part**0.5 if part > 0 else 0.0
    return ellipse(x, y, center[:2], (axes[0] * shrink, axes[1] * shrink))


def capsule(x: Floats, y: Floats, start: tuple[float, float], end: tuple[float, float], radius_mm: float) -> Floats:
    """Return the signed distance of a straight rod with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return np.asarray(np.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - radius_mm)


def turned(x: Floats, y: Floats, center: tuple[float, float], angle_deg: float) -> tuple[Floats, Floats]:
    """Return the points seen from a frame that sits at ``center``, turned by the angle (from x towards y)."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    dx, dy = x - center[0], y - center[1]
    return c * dx + s * dy, c * dy - s * dx


def noise_block(rng: np.random.Generator) -> Floats:
    """Return a periodic block of smooth noise of mean 0 and standard deviation 1, to be read by `noise`."""
    block = ndimage.gaussian_filter(rng.standard_normal((_NOISE_CELLS,) * 3), 1.1, mode="wrap")
    return np.asarray((block - block.mean()) / block.std())


def noise(block: Floats, x: Floats, y: Floats, z: Floats | float, grain_mm: float, shift: float) -> Floats:
    """Return smooth noise at points in space.

    Parameters
    ----------
    block
        From `noise_block`.
    x, y, z
        Points, mm; all of one shape, or z a number.
    grain_mm
        Typical size of a bright or dark spot, mm.
    shift
        Any number; different shifts give fields that look unrelated.
    """
    cell = grain_mm / 2.5
    heights = np.broadcast_to(z, x.shape)
    where = np.stack([heights / cell + 7.3 * shift, y / cell + 17.9 * shift, x / cell + 29.1 * shift])
    return np.asarray(ndimage.map_coordinates(block, where, order=1, mode="grid-wrap"))
