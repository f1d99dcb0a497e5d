"""The chest's large shapes as functions of space: rib cage, mediastinum, diaphragm, lungs.

Space is the patient's, in mm: x to the left, y to the back, z to the head, with z = 0 at the lowest recess of the lungs
and x = 0 in the middle. Sizes are those of an adult lying on the back at full inspiration; the shapes are drawn by eye.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from cohortseg.synthetic.fields import Floats, ellipse, ellipsoid, intersection, noise, noise_block, turned, union


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What makes one patient differ from another; the same at all dates."""

    height_mm: float
    """From the lowest recess of the lungs to their tips."""
    width: float
    """Scale of everything from side to side."""
    depth: float
    """Scale of everything from front to back."""
    fat_mm: float
    """Subcutaneous fat at the side."""
    heart: float
    """Scale of the heart."""
    heart_angle_deg: float
    """How far the heart's long axis points to the front of the left side."""
    dome_right_mm: float
    """Height of the right half of the diaphragm above the lowest recess."""
    dome_left_mm: float
    """Height of the left half."""
    rib_phase: float
    """Where the ribs start, in rib distances."""
    parenchyma_hu: float
    """Lung tissue between vessels, in the middle of the chest."""
    gravity_hu: float
    """How much denser the lung is at the back than at the front."""
    block: Floats
    """Noise for textures and irregular borders."""


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient."""
    right = rng.uniform(66.0, 88.0)
    return Anatomy(
        height_mm=rng.uniform(232.0, 280.0),
        width=rng.uniform(0.9, 1.06),
        depth=rng.uniform(0.92, 1.08),
        fat_mm=rng.uniform(9.0, 24.0),
        heart=rng.uniform(0.9, 1.08),
        heart_angle_deg=rng.uniform(-42.0, -26.0),
        dome_right_mm=right,
        dome_left_mm=right - rng.uniform(6.0, 20.0),
        rib_phase=rng.uniform(0.0, 1.0),
        parenchyma_hu=rng.uniform(-875.0, -835.0),
        gravity_hu=rng.uniform(35.0, 75.0),
        block=noise_block(rng),
    )


_LEVELS = (-0.2, 0.0, 0.2, 0.4, 0.6, 0.75, 0.86, 0.94, 1.0, 1.15)
_CAGE = PchipInterpolator(
    _LEVELS,
    np.array(
        [
            (128, 86, 0), (133, 90, 0), (136, 92, -1), (133, 92, -2), (124, 88, -2), (111, 80, 1), (95, 67, 6),
            (77, 52, 12), (57, 36, 18), (50, 30, 20),
        ]
    ),
)  # fmt: skip
"""Half width, half depth and centre (y) of the rib cage's inside, mm, over height / height_mm."""
_COLUMN = PchipInterpolator(
    _LEVELS,
    np.array(
        [
            (34, 74, -8), (33, 74, -8), (30, 76, -8), (31, 76, -10), (37, 72, -14), (35, 68, -12), (37, 62, -6),
            (38, 58, 0), (38, 56, 2), (38, 56, 2),
        ]
    ),
)  # fmt: skip
"""Half width, half depth and centre (y) of the mediastinum without heart and spine, mm."""

_RECESS_MM = 22.0


def cage_distance(anatomy: Anatomy, x: Floats, y: Floats, z: float) -> Floats:
    """Return the signed distance to the inner side of the rib cage (the parietal pleura), mm."""
    half_width, half_depth, center_y = _CAGE(z / anatomy.height_mm)
    depth = half_depth * anatomy.depth
    # Narrower towards the sternum: the outline is an egg, not an ellipse.
    narrowing = 1.0 + 0.13 * np.clip((center_y - y) / depth, -0.6, 1.2)
    return ellipse(x * narrowing, y, (0.0, center_y), (half_width * anatomy.width, depth), power=2.25)


def heart_distance(anatomy: Anatomy, x: Floats, y: Floats, z: float) -> Floats:
    """Return the signed distance to the heart, mm."""
    u, v = turned(x, y, (20.0, -26.0 * anatomy.depth), anatomy.heart_angle_deg)
    middle = 0.36 * anatomy.height_mm
    scale = anatomy.heart
    return ellipsoid(u, v, z, (0.0, 0.0, middle), (64.0 * scale, 46.0 * scale, 66.0 * scale))


def aorta_center(anatomy: Anatomy) -> tuple[float, float]:
    """Return (x, y) of the descending aorta, mm."""
    return 25.0, 41.0 * anatomy.depth


def mediastinum_distance(anatomy: Anatomy, x: Floats, y: Floats, z: float) -> Floats:
    """Return the signed distance to all that lies between the lungs: heart, great vessels, fat, oesophagus, spine."""
    t = z / anatomy.height_mm
    half_width, half_depth, center_y = _COLUMN(t)
    shape = ellipse(x, y, (2.0, center_y), (half_width * anatomy.width, half_depth * anatomy.depth))
    shape = union(shape, ellipse(x, y, (0.0, 66.0 * anatomy.depth), (25.0, 34.0)), 14.0)
    shape = union(shape, heart_distance(anatomy, x, y, z) - 4.0, 10.0)
    if t < 0.76:
        shape = union(shape, ellipse(x, y, aorta_center(anatomy), (15.0, 15.0)), 8.0)
    for side in (-1.0, 1.0):  # the hila, where vessels and bronchi enter
        hilum = ellipsoid(x, y, z, (side * 40.0, 4.0, 0.53 * anatomy.height_mm), (17.0, 15.0, 30.0))
        shape = union(shape, hilum, 10.0)
    return shape


def diaphragm_distance(anatomy: Anatomy, x: Floats, y: Floats, z: float, side: float) -> Floats:
    """Return how far a point lies below one half of the diaphragm (negative: above it, in the chest), mm.

    ``side`` is -1 for the patient's right and 1 for the left.
    """
    top = anatomy.dome_right_mm if side < 0 else anatomy.dome_left_mm
    radius_x, radius_y = 74.0 * anatomy.width, 92.0 * anatomy.depth
    u, v = (x - side * 62.0 * anatomy.width) / radius_x, (y + 14.0 * anatomy.depth) / radius_y
    rim = 42.0 * np.clip(-y / radius_y, -0.4, 1.0)  # attached higher in front than at the back
    ripple = 3.0 * noise(anatomy.block, x, y, 0.0, 60.0, 3.0 + side)
    height = rim + (top - np.maximum(rim, 0.0) * 0.4) * (1.0 - u * u - v * v) + ripple
    # The recess between diaphragm and ribs narrows to an edge a little above z = 0.
    height = np.where(height < _RECESS_MM, _RECESS_MM * np.exp(np.minimum(height / _RECESS_MM - 1.0, 0.0)), height)
    slope = 2.0 * top * np.hypot(u / radius_x, v / radius_y)
    return np.asarray((height - z) / np.hypot(1.0, slope))


def lung_distances(anatomy: Anatomy, x: Floats, y: Floats, z: float) -> tuple[Floats, Floats]:
    """Return the signed distances to the patient's right and left lung at height z, mm."""
    wobble = 1.6 * noise(anatomy.block, x, y, z, 28.0, 1.0)  # no pleura is a perfect ellipse
    inside = intersection(
        cage_distance(anatomy, x, y, z) + wobble, -mediastinum_distance(anatomy, x, y, z) - wobble, 9.0
    )
    right, left = (
        intersection(np.maximum(inside, -side * x), diaphragm_distance(anatomy, x, y, z, side), 6.0)
        for side in (-1.0, 1.0)
    )
    return right, left
