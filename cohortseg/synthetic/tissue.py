"""A section of the chest without lungs and airways: skin, muscle, bones, heart, upper abdomen and table, in HU."""

import numpy as np

from cohortseg.synthetic.anatomy import (
    Anatomy,
    aorta_center,
    cage_distance,
    diaphragm_distance,
    heart_distance,
    mediastinum_distance,
)
from cohortseg.synthetic.fields import (
    Floats,
    capsule,
    cover,
    ellipse,
    ellipsoid,
    intersection,
    noise,
    smoothstep,
    union,
)

AIR_HU = -1000.0
FAT_HU = -100.0
MUSCLE_HU = 50.0
BLOOD_HU = 42.0
LIVER_HU = 60.0
_RIB_STEP_MM = 22.0
_RIB_DROP_MM = 125.0


class _Canvas:
    """A picture in HU that shapes are painted on, one over the other."""

    def __init__(self, x: Floats, y: Floats, pixel_mm: float) -> None:
        self.x, self.y, self.pixel_mm = x, y, pixel_mm
        self.hu = np.full(x.shape, AIR_HU)

    def paint(self, distance_mm: Floats, hu: Floats | float) -> None:
        """Paint a shape given by its signed distance."""
        weight = cover(distance_mm, self.pixel_mm)
        self.hu += weight * (hu - self.hu)

    def bone(self, distance_mm: Floats, *, cortex_mm: float = 1.8, cortex_hu: float = 620.0, marrow_hu: float) -> None:
        """Paint a shape with a dense shell."""
        self.paint(distance_mm, cortex_hu)
        self.paint(distance_mm + cortex_mm, marrow_hu)


def tissue_hu(anatomy: Anatomy, x: Floats, y: Floats, z: float, pixel_mm: float) -> Floats:
    """Return a section without lungs and airways.

    Parameters
    ----------
    anatomy
        The patient.
    x, y
        (Y, X) points, mm.
    z
        Height of the section, mm.
    pixel_mm
        Width over which borders are blurred.

    Returns
    -------
    (Y, X) float64, HU
        What is neither body nor table is air.
    """
    canvas = _Canvas(x, y, pixel_mm)
    cage = cage_distance(anatomy, x, y, z)
    _paint_table(canvas, anatomy)
    _paint_wall(canvas, anatomy, cage, z)
    _paint_bones(canvas, anatomy, cage, z)
    canvas.paint(cage + 1.0, FAT_HU)
    _paint_abdomen(canvas, anatomy, cage, z)
    _paint_mediastinum(canvas, anatomy, cage, z)
    _paint_spine(canvas, anatomy, z)
    return canvas.hu


def body_half_axes(anatomy: Anatomy) -> tuple[float, float]:
    """Return half the width and half the depth of the body below the armpits, mm."""
    return 136.0 * anatomy.width + 19.0 + anatomy.fat_mm, 92.0 * anatomy.depth + 29.0 + 0.45 * anatomy.fat_mm


def body_center_y(anatomy: Anatomy) -> float:
    """Return y of the middle of the body, mm."""
    return 13.0 + 0.1 * anatomy.fat_mm


def _paint_table(canvas: _Canvas, anatomy: Anatomy) -> None:
    """Paint a curved carbon-fibre table with foam inside, and its lower shell."""
    x, y = canvas.x, canvas.y
    back = body_center_y(anatomy) + body_half_axes(anatomy)[1]
    for below, bend, thick, hu in (
        (3.0, 0.0011, 5.0, -880.0),
        (12.0, 0.0011, 1.3, -180.0),
        (42.0, 0.0004, 1.0, -350.0),
    ):
        surface = y - (back + below - bend * x * x)
        canvas.paint(np.maximum(np.abs(surface) - thick, np.abs(x) - 205.0), hu)


def _paint_wall(canvas: _Canvas, anatomy: Anatomy, cage: Floats, z: float) -> None:
    """Paint skin, fat and muscle."""
    x, y = canvas.x, canvas.y
    t = z / anatomy.height_mm
    half_width, half_depth = body_half_axes(anatomy)
    shoulders = float(smoothstep(np.asarray(t), 0.6, 1.1))
    center = (0.0, body_center_y(anatomy))
    body = ellipse(x, y, center, (half_width + 22.0 * shoulders, half_depth - 16.0 * shoulders), power=2.35)
    body = body + 2.0 * noise(anatomy.block, x, y, z, 70.0, 5.0)
    canvas.paint(body, -20.0)
    canvas.paint(body + 1.6, FAT_HU + 7.0 * noise(anatomy.block, x, y, z, 9.0, 6.0))
    front = np.exp(-(((np.abs(x) - 62.0) / 36.0) ** 2)) * (y < 0) * smoothstep(np.asarray(t), 0.3, 0.65)
    back = np.exp(-(((np.abs(x) - 30.0) / 40.0) ** 2)) * (y > 0)
    side = np.clip(np.abs(x) / 120.0, 0.0, 1.0) ** 4
    thickness = 13.0 + 13.0 * front + 22.0 * back + 8.0 * side + shoulders * (16.0 + 46.0 * side)
    muscle = np.maximum(cage - thickness, body + 4.0)
    streaks = noise(anatomy.block, x, y, z, 14.0, 7.0)
    canvas.paint(muscle, MUSCLE_HU - 130.0 * smoothstep(streaks, 1.1, 2.0) + 6.0 * streaks)


def _paint_bones(canvas: _Canvas, anatomy: Anatomy, cage: Floats, z: float) -> None:
    """Paint ribs (oblique rings), their cartilage, the sternum, the shoulder blades and the collar bones."""
    x, y = canvas.x, canvas.y
    t = z / anatomy.height_mm
    angle = np.arctan2(np.abs(x), y)  # 0 at the spine, pi at the sternum
    forward = (1.0 - np.cos(angle)) / 2.0
    phase = (z + _RIB_DROP_MM * forward) / _RIB_STEP_MM + anatomy.rib_phase
    rise = (phase - np.floor(phase) - 0.5) * _RIB_STEP_MM
    rib = (np.hypot(rise / 6.0, (cage - 7.0) / 4.3) - 1.0) * 4.3
    rib = np.where(np.abs(x) < 22.0, np.maximum(rib, 22.0 - np.abs(x)), rib)
    if t < 1.02:
        canvas.bone(np.maximum(rib, (angle - 2.55) * 60.0), marrow_hu=210.0)
        canvas.paint(np.maximum(rib, (2.55 - angle) * 60.0), 105.0)
    if 0.25 < t < 0.93:
        width = 21.0 if t > 0.8 else 16.0
        chest_front = float(y[:, x.shape[1] // 2][np.argmin(np.abs(cage[:, x.shape[1] // 2]) + (y[:, 0] > 0) * 1e3)])
        canvas.bone(ellipse(x, y, (0.0, chest_front - 9.0), (width, 6.0), power=3.0), cortex_mm=1.4, marrow_hu=140.0)
    if t > 0.42:
        blade = np.maximum(np.abs(cage - 24.0) - 2.6, np.abs(angle - 0.98) * 110.0 - 34.0)
        canvas.bone(blade, cortex_mm=1.5, marrow_hu=260.0)
    if abs(t - 0.96) < 0.05:
        for side in (-1.0, 1.0):
            canvas.bone(capsule(x, y, (side * 22.0, -52.0), (side * 110.0, -30.0), 6.0), marrow_hu=200.0)


def _paint_spine(canvas: _Canvas, anatomy: Anatomy, z: float) -> None:
    """Paint a vertebra with its arch and processes, or a disc, and the spinal canal."""
    x, y = canvas.x, canvas.y
    middle = 60.0 * anatomy.depth
    body = ellipse(x, y, (0.0, middle), (18.5, 15.0), power=2.3)
    arch = union(
        np.abs(ellipse(x, y, (0.0, middle + 25.0), (11.5, 10.5))) - 2.6,
        capsule(x, y, (0.0, middle + 38.0), (0.0, middle + 60.0), 3.6),
        4.0,
    )
    for side in (-1.0, 1.0):
        process = capsule(x, y, (side * 13.0, middle + 22.0), (side * 36.0, middle + 35.0), 5.0)
        arch = union(arch, process, 4.0)
    in_disc = (z / 26.0) % 1.0 < 0.2
    canvas.bone(arch, cortex_mm=1.6, cortex_hu=520.0, marrow_hu=260.0)
    if in_disc:
        canvas.paint(body, 95.0)
    else:
        grain = 45.0 * noise(anatomy.block, x, y, z, 4.0, 9.0)
        canvas.paint(body, 480.0)
        canvas.paint(body + 1.7, 170.0 + grain)
    canvas.paint(ellipse(x, y, (0.0, middle + 25.0), (9.5, 8.5)), 25.0)


def _paint_abdomen(canvas: _Canvas, anatomy: Anatomy, cage: Floats, z: float) -> None:
    """Paint what lies under the diaphragm: liver, stomach with its bubble of gas, spleen, and fat between."""
    x, y = canvas.x, canvas.y
    under_right = diaphragm_distance(anatomy, x, y, z, -1.0)
    under_left = diaphragm_distance(anatomy, x, y, z, 1.0)
    # Distances under the diaphragm are positive inside the abdomen.
    right, left = np.maximum(-under_right, x - 25.0), np.maximum(-under_left, -5.0 - x)
    abdomen = np.maximum(np.minimum(right, left), cage + 2.0)
    canvas.paint(abdomen, MUSCLE_HU)
    canvas.paint(np.maximum(abdomen + 3.0, -x - 8.0), FAT_HU)
    texture = 5.0 * noise(anatomy.block, x, y, z, 12.0, 10.0)
    liver = ellipsoid(x, y, z, (-58.0, -8.0, -30.0), (118.0, 108.0, 30.0 + anatomy.dome_right_mm))
    edge = x - 4.0 + 0.25 * y + 9.0 * noise(anatomy.block, x, y, z, 45.0, 16.0)
    canvas.paint(intersection(np.maximum(abdomen + 2.0, liver - 30.0), edge, 12.0), LIVER_HU + texture)
    lobe = ellipsoid(x, y, z, (15.0, -52.0, 0.0), (48.0, 34.0, 60.0))
    canvas.paint(intersection(lobe, abdomen + 3.0, 4.0), LIVER_HU + texture)
    spleen = ellipsoid(x, y, z, (88.0, 42.0, 0.0), (36.0, 46.0, 52.0))
    canvas.paint(intersection(spleen, abdomen + 3.0, 4.0), 52.0 + texture)
    stomach = ellipsoid(x, y, z, (62.0, -18.0, 12.0), (46.0, 44.0, 50.0))
    stomach = intersection(stomach, abdomen + 3.0, 4.0)
    canvas.paint(stomach, MUSCLE_HU)
    canvas.paint(stomach + 4.0, 22.0 + 2.0 * texture)
    canvas.paint(np.maximum(stomach + 4.0, y + 42.0), -960.0)  # gas rises to the front


def _paint_mediastinum(canvas: _Canvas, anatomy: Anatomy, cage: Floats, z: float) -> None:
    """Paint fat, heart, great vessels and oesophagus."""
    x, y = canvas.x, canvas.y
    t = z / anatomy.height_mm
    dome = min(anatomy.dome_right_mm, anatomy.dome_left_mm) - 18.0
    if z > dome:
        column = np.maximum(mediastinum_distance(anatomy, x, y, z), cage + 1.0)
        canvas.paint(column, MUSCLE_HU)
        canvas.paint(column + 1.5, FAT_HU + 12.0 * noise(anatomy.block, x, y, z, 10.0, 11.0))
        canvas.paint(heart_distance(anatomy, x, y, z), BLOOD_HU + 3.0 * noise(anatomy.block, x, y, z, 25.0, 12.0))
    vessels: list[tuple[float, float, float, float, float]] = [  # x, y, radius, from t, to t
        (-12.0, -28.0, 16.5, 0.42, 0.70),
        (-30.0, -20.0, 9.5, 0.45, 0.82),
        (20.0, -36.0, 15.0, 0.45, 0.60),
        (-17.0, -22.0, 7.5, 0.74, 1.2),
        (16.0, -18.0, 6.5, 0.74, 1.2),
        (25.0, 2.0, 5.5, 0.74, 1.2),
        (-26.0, -6.0, 6.0, 0.74, 1.2),
    ]
    for center_x, center_y, radius, low, high in vessels:
        if low < t < high:
            canvas.paint(ellipse(x, y, (center_x, center_y), (radius, radius)), BLOOD_HU)
    if 0.67 < t < 0.76:  # the arch
        canvas.paint(capsule(x, y, (-8.0, -30.0), aorta_center(anatomy), 13.5), BLOOD_HU)
    elif t <= 0.67:
        canvas.paint(ellipse(x, y, aorta_center(anatomy), (13.0, 13.0)), BLOOD_HU)
    canvas.paint(ellipse(x, y, (7.0, 33.0 * anatomy.depth), (8.0, 6.5)), 38.0)
