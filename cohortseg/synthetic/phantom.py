"""One synthetic patient, and one slice of the patient with its truth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohortseg.labels import CONSOLIDATION, GGO
from cohortseg.synthetic.anatomy import Anatomy, draw_anatomy, lung_distances
from cohortseg.synthetic.fields import Floats, cover, noise
from cohortseg.synthetic.lesions import (
    Course,
    LesionMap,
    draw_course,
    draw_lesion_map,
    illness,
    lesion_parts,
    lesion_weights,
    thresholds,
    with_lesions,
)
from cohortseg.synthetic.tissue import BLOOD_HU, tissue_hu
from cohortseg.synthetic.vessels import Tree, bronchi_beside, grow_tree, joined, tubes_in_slice, walls_of

_GRID_MM = 5.0
_ARTERY_TIPS, _VEIN_TIPS = 1500, 1100
_TIP_MM = 0.36
_SMALLEST_BRONCHUS_MM = 1.7
_SUBSLICE_MM = 1.7
_FISSURE_MM = 0.9
_CARINA = 0.62
"""Where the trachea divides, as a part of the lungs' height."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """All that is the same at every date."""

    anatomy: Anatomy
    vessels: Tree
    """Arteries and veins of both lungs."""
    bronchi: Tree
    """Airways inside the lungs."""
    main_airways: Tree
    """The trachea and the main bronchi, not part of the lungs."""
    course: Course
    lesions: LesionMap
    order: Floats
    """First map of `illness` at points spread evenly over the lungs."""
    dense: Floats
    """Second map at the same points."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One slice with its truth, (Y, X) each."""

    hu: Floats
    """Before blur and noise, HU."""
    labels: NDArray[np.uint8]
    """0 background, 1 GGO, 2 consolidation; only inside ``lungs``."""
    lungs: NDArray[np.bool_]
    """Both lungs with their vessels, airways and lesions."""


def draw_patient(rng: np.random.Generator, severity: float) -> Patient:
    """Draw a patient whose lesions take the given fraction of the lungs at their peak (0: no lesions)."""
    anatomy = draw_anatomy(rng)
    right, left = _lung_points(rng, anatomy)
    vessels, bronchi, main = [], [], [_trachea(anatomy)]
    for side, points in ((-1.0, right), (1.0, left)):
        hilum = (side * 36.0, 6.0 * anatomy.depth, (0.505 if side < 0 else 0.515) * anatomy.height_mm)
        arteries = grow_tree(rng, hilum, _some(rng, points, _ARTERY_TIPS), _TIP_MM)
        atrium = (side * 26.0, 12.0 * anatomy.depth, 0.47 * anatomy.height_mm)
        vessels += [arteries, grow_tree(rng, atrium, _some(rng, points, _VEIN_TIPS), _TIP_MM)]
        bronchi.append(bronchi_beside(arteries, _SMALLEST_BRONCHUS_MM))
        root = Tree(start=bronchi[-1].start[:1], end=bronchi[-1].end[:1], radius_mm=bronchi[-1].radius_mm[:1])
        main += [Tree(start=main[0].start, end=root.start, radius_mm=np.array([6.4])), root]
    points = np.concatenate([right, left])
    lesions = draw_lesion_map(rng, anatomy, points)
    order, dense = illness(lesions, anatomy, *points.T)
    return Patient(
        anatomy=anatomy,
        vessels=joined(*vessels),
        bronchi=joined(*bronchi),
        main_airways=joined(*main),
        course=draw_course(rng, severity),
        lesions=lesions,
        order=order,
        dense=dense,
    )


def _trachea(anatomy: Anatomy) -> Tree:
    """Return the trachea, from where it divides to above the lungs."""
    height, depth = anatomy.height_mm, anatomy.depth
    start, end = (-1.0, 16.0 * depth, _CARINA * height), (-1.0, 4.0 * depth, 1.2 * height)
    return Tree(start=np.array([start]), end=np.array([end]), radius_mm=np.array([8.8]))


def _lung_points(rng: np.random.Generator, anatomy: Anatomy) -> tuple[Floats, Floats]:
    """Return points (N, 3) that fill the right and the left lung evenly."""
    axis = np.arange(-150.0, 150.0, _GRID_MM)
    x, y = np.meshgrid(axis, axis)
    right: list[Floats] = []
    left: list[Floats] = []
    for z in np.arange(_GRID_MM / 2, anatomy.height_mm, _GRID_MM):
        for found, distance in zip((right, left), lung_distances(anatomy, x, y, float(z)), strict=True):
            inside = distance < -1.5
            found.append(np.column_stack([x[inside], y[inside], np.full(inside.sum(), z)]))
    jitter = 0.5 * _GRID_MM
    lungs = [np.concatenate(found) for found in (right, left)]
    return lungs[0] + rng.uniform(-jitter, jitter, lungs[0].shape), lungs[1] + rng.uniform(
        -jitter, jitter, lungs[1].shape
    )


def _some(rng: np.random.Generator, points: Floats, number: int) -> Floats:
    return points[np.sort(rng.choice(len(points), size=min(number, len(points)), replace=False))]


def lesion_limits(patient: Patient, day: float) -> tuple[float, float]:
    """Return the thresholds of the patient's lesion maps on a day after the first scan."""
    return thresholds(patient.order, patient.dense, lesion_parts(patient.course, day))


def draw_section(
    patient: Patient, xs: Floats, ys: Floats, z: float, thickness_mm: float, limits: tuple[float, float]
) -> Section:
    """Draw one slice.

    Parameters
    ----------
    patient
        The patient.
    xs, ys
        (X,), (Y,) centres of columns and rows, mm.
    z
        Middle of the slice, mm above the lowest recess of the lungs.
    thickness_mm
        Extent over which the slice averages.
    limits
        From `lesion_limits`.
    """
    x, y = np.meshgrid(xs, ys)
    pixel = float(xs[1] - xs[0])
    number = max(1, round(thickness_mm / _SUBSLICE_MM))
    background, lung = np.zeros(x.shape), np.zeros(x.shape)
    for part in range(number):
        height = z + ((part + 0.5) / number - 0.5) * thickness_mm
        inside = cover(np.minimum(*lung_distances(patient.anatomy, x, y, height)), pixel)
        background += tissue_hu(patient.anatomy, x, y, height, pixel) * (1.0 - inside) / number
        lung += inside / number
    main_wall = tubes_in_slice(walls_of(patient.main_airways), xs, ys, z, thickness_mm)
    main_lumen = tubes_in_slice(patient.main_airways, xs, ys, z, thickness_mm)
    touched = lung > 0.0
    lung_hu, ill, solid = np.zeros(x.shape), np.zeros(x.shape), np.zeros(x.shape)
    lung_hu[touched], ill[touched], solid[touched] = _lung_tissue(patient, x[touched], y[touched], z, limits)
    for tree, hu in ((walls_of(patient.bronchi), 0.0), (patient.vessels, BLOOD_HU), (patient.bronchi, -970.0)):
        filled = tubes_in_slice(tree, xs, ys, z, thickness_mm)
        lung_hu += filled * (hu - lung_hu)
    section = background + lung * lung_hu
    section += main_wall * (25.0 - section)
    section += main_lumen * (-985.0 - section)
    lungs = (lung >= 0.5) & (main_wall < 0.5)
    labels = np.zeros(x.shape, dtype=np.uint8)
    labels[lungs & (ill > 0.5)] = GGO.value
    labels[lungs & (solid > 0.5)] = CONSOLIDATION.value
    return Section(hu=section, labels=labels, lungs=lungs)


def _lung_tissue(
    patient: Patient, x: Floats, y: Floats, z: float, limits: tuple[float, float]
) -> tuple[Floats, Floats, Floats]:
    """Return lung tissue (HU) without vessels and airways, and the weights of lesion and consolidation, at points."""
    anatomy = patient.anatomy
    where = (x, y, np.full(x.shape, z))
    hu = anatomy.parenchyma_hu + anatomy.gravity_hu * y / 170.0
    hu = hu + 14.0 * noise(anatomy.block, *where, 26.0, 13.0)
    # Vessels too small to be drawn one by one.
    hu = hu + 32.0 * np.maximum(noise(anatomy.block, *where, 3.2, 14.0), -0.6)
    for height, tilt in ((0.36, 0.95), (0.50, -0.05)):  # oblique fissures, and the right horizontal one
        surface = z - height * anatomy.height_mm - tilt * y + 6.0 * noise(anatomy.block, x, y, 0.0, 50.0, 15.0)
        line = np.exp(-((surface / np.hypot(1.0, tilt) / _FISSURE_MM) ** 2))
        hu = hu + 110.0 * line * ((tilt > 0) | ((x < 0) & (y < 0)))
    order, dense = illness(patient.lesions, anatomy, *where)
    weights = lesion_weights(order, dense, limits)
    if np.isfinite(limits[0]):
        hu = with_lesions(hu, anatomy, patient.lesions, where, order, weights, limits[0])
    return hu, *weights
