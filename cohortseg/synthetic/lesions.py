"""Lesions of COVID-19 pneumonia: where they grow first, how much there is on a day, and how they look.

One fixed map per patient says in which order lung tissue falls ill; a day's lesions are the part of the lung with the
highest values, so they grow and shrink around the same places along a known curve.
"""

from dataclasses import dataclass

import numpy as np

from cohortseg.synthetic.anatomy import Anatomy, cage_distance
from cohortseg.synthetic.fields import Floats, noise, smoothstep

_FOCI = 16
_LEVEL_MM = 5.0
_BORDER = 0.13
"""Half width of a ground-glass border, in units of the map (about 4 mm)."""
_EDGE = 0.09
"""The same for a consolidation (about 3 mm)."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How much lung is ill over time."""

    severity: float
    """Fraction of the lung that is ill at the peak, 0 to 1; 0 for a patient without lesions."""
    peak_day: float
    """Days after the first scan."""
    rise_days: float
    """Standard deviation of the growth."""
    fall_days: float
    """Standard deviation of the resolution."""
    consolidated: float
    """Largest fraction of the lesions that is consolidated."""
    lag_days: float
    """Delay of the peak of that fraction after the peak of the lesions."""


@dataclass(frozen=True, kw_only=True)
class LesionMap:
    """The order in which a patient's lung falls ill."""

    centers: Floats
    """(K, 3) x, y, z of the foci, mm."""
    radii_mm: Floats
    """(K,) mm."""
    strengths: Floats
    """(K,) the earlier a focus appears, the larger."""
    shift: float
    """Offset into the anatomy's noise."""


def draw_course(rng: np.random.Generator, severity: float) -> Course:
    """Draw the course of a disease of the given severity."""
    return Course(
        severity=severity,
        peak_day=rng.uniform(5.0, 9.0),
        rise_days=rng.uniform(4.0, 6.0),
        fall_days=rng.uniform(7.0, 11.0),
        consolidated=rng.uniform(0.15, 0.4),
        lag_days=rng.uniform(1.0, 3.0),
    )


def lesion_parts(course: Course, day: float) -> tuple[float, float]:
    """Return the fractions of the lung that are lesion and consolidation on a day (0 to 1 each).

    Both are bells, steeper before than after their peak, over days since the first scan.
    """

    def bell(peak: float) -> float:
        width = course.rise_days if day < peak else course.fall_days
        return float(np.exp(-0.5 * ((day - peak) / width) ** 2))

    opacity = course.severity * bell(course.peak_day)
    return opacity, opacity * course.consolidated * bell(course.peak_day + course.lag_days)


def draw_lesion_map(rng: np.random.Generator, anatomy: Anatomy, lung_points: Floats) -> LesionMap:
    """Draw the foci: mostly near the chest wall, at the back, and in the lower half.

    ``lung_points`` is (N, 3): x, y, z of points spread evenly over both lungs, mm.
    """
    x, y, z = lung_points.T
    levels = np.round(z / _LEVEL_MM) * _LEVEL_MM
    depth = np.zeros(len(z))
    for level in np.unique(levels):
        here = levels == level
        depth[here] = -cage_distance(anatomy, x[here], y[here], float(level))
    weight = np.exp(-depth / 14.0) * np.exp(0.018 * y) * np.exp(-2.2 * z / anatomy.height_mm)
    weight = weight * (0.25 + (np.abs(x) > 25.0))
    chosen = rng.choice(len(lung_points), size=min(_FOCI, len(lung_points)), replace=False, p=weight / weight.sum())
    return LesionMap(
        centers=lung_points[chosen],
        radii_mm=rng.uniform(20.0, 44.0, len(chosen)),
        strengths=rng.uniform(0.45, 1.0, len(chosen)),
        shift=float(rng.uniform(0.0, 20.0)),
    )


def illness(lesions: LesionMap, anatomy: Anatomy, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats]:
    """Return two maps at points: the higher the value, the earlier the lesion (first) or consolidation (second).

    All arguments are arrays of one shape, mm; the results have that shape and no unit.
    """
    block, shift = anatomy.block, lesions.shift
    warp = 7.0 * noise(block, x, y, z, 30.0, shift + 1.0)
    near = np.full(x.shape, -10.0)
    for center, radius, strength in zip(lesions.centers, lesions.radii_mm, lesions.strengths, strict=True):
        # Flatter along the body's axis than across, and bent by the warp: no lesion is a ball.
        far = np.sqrt((x - center[0]) ** 2 + (y - center[1]) ** 2 + (1.15 * (z - center[2])) ** 2) + warp
        np.maximum(near, strength - far / radius, out=near)
    rough = 0.20 * noise(block, x, y, z, 17.0, shift + 2.0) + 0.11 * noise(block, x, y, z, 7.0, shift + 3.0)
    order = near + rough
    dense = order + 0.26 * noise(block, x, y, z, 13.0, shift + 4.0) + 0.12 * noise(block, x, y, z, 5.0, shift + 5.0)
    return order, dense


def thresholds(order: Floats, dense: Floats, parts: tuple[float, float]) -> tuple[float, float]:
    """Return the values of the two maps above which tissue is lesion and consolidation.

    ``order`` and ``dense`` are the maps at points spread evenly over the lungs; ``parts`` comes from `lesion_parts`.
    Without lesions both are infinite.
    """
    opacity, consolidation = parts
    if opacity <= 0.0:
        return np.inf, np.inf
    lesion_from = float(np.quantile(order, 1.0 - opacity))
    # Consolidation lies inside lesions, a border away from their rim.
    inner = np.where(order > lesion_from + _BORDER, dense, -np.inf)
    return lesion_from, float(np.quantile(inner, 1.0 - consolidation, method="lower"))


def lesion_weights(order: Floats, dense: Floats, limits: tuple[float, float]) -> tuple[Floats, Floats]:
    """Return how much of each voxel is lesion and how much is consolidation, 0 to 1.

    A voxel counts as lesion, and as consolidation, where the weight is above one half.
    """
    if not np.isfinite(limits[0]):
        return np.zeros_like(order), np.zeros_like(order)
    ill = smoothstep(order, limits[0] - _BORDER, limits[0] + _BORDER)
    if not np.isfinite(limits[1]):
        return ill, np.zeros_like(order)
    return ill, ill * smoothstep(dense, limits[1] - _EDGE, limits[1] + _EDGE)


def with_lesions(
    lung_hu: Floats, anatomy: Anatomy, lesions: LesionMap, where: tuple[Floats, Floats, Floats], order: Floats,
    weights: tuple[Floats, Floats], lesion_from: float,
) -> Floats:  # fmt: skip
    """Return lung tissue with lesions in it, HU.

    Parameters
    ----------
    lung_hu
        (N,) tissue without lesions, HU.
    anatomy, lesions
        The patient.
    where
        x, y, z of the N points, mm.
    order
        (N,) the map of `illness`.
    weights
        (N,) each, from `lesion_weights`.
    lesion_from
        The first of `thresholds`.
    """
    block, shift = anatomy.block, lesions.shift
    mottle = noise(block, *where, 5.0, shift + 6.0)
    lines = np.exp(-((noise(block, *where, 6.5, shift + 7.0) / 0.22) ** 2))  # thickened septa: crazy paving
    core = np.clip((order - lesion_from) / 0.6, 0.0, 1.0)
    glass_hu = -660.0 + 130.0 * core + 42.0 * mottle + 80.0 * lines
    solid_hu = -18.0 + 22.0 * mottle
    ill, solid = weights
    return np.asarray((1.0 - ill) * lung_hu + (ill - solid) * glass_hu + solid * solid_hu)
