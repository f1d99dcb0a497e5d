"""Shapes of masks: the same as scipy's on any mask, also where it touches the frame."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage, spatial

from cohortseg.lungs import morphology

Mask = NDArray[np.bool_]
MASKS = arrays(np.bool_, st.tuples(st.integers(5, 18), st.integers(5, 18)))
RADII = st.sampled_from([1.0, 1.5, 2.0, 3.3, 4.5])
LARGE_RADII = st.sampled_from([4.6, 6.7, 10.0])


@given(MASKS, RADII)
def test_growing_is_being_within_the_radius(mask: Mask, radius: float) -> None:
    distance = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    assert np.array_equal(morphology.dilate(mask, radius), distance <= radius)


@given(MASKS, RADII)
def test_shrinking_is_being_beyond_the_radius_and_goes_on_beyond_the_frame(mask: Mask, radius: float) -> None:
    distance = np.full(mask.shape, np.inf) if mask.all() else ndimage.distance_transform_edt(mask)
    assert np.array_equal(morphology.erode(mask, radius), mask & (distance > radius))


@given(MASKS, LARGE_RADII)
def test_large_discs_are_true_to_two_percent(mask: Mask, radius: float) -> None:
    distance = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    grown = morphology.dilate(mask, radius)
    assert not (grown & (distance > 1.02 * radius)).any()
    assert grown[distance <= 0.98 * radius].all()
    left = np.full(mask.shape, np.inf) if mask.all() else ndimage.distance_transform_edt(mask)
    shrunk = morphology.erode(mask, radius)
    assert not (shrunk & (left <= 0.98 * radius)).any()
    assert shrunk[mask & (left > 1.02 * radius)].all()


@given(MASKS, MASKS)
def test_pieces_are_scipys(mask: Mask, other: Mask) -> None:
    pieces = morphology.Pieces.of(mask)
    expected, expected_count = ndimage.label(mask)
    assert pieces.count == expected_count
    assert np.array_equal(pieces.labels > 0, mask)
    pairs = set(zip(pieces.labels[mask].tolist(), expected[mask].tolist(), strict=True))
    assert len(pairs) == pieces.count, "one of ours for each of scipy's"
    numbers, there = np.arange(1, pieces.count + 1), np.resize(other, mask.shape)
    if pieces.count:
        theirs = np.array(ndimage.center_of_mass(mask, pieces.labels, numbers))
        np.testing.assert_allclose(pieces.centres(), theirs)
    assert pieces.areas().tolist() == [int((pieces.labels == number).sum()) for number in numbers]
    assert pieces.areas(there).tolist() == [int((there & (pieces.labels == number)).sum()) for number in numbers]
    assert pieces.touching(there).tolist() == [bool((there & (pieces.labels == number)).any()) for number in numbers]
    keep = numbers % 2 == 1
    assert np.array_equal(pieces.chosen(keep), np.isin(pieces.labels, numbers[keep]))
    assert all(np.array_equal(pieces.mask(number - 1), pieces.labels == number) for number in numbers)


@given(MASKS)
def test_holes_are_what_the_frame_cannot_reach(mask: Mask) -> None:
    assert np.array_equal(morphology.fill_holes(mask), ndimage.binary_fill_holes(mask))


@given(MASKS)
def test_hull_holds_all_that_lies_between(mask: Mask) -> None:
    points = np.argwhere(mask)
    if len(points) < 3 or np.linalg.matrix_rank(points - points[0]) < 2:
        return  # a line has no inside
    everywhere = np.argwhere(np.ones_like(mask))
    between = spatial.Delaunay(points).find_simplex(everywhere, tol=1e-9) >= 0
    assert np.array_equal(morphology.convex_hull(mask), between.reshape(mask.shape))


@given(st.sets(st.integers(0, 11), max_size=5))
def test_hull_of_a_row_or_column_is_the_line_between_its_ends(places: set[int]) -> None:
    mask, line = np.zeros((2, 9, 12), bool)
    if places:
        mask[4, list(places)] = True
        line[4, min(places) : max(places) + 1] = True
    assert np.array_equal(morphology.convex_hull(mask), line)
    assert np.array_equal(morphology.convex_hull(mask.T), line.T)


@given(arrays(np.float32, (12, 15), elements=st.floats(-1024, 1024, width=32)), st.sampled_from([0.7, 2.0, 4.0]))
def test_blurring_is_scipys(image: NDArray[np.float32], sigma: float) -> None:
    np.testing.assert_allclose(morphology.blur(image, sigma), ndimage.gaussian_filter(image, sigma), atol=0.02)
