"""Random geometry and scanner-like intensity, in batches on the device, each slice with a seed of its own."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from cohortseg.datasets.painting import with_foci

_ROTATION_DEG = 15.0
_SCALE = (0.8, 1.25)
_ASPECT = 0.12
_SHIFT = 0.08
_WARP = 0.03
_WARP_GRID = 5
_GAMMA = (0.8, 1.25)
_GAIN = (0.92, 1.08)
_OFFSET = 0.04
_NOISE = 0.06
"""Largest standard deviation of noise: 90 HU."""
_GRAIN = 1.3
"""Largest width of the Gaussian that noise is smoothed with, pixels: smooth kernels leave coarse noise."""
_BLUR = (0.2, 1.0)
"""Probability that a slice is blurred, and weight of the blurred slice."""
_SHARPEN = (0.2, 1.5)
"""Probability that edges are enhanced, as by sharp kernels, and largest weight of (slice - blurred slice) added."""
_WIDTH = (0.5, 1.5)
"""Width of the Gaussian for both, pixels."""
_REACH = 4
"""Pixels on each side over which a Gaussian extends."""


def augment(
    images: torch.Tensor, labels: torch.Tensor, seeds: Sequence[tuple[int, ...]], painted_foci: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return augmented slices and their labels.

    Geometry: mirroring, rotation (no quarter turns: slices come upright), scale, aspect, shift, and a smooth warp.
    Intensity: gamma, gain and offset (as other windows and scanners give), blur or enhanced edges, and noise, fine or
    coarse (as other doses and kernels give).

    Parameters
    ----------
    images
        (B, 1, H, W) float32 in [0, 1], H = W.
    labels
        (B, H, W) uint8.
    seeds
        One per slice; the same seed changes a slice in the same way, whatever else is in the batch.
    painted_foci
        Fraction of the slices that get solid foci (`with_foci`), before intensity is changed.

    Returns
    -------
    tuple of images and labels
        Of the same shapes and types. Beyond the slice its edge is repeated.
    """
    device, size = images.device, images.shape[-1]
    draws = [np.random.default_rng(seed) for seed in seeds]
    theta = torch.tensor(np.stack([_affine(draw) for draw in draws]), dtype=torch.float32, device=device)
    warp = np.stack([draw.uniform(-_WARP, _WARP, (2, _WARP_GRID, _WARP_GRID)) for draw in draws])
    grid = functional.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    grid = grid + functional.interpolate(
        torch.tensor(warp, dtype=torch.float32, device=device), size=(size, size), mode="bicubic", align_corners=False
    ).permute(0, 2, 3, 1)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    labels = functional.grid_sample(
        labels[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    labels = labels[:, 0].to(torch.uint8)
    if painted_foci:
        images, labels = with_foci(images, labels, seeds, painted_foci)
    return _intensity(images, draws), labels


def _affine(draw: np.random.Generator) -> np.ndarray:
    """Return the matrix (2, 3) from output to input coordinates, in [-1, 1]."""
    angle = math.radians(draw.uniform(-_ROTATION_DEG, _ROTATION_DEG))
    scale = math.exp(draw.uniform(math.log(_SCALE[0]), math.log(_SCALE[1])))
    aspect = math.exp(draw.uniform(-_ASPECT, _ASPECT))
    mirror = draw.choice([-1.0, 1.0])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.diag([mirror * aspect / scale, 1 / (aspect * scale)])
    return np.concatenate([matrix, draw.uniform(-_SHIFT, _SHIFT, (2, 1))], axis=1)


def _intensity(images: torch.Tensor, draws: Sequence[np.random.Generator]) -> torch.Tensor:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=images.device)[:, None, None, None]

    gamma = column([math.exp(draw.uniform(math.log(_GAMMA[0]), math.log(_GAMMA[1]))) for draw in draws])
    gain = column([draw.uniform(*_GAIN) for draw in draws])
    offset = column([draw.uniform(-_OFFSET, _OFFSET) for draw in draws])
    shares = column([_blurred_share(draw) for draw in draws])
    smooth = _convolved(images, _gaussians([draw.uniform(*_WIDTH) for draw in draws], order=1), "replicate")
    noise_level = column([_NOISE * draw.random() ** 2 for draw in draws])
    grains = _gaussians([draw.uniform(0, _GRAIN) for draw in draws], order=2)  # order 2 keeps the variance
    white = [torch.from_numpy(draw.standard_normal(images.shape[1:], dtype=np.float32)) for draw in draws]
    noise = _convolved(torch.stack(white).to(images.device), grains, "circular")
    images = torch.lerp(images, smooth, shares)
    images = images.clamp(0, 1).pow(gamma) * gain + offset
    return (images + noise_level * noise).clamp(0, 1)


def _blurred_share(draw: np.random.Generator) -> float:
    """Return the weight of the blurred slice; below 0 it enhances edges."""
    chance = draw.random()
    if chance < _BLUR[0]:
        return _BLUR[1]
    return -_SHARPEN[1] * draw.random() if chance < _BLUR[0] + _SHARPEN[0] else 0.0


def _gaussians(widths: Sequence[float], order: int) -> torch.Tensor:
    """Return one-dimensional Gaussians (B, K) float32, in pixels, whose norm of the given order is 1."""
    offsets = torch.arange(-_REACH, _REACH + 1)
    kernels = torch.exp(-0.5 * (offsets / torch.tensor(widths, dtype=torch.float32).clamp(min=1e-3)[:, None]) ** 2)
    return functional.normalize(kernels, p=order, dim=1)


def _convolved(images: torch.Tensor, kernels: torch.Tensor, border: str) -> torch.Tensor:
    """Return (B, 1, H, W): each image convolved with its own kernel of (B, K) along rows and columns."""
    kernels = kernels[:, None].to(images.device)
    padded = functional.pad(images.transpose(0, 1), (_REACH,) * 4, mode=border)
    for way in (kernels[..., None], kernels[:, :, None]):
        padded = functional.conv2d(padded, way, groups=len(images))
    return padded.transpose(0, 1)
