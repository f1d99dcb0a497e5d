"""Burden numbers that can be done by hand, on anisotropic spacing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cohortseg import burden
from cohortseg.burden import series_burden, slice_areas
from cohortseg.labels import LOWER, UPPER
from cohortseg.lungs import zone_thirds
from cohortseg.store.schemas import BURDEN

VOXEL_ML = 5.0 * 0.8 * 0.5 / 1000.0  # 5 mm slices of 0.8 x 0.5 mm pixels: 0.002 mL


@pytest.fixture
def case() -> dict[str, np.ndarray]:
    """Two slices of 4 x 10: right lung in columns 0-4, left in 5-9, 40 voxels each; all of it -800 HU."""
    lung = np.ones((2, 4, 10), np.uint8)
    lung[:, :, 5:] = 2
    zones = np.full(lung.shape, LOWER, np.uint8)
    zones[1] = UPPER
    labels = np.zeros(lung.shape, np.uint8)
    volume_hu = np.full(lung.shape, -800, np.int16)
    labels[1, 0, :5] = 1  # 5 voxels of GGO, right upper
    volume_hu[1, 0, :5] = -600
    labels[0, :3, 9] = 2  # 3 voxels of consolidation, left lower
    volume_hu[0, :3, 9] = (-200, 0, 50)
    return {"labels": labels, "lungs": lung, "zones": zones, "volume_hu": volume_hu}


def test_volumes_and_percents_by_hand(case: dict[str, np.ndarray]) -> None:
    row = series_burden(**case, voxel_volume_ml=VOXEL_ML)
    assert row["lung_volume_ml"] == pytest.approx(80 * 0.002)
    assert row["ggo_volume_ml"] == pytest.approx(5 * 0.002)
    assert row["consolidation_volume_ml"] == pytest.approx(3 * 0.002)
    assert row["opacity_volume_ml"] == pytest.approx(8 * 0.002)
    assert row["ggo_pct"] == pytest.approx(6.25)
    assert row["consolidation_pct"] == pytest.approx(3.75)
    assert row["po_pct"] == pytest.approx(10.0)
    assert row["pho_pct"] == pytest.approx(3.75), "exactly -200 HU is high opacity"
    assert row["lesion_mean_hu"] == pytest.approx((5 * -600 - 200 + 0 + 50) / 8)
    assert row["lung_mean_hu"] == pytest.approx((72 * -800 + 5 * -600 - 150) / 80)
    assert row["high_opacity_volume_ml"] == pytest.approx(3 * 0.002)
    case["volume_hu"][0, [0, 3], [9, 0]] = -201, 50
    pho_pct = series_burden(**case, voxel_volume_ml=VOXEL_ML)["pho_pct"]
    assert pho_pct == pytest.approx(2.5), "and neither -201 HU nor a vessel is"
    assert row["n_lung_slices"] == 2


def test_percentiles_of_hu_by_hand(case: dict[str, np.ndarray]) -> None:
    row = series_burden(**case, voxel_volume_ml=VOXEL_ML)
    # lesion voxels: five of -600, then -200, 0, 50; the median is the fourth of eight, 90 % is the eighth
    assert [row[f"lesion_p{q}_hu"] for q in burden.PERCENTILES] == [-600, -600, 50]
    case["volume_hu"][0, 3] = (-1000, -1000, -1000, -1000, -1000, -1000, -1000, -1000, -990, -980)
    row = series_burden(**case, voxel_volume_ml=VOXEL_ML)
    assert [row[f"lung_p{q}_hu"] for q in burden.PERCENTILES] == [-1000, -800, -800], "the 8th, 40th and 72nd of 80"


def test_lesions_are_counted_by_hand() -> None:
    lung = np.ones((4, 20, 20), np.uint8)
    labels = np.zeros(lung.shape, np.uint8)
    labels[0, :5, :10] = 1  # 50 voxels of 0.002 mL: just 0.1 mL
    labels[2, :5, :10] = 1  # 50 voxels and, at a corner of them in the next slice, 6 of the other class
    labels[3, 5:7, 10:13] = 2
    labels[0, 10:17, 0:7] = 2  # 49 voxels: too small to count
    row = series_burden(labels, lung, lung, lung.astype(np.int16), voxel_volume_ml=VOXEL_ML)
    assert row["lesion_count"] == 2
    assert row["largest_lesion_volume_ml"] == pytest.approx(56 * 0.002)
    small = series_burden(labels, lung, lung, lung.astype(np.int16), voxel_volume_ml=VOXEL_ML / 2)
    assert (small["lesion_count"], small["largest_lesion_volume_ml"]) == (0, None)


def test_zone_score_by_hand() -> None:
    # each lung is three zones of 100 pixels; 0, 1, 24, 25, 74 and 75 of them ill score 0, 1, 1, 2, 3, 4
    lung, zones = np.repeat(np.array([1, 2], np.uint8), 3), np.tile(np.array([1, 2, 3], np.uint8), 2)
    shape = (6, 10, 10)
    lung, zones = (np.broadcast_to(values[:, None, None], shape).copy() for values in (lung, zones))
    labels = np.stack([np.arange(100).reshape(10, 10) < ill for ill in (0, 1, 24, 25, 74, 75)]).astype(np.uint8)
    row = series_burden(labels, lung, zones, np.zeros(shape, np.int16), voxel_volume_ml=VOXEL_ML)
    assert row["zone_score"] == 0 + 1 + 1 + 2 + 3 + 4
    half = np.stack([np.arange(100).reshape(10, 10) < ill for ill in (0, 0, 49, 50, 49, 50)]).astype(np.uint8)
    row = series_burden(half, lung, zones, np.zeros(shape, np.int16), voxel_volume_ml=VOXEL_ML)
    assert row["zone_score"] == 2 + 3 + 2 + 3
    wider = [np.concatenate(pair, axis=1) for pair in ((labels, 0 * labels), (lung, lung), (zones, zones))]
    row = series_burden(*wider, np.zeros((6, 20, 10), np.int16), voxel_volume_ml=VOXEL_ML)
    assert row["zone_score"] == 0 + 0 + 1 + 1 + 2 + 2, "half a percent does not count"
    lung[5] = 0
    row = series_burden(labels, lung, zones, np.zeros(shape, np.int16), voxel_volume_ml=VOXEL_ML)
    assert row["zone_score"] is None, "a zone without lung was not scored"


def test_sides_and_zones_by_hand(case: dict[str, np.ndarray]) -> None:
    row = series_burden(**case, voxel_volume_ml=VOXEL_ML)
    assert row["lung_right_volume_ml"] == pytest.approx(0.08)
    assert row["opacity_right_volume_ml"] == pytest.approx(0.01)
    assert row["po_right_pct"] == pytest.approx(12.5)
    assert row["po_left_pct"] == pytest.approx(7.5)
    assert row["po_right_upper_pct"] == pytest.approx(25.0)
    assert row["po_right_lower_pct"] == 0.0
    assert row["po_right_middle_pct"] is None, "no lung in that zone: nothing was measured"
    assert row["po_left_lower_pct"] == pytest.approx(15.0)


def test_lesion_outside_the_lungs_does_not_count(case: dict[str, np.ndarray]) -> None:
    case["lungs"][0, :3, 9] = 0
    row = series_burden(**case, voxel_volume_ml=VOXEL_ML)
    assert row["consolidation_volume_ml"] == 0.0
    assert row["po_pct"] == pytest.approx(100 * 5 / 77)


def test_single_slice_has_percents_but_no_volumes_or_zones(case: dict[str, np.ndarray]) -> None:
    one = {name: array[1:] for name, array in case.items()} | {"zones": zone_thirds(case["lungs"][1:])}
    row = series_burden(**one, voxel_volume_ml=None)
    assert row["po_pct"] == pytest.approx(12.5)
    assert row["po_right_pct"] == pytest.approx(25.0)
    assert all(value is None for name, value in row.items() if name.endswith("_ml"))
    assert row["zone_score"] is row["lesion_count"] is None
    assert all(value is None for name, value in row.items() if "upper" in name or "middle" in name or "lower" in name)


def test_no_lung_is_not_measured_rather_than_zero(case: dict[str, np.ndarray]) -> None:
    row = series_burden(**case | {"lungs": np.zeros_like(case["lungs"])}, voxel_volume_ml=VOXEL_ML)
    assert row.pop("n_lung_slices") == 0
    assert set(row.values()) == {None}


def test_missing_side_is_not_measured_rather_than_zero(case: dict[str, np.ndarray]) -> None:
    case["lungs"][case["lungs"] == 2] = 0
    row = series_burden(**case, voxel_volume_ml=VOXEL_ML)
    assert row["lung_left_volume_ml"] is None
    assert row["po_left_pct"] is None
    assert row["lung_right_volume_ml"] == pytest.approx(0.08)


def test_no_lesion_is_zero_percent_without_a_mean(case: dict[str, np.ndarray]) -> None:
    row = series_burden(**case | {"labels": np.zeros_like(case["labels"])}, voxel_volume_ml=VOXEL_ML)
    assert (row["po_pct"], row["opacity_volume_ml"], row["lesion_mean_hu"]) == (0.0, 0.0, None)


def test_a_healthy_side_holds_no_opacity_rather_than_an_unknown_one(case: dict[str, np.ndarray]) -> None:
    case["labels"][0] = 0
    row = series_burden(**case, voxel_volume_ml=VOXEL_ML)
    assert (row["opacity_left_volume_ml"], row["po_left_pct"]) == (0.0, 0.0)
    assert row["opacity_right_volume_ml"] == pytest.approx(0.01)


def test_shapes_must_agree(case: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        series_burden(**case | {"volume_hu": case["volume_hu"][:1]}, voxel_volume_ml=VOXEL_ML)


def test_slice_areas_by_hand(case: dict[str, np.ndarray]) -> None:
    first, second = slice_areas(case["labels"], case["lungs"], pixel_area_mm2=0.4)
    assert first == {
        "slice_index": 0,
        "lung_area_mm2": pytest.approx(16.0),
        "ggo_area_mm2": 0.0,
        "consolidation_area_mm2": pytest.approx(1.2),
    }
    assert (second["slice_index"], second["ggo_area_mm2"]) == (1, pytest.approx(2.0))


def test_every_name_is_a_column_of_the_burden_table(case: dict[str, np.ndarray]) -> None:
    assert set(series_burden(**case, voxel_volume_ml=VOXEL_ML)) <= set(BURDEN.polars_schema)
    meanings = {column.name: column.meaning for column in BURDEN.columns}
    assert f"at least {burden.HIGH_OPACITY_HU} HU" in meanings["high_opacity_volume_ml"]
    assert f"at least {burden.MIN_LESION_ML} mL" in meanings["lesion_count"]


@given(
    labels=arrays.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2)),
    lung=arrays.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2)),
)
def test_parts_sum_to_the_whole_and_volume_scales_with_the_voxel(labels: np.ndarray, lung: np.ndarray) -> None:
    volume_hu = np.full(labels.shape, -500, np.int16)
    row = series_burden(labels, lung, np.zeros_like(lung), volume_hu, voxel_volume_ml=VOXEL_ML)
    doubled = series_burden(labels, lung, np.zeros_like(lung), volume_hu, voxel_volume_ml=8 * VOXEL_ML)
    if row["lung_volume_ml"] is None:
        assert not lung.any()
        return
    assert row["ggo_volume_ml"] + row["consolidation_volume_ml"] == pytest.approx(row["opacity_volume_ml"])
    assert row["ggo_pct"] + row["consolidation_pct"] == pytest.approx(row["po_pct"])
    assert (row["lung_right_volume_ml"] or 0) + (row["lung_left_volume_ml"] or 0) == pytest.approx(
        row["lung_volume_ml"]
    )
    assert 0 <= row["po_pct"] <= 100
    assert doubled["opacity_volume_ml"] == pytest.approx(8 * row["opacity_volume_ml"])
    assert doubled["po_pct"] == row["po_pct"]
    areas = slice_areas(labels, lung, pixel_area_mm2=1.0)
    assert sum(area["lung_area_mm2"] for area in areas) * VOXEL_ML == pytest.approx(row["lung_volume_ml"])
