"""Foci painted into training slices: in the lungs alone, evenly dense, and labelled as they should be."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cohortseg.datasets.augment import augment
from cohortseg.datasets.painting import with_foci

LUNG, TISSUE, VESSEL = 0.3, 0.93, 0.9


def chests(count: int, size: int = 96) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return slices of two lungs with a vessel of two pixels in each ten, no labels, and where lung is."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    lung = torch.from_numpy(np.hypot((np.abs(x) - 0.25) / 0.2, y / 0.4) < 1)
    image = torch.where(lung, LUNG, TISSUE)
    image[lung & (torch.arange(size) % 10 < 2)] = VESSEL
    labels = torch.zeros(count, size, size, dtype=torch.uint8)
    return image.float().repeat(count, 1, 1, 1), labels, lung


def seeds(count: int) -> list[tuple[int, ...]]:
    return [(3, 0, number) for number in range(count)]


def test_foci_are_evenly_dense_small_labelled_and_in_the_lung():
    images, labels, lung = chests(30, size=192)
    changed, found = with_foci(images, labels, seeds(30), 1.0)
    assert set(found.unique().tolist()) == {0, 2}
    assert (found == 2).flatten(1).any(1).all()
    assert not found[:, ~lung].any()
    assert torch.equal(changed[:, 0, ~lung], images[:, 0, ~lung])
    assert (changed >= images).all(), "vessels within stay"
    deep = changed[functional.avg_pool2d((found == 2)[:, None].float(), 7, 1, 3) == 1]
    assert deep.min() > 0.85
    assert deep.max() < 0.956
    diameters = 320 / 192 * 2 * ((found == 2).flatten(1).sum(1) / torch.pi).sqrt()
    assert 6 < diameters.min() < 20, "mm; a part of one at the pleura"
    assert 25 < diameters.max() < 80, "up to three"


def test_what_a_reader_labelled_stays_but_where_something_is_painted():
    images, labels, lung = chests(10)
    labels[:, lung] = 1
    changed, found = with_foci(images, labels, seeds(10), 1.0)
    assert set(found[:, lung].unique().tolist()) == {1, 2}
    assert (found[:, lung] == 1)[(changed == images)[:, 0, lung]].any()
    assert changed[:, 0][found == 2].min() > 0.55


def test_so_many_slices_as_asked_are_painted():
    images, labels, _ = chests(200, size=64)
    _, found = with_foci(images, labels, seeds(200), 0.3)
    assert 0.2 < (found == 2).flatten(1).any(1).float().mean() < 0.4
    unchanged = with_foci(images, labels, seeds(200), 0.0)
    assert torch.equal(unchanged[0], images)
    assert not unchanged[1].any()


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
def test_a_slice_without_aerated_lung_gets_nothing(value):
    images = torch.full((6, 1, 64, 64), value)
    changed, found = with_foci(images, torch.zeros(6, 64, 64, dtype=torch.uint8), seeds(6), 1.0)
    assert torch.isfinite(changed).all()
    assert bool(found.any()) == (value < 0.45)
    if value > 0.45:
        assert torch.equal(changed, images)


@given(st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_a_slice_is_painted_alike_whatever_else_is_in_the_batch(seed, place):
    images, labels, _ = chests(8, size=40)
    batch = [(seed, 0, number) for number in range(8)]
    together = with_foci(images, labels, batch, 0.5)
    alone = with_foci(images[place : place + 1], labels[place : place + 1], batch[place : place + 1], 0.5)
    torch.testing.assert_close(alone[0][0], together[0][place])
    assert torch.equal(alone[1][0], together[1][place])


def test_painting_changes_nothing_else_that_is_drawn():
    images, labels, _ = chests(8)
    labels[:, 40:60, 20:30] = 1
    plain, moved = augment(images, labels, seeds(8))
    changed, painted = augment(images, labels, seeds(8), painted_foci=0.5)
    same = [torch.equal(*pair) for pair in zip(plain, changed, strict=True)]
    assert 0 < sum(same) < 8
    assert [torch.equal(*pair) for pair in zip(moved, painted, strict=True)] == same
