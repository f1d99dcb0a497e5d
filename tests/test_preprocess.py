"""The canonical slice: orientation, crop, intensity, and the way back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cohortseg.config import CanonicalConfig
from cohortseg.errors import DataError, GeometryError
from cohortseg.preprocess import (
    QUARTER_TURNED,
    TISSUE_LANDMARK_HU,
    TRANSPOSED,
    CropBox,
    Orientation,
    canonical_batch,
    canonical_labels,
    hu_from_image,
    lung_boxes,
    orientation_from_affine,
    restore,
)
from cohortseg.volume import HU_MIN

ORIENTATIONS = [Orientation(t, y, x) for t in (False, True) for y in (False, True) for x in (False, True)]


def affine_of(down: list[float], right: list[float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, 0] = 5 * np.cross(right, down)
    affine[:3, 1] = 0.7 * np.array(down)
    affine[:3, 2] = 0.8 * np.array(right)
    return affine


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_from_geometry_sets_a_marked_slice_upright(orientation):
    """A slice whose anterior right corner is marked shows the mark at row 0, column 0 once upright."""
    stored = orientation.from_upright(np.arange(6).reshape(1, 2, 3))
    posterior, left = [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]
    down, right = (left, posterior) if orientation.transpose else (posterior, left)
    flip_down, flip_right = (
        (orientation.flip_x, orientation.flip_y) if orientation.transpose else (orientation.flip_y, orientation.flip_x)
    )
    down = [-value if flip_down else value for value in down]
    right = [-value if flip_right else value for value in right]
    found = orientation_from_affine(affine_of(down, right))
    assert found == orientation
    assert np.array_equal(found.to_upright(stored)[0], [[0, 1, 2], [3, 4, 5]])


def test_slightly_leaning_slices_are_axial_and_coronal_ones_are_refused():
    lean = np.radians(10)
    orientation_from_affine(affine_of([0, np.cos(lean), np.sin(lean)], [1, 0, 0]))
    with pytest.raises(GeometryError, match="axial"):
        orientation_from_affine(affine_of([0, 0, -1], [1, 0, 0]))


def test_the_two_ways_covid_semiseg_lies():
    upright = np.array([[1, 2], [3, 4], [5, 6]])
    assert np.array_equal(TRANSPOSED.to_upright(upright.T), upright)
    assert np.array_equal(QUARTER_TURNED.to_upright(upright), np.rot90(upright))


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    slices=st.integers(1, 3),
)
def test_orientation_is_undone_exactly(orientation, height, width, slices):
    array = np.arange(slices * height * width).reshape(slices, height, width)
    assert np.array_equal(orientation.from_upright(orientation.to_upright(array)), array)


def test_boxes_hold_the_lungs_with_a_margin_and_small_slices_are_not_blown_up():
    lungs = np.zeros((3, 100, 200), dtype=bool)
    lungs[0, 20:80, 40:160] = True  # 60 x 120
    lungs[1, 48:52, 98:102] = True  # an apex of 4 x 4
    boxes = lung_boxes(lungs, CanonicalConfig(margin=0.05, min_box=0.5))
    assert boxes[0] == CropBox(17, 83, 34, 166)
    assert boxes[1] is not None
    assert (boxes[1].y1 - boxes[1].y0, boxes[1].x1 - boxes[1].x0) == (32, 66)  # about half of 66 x 132, grown evenly
    assert boxes[2] is None
    assert lung_boxes(np.zeros((2, 4, 4), dtype=bool), CanonicalConfig()) == [None, None]


@given(lungs=arrays(bool, (2, 20, 30)))
def test_boxes_never_leave_the_slice(lungs):
    """An image that was cropped to its lungs has no margin: nothing is made up there."""
    boxes = lung_boxes(lungs, CanonicalConfig(margin=0.4, min_box=1.0))
    for box, slice_ in zip(boxes, lungs, strict=True):
        assert (box is not None) == slice_.any()
        if box is not None:
            assert 0 <= box.y0 < box.y1 <= 20
            assert 0 <= box.x0 < box.x1 <= 30
            outside = slice_.copy()
            outside[box.y0 : box.y1, box.x0 : box.x1] = False
            assert not outside.any()


def test_window_maps_hu_to_zero_and_one():
    volume = np.array([[[-2000, -1350], [-600, 150]]], dtype=np.int16).repeat(64, axis=1).repeat(64, axis=2)
    batch = canonical_batch(volume, volume > 150, [CropBox(0, 128, 0, 128)], CanonicalConfig(size=128))
    assert batch.shape == (1, 1, 128, 128)
    assert [batch[0, 0, y, x].item() for y, x in ((10, 10), (10, 100), (100, 10), (100, 100))] == pytest.approx(
        [0, 0, 0.5, 1], abs=1e-6
    )


@given(y0=st.integers(0, 60), x0=st.integers(0, 60), height=st.integers(40, 68), width=st.integers(40, 68))
def test_a_disc_comes_back_where_it_was(y0, x0, height, width):
    """Whatever the box: what goes through the canonical grid and back lies where it lay, to a pixel at the rim."""
    shape = (128, 128)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    centre = (min(max(y0 + height / 2, 14), 113), min(max(x0 + width / 2, 14), 113))
    distance = np.hypot(rows - centre[0], columns - centre[1])
    labels = (distance < 12).astype(np.uint8)
    box = CropBox(y0, y0 + height, x0, x0 + width)
    canonical = canonical_labels(labels, box, 256)
    prob = torch.nn.functional.one_hot(torch.from_numpy(canonical).long(), 3).permute(2, 0, 1).float()
    back = restore(prob, box, shape)
    assert back.sum(dim=0).numpy() == pytest.approx(np.ones(shape), abs=1e-5)
    found = back.argmax(dim=0).numpy()
    inside = (rows >= y0 + 1) & (rows < y0 + height - 1) & (columns >= x0 + 1) & (columns < x0 + width - 1)
    sure = inside & (abs(distance - 12) > 1.5)
    assert np.array_equal(found[sure], labels[sure])
    outside = (rows < y0) | (rows >= y0 + height) | (columns < x0) | (columns >= x0 + width)
    assert (found[outside] == 0).all()


def test_padding_beyond_the_measured_circle_is_shown_as_tissue():
    y, x = np.indices((64, 64)) - 31.5
    whole = np.full((1, 64, 64), -850, np.int16)
    padded = np.where(np.hypot(y, x) > 32, HU_MIN, whole).astype(np.int16)
    config, box = CanonicalConfig(size=64), CropBox(0, 64, 0, 64)
    no_lung = np.zeros(whole.shape, bool)
    plain, shown = (canonical_batch(slices, no_lung, [box], config)[0, 0] for slices in (whole, padded))
    inner = np.hypot(y, x) < 30
    assert torch.equal(plain[inner], shown[inner])
    tissue = (TISSUE_LANDMARK_HU - config.window_hu[0]) / (config.window_hu[1] - config.window_hu[0])
    assert shown[0, 0] == shown[-1, -1] == pytest.approx(tissue)
    padded[0, 32, 32] = HU_MIN  # air, not padding
    padded[0, 0, 0] = -1000  # a corner that was measured: the others are air as well
    air = canonical_batch(padded, no_lung, [box], config)[0, 0]
    assert air[32, 32] < plain[32, 32]
    assert air[-1, -1] < plain[32, 32]
    padded[0, 0, 0], padded[0, :, 1:9] = HU_MIN, -1000  # all corners as padding, but not all between them
    padded[0, 1:9] = -1000
    assert canonical_batch(padded, no_lung, [box], config)[0, 0, -1, -1] < plain[32, 32]


def test_air_at_the_lowest_hu_within_the_circle_is_no_padding():
    y, x = np.indices((64, 64)) - 31.5
    padded = np.where(np.hypot(y, x) > 32, HU_MIN, -850).astype(np.int16)[None]
    padded[0, 28:36, 28:36] = HU_MIN
    no_lung = np.zeros(padded.shape, bool)
    shown = canonical_batch(padded, no_lung, [CropBox(0, 64, 0, 64)], CanonicalConfig(size=64))[0, 0]
    assert shown[0, 0] > 0.9
    assert shown[28:36, 28:36].max() < shown[20, 32]


def test_air_around_a_body_is_shown_as_tissue():
    y, x = np.indices((64, 64)) - 31.5
    lung = (abs(x) > 6) & (np.hypot(x, y) < 20)
    hu = np.select([lung, np.hypot(x, y) < 26], [-850, 40], -1000).astype(np.int16)
    hu[30:33, 30:33] = -990  # the trachea, between the lungs
    hu[31, 54] = -90  # fat beneath the skin
    config = CanonicalConfig(size=64)
    shown = canonical_batch(hu[None], lung[None], [CropBox(0, 64, 0, 64)], config)[0, 0].numpy()
    low, high = config.window_hu
    expected = np.where(np.hypot(x, y) < 26, hu, TISSUE_LANDMARK_HU)
    assert shown == pytest.approx((expected.clip(low, high) - low) / (high - low), abs=1e-6)


def test_air_around_lungs_that_are_wider_below_is_shown_as_tissue_above():
    y, x = np.indices((64, 64)) - 31.5
    lung = (abs(y) < 16) & (abs(x) > 2) & (abs(x) < 6 + 0.5 * (y + 16))
    hu = np.full((1, 64, 64), -1000, np.int16)
    shown = canonical_batch(hu, lung[None], [CropBox(0, 64, 0, 64)], CanonicalConfig(size=64))[0, 0]
    assert shown[20, [16, 47]].min() > 0.9
    assert shown[45, 31] < 0.3, "between the lungs"


@given(arrays(np.bool_, (16, 16)))
def test_lungs_are_shown_as_they_are_whatever_their_shape(blocks):
    lung = blocks.repeat(4, axis=0).repeat(4, axis=1)
    shown = canonical_batch(
        np.full((1, 64, 64), -900, np.int16), lung[None], [CropBox(0, 64, 0, 64)], CanonicalConfig(size=64)
    )[0, 0].numpy()
    assert len(np.unique(shown[lung])) <= 1
    assert (shown[lung] < 0.5).all()


def test_what_lies_between_the_pixels_of_a_smaller_grid_is_seen():
    """Vessels one pixel wide, every eighth pixel: where four pixels become one, none is lost."""
    config = CanonicalConfig(size=64)
    low, high = config.window_hu
    volume = np.full((1, 256, 256), int(low), np.int16)
    volume[..., ::8] = int(high)
    (seen,) = canonical_batch(volume, np.ones_like(volume, bool), [CropBox(0, 256, 0, 256)], config)
    assert seen[0, :, 8:-8].mean().item() == pytest.approx(1 / 8, abs=0.01)


def test_only_air_around_the_body_is_shown_as_tissue():
    volume, lungs = np.full((1, 64, 64), -250, np.int16), np.zeros((1, 64, 64), bool)
    lungs[:, 24:40, 24:40] = True
    volume[:, :8], volume[:, 8:16] = -350, -290
    config = CanonicalConfig(size=64)
    (seen,) = canonical_batch(volume, lungs, [CropBox(0, 64, 0, 64)], config)
    low, high = config.window_hu
    hu = seen[0, :, 5] * (high - low) + low
    expected = [TISSUE_LANDMARK_HU] * 8 + [-290] * 8 + [-250] * 48
    assert hu.tolist() == pytest.approx(expected, abs=0.5)


def test_labels_are_shrunk_about_their_middle():
    labels = np.random.default_rng(0).integers(0, 3, (45, 39), dtype=np.uint8)
    box, mirrored = CropBox(0, 45, 0, 39), np.ascontiguousarray(labels[::-1, ::-1])
    assert np.array_equal(canonical_labels(labels, box, 3)[::-1, ::-1], canonical_labels(mirrored, box, 3))


def test_labels_never_get_values_that_were_not_there():
    labels = np.kron(np.array([[0, 2], [2, 0]], dtype=np.uint8), np.ones((13, 9), dtype=np.uint8))
    assert set(np.unique(canonical_labels(labels, CropBox(0, 26, 2, 17), 64)).tolist()) == {0, 2}


@pytest.mark.parametrize("window", [(-1350.0, 150.0), (-1000.0, 1500.0), (-1150.0, 350.0)])
def test_an_8_bit_image_finds_back_to_hu_whatever_its_window(window):
    rng = np.random.default_rng(0)
    hu = np.full((200, 200), 50.0)
    hu[40:160, 30:90] = -870
    hu[40:160, 110:170] = -870
    hu[90:110, 95:105] = 700  # bone
    hu += rng.normal(0, 15, hu.shape)
    gray = np.clip((hu - window[0]) / (window[1] - window[0]) * 255, 0, 255).round().astype(np.uint8)
    found = hu_from_image(gray)
    assert np.median(found[50:150, 40:80]) == pytest.approx(-870, abs=35)
    assert np.median(found[5:30, 5:30]) == pytest.approx(50, abs=35)


def test_bone_that_the_window_cuts_off_is_not_taken_for_soft_tissue():
    hu = np.full((200, 200), 50.0)
    hu[40:160, 30:90] = hu[40:160, 110:170] = -870
    hu[160:] = 700
    hu += np.random.default_rng(0).normal(0, 15, hu.shape)
    gray = np.clip((hu + 1350) / 1500 * 255, 0, 255).round().astype(np.uint8)
    assert np.median(hu_from_image(gray)[5:30, 5:30]) == pytest.approx(50, abs=35)


def test_landmarks_are_a_tenth_of_the_lung_and_soft_tissue_that_is_all_cut_off():
    gray = np.full((200, 200), 255, np.uint8)
    gray[40:160, 30:90] = 60
    gray[40:60, 30:90] = 20
    gray[40:160, 90:94] = 160  # the border of the lung
    found = hu_from_image(gray)
    assert [found[50, 50], found[0, 0]] == pytest.approx([-900, 50], abs=5)


def test_an_image_without_two_landmarks_is_refused():
    with pytest.raises(DataError, match="blank"):
        hu_from_image(np.full((20, 20), 7, dtype=np.uint8))
    with pytest.raises(DataError, match="contrast"):
        hu_from_image(np.arange(400, dtype=np.uint16).reshape(20, 20).astype(np.uint8) // 32)
