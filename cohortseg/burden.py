"""Lesion burden of one series: counts of voxels become mL, percents and HU statistics. Pure functions of arrays.

Axes are Z Y X. Lesions count inside the lungs only. What cannot be measured is None: volumes of a single slice (its
extent along the normal is not known), percents of a region in which no lung was found.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cohortseg.labels import CONSOLIDATION, GGO

HIGH_OPACITY_HU: Final = -200
"""Lesion voxels of at least this HU are high opacity (PHO; Chaganti et al. 2020, arXiv 2004.01279)."""
SIDES: Final = {"right": 1, "left": 2}
"""Values of the lung mask: the patient's right and left lung."""
ZONES: Final = {"upper": 3, "middle": 2, "lower": 1}
"""Values of the zone map: thirds of each lung by height."""


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
        0 no lung or height not known (a single slice), 1 lower, 2 middle, 3 upper third by height.
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
    inside = lungs > 0
    lesion = inside & np.isin(labels, (GGO.value, CONSOLIDATION.value))
    num_lung, num_lesion = int(inside.sum()), int(lesion.sum())
    num_ggo = int((inside & (labels == GGO.value)).sum())
    num_high = int((volume_hu[lesion] >= HIGH_OPACITY_HU).sum())
    row: dict[str, float | int | None] = {
        "n_lung_slices": int(inside.any(axis=(1, 2)).sum()),
        "lung_volume_ml": _volume(num_lung, num_lung, voxel_volume_ml),
        "ggo_volume_ml": _volume(num_ggo, num_lung, voxel_volume_ml),
        "consolidation_volume_ml": _volume(num_lesion - num_ggo, num_lung, voxel_volume_ml),
        "opacity_volume_ml": _volume(num_lesion, num_lung, voxel_volume_ml),
        "ggo_pct": percent(num_ggo, num_lung),
        "consolidation_pct": percent(num_lesion - num_ggo, num_lung),
        "po_pct": percent(num_lesion, num_lung),
        "pho_pct": percent(num_high, num_lung),
        "lesion_mean_hu": float(volume_hu[lesion].mean(dtype=np.float64)) if num_lesion else None,
        "lung_mean_hu": float(volume_hu[inside].mean(dtype=np.float64)) if num_lung else None,
    }
    return row | _side_columns(lesion, lungs, voxel_volume_ml) | _zone_columns(lesion, lungs, zones)


def slice_areas(
    labels: NDArray[np.uint8], lungs: NDArray[np.uint8], pixel_area_mm2: float
) -> list[dict[str, float | int]]:
    """Return one mapping a slice: ``slice_index`` and the areas of lung, GGO and consolidation, mm2.

    Parameters
    ----------
    labels, lungs : (Z, Y, X) uint8
        As in `series_burden`.
    pixel_area_mm2 : mm2, > 0
        Area of a pixel in its slice.
    """
    inside = lungs > 0
    counts = {
        "lung_area_mm2": inside.sum(axis=(1, 2)),
        "ggo_area_mm2": (inside & (labels == GGO.value)).sum(axis=(1, 2)),
        "consolidation_area_mm2": (inside & (labels == CONSOLIDATION.value)).sum(axis=(1, 2)),
    }
    return [
        {"slice_index": z} | {name: float(count[z]) * pixel_area_mm2 for name, count in counts.items()}
        for z in range(labels.shape[0])
    ]


def _volume(count: int, num_lung: int, voxel_volume_ml: float | None) -> float | None:
    """Volume of so many voxels in a region with so many lung voxels; None without lung or without voxel volume."""
    return count * voxel_volume_ml if voxel_volume_ml is not None and num_lung > 0 else None


def _side_columns(
    lesion: NDArray[np.bool_], lungs: NDArray[np.uint8], voxel_volume_ml: float | None
) -> dict[str, float | int | None]:
    """Lung, opacity and percent of the right and of the left lung."""
    row: dict[str, float | int | None] = {}
    for side, value in SIDES.items():
        region = lungs == value
        num_lung, num_lesion = int(region.sum()), int((lesion & region).sum())
        row[f"lung_{side}_volume_ml"] = _volume(num_lung, num_lung, voxel_volume_ml)
        row[f"opacity_{side}_volume_ml"] = _volume(num_lesion, num_lung, voxel_volume_ml)
        row[f"po_{side}_pct"] = percent(num_lesion, num_lung)
    return row


def _zone_columns(
    lesion: NDArray[np.bool_], lungs: NDArray[np.uint8], zones: NDArray[np.uint8]
) -> dict[str, float | int | None]:
    """Percent of opacity in the thirds of each lung."""
    row: dict[str, float | int | None] = {}
    for side, side_value in SIDES.items():
        for zone, zone_value in ZONES.items():
            region = (lungs == side_value) & (zones == zone_value)
            row[f"po_{side}_{zone}_pct"] = percent(int((lesion & region).sum()), int(region.sum()))
    return row
