"""Labelled and unlabelled batches: each a pure function of seed and iteration, so that a resumed run sees the same."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from cohortseg.datasets.augment import Augmented, augment
from cohortseg.datasets.prepared import PreparedData
from cohortseg.losses import IGNORE

_LABELED_STREAM, _UNLABELED_STREAM, _BOX_STREAM = 0, 1, 2
_BOX_SIDE = (0.4, 0.7)


class Batch(NamedTuple):
    """One worker's part of an iteration."""

    labeled: torch.Tensor
    """(B, 1, size, size) float32."""
    unlabeled: torch.Tensor
    """(B', 1, size, size) float32; B' is 0 in phase 1."""
    unlabeled_weak: torch.Tensor
    """The same slices at the same geometry, whole and with their intensity as it was: what a teacher sees."""
    labels: torch.Tensor
    """(B, size, size) int64."""
    known: torch.Tensor
    """(B', size, size) int64: labels of the box that a labelled slice lent each unlabelled one; `IGNORE` elsewhere."""


class Batches:
    """Draws batches from data that lies on the device.

    Parameters
    ----------
    data
        Moved to ``device`` once.
    device
        Where batches are made and augmented.
    seed
        Of order and augmentation.
    augmented
        Whether slices are augmented.
    mixed
        Whether a box of each unlabelled slice comes from a labelled one.
    rank, world
        This worker's number and how many there are. The workers' batches together are the batch of one worker with as
        many times the size.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        device: torch.device,
        seed: int,
        augmented: bool,
        mixed: bool,
        rank: int,
        world: int,
    ) -> None:
        self._labeled = data.labeled.to(device)
        self._labels = data.labels.to(device)
        self._unlabeled = data.unlabeled.to(device)
        self._seed, self._augmented, self._mixed, self._rank, self._world = seed, augmented, mixed, rank, world

    def draw(self, iteration: int, num_labeled: int, num_unlabeled: int) -> Batch:
        """Return this worker's batch of an iteration: so many labelled and unlabelled slices."""
        labeled = self._draw(self._labeled, self._labels, iteration, num_labeled, _LABELED_STREAM)
        unlabeled = self._draw(self._unlabeled, None, iteration, num_unlabeled, _UNLABELED_STREAM)
        labels = labeled.labels.long()
        images, known = unlabeled.images, torch.full_like(unlabeled.labels, IGNORE, dtype=torch.long)
        if self._mixed and num_unlabeled:
            boxes = self._boxes(iteration, num_unlabeled, images.shape[-1]).to(images.device)
            # So each worker lends what one worker with all of the batch would lend to the same slice.
            lender = torch.arange(num_unlabeled, device=images.device) * num_labeled // num_unlabeled
            images = torch.where(boxes[:, None], labeled.images[lender], images)
            known = torch.where(boxes, labels[lender], known)
        return Batch(labeled.images, images, unlabeled.weak, labels, known)

    def _boxes(self, iteration: int, count: int, size: int) -> torch.Tensor:
        """Return (count, size, size) bool, true in a box of 40 to 70 % of the height and width."""
        boxes = torch.zeros(count, size, size, dtype=torch.bool)
        for box, position in zip(boxes, self._positions(iteration, count), strict=True):
            draw = np.random.default_rng((self._seed, _BOX_STREAM, position))
            height, width = (draw.uniform(*_BOX_SIDE, 2) * size).astype(int)
            top, left = (int(draw.uniform(0, size - side)) for side in (height, width))
            box[top : top + height, left : left + width] = True
        return boxes

    def _positions(self, iteration: int, count: int) -> range:
        """Return where this worker's part of a batch lies in the endless sequence of slices."""
        start = (iteration * self._world + self._rank) * count
        return range(start, start + count)

    def _draw(
        self, images: torch.Tensor, labels: torch.Tensor | None, iteration: int, count: int, stream: int
    ) -> Augmented:
        positions = self._positions(iteration, count)
        chosen = [_index(self._seed, stream, position, len(images)) for position in positions]
        index = torch.tensor(chosen, device=images.device, dtype=torch.long)
        batch = images[index].float()
        batch_labels = (
            labels[index]
            if labels is not None
            else torch.zeros(count, *images.shape[2:], dtype=torch.uint8, device=images.device)
        )
        if self._augmented and count:
            batch, weak, batch_labels = augment(
                batch, batch_labels, [(self._seed, stream, position) for position in positions]
            )
        else:
            weak = batch
        to = torch.channels_last
        return Augmented(batch.contiguous(memory_format=to), weak.contiguous(memory_format=to), batch_labels)


def _index(seed: int, stream: int, position: int, size: int) -> int:
    """Return the item at a position of an endless sequence of shuffled passes over all items."""
    return int(_permutation(seed, stream, position // size, size)[position % size])


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, stream, epoch)).permutation(size)
