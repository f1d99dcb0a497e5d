"""Order, spacing, affine and orientation, from positions and cosines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phantoms import AXIAL, CORONAL, SAGITTAL

from cohortseg.dicom.geometry import irregular, is_orthonormal, on_grid, plane_name, slice_normal, stack_slices


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation matrix from three angles, radians."""
    (sz, cz), (sy, cy), (sx, cx) = ((np.sin(angle), np.cos(angle)) for angle in (yaw, pitch, roll))
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )


def test_affine_of_axial_slices_by_hand() -> None:
    # Rows 0.8 mm apart run to the back (y), columns 0.6 mm apart to the left (x), slices 2.5 mm apart to the head (z).
    stack = stack_slices([(-10, -20, 105), (-10, -20, 100), (-10, -20, 102.5)], AXIAL, (0.8, 0.6))
    expected = [[0, 0, 0.6, -10], [0, 0.8, 0, -20], [2.5, 0, 0, 100], [0, 0, 0, 1]]
    np.testing.assert_allclose(stack.affine, expected, atol=1e-12)
    assert stack.order == (1, 2, 0)
    assert stack.spacing_z_mm == pytest.approx(2.5)


def test_affine_of_coronal_slices_by_hand() -> None:
    # Rows run to the feet (-z), slices to the back (+y).
    stack = stack_slices([(1, 2, 3), (1, 7, 3)], CORONAL, (0.8, 0.6))
    expected = [[0, 0, 0.6, 1], [5, 0, 0, 2], [0, -0.8, 0, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(stack.affine, expected, atol=1e-12)


@given(
    origin=st.decimals(-2000, 2000, places=3, allow_nan=False),
    spacing=st.decimals("0.5", 10, places=2, allow_nan=False),
    count=st.integers(2, 400),
)
def test_spacing_is_the_table_step_to_the_last_digit(origin, spacing, count) -> None:
    # A rule like spacing_z_mm<=0.7 must hold for every series of that step, wherever the table stood.
    stack = stack_slices([(0.0, 0.0, float(origin + z * spacing)) for z in range(count)], AXIAL, (1.0, 1.0))
    assert stack.spacing_z_mm == float(spacing)


def test_single_slice_has_no_spacing_and_a_unit_normal() -> None:
    stack = stack_slices([(1, 2, 3)], AXIAL, (0.8, 0.6))
    assert stack.spacing_z_mm is None
    np.testing.assert_allclose(stack.affine[:3, 0], [0, 0, 1])


def test_head_is_up_even_if_the_cosines_point_down() -> None:
    upside_down = (1, 0, 0, 0, -1, 0)  # row x column points to the feet
    np.testing.assert_allclose(slice_normal(upside_down), [0, 0, 1])
    stack = stack_slices([(0, 0, 0), (0, 0, -3), (0, 0, -6)], upside_down, (1, 1))
    assert stack.order == (2, 1, 0)
    assert stack.affine[2, 0] == pytest.approx(3)


@pytest.mark.parametrize("turn", [0.1, -0.1, np.pi - 0.1, np.pi + 0.1])
def test_head_is_up_in_slices_that_lean(turn: float) -> None:
    leaning = (1, 0, 0, 0, np.cos(turn), np.sin(turn))
    assert slice_normal(leaning)[2] == pytest.approx(np.cos(0.1))
    assert stack_slices([(0, 0, 5), (0, 0, 0)], leaning, (1, 1)).order == (1, 0)


def test_cosines_a_little_too_long_do_not_lengthen_the_spacing() -> None:
    stack = stack_slices([(0, 0, 0), (0, 0, 2.5)], [1.0009 * value for value in AXIAL], (1, 1))
    assert stack.spacing_z_mm == 2.5


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        (AXIAL, "axial"),
        (CORONAL, "coronal"),
        (SAGITTAL, "sagittal"),
        ((0, 1, 0, -1, 0, 0), "axial"),
        ((-1, 0, 0, 0, -1, 0), "axial"),
        ((1, 0, 0, 0, np.cos(0.16), np.sin(0.16)), "axial"),  # 9.2 degrees
        ((1, 0, 0, 0, np.cos(0.19), np.sin(0.19)), "oblique"),  # 10.9 degrees
    ],
)
def test_planes(orientation: tuple[float, ...], plane: str) -> None:
    assert plane_name(orientation) == plane


@pytest.mark.parametrize("orientation", [(0,) * 6, (1, 0, 0, 1, 0, 0), (2, 0, 0, 0, 1, 0)])
def test_cosines_that_are_none(orientation: tuple[float, ...]) -> None:
    assert not is_orthonormal(orientation)


@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 9)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    order=st.permutations(range(6)),
)
def test_affine_holds_for_every_rotation_spacing_and_order(
    angles: tuple[float, ...], spacing: tuple[float, ...], origin: tuple[float, ...], order: list[int]
) -> None:
    axes = rotation(*angles)
    row, column, normal = axes.T
    cosines = np.concatenate([row, column])
    positions = np.array([np.asarray(origin) + index * spacing[0] * normal for index in range(6)])
    stack = stack_slices(positions[order], cosines, spacing[1:])
    # The affine must send array index (k, j, i) to the position that DICOM states for that voxel.
    ordered = positions[order][list(stack.order)]
    for k in range(6):
        expected = ordered[k] + 3 * spacing[1] * column + 2 * spacing[2] * row
        np.testing.assert_allclose((stack.affine @ [k, 3, 2, 1])[:3], expected, atol=1e-6)
    assert stack.spacing_z_mm == pytest.approx(spacing[0], abs=1e-6)  # it is rounded
    assert stack.tilt_deg < 1e-3
    assert abs(np.linalg.det(stack.affine)) == pytest.approx(np.prod(spacing))
    assert not len(irregular(stack.distances_mm))


def test_tilt_is_the_angle_between_stack_and_normal() -> None:
    stack = stack_slices([(0, 3 * index, 4 * index) for index in range(5)], AXIAL, (1, 1))
    assert stack.tilt_deg == pytest.approx(np.degrees(np.arctan(3 / 4)))
    assert stack.spacing_z_mm == pytest.approx(4)
    assert stack.offset_mm == pytest.approx(0, abs=1e-9)


def test_sideways_offset_of_one_slice() -> None:
    stack = stack_slices([(0, 0, 0), (0, 2, 5), (0, 0, 10)], AXIAL, (1, 1))
    assert stack.offset_mm == pytest.approx(2)


@pytest.mark.parametrize(("distance", "is_odd"), [(2.7, False), (2.73, True), (2.3, False), (2.27, True)])
def test_tolerance_is_5_percent_and_a_tenth_of_a_millimetre(distance: float, is_odd: bool) -> None:
    # Median 2.5 mm: 0.125 + 0.1 = 0.225 mm is allowed.
    assert (2 in irregular(np.array([2.5, 2.5, distance, 2.5]))) == is_odd


@pytest.mark.parametrize(
    ("distances", "expected"),
    [((2.5, 2.5, 5, 7.5, 2.5), True), ((2.5, 2.5, 3.7), False), ((2.5, 2.5, 0.1, 2.5), False)],
)
def test_only_slices_that_are_lost_leave_the_others_on_a_grid(distances: tuple[float, ...], expected: bool) -> None:
    """Two that nearly coincide are of two scans."""
    assert on_grid(np.array(distances)) == expected
