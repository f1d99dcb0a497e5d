"""Batches and augmentation: pure functions of seed and iteration, the same however many workers share them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cohortseg.datasets.augment import augment
from cohortseg.datasets.batches import Batch, Batches
from cohortseg.datasets.prepared import PreparedData

CPU = torch.device("cpu")


def numbered(num_labeled: int = 7, num_unlabeled: int = 5, size: int = 64) -> PreparedData:
    """Slices that hold their own number, so that a batch shows what was drawn."""

    def stack(count: int) -> torch.Tensor:
        return (torch.arange(count).view(-1, 1, 1, 1) / 100).expand(-1, 1, size, size).half()

    return PreparedData(
        labeled=stack(num_labeled),
        labels=torch.zeros(num_labeled, size, size, dtype=torch.uint8),
        unlabeled=stack(num_unlabeled),
        labeled_images=(),
        unlabeled_images=(),
        terms="",
    )


def batches(*, seed: int = 0, rank: int = 0, world: int = 1, augmented: bool = False) -> Batches:
    return Batches(numbered(), device=CPU, seed=seed, augmented=augmented, rank=rank, world=world)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 100).round().int().tolist()


def test_every_slice_comes_once_a_pass_in_another_order_each_time():
    drawn = [number for iteration in range(14) for number in numbers(batches().draw(iteration, 1, 0).labeled)]
    assert sorted(drawn[:7]) == sorted(drawn[7:]) == list(range(7))
    assert drawn[:7] != drawn[7:]
    other = [number for iteration in range(7) for number in numbers(batches(seed=1).draw(iteration, 1, 0).labeled)]
    assert other != drawn[:7]


def test_two_workers_together_draw_what_one_worker_with_twice_the_batch_draws():
    one = batches(augmented=True).draw(3, 4, 4)
    two = [batches(rank=rank, world=2, augmented=True).draw(3, 2, 2) for rank in (0, 1)]
    for parts, whole in zip(zip(*two, strict=True), one, strict=True):
        if isinstance(whole, torch.Tensor):
            torch.testing.assert_close(torch.cat(parts), whole)


def test_slices_that_teachers_labelled_come_last_with_their_labels():
    labels = torch.arange(5, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 64, 64)
    data = replace(numbered(), pseudo_labels=labels)
    drawn = [
        Batches(data, device=CPU, seed=0, augmented=False, rank=0, world=1).draw(iteration, 2, 1, 3)
        for iteration in range(5)
    ]
    for batch in drawn:
        assert (len(batch.labeled), len(batch.labels), len(batch.unlabeled), batch.num_pseudo) == (5, 5, 1, 3)
        assert batch.labels[2:, 0, 0].tolist() == numbers(batch.labeled)[2:]
        assert not batch.labels[:2].any()
    taught = [number for batch in drawn for number in numbers(batch.labeled)[2:]]
    assert sorted(taught) == sorted(3 * list(range(5)))
    plain = batches().draw(3, 2, 1)
    torch.testing.assert_close(plain.labeled, drawn[3].labeled[:2], msg="readers' slices are drawn as without teachers")


def test_a_batch_depends_on_seed_and_iteration_only():
    first = batches(augmented=True)
    first.draw(0, 4, 4)
    torch.testing.assert_close(first.draw(5, 4, 4), batches(augmented=True).draw(5, 4, 4))


def test_foci_are_painted_into_labelled_slices_alone():
    data = replace(numbered(), labeled=torch.full((7, 1, 64, 64), 0.3).half())

    def draw(painted_foci: float) -> Batch:
        drawn = Batches(data, device=CPU, seed=0, augmented=True, rank=0, world=1, painted_foci=painted_foci)
        return drawn.draw(0, 4, 4)

    plain, painted = draw(0.0), draw(1.0)
    assert torch.equal(plain.unlabeled, painted.unlabeled)
    assert (painted.labels == 2).flatten(1).any(1).all()
    assert not plain.labels.any()


def test_phase_1_draws_no_unlabelled_slice():
    assert batches(augmented=True).draw(0, 4, 0).unlabeled.shape == (0, 1, 64, 64)


def test_noise_comes_in_levels_and_grains():
    """Neighbouring pixels deviate together where a smooth kernel is imitated, and not where a sharp one is."""
    images = torch.full((40, 1, 96, 96), 0.5)
    changed, _ = augment(images, torch.zeros(40, 96, 96, dtype=torch.uint8), [(seed,) for seed in range(40)])
    noise = changed[:, 0] - changed.mean(dim=(1, 2, 3))[:, None, None]
    levels = noise.std(dim=(1, 2))
    alike = (noise[:, :, 1:] * noise[:, :, :-1]).mean(dim=(1, 2)) / levels**2
    assert 0 < levels.min() < 0.005
    assert 0.03 < levels.max() < 0.065
    assert alike.min() < 0.05
    assert alike.max() > 0.8
    assert levels[alike > 0.5].max() > 0.03, "coarse noise is as strong as fine"


def test_labels_move_with_their_image():
    """A bright disc and its label stay together under every change of geometry."""
    rows, columns = np.mgrid[:64, :64]
    disc = torch.from_numpy(np.hypot(rows - 24, columns - 38) < 10)
    images, labels = disc.float().view(1, 1, 64, 64).repeat(20, 1, 1, 1), (2 * disc.to(torch.uint8)).repeat(20, 1, 1)
    changed, moved = augment(images, labels, [(0, seed) for seed in range(20)])
    assert set(moved.unique().tolist()) <= {0, 2}
    for image, label in zip(changed[:, 0], moved, strict=True):
        bright = image > (image.min() + image.max()) / 2
        overlap = 2 * (bright & (label == 2)).sum() / (bright.sum() + (label == 2).sum())
        assert overlap > 0.9
    assert not torch.equal(moved[0], moved[1])


def test_about_half_of_the_slices_are_mirrored():
    images = torch.zeros(40, 1, 64, 64)
    images[..., 32:] = 1
    changed, _ = augment(images, torch.zeros(40, 64, 64, dtype=torch.uint8), [(seed,) for seed in range(40)])
    left, right = (part.mean(dim=(1, 2, 3)) for part in changed.split(32, dim=-1))
    assert 12 <= (left > right).sum() <= 28


def test_slices_are_turned_little_and_much():
    images = torch.zeros(40, 1, 64, 64)
    images[:, :, 32:] = 1
    changed, _ = augment(images, torch.zeros(40, 64, 64, dtype=torch.uint8), [(seed,) for seed in range(40)])
    heights = (changed[:, 0] > changed.mean(dim=(1, 2, 3))[:, None, None]).sum(dim=1).float()
    rise = heights[:, 40:56].mean(dim=1) - heights[:, 8:24].mean(dim=1)
    turned_deg = torch.rad2deg(torch.atan(rise / 32)).abs()
    assert turned_deg.min() < 1
    assert 6 < turned_deg.max() < 20


def test_a_seed_changes_its_slice_in_the_same_way_whatever_its_neighbours():
    images, labels = torch.rand(3, 1, 64, 64), torch.randint(0, 3, (3, 64, 64), dtype=torch.uint8)
    together = augment(images, labels, [(1,), (2,), (3,)])
    alone = augment(images[1:2], labels[1:2], [(2,)])
    torch.testing.assert_close(together[0][1:2], alone[0])
    assert torch.equal(together[1][1:2], alone[1])


def test_augmented_slices_stay_in_range():
    images, _ = augment(torch.rand(8, 1, 64, 64), torch.zeros(8, 64, 64, dtype=torch.uint8), [(s,) for s in range(8)])
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() == pytest.approx(0.25, abs=0.15)


def test_blur_leaves_the_edge_of_a_slice_as_bright_as_it_was():
    images, _ = augment(
        torch.full((40, 1, 64, 64), 0.5), torch.zeros(40, 64, 64, dtype=torch.uint8), [(seed,) for seed in range(40)]
    )
    edge, inside = images[..., 0, :].mean(dim=(1, 2)), images[..., 20:40, 20:40].mean(dim=(1, 2, 3))
    torch.testing.assert_close(edge, inside, rtol=0.03, atol=0.01)
