"""The synthetic patient: shapes, vessels, and lesions that come and go along known courses."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cohortseg.config import SampleConfig
from cohortseg.store.schemas import TRUTH
from cohortseg.store.tables import read_table
from cohortseg.synthetic import fields, vessels
from cohortseg.synthetic.cohort import dates_of, draw_cohort_patient, severity_of, write_cohort
from cohortseg.synthetic.lesions import Course, lesion_parts
from cohortseg.synthetic.phantom import draw_section, lesion_limits


def test_lesions_prefer_the_back_and_consolidation_lies_in_ground_glass() -> None:
    config = SampleConfig(patients=4, timepoints=1, size=96, seed=77)
    behind, touching = [], []
    xs = np.arange(-144.0, 144.0, 3.0)
    for index in (0, 1, 3):
        patient, _ = draw_cohort_patient(config, index)
        limits = lesion_limits(patient, patient.course.peak_day + 1.0)
        for part in (0.2, 0.35, 0.5):
            section = draw_section(patient, xs, xs, part * patient.anatomy.height_mm, 5.0, limits)
            rows = np.nonzero(section.lungs)[0]
            behind.append((np.nonzero(section.labels)[0] > np.median(rows)).mean() if section.labels.any() else 1.0)
            ring = ndimage.binary_dilation(section.labels == 2, iterations=2) & (section.labels != 2) & section.lungs
            if ring.any():
                touching.append((section.labels[ring] == 1).mean())
    assert np.mean(behind) > 0.6
    assert np.mean(touching) > 0.6


COURSES = st.builds(
    Course,
    severity=st.floats(0.01, 0.4),
    peak_day=st.floats(5, 9),
    rise_days=st.floats(4, 6),
    fall_days=st.floats(7, 11),
    consolidated=st.floats(0.1, 0.45),
    lag_days=st.floats(1, 3),
)


@given(COURSES)
def test_courses_rise_then_fall(course: Course) -> None:
    parts = np.array([lesion_parts(course, float(day)) for day in range(60)])
    for amount in parts.T:
        peak = int(np.argmax(amount))
        assert 0 < peak < 20
        assert (np.diff(amount[: peak + 1]) > 0).all()
        assert (np.diff(amount[peak:]) <= 0).all()
    assert (parts[:, 1] < parts[:, 0]).all()
    assert lesion_parts(course, course.peak_day)[0] == pytest.approx(course.severity)


def test_measured_trajectories_rise_then_fall_and_follow_the_known_course(tmp_path: Path) -> None:
    config = SampleConfig(patients=2, timepoints=6, slices=6, size=64, seed=3)
    table = read_table(write_cohort(tmp_path / "long", config, lambda *_: None), TRUTH)
    for index in range(2):
        rows = table.filter(pl.col("patient_id") == f"SYN-{index + 1:03d}")
        patient, days = draw_cohort_patient(config, index)
        assert rows["days_since_baseline"].to_list() == days
        known = [100 * lesion_parts(patient.course, day)[0] for day in days]
        measured = rows["po_pct"].to_list()
        peak = int(np.argmax(known))
        assert measured[0] < measured[peak] > measured[-1]
        assert int(np.argmax(measured)) == peak
        np.testing.assert_allclose(measured, known, rtol=0.3, atol=1.0)


def test_lesions_of_a_lighter_day_lie_inside_those_of_a_heavier_day() -> None:
    patient, _ = draw_cohort_patient(SampleConfig(seed=2), 0)
    xs = np.arange(-144.0, 144.0, 4.0)
    days = (patient.course.peak_day - 6.0, patient.course.peak_day)
    z = 0.3 * patient.anatomy.height_mm
    light, heavy = (draw_section(patient, xs, xs, z, 5.0, lesion_limits(patient, day)).labels > 0 for day in days)
    assert 0 < light.sum() < heavy.sum()
    assert not (light & ~heavy).any()


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 50))
def test_who_is_ill_and_how_often_scanned(seed: int, patients: int, timepoints: int) -> None:
    config = SampleConfig(seed=seed, patients=patients, timepoints=timepoints)
    severities = [severity_of(config, index) for index in range(patients)]
    assert all((severity == 0) == (index % 3 == 2) for index, severity in enumerate(severities))
    assert all(0.03 <= severity <= 0.38 for severity in severities if severity)
    assert dates_of(config, 0) == max(1, timepoints - 1)
    assert all(dates_of(config, index) == timepoints for index in range(1, patients))


def test_many_dates_never_fall_on_one_day() -> None:
    for index in range(2):
        _, days = draw_cohort_patient(SampleConfig(timepoints=50), index)
        assert days[0] == 0
        assert all(later > earlier for earlier, later in itertools.pairwise(days))


def test_ellipse_distance_is_exact_for_a_circle() -> None:
    x, y = np.meshgrid(np.linspace(-30, 30, 13), np.linspace(-30, 30, 11))
    expected = np.hypot(x - 2, y + 3) - 10
    np.testing.assert_allclose(fields.ellipse(x, y, (2.0, -3.0), (10.0, 10.0)), expected, atol=1e-3)


def test_a_rod_across_a_slice_has_its_area() -> None:
    axis = np.arange(-20.0, 20.5, 0.5)
    rod = vessels.Tree(start=np.array([[0.0, 0.0, -50.0]]), end=np.array([[0.0, 0.0, 50.0]]), radius_mm=np.array([5.0]))
    area_mm2 = vessels.tubes_in_slice(rod, axis, axis, 0.0, 5.0).sum() * 0.25
    assert area_mm2 == pytest.approx(np.pi * 25, rel=0.02)
    assert vessels.tubes_in_slice(rod, axis, axis, 80.0, 5.0).sum() == 0


def test_a_tree_reaches_every_target_and_tapers() -> None:
    rng = np.random.default_rng(0)
    targets = rng.uniform(-50, 50, (64, 3))
    tree = vessels.grow_tree(rng, (0.0, 0.0, 0.0), targets, 0.5)
    tips = tree.radius_mm == 0.5
    assert {tuple(end) for end in tree.end[tips]} == {tuple(target) for target in targets}
    assert tree.radius_mm[0] == tree.radius_mm.max() == pytest.approx(0.5 * 64 ** (1 / 2.45))
    starts = {tuple(start) for start in tree.start}
    assert all(tuple(end) in starts for end in tree.end[~tips])  # connected
