"""Labelled and unlabelled batches: each a pure function of seed and iteration, so that a resumed run sees the same."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from cohortseg.datasets.augment import augment
from cohortseg.datasets.prepared import PreparedData

_LABELED_STREAM, _UNLABELED_STREAM, _PSEUDO_STREAM = 0, 1, 2


class Batch(NamedTuple):
    """One worker's part of an iteration."""

    labeled: torch.Tensor
    """(B, 1, size, size) float32."""
    unlabeled: torch.Tensor
    """(B', 1, size, size) float32; B' is 0 in phase 1."""
    labels: torch.Tensor
    """(B, size, size) int64."""
    num_pseudo: int = 0
    """How many of the labelled slices, the last ones, have the labels of teachers."""


class Batches:
    """Draws batches from data that lies on the device.

    Parameters
    ----------
    data
        Moved to ``device`` once.
    device
        Where batches are made and augmented.
    seed
        Decides order and augmentation.
    augmented
        Whether slices are augmented.
    painted_foci
        Fraction of the labelled slices that get solid foci, if slices are augmented.
    rank, world
        This worker's number and how many there are. The workers' batches together are the batch of one worker with
        ``world`` times the size.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        device: torch.device,
        seed: int,
        augmented: bool,
        rank: int,
        world: int,
        painted_foci: float = 0.0,
    ) -> None:
        self._labeled = data.labeled.to(device)
        self._labels = data.labels.to(device)
        self._unlabeled = data.unlabeled.to(device)
        self._pseudo_labels = data.pseudo_labels.to(device)
        self._seed, self._augmented, self._rank, self._world = seed, augmented, rank, world
        self._painted_foci = painted_foci

    def draw(self, iteration: int, num_labeled: int, num_unlabeled: int, num_pseudo: int = 0) -> Batch:
        """Return this worker's batch of an iteration.

        Parameters
        ----------
        iteration
            From 0.
        num_labeled, num_unlabeled
            Slices with the labels of readers, and without labels.
        num_pseudo
            Unlabelled slices that come as labelled ones, with the labels of teachers.
        """
        labeled, labels = self._draw(self._labeled, self._labels, iteration, num_labeled, _LABELED_STREAM)
        unlabeled, _ = self._draw(self._unlabeled, None, iteration, num_unlabeled, _UNLABELED_STREAM)
        if num_pseudo:
            more, more_labels = self._draw(self._unlabeled, self._pseudo_labels, iteration, num_pseudo, _PSEUDO_STREAM)
            labeled = torch.cat([labeled, more]).contiguous(memory_format=torch.channels_last)
            labels = torch.cat([labels, more_labels])
        return Batch(labeled, unlabeled, labels.long(), num_pseudo)

    def _draw(
        self, images: torch.Tensor, labels: torch.Tensor | None, iteration: int, count: int, stream: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = (iteration * self._world + self._rank) * count  # in the endless sequence of slices
        positions = range(start, start + count)
        chosen = [_index(self._seed, stream, position, len(images)) for position in positions]
        index = torch.tensor(chosen, device=images.device, dtype=torch.long)
        batch = images[index].float()
        batch_labels = (
            labels[index]
            if labels is not None
            else torch.zeros(count, *images.shape[2:], dtype=torch.uint8, device=images.device)
        )
        if self._augmented and count:
            seeds = [(self._seed, stream, position) for position in positions]
            batch, batch_labels = augment(batch, batch_labels, seeds, self._painted_foci if labels is not None else 0.0)
        return batch.contiguous(memory_format=torch.channels_last), batch_labels


def _index(seed: int, stream: int, position: int, size: int) -> int:
    """Return the item at a position of an endless sequence of shuffled passes over all items."""
    return int(_permutation(seed, stream, position // size, size)[position % size])


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, stream, epoch)).permutation(size)
