"""The rules of time points and changes, on tables made by hand."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from cohortseg.longitudinal import is_end_of_another_part, patients_table, timeline_table, with_time
from cohortseg.report.page import report_html
from cohortseg.report.write import write_report
from cohortseg.store.schemas import BURDEN, CLINICAL, PATIENTS, TIMELINE
from cohortseg.store.tables import table_from_rows, write_table


def series(patient: str | None, day: int | None, uid: str, po: float | None = None, **columns: Any) -> dict[str, Any]:
    """One burden row of March 2020; measured if ``po`` is given, with 10 mL of opacity a percent."""
    measured = po is not None
    return {
        "patient_id": patient,
        "study_date": None if day is None else date(2020, 3, day),
        "study_instance_uid": f"study-{uid}",
        "series_instance_uid": uid,
        "status": "ok" if measured else "not_evaluable",
        "qc_flags": [],
        "n_slices": 10,
        "spacing_z_mm": 5.0,
        "po_pct": po,
        "opacity_volume_ml": None if po is None else 10 * po,
    } | columns


def burden(*rows: dict[str, Any]) -> pl.DataFrame:
    return table_from_rows(rows, BURDEN)


def test_tables_have_their_schemas() -> None:
    frame = burden(series("A", 1, "1", 10.0), series("A", None, "2", 20.0))
    assert with_time(frame).schema == BURDEN.polars_schema
    assert timeline_table(frame).schema == TIMELINE.polars_schema
    assert patients_table(frame).schema == PATIENTS.polars_schema
    empty = burden()
    assert timeline_table(empty).schema == TIMELINE.polars_schema
    assert patients_table(empty).schema == PATIENTS.polars_schema


def test_days_and_changes_by_hand() -> None:
    frame = burden(
        series("A", 11, "c", 20.0), series("A", 1, "a", 10.0), series("A", 4, "b", 35.0), series("B", 2, "d", 5.0)
    )
    timeline = timeline_table(frame)
    assert timeline["patient_id"].to_list() == ["A", "A", "A", "B"]
    assert timeline["days_since_baseline"].to_list() == [0, 3, 10, 0]
    assert timeline["timepoint"].to_list() == [0, 1, 2, 0]
    assert timeline["delta_po_pct"].to_list() == [0.0, 25.0, 10.0, 0.0]
    assert timeline["delta_opacity_volume_ml"].to_list() == [0.0, 250.0, 100.0, 0.0]
    first, second = patients_table(frame).to_dicts()
    assert (first["n_timepoints"], first["n_evaluable"]) == (3, 3)
    assert (first["first_po_pct"], first["last_po_pct"], first["peak_po_pct"]) == (10.0, 20.0, 35.0)
    assert (first["days_to_peak"], first["delta_po_pct"], first["delta_opacity_volume_ml"]) == (3, 10.0, 100.0)
    assert (first["first_date"], first["last_date"]) == (date(2020, 3, 1), date(2020, 3, 11))
    assert (second["first_po_pct"], second["delta_po_pct"]) == (5.0, None), "one date is no change"


def test_time_points_are_dates_however_many_series_one_has() -> None:
    frame = burden(series("A", 1, "a", 10.0), series("A", 1, "b", 11.0), series("A", 5, "c", 20.0))
    assert with_time(frame)["timepoint"].to_list() == [0, 0, 1]
    assert timeline_table(frame)["timepoint"].to_list() == [0, 1]


def test_changes_start_at_the_first_evaluable_date_but_days_at_the_first_date() -> None:
    frame = burden(series("A", 1, "a"), series("A", 6, "b", 10.0), series("A", 8, "c"), series("A", 9, "d", 4.0))
    timeline = timeline_table(frame)
    assert timeline["days_since_baseline"].to_list() == [0, 5, 7, 8]
    assert timeline["po_pct"].to_list() == [None, 10.0, None, 4.0]
    assert timeline["delta_po_pct"].to_list() == [None, 0.0, None, -6.0]
    (patient,) = patients_table(frame).to_dicts()
    assert (patient["n_timepoints"], patient["n_evaluable"], patient["days_to_peak"]) == (4, 2, 5)
    assert (patient["delta_po_pct"], patient["delta_opacity_volume_ml"]) == (-6.0, -60.0)


def test_series_that_stands_for_a_date() -> None:
    rows = [
        series("A", 1, "few", 1.0, n_slices=5, spacing_z_mm=1.0),
        series("A", 1, "not-ok", n_slices=500),
        series("A", 1, "thick", 2.0, n_slices=40, spacing_z_mm=5.0),
        series("A", 1, "thin-b", 3.0, n_slices=40, spacing_z_mm=1.0),
        series("A", 1, "thin-a", 4.0, n_slices=40, spacing_z_mm=1.0),
        series("A", 1, "unknown", 5.0, n_slices=40, spacing_z_mm=None),
    ]
    winners = []
    while rows:
        (row,) = timeline_table(burden(*rows)).to_dicts()
        assert row["n_series"] == len(rows)
        winners.append(row["series_instance_uid"])
        rows = [other for other in rows if other["series_instance_uid"] != winners[-1]]
    assert winners == ["thin-a", "thin-b", "thick", "unknown", "few", "not-ok"]


def test_a_series_of_part_of_the_lungs_does_not_stand_for_the_date() -> None:
    abdomen = series("A", 1, "abdomen", 40.0, n_slices=180, n_lung_slices=90, spacing_z_mm=1.0, lung_volume_ml=1000.0)
    chest = series("A", 1, "chest", 5.0, n_slices=60, n_lung_slices=55, lung_volume_ml=4300.0)
    assert timeline_table(burden(abdomen, chest))["series_instance_uid"].to_list() == ["chest"]
    thin = series("A", 1, "thin", 6.0, n_slices=300, n_lung_slices=270, spacing_z_mm=1.0, lung_volume_ml=4200.0)
    assert timeline_table(burden(abdomen, chest, thin))["series_instance_uid"].to_list() == ["thin"]


def test_an_implausible_lung_does_not_stand_for_the_date() -> None:
    air = series("A", 1, "air", 2.0, n_lung_slices=30, lung_volume_ml=9500.0, qc_flags=["lung_volume_implausible"])
    chest = series("A", 1, "chest", 5.0, n_lung_slices=250, lung_volume_ml=5000.0)
    assert timeline_table(burden(air, chest))["series_instance_uid"].to_list() == ["chest"]
    assert timeline_table(burden(air))["series_instance_uid"].to_list() == ["air"]


PART = ["lung_cut_at_end_slice", "lung_volume_implausible"]


def test_an_implausible_lung_makes_no_part_of_the_others_of_its_date() -> None:
    air = series("A", 1, "air", 2.0, n_lung_slices=30, lung_volume_ml=9500.0, qc_flags=["lung_volume_implausible"])
    chest = series("A", 1, "chest", 5.0, n_lung_slices=60, lung_volume_ml=5000.0)
    abdomen = series("A", 1, "abdomen", 40.0, n_lung_slices=90, lung_volume_ml=1000.0)
    assert timeline_table(burden(air, chest, abdomen))["series_instance_uid"].to_list() == ["chest"]


def test_of_a_childs_series_the_whole_chest_stands_for_the_date() -> None:
    """All volumes of small children count as implausible."""
    chest = series("A", 8, "chest", 5.0, n_lung_slices=50, lung_volume_ml=630.0, qc_flags=[PART[1], "noisy"])
    abdomen = series("A", 8, "abdomen", 40.0, n_lung_slices=60, lung_volume_ml=150.0, qc_flags=PART)
    area = series("A", 8, "slice", 12.0, n_slices=1, n_lung_slices=1, lung_volume_ml=None, qc_flags=["single_slice"])
    for rows in ((chest, abdomen), (chest, area), (area, abdomen, chest)):
        assert timeline_table(burden(*rows))["series_instance_uid"].to_list() == ["chest"]


def test_of_two_whole_lungs_the_one_on_more_slices_stands_for_the_date() -> None:
    """However many slices of abdomen the other one has."""
    long = series("A", 1, "long", 5.0, n_slices=180, n_lung_slices=50, lung_volume_ml=4200.0)
    chest = series("A", 1, "chest", 6.0, n_slices=70, n_lung_slices=60, lung_volume_ml=4300.0)
    assert timeline_table(burden(long, chest))["series_instance_uid"].to_list() == ["chest"]


def test_the_lung_bases_above_an_abdomen_are_no_part_of_changes_and_peak() -> None:
    chest = series("A", 1, "chest", 8.0, lung_volume_ml=5000.0)
    abdomen = series("A", 9, "abdomen", 40.0, lung_volume_ml=400.0, qc_flags=PART)
    frame = burden(chest, abdomen)
    assert timeline_table(frame)["delta_po_pct"].to_list() == [0.0, None]
    (patient,) = patients_table(frame).to_dicts()
    assert (patient["n_timepoints"], patient["n_evaluable"], patient["peak_po_pct"]) == (2, 1, 8.0)
    (alone,) = patients_table(burden(abdomen)).to_dicts()
    assert (alone["n_evaluable"], alone["peak_po_pct"]) == (1, 40.0)
    large = series("A", 2, "large", 30.0, lung_volume_ml=9100.0, qc_flags=PART)
    assert patients_table(burden(chest, large))["peak_po_pct"].to_list() == [30.0], "much lung is no part of it"
    gas = abdomen | {"qc_flags": ["lung_volume_implausible"]}
    assert patients_table(burden(chest, gas))["n_evaluable"].to_list() == [1]


def test_what_has_half_of_a_patients_lung_or_shows_another_part_and_is_cut_is_no_peak() -> None:
    """Bases of 1 to 1.5 L are ordinary above an abdomen; a lung of that volume that is whole counts."""
    cut = ["lung_cut_at_end_slice"]
    whole = [series("A", day, str(day), po, lung_volume_ml=4000.0) for day, po in ((1, 5.0), (9, 9.0))]
    bases = series("A", 4, "bases", 40.0, lung_volume_ml=1400.0, qc_flags=cut)
    named = series("A", 5, "named", 30.0, lung_volume_ml=2400.0, qc_flags=[*cut, "other_body_part"])
    slab = series("A", 7, "slab", 50.0, lung_volume_ml=2500.0, qc_flags=[*cut, "partial_coverage"])
    ill = series("A", 6, "ill", 20.0, lung_volume_ml=1400.0)
    frame = burden(*whole, bases, named, ill, slab)
    (patient,) = patients_table(frame).to_dicts()
    assert (patient["peak_po_pct"], patient["n_timepoints"], patient["n_evaluable"]) == (20.0, 6, 3)
    assert timeline_table(frame)["evaluable"].to_list() == [True, False, False, True, False, True]
    assert timeline_table(frame)["delta_po_pct"].to_list() == [0.0, None, None, 15.0, None, 4.0]
    parts = burden(*whole, bases, named, ill, slab).select(is_end_of_another_part()).to_series()
    assert parts.to_list() == [False, False, False, True, False, False], "what one row tells"
    chest = series("A", 8, "chest", 12.0, lung_volume_ml=4800.0, qc_flags=[*cut, "partial_coverage"])
    assert timeline_table(burden(*whole, chest))["evaluable"].to_list() == [True, True, True], "beside an abdomen"
    less = series("A", 8, "less", 12.0, lung_volume_ml=2500.0, qc_flags=cut)
    assert timeline_table(burden(*whole, less))["evaluable"].to_list() == [True, True, True], "no slab"


def test_small_lungs_are_no_part_of_lungs_that_are_little_larger() -> None:
    rows = [series("A", day, str(day), po, lung_volume_ml=ml) for day, po, ml in ((1, 5.0, 850.0), (9, 20.0, 750.0))]
    assert patients_table(burden(*rows))["peak_po_pct"].to_list() == [20.0]


def test_of_equal_series_of_a_date_that_of_the_soft_kernel_stands_for_it() -> None:
    kernels = {"a": "B70f", "b": None, "c": "B30f"}
    every = [series("A", 1, uid, 5.0, convolution_kernel=kernel) for uid, kernel in kernels.items()]
    for rows, uid in ((every, "c"), (every[:2], "b")):
        assert timeline_table(burden(*rows))["series_instance_uid"].to_list() == [uid]


def test_bowel_gas_is_no_lung_to_compare_with() -> None:
    chest = series("A", 1, "chest", 3.0, lung_volume_ml=4000.0)
    gas = series("A", 9, "gas", 33.0, lung_volume_ml=102.0, qc_flags=["lung_volume_implausible"])
    assert timeline_table(burden(chest, gas))["delta_po_pct"].to_list() == [0.0, None]
    children = [series("B", day, str(day), 3.0, lung_volume_ml=600.0 + day) for day in (1, 9)]
    assert timeline_table(burden(*children))["evaluable"].to_list() == [True, True]


def test_lungs_cut_twice_stand_for_no_date_before_those_cut_once() -> None:
    cut, narrow = "lung_cut_at_end_slice", "lung_cut_by_field_of_view"
    rows = [
        series("A", 1, "a", 3.0, lung_volume_ml=3640.0, n_lung_slices=60, qc_flags=[narrow, cut]),
        series("A", 1, "b", 3.0, lung_volume_ml=4020.0, n_lung_slices=50, qc_flags=[narrow]),
    ]
    assert timeline_table(burden(*rows))["series_instance_uid"].to_list() == ["b"]


@pytest.mark.parametrize("flag", ["lung_cut_at_end_slice", "lung_cut_by_field_of_view"])
def test_lungs_that_are_whole_stand_for_a_date_before_cut_ones(flag: str) -> None:
    cut = series("A", 1, "a", 3.0, lung_volume_ml=3640.0, n_lung_slices=60, qc_flags=[flag])
    whole = series("A", 1, "b", 3.0, lung_volume_ml=4020.0, n_lung_slices=50)
    assert timeline_table(burden(cut, whole))["series_instance_uid"].to_list() == ["b"]


@pytest.mark.parametrize(
    ("lung_ml", "most_ml", "counts"),
    [(801.0, 1400.0, True), (799.0, 1400.0, False), (2001.0, 4000.0, True), (1999.0, 4000.0, False)],
)
def test_a_cut_lung_counts_from_eight_tenths_of_a_litre_and_half_of_the_most(
    lung_ml: float, most_ml: float, counts: bool
) -> None:
    most = series("A", 1, "most", 5.0, lung_volume_ml=most_ml)
    cut = series("A", 9, "cut", 20.0, lung_volume_ml=lung_ml, qc_flags=["lung_cut_at_end_slice"])
    assert timeline_table(burden(most, cut))["evaluable"].to_list() == [True, counts]


@pytest.mark.parametrize("flag", ["expiration", "noisy", "maybe_projection", "spectral_image"])
def test_a_cut_plain_scan_stands_for_a_date_before_a_whole_other_one(flag: str) -> None:
    cut = series("A", 1, "a", 3.0, lung_volume_ml=3600.0, qc_flags=["lung_cut_at_end_slice"])
    other = series("A", 1, "b", 6.0, lung_volume_ml=4000.0, qc_flags=[flag])
    assert timeline_table(burden(cut, other))["series_instance_uid"].to_list() == ["a"]


def test_lungs_that_end_within_their_slices_stand_for_a_date() -> None:
    cut = series("A", 1, "a", 5.0, lung_volume_ml=3700.0, n_lung_slices=60, qc_flags=["lung_cut_at_end_slice"])
    whole = series("A", 1, "b", 6.0, lung_volume_ml=4000.0, n_lung_slices=50)
    assert timeline_table(burden(cut, whole))["series_instance_uid"].to_list() == ["b"]


def test_a_lung_that_cannot_be_or_has_no_date_makes_no_parts_of_others() -> None:
    dates = [
        series("A", day, str(day), 5.0, lung_volume_ml=4200.0, qc_flags=["lung_cut_at_end_slice"]) for day in (1, 2)
    ]
    wrong = series("A", 3, "wrong", 0.1, lung_volume_ml=9500.0, qc_flags=["lung_volume_implausible"])
    undated = series("A", None, "undated", 5.0, lung_volume_ml=8800.0)
    failed = series("A", 4, "failed", None, lung_volume_ml=8800.0)
    frame = burden(*dates, wrong, undated, failed)
    assert timeline_table(frame)["evaluable"].to_list() == [True, True, True, False, False]


def test_a_lung_that_cannot_be_makes_no_less_of_others() -> None:
    right = series("A", 1, "right", 5.0, lung_volume_ml=4000.0)
    wrong = series("A", 2, "wrong", 5.0, lung_volume_ml=9500.0, qc_flags=["lung_volume_implausible"])
    assert timeline_table(burden(right, wrong))["qc_flags"].to_list() == [[], ["lung_volume_implausible"]]


def test_a_date_with_much_less_lung_is_flagged() -> None:
    volumes = {1: 4000.0, 5: 2500.0, 9: 2700.0}
    rows = [series("A", day, str(day), 5.0, lung_volume_ml=ml, qc_flags=["monochrome1"]) for day, ml in volumes.items()]
    flags = timeline_table(burden(*rows))["qc_flags"].to_list()
    assert flags == [["monochrome1"], ["monochrome1", "less_lung_than_other_dates"], ["monochrome1"]]
    (patient,) = patients_table(burden(*rows)).to_dicts()
    assert patient["qc_flags"] == ["less_lung_than_other_dates", "monochrome1"]


def test_lung_of_a_date_that_takes_no_part_in_changes_is_lung_all_the_same() -> None:
    flags = ["lung_cut_at_end_slice", "other_body_part"]
    abdomen = series("A", 1, "1", 5.0, lung_volume_ml=5000.0, qc_flags=flags)
    chest = series("A", 5, "2", 5.0, lung_volume_ml=2600.0)
    timeline = timeline_table(burden(abdomen, chest))
    assert timeline["evaluable"].to_list() == [False, True]
    assert timeline["qc_flags"].to_list() == [flags, ["less_lung_than_other_dates"]]


def test_a_date_with_too_little_lung_for_changes_says_why() -> None:
    whole, undated = (series("A", day, f"{day}", 5.0, lung_volume_ml=4000.0 if day else 1900.0) for day in (1, None))
    part = series("A", 9, "9", 5.0, lung_volume_ml=1900.0, qc_flags=["lung_cut_at_end_slice"])
    timeline = timeline_table(burden(whole, undated, part))
    assert dict(zip(timeline["series_instance_uid"], timeline["evaluable"], strict=True))["9"] is False
    less = timeline["qc_flags"].list.contains("less_lung_than_other_dates")
    assert dict(zip(timeline["series_instance_uid"], less, strict=True)) == {"1": False, "9": True, "None": False}


def test_a_scan_filed_under_two_dates_is_flagged_at_both() -> None:
    lung = {"lung_volume_ml": 4000.0, "lung_mean_hu": -712.3456789}
    rows = [
        series("A", 1, "1", 3.0, **lung),
        series("A", 5, "2", 3.0, **lung),
        series("A", 9, "3", 3.0, **lung | {"lung_mean_hu": -712.3456788}),
        series("B", 1, "4", 3.0),
        series("B", 5, "5"),
        series("B", 9, "6"),
    ]
    flagged = ["same_as_other_date"]
    assert timeline_table(burden(*rows))["qc_flags"].to_list() == [flagged, flagged, [], [], [], []]


def test_a_scan_filed_under_two_patients_is_flagged_at_both() -> None:
    lung = {"lung_volume_ml": 4000.0, "lung_mean_hu": -712.3456789}
    rows = [
        series("A", 1, "1", 3.0, **lung),
        series("B", 5, "2", 3.0, **lung),
        series("C", 1, "3", 3.0, **lung | {"lung_volume_ml": 4000.1}),
        series("D", 1, "4"),
        series("E", 1, "5"),
    ]
    flagged = ["same_as_other_patient"]
    assert timeline_table(burden(*rows))["qc_flags"].to_list() == [flagged, flagged, [], [], []]


def test_four_fifths_of_the_lung_are_all_of_it() -> None:
    most = series("A", 1, "most", 5.0, n_lung_slices=50, lung_volume_ml=4000.0)
    for share, winner in ((0.79, "most"), (0.81, "fine")):
        fine = series("A", 1, "fine", 6.0, n_lung_slices=200, lung_volume_ml=share * 4000.0)
        assert timeline_table(burden(most, fine))["series_instance_uid"].to_list() == [winner]
    unknown = series("A", 1, "unknown", 6.0, n_lung_slices=200)
    assert timeline_table(burden(most, unknown))["series_instance_uid"].to_list() == ["most"]


def test_the_peak_is_the_earliest_of_equals_and_one_date_has_no_change() -> None:
    rows = [series("A", day, str(day), po) for day, po in ((1, 2.0), (4, 9.0), (8, 9.0))]
    assert patients_table(burden(*rows))["days_to_peak"].to_list() == [3]
    (patient,) = patients_table(burden(rows[0])).to_dicts()
    assert (patient["delta_po_pct"], patient["delta_opacity_volume_ml"]) == (None, None)


def test_what_failed_is_not_evaluable_whatever_else_its_row_says() -> None:
    failed = series("A", 4, "b", 9.0, status="failed")
    (patient,) = patients_table(burden(series("A", 1, "a", 2.0), failed)).to_dicts()
    assert (patient["n_evaluable"], patient["peak_po_pct"]) == (1, 2.0)


def test_a_patient_has_the_dates_and_flags_of_what_was_measured() -> None:
    frame = burden(
        series("A", 1, "a"),
        series("A", 8, "b", 10.0, qc_flags=["thick_slices", "lung_cut_at_end_slice"]),
        series("A", 15, "c", 5.0, qc_flags=["thick_slices"]),
        series("A", 22, "d"),
    )
    (patient,) = patients_table(frame).to_dicts()
    assert (patient["first_date"].day, patient["last_date"].day) == (1, 22)
    assert (patient["first_evaluable_date"].day, patient["last_evaluable_date"].day) == (8, 15)
    assert patient["qc_flags"] == ["lung_cut_at_end_slice", "thick_slices"]


def test_order_of_rows_does_not_matter() -> None:
    rows = [series("A", 3, "a", 1.0), series("A", 3, "b", 2.0), series("A", 1, "c", 3.0), series(None, None, "d", 4.0)]
    assert timeline_table(burden(*rows)).equals(timeline_table(burden(*rows[::-1])))
    assert patients_table(burden(*rows)).equals(patients_table(burden(*rows[::-1])))


def test_unknown_date_is_kept_without_days_or_changes() -> None:
    frame = burden(series("A", 1, "a", 10.0), series("A", None, "b", 50.0), series("A", None, "c", 60.0))
    timeline = timeline_table(frame)
    assert timeline["po_pct"].to_list() == [10.0, 50.0, 60.0]
    assert timeline["days_since_baseline"].to_list() == [0, None, None]
    assert timeline["delta_po_pct"].to_list() == [0.0, None, None]
    (patient,) = patients_table(frame).to_dicts()
    assert (patient["n_timepoints"], patient["n_evaluable"], patient["peak_po_pct"]) == (1, 1, 10.0)
    assert patient["first_date"] == patient["last_date"] == date(2020, 3, 1)


def test_unknown_patients_are_never_joined() -> None:
    frame = burden(series(None, 1, "a", 10.0), series("", 5, "b", 20.0))
    timeline = timeline_table(frame)
    assert len(timeline) == 2
    assert timeline["days_since_baseline"].to_list() == [None, None]
    assert patients_table(frame)["first_po_pct"].to_list() == [10.0, 20.0]
    assert patients_table(frame)["delta_po_pct"].to_list() == [None, None]


def test_series_that_name_neither_patient_nor_study_are_never_joined() -> None:
    nameless = {"study_instance_uid": None}
    rows = [series(None, 1, "a", 10.0, **nameless), series("", 1, "b", 20.0, **nameless)]
    rows += [series(None, None, "c", 30.0, **nameless), series(None, None, "d", 40.0, **nameless)]
    assert timeline_table(burden(*rows))["n_series"].to_list() == [1, 1, 1, 1]
    assert patients_table(burden(*rows))["first_po_pct"].to_list() == [10.0, 20.0, None, None]


def test_volumes_of_one_series_can_be_of_several_patients_and_dates() -> None:
    frame = burden(series("A", 1, "same", 10.0), series("A", 4, "same", 30.0), series("B", 1, "same", 20.0))
    assert timeline_table(frame)["po_pct"].to_list() == [10.0, 30.0, 20.0]
    patients = patients_table(frame)
    assert patients["patient_id"].to_list() == ["A", "B"]
    assert patients["peak_po_pct"].to_list() == [30.0, 20.0]


def test_patient_never_evaluable_has_a_row_of_nulls() -> None:
    (patient,) = patients_table(burden(series("A", 1, "a"))).to_dicts()
    assert (patient["n_timepoints"], patient["n_evaluable"]) == (1, 0)
    assert patient["first_po_pct"] is patient["peak_po_pct"] is patient["days_to_peak"] is None


def test_single_slices_have_changes_among_themselves_only() -> None:
    slices = [series("A", day, str(day), 10.0 * day, opacity_volume_ml=None) for day in (1, 2)]
    assert timeline_table(burden(*slices))["delta_po_pct"].to_list() == [0.0, 10.0]
    assert timeline_table(burden(*slices))["delta_opacity_volume_ml"].to_list() == [None, None]
    (patient,) = patients_table(burden(*slices)).to_dicts()
    assert (patient["n_evaluable"], patient["peak_po_pct"], patient["delta_po_pct"]) == (2, 20.0, 10.0)

    volumes = [series("A", 3, "c", 5.0), series("A", 4, "d", 4.0)]
    frame = burden(*slices, *volumes)
    assert timeline_table(frame)["po_pct"].to_list() == [10.0, 20.0, 5.0, 4.0]
    assert timeline_table(frame)["delta_po_pct"].to_list() == [None, None, 0.0, -1.0]
    (patient,) = patients_table(frame).to_dicts()
    assert (patient["n_timepoints"], patient["n_evaluable"]) == (4, 2)
    assert (patient["first_po_pct"], patient["peak_po_pct"], patient["days_to_peak"]) == (5.0, 5.0, 2)


def test_single_slices_are_no_part_of_changes_beside_parts_of_the_lungs() -> None:
    area = series("A", 1, "area", 30.0, opacity_volume_ml=None)
    bases = series("A", 5, "bases", 10.0, lung_volume_ml=400.0, qc_flags=PART)
    frame = burden(area, bases)
    assert timeline_table(frame)["evaluable"].to_list() == [False, True]
    assert patients_table(frame)["peak_po_pct"].to_list() == [10.0]


def test_two_volumes_of_one_series_are_one_time_point() -> None:
    frame = burden(
        series("A", 1, "1", 10.0, n_slices=12), series("A", 1, "1", 30.0, n_slices=4), series("A", 5, "2", 20.0)
    )
    assert timeline_table(frame)["n_series"].to_list() == [2, 1]
    (patient,) = patients_table(frame).to_dicts()
    assert (patient["n_timepoints"], patient["first_po_pct"], patient["last_po_pct"]) == (2, 10.0, 20.0)


def test_in_the_report_only_series_of_a_known_patient_have_a_number(tmp_path: Path) -> None:
    frame = burden(
        series("A", 1, "a", 10.0, series_key="a" * 16),
        series(None, 1, "b", 20.0, series_key="b" * 16),
    )
    page = report_html(frame, timeline_table(frame), patients_table(frame), b"", tmp_path)
    assert "<td>1</td><td>aaaaaaaa</td>" in page
    assert "<td>-</td><td>bbbbbbbb</td>" in page


def test_the_table_of_the_report_leads_to_the_pictures_it_shows(tmp_path: Path) -> None:
    """Series of one name in the table (the first digits of a key) have different targets."""
    keys = [f"{'a' * 8}{number:08x}" for number in range(42)]
    frame = burden(*(series("A", 1, key, 10.0, series_key=key) for key in keys))
    tables = (frame, timeline_table(frame), patients_table(frame))
    without = report_html(*tables, b"", tmp_path)
    assert "Overlays" not in without
    assert "without identifier," not in without
    for key in keys[1:]:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{key}.png")
    page = report_html(*tables, b"", tmp_path)
    assert page.count("data:image/jpeg") == 40
    assert re.findall(r'<a href="#(\w+)">aaaaaaaa</a>', page) == keys[1:41]
    assert re.findall(r'id="(\w+)"', page) == keys[1:41]
    assert page.count("<td>aaaaaaaa</td>") == 2  # one without a picture, one beyond the most that are shown
    assert "1 more in pictures/" in page


def test_an_onset_by_the_day_of_the_last_scan_is_not_told_as_after_all_scans(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans = [
        series(patient, day, f"{patient}{day}", 10.0, series_key=f"{patient.lower()}{day}".ljust(16, "0"))
        for patient in "AB"
        for day in (1, 9)
    ]
    onsets = [{"patient_id": "A", "onset_date": date(2020, 3, 5)}, {"patient_id": "B", "onset_date": date(2020, 3, 9)}]
    write_table(tmp_path / BURDEN.file_name, burden(*scans), BURDEN, {})
    write_table(tmp_path / CLINICAL.file_name, table_from_rows(onsets, CLINICAL), CLINICAL, {})
    timeline = write_report(tmp_path).timeline
    assert timeline["days_since_onset"].to_list() == [-4, 4, -8, 0]
    assert "onset" not in caplog.text


def test_several_studies_of_one_date_are_flagged() -> None:
    """A filler date makes one time point of several visits."""
    frame = burden(
        *(series("A", 1, uid, 10.0, study_instance_uid=study) for uid, study in (("a", "s1"), ("b", "s2"))),
        *(series("B", 1, uid, 10.0, study_instance_uid="s3") for uid in ("c", "d")),
        series(None, 1, "e", 10.0, study_instance_uid=None),
    )
    assert timeline_table(frame)["qc_flags"].to_list() == [["several_studies"], [], []]
    assert patients_table(frame)["qc_flags"].to_list() == [["several_studies"], [], []]
    unnamed = burden(series("A", 1, "a", 10.0), series("A", 1, "b", 10.0, study_instance_uid=None))
    assert timeline_table(unnamed)["qc_flags"].to_list() == [[]]
