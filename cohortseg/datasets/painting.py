"""Solid foci painted into the lungs of labelled slices: evenly dense consolidation, which they hardly contain."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from cohortseg.labels import CONSOLIDATION

_STREAM: Final = 1
"""Added to a slice's seed, so that painting changes nothing else that is drawn for it."""
_WAVES: Final = (2, 3, 4, 5)
"""Numbers of waves around an outline."""
_STRETCH: Final = 0.35
_AERATED: Final = 0.45
"""Canonical intensity (-675 HU) below which a pixel may be the centre of a focus."""
_LUNG: Final = 0.7
"""Canonical intensity (-300 HU) below which a pixel is lung, as are vessels narrower than `_VESSEL` pixels."""
_VESSEL: Final = 5
_VALUE: Final = (0.865, 0.955)
"""Canonical intensity of a focus, -50 to 80 HU."""
_MOST: Final = 3
"""Most foci in a slice."""
_RADIUS: Final = (0.018, 0.05)
"""Radius over the slice's width (about 320 mm): 6 to 16 mm. Larger foci look like the dome of the diaphragm."""
_EDGE: Final = (0.4, 1.2)
"""Softness of the edge, pixels."""
_WAVE: Final = 0.18
"""Scale of the depth of the waves, as a fraction of the radius."""


def with_foci(
    images: torch.Tensor, labels: torch.Tensor, seeds: Sequence[tuple[int, ...]], share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return slices with solid foci painted into the lungs of some, and the labels to match.

    Parameters
    ----------
    images
        (B, 1, H, W) float32 in [0, 1], H = W: canonical slices.
    labels
        (B, H, W) uint8.
    seeds
        One per slice; the same seed changes a slice in the same way, whatever else is in the batch.
    share
        Fraction of the slices that get foci, 1 to 3 each.

    Returns
    -------
    tuple of images and labels
        Of the same shapes and types.
    """
    draws = [np.random.default_rng((*seed, _STREAM)) for seed in seeds]
    foci = [
        (index, _drawn(draw))
        for index, draw in enumerate(draws)
        if draw.random() < share
        for _ in range(draw.integers(1, _MOST + 1))
    ]
    if not foci:
        return images, labels
    part, value = _shapes(images, foci)
    part = part * _closed((images < _LUNG).float())
    shown = torch.where(part > 0, torch.maximum(images, torch.lerp(images, value, part)), images)
    return shown, labels.masked_fill(part[:, 0] > 0.5, CONSOLIDATION.value)


def _drawn(draw: np.random.Generator) -> list[float]:
    """Draw a focus: rank of its centre, radius, edge, value, stretch, turn, and depth and phase of each wave."""
    waves = [value for _ in _WAVES for value in (_WAVE * draw.standard_normal(), draw.uniform(0, 2 * np.pi))]
    return [
        draw.random(),
        np.exp(draw.uniform(*np.log(_RADIUS))),
        draw.uniform(*_EDGE),
        draw.uniform(*_VALUE),
        np.exp(draw.uniform(-_STRETCH, _STRETCH)),
        draw.uniform(0, np.pi),
        *waves,
    ]


def _shapes(images: torch.Tensor, foci: Sequence[tuple[int, list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far to paint each pixel, (B, 1, H, W) in [0, 1], and the value to paint there, of the same shape."""
    size, device = images.shape[-1], images.device
    slices = torch.tensor([index for index, _ in foci], device=device)
    rank, radius, edge, value, stretch, turn, *waves = torch.tensor(
        np.stack([drawn for _, drawn in foci], axis=1), dtype=torch.float32, device=device
    )[..., None, None]
    row, column, found = _middles(images, slices, rank[:, 0])
    axis = torch.arange(size, device=device)
    y, x = axis[:, None] - row, axis - column
    along = (x * turn.cos() + y * turn.sin()) * stretch
    across = (y * turn.cos() - x * turn.sin()) / stretch
    angle = torch.atan2(across, along)
    reach = torch.ones_like(angle)
    for count, depth, phase in zip(_WAVES, waves[::2], waves[1::2], strict=True):
        reach = reach + depth / count * torch.cos(count * angle + phase)
    inside = found * torch.sigmoid((radius * size * reach - torch.hypot(along, across)) / edge)
    parts, values = torch.zeros_like(images), torch.zeros_like(images)
    for (index, _), part, its_value in zip(foci, inside, value, strict=True):
        values[index, 0] = torch.where(part > parts[index, 0], its_value, values[index, 0])
        parts[index, 0] = torch.maximum(parts[index, 0], part)
    return parts, values


def _middles(
    images: torch.Tensor, slices: torch.Tensor, rank: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return row and column of the aerated pixel at a rank in [0, 1) of its slice, and whether it has any.

    ``slices`` is (N,), ``rank`` (N, 1), each result (N, 1, 1). Nothing waits for a GPU.
    """
    counts = (images[:, 0] < _AERATED).flatten(1).cumsum(1)[slices]
    total = counts[:, -1:]
    position = torch.searchsorted(counts, (rank * total).long().clamp(max=total - 1) + 1).clamp(max=counts.shape[1] - 1)
    width = images.shape[-1]
    return (position // width)[..., None], (position % width)[..., None], (total > 0)[..., None]


def _closed(lung: torch.Tensor) -> torch.Tensor:
    """Return a mask (B, 1, H, W) with gaps narrower than `_VESSEL` closed."""
    for sign in (1, -1):
        lung = sign * functional.max_pool2d(sign * lung, _VESSEL, stride=1, padding=_VESSEL // 2)
    return lung
