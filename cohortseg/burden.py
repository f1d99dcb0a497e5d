"""Lesion burden of one series: counts of voxels become mL, percents, scores and HU statistics. Pure functions.

Axes are Z Y X. Lesions count inside the lungs only. What cannot be measured is None: volumes and lesion counts of a
single slice (its extent along the normal is not known), percents of a region in which no lung was found.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg.labels import BACKGROUND, CONSOLIDATION, GGO, NUM_CLASSES, SIDES, ZONES, is_opacity
from cohortseg.volume import bounding_box

HIGH_OPACITY_HU: Final = -200
"""Lesion voxels of at least this HU are high opacity. The pair PO and PHO is that of Chaganti et al. 2020 (arXiv
2004.01279); the cut is a declared choice of cohortseg."""
MIN_LESION_ML: Final = 0.1
"""Connected lesions below this volume (a ball of 5.8 mm) are not counted: vessels, fissures and noise leave some."""
PERCENTILES: Final = (10, 50, 90)
"""Percentiles of HU that are measured over lung and lesion."""
_ZONE_SCORE_EDGES_PCT: Final = (1.0, 25.0, 50.0, 75.0)
"""Least percents of opacity for a score of 1, 2, 3 and 4. Readers' bands begin at 1 % too (1 to 25 %: Bernheim et al.,
Radiology 2020); less is mostly false alarm."""


def percent(part: float, whole: float) -> float | None:
    """Return 100 x part / whole; None if the whole is empty, since nothing was measured then."""
    return 100.0 * float(part) / float(whole) if whole > 0 else None


def series_burden(
    labels: NDArray[np.uint8],
    lungs: NDArray[np.uint8],
    zones: NDArray[np.uint8],
    volume_hu: NDArray[np.int16],
    voxel_volume_ml: float | None,
) -> dict[str, float | int | None]:
    """Return the measured columns of a series' burden row.

    Parameters
    ----------
    labels : (Z, Y, X) uint8
        0 background, 1 ground-glass opacity, 2 consolidation; labels outside the lungs do not count.
    lungs : (Z, Y, X) uint8
        0 no lung, 1 the patient's right lung, 2 the left one.
    zones : (Z, Y, X) uint8
        0 no lung or height not known (a single slice, a lung that was half scanned), 1 lower, 2 middle,
        3 upper third by height.
    volume_hu : (Z, Y, X) HU
        The CT itself, for mean HU and high opacity.
    voxel_volume_ml : mL, > 0, or None
        None for a single slice: volumes are null then, percents are those of its areas.

    Returns
    -------
    dict
        Columns of the burden table from ``n_lung_slices`` to the zones. Without any lung only ``n_lung_slices`` is
        measured (0); all else is None. A side without lung voxels is None, not 0: it was not seen.

    Raises
    ------
    ValueError
        If the arrays differ in shape.
    """
    shapes = {labels.shape, lungs.shape, zones.shape, volume_hu.shape}
    if len(shapes) != 1:
        raise ValueError(f"labels, lungs, zones and volume_hu must have one shape, got {sorted(shapes)}")
    box = bounding_box(lungs)
    inside = lungs[box] > 0
    lesion = inside & is_opacity(labels[box])
    lung_hu, lesion_hu = volume_hu[box][inside], volume_hu[box][lesion]
    counts = _counts(labels[box][inside], lungs[box][inside], zones[box][inside])
    num_lung, num_lesion = _lung_and_lesion(counts)
    num_ggo = int(counts[GGO.value].sum())
    num_high = int(np.count_nonzero(lesion_hu >= HIGH_OPACITY_HU))
    row: dict[str, float | int | None] = {
        "n_lung_slices": int(inside.any(axis=(1, 2)).sum()),
        "lung_volume_ml": _volume(num_lung, num_lung, voxel_volume_ml),
        "ggo_volume_ml": _volume(num_ggo, num_lung, voxel_volume_ml),
        "consolidation_volume_ml": _volume(num_lesion - num_ggo, num_lung, voxel_volume_ml),
        "opacity_volume_ml": _volume(num_lesion, num_lung, voxel_volume_ml),
        "ggo_pct": percent(num_ggo, num_lung),
        "consolidation_pct": percent(num_lesion - num_ggo, num_lung),
        "po_pct": percent(num_lesion, num_lung),
        "high_opacity_volume_ml": _volume(num_high, num_lung, voxel_volume_ml),
        "pho_pct": percent(num_high, num_lung),
        **_hu_columns("lesion", lesion_hu),
        **_hu_columns("lung", lung_hu),
        **_lesion_columns(lesion, num_lung, voxel_volume_ml),
    }
    return row | _side_columns(counts, voxel_volume_ml) | _zone_columns(counts)


def slice_areas(
    labels: NDArray[np.uint8], lungs: NDArray[np.uint8], pixel_area_mm2: float
) -> list[dict[str, float | int]]:
    """Return one mapping per slice: ``slice_index`` and the areas of lung, GGO and consolidation, mm2.

    Parameters
    ----------
    labels, lungs : (Z, Y, X) uint8
        As in `series_burden`.
    pixel_area_mm2 : mm2, > 0
        Area of a pixel in its slice.
    """
    rows = []
    for z, (label, lung) in enumerate(zip(labels, lungs, strict=True)):
        found = np.bincount(label[lung > 0], minlength=CONSOLIDATION.value + 1)
        areas = {
            "lung_area_mm2": found.sum(),
            "ggo_area_mm2": found[GGO.value],
            "consolidation_area_mm2": found[CONSOLIDATION.value],
        }
        rows.append({"slice_index": z} | {name: float(count) * pixel_area_mm2 for name, count in areas.items()})
    return rows


def _counts(labels: NDArray[np.uint8], lungs: NDArray[np.uint8], zones: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return the number of voxels of each class, lung and zone; the axes are their values (0 of the lungs is empty)."""
    shape = (NUM_CLASSES, len(SIDES) + 1, len(ZONES) + 1)
    places = (labels * shape[1] + lungs) * shape[2] + zones
    return np.bincount(places, minlength=math.prod(shape)).reshape(shape)


def _lung_and_lesion(counts: NDArray[np.intp]) -> tuple[int, int]:
    """Return the voxels of lung, and those of them with a lesion, from counts whose first axis are the classes."""
    num_lung = int(counts.sum())
    return num_lung, num_lung - int(counts[BACKGROUND.value].sum())


def _volume(count: int, num_lung: int, voxel_volume_ml: float | None) -> float | None:
    """Return the volume of ``count`` voxels, mL; None if the region has no lung or the voxel volume is not known."""
    return count * voxel_volume_ml if voxel_volume_ml is not None and num_lung > 0 else None


def _hu_columns(region: str, values_hu: NDArray[np.int16]) -> dict[str, float | int | None]:
    """Return mean and percentiles of HU; percentile q is the lowest HU that q percent of the voxels do not exceed."""
    names = (f"{region}_mean_hu", *(f"{region}_p{q}_hu" for q in PERCENTILES))
    if values_hu.size == 0:
        return dict.fromkeys(names)
    ranks = np.percentile(values_hu, PERCENTILES, method="inverted_cdf")
    return dict(zip(names, (float(values_hu.mean(dtype=np.float64)), *map(float, ranks)), strict=True))


def _lesion_columns(
    lesion: NDArray[np.bool_], num_lung: int, voxel_volume_ml: float | None
) -> dict[str, float | int | None]:
    """Return count and largest volume of lesions: voxels of either class that touch by face, edge or corner are one."""
    if voxel_volume_ml is None or num_lung == 0:
        return {"lesion_count": None, "largest_lesion_volume_ml": None}
    labels, _ = ndimage.label(lesion[bounding_box(lesion)], np.ones((3, 3, 3)))
    volumes_ml = np.bincount(labels[labels > 0])[1:] * voxel_volume_ml
    counted = volumes_ml[volumes_ml >= MIN_LESION_ML * (1 - 1e-9)]  # a volume of just the limit counts
    largest = float(counted.max()) if counted.size else None
    return {"lesion_count": int(counted.size), "largest_lesion_volume_ml": largest}


def _side_columns(counts: NDArray[np.intp], voxel_volume_ml: float | None) -> dict[str, float | int | None]:
    """Return lung volume, opacity volume and percent of opacity of the right and of the left lung."""
    row: dict[str, float | int | None] = {}
    for side, value in SIDES.items():
        num_lung, num_lesion = _lung_and_lesion(counts[:, value])
        row[f"lung_{side}_volume_ml"] = _volume(num_lung, num_lung, voxel_volume_ml)
        row[f"opacity_{side}_volume_ml"] = _volume(num_lesion, num_lung, voxel_volume_ml)
        row[f"po_{side}_pct"] = percent(num_lesion, num_lung)
    return row


def _zone_columns(counts: NDArray[np.intp]) -> dict[str, float | int | None]:
    """Return the percent of opacity in the thirds of each lung, and the score of all six."""
    row: dict[str, float | int | None] = {}
    scores: list[int] = []
    for side, side_value in SIDES.items():
        for zone, zone_value in ZONES.items():
            num_lung, num_lesion = _lung_and_lesion(counts[:, side_value, zone_value])
            share = percent(num_lesion, num_lung)
            row[f"po_{side}_{zone}_pct"] = share
            if share is not None:
                scores.append(sum(share >= edge for edge in _ZONE_SCORE_EDGES_PCT))
    row["zone_score"] = sum(scores) if len(scores) == len(SIDES) * len(ZONES) else None
    return row
