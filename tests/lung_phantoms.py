"""Chests made of ellipsoids, whose lungs are known exactly. Lengths in mm; x to the patient's left, y to the back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Chest:
    """A phantom with its truth."""

    volume_hu: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    truth: NDArray[np.uint8]  # 0, 1 right, 2 left
    consolidation: NDArray[np.bool_]
    trachea: NDArray[np.bool_]


def make_chest(
    spacing_mm: tuple[float, float, float] = (8.0, 1.6, 1.2),
    *,
    shape: tuple[int, int, int] = (28, 224, 320),
    consolidated: bool = False,
    consolidated_behind_mm: float = 40.0,
    with_lungs: bool = True,
    gas: bool = False,
    noise_hu: float = 12.0,
) -> Chest:
    """Body with ribs, spine, heart and trachea, on a table in air; lungs 2 x (60 x 85 x 95) mm half axes."""
    rng = np.random.default_rng(5)
    z, y, x = np.meshgrid(
        *(((np.arange(n) - (n - 1) / 2) * s) for n, s in zip(shape, spacing_mm, strict=True)), indexing="ij"
    )
    volume = np.full(shape, -1000.0)
    volume[(np.abs(y - 148) < 4) & (np.abs(x) < 170)] = 100  # table top, then air below it
    body = (x / 175) ** 2 + (y / 125) ** 2 < 1
    volume[body] = -90
    volume[(x / 155) ** 2 + (y / 108) ** 2 < 1] = 45
    rib = np.abs(np.hypot(x / 144, y / 97) - 1) < 0.025
    volume[rib & ((np.round(np.arctan2(y, x) * 12) + np.round(z / 15)) % 2 == 0)] = 400
    volume[np.hypot(x, y - 75) < 19] = 350
    truth = np.zeros(shape, np.uint8)
    if with_lungs:
        heart = ((x - 18) / 52) ** 2 + ((y + 25) / 50) ** 2 + ((z + 30) / 60) ** 2 < 1
        for side, centre in ((1, -72.0), (2, 72.0)):
            lung = ((x - centre) / 60) ** 2 + (y / 85) ** 2 + (z / 95) ** 2 < 1
            truth[lung & ~heart & (np.hypot(x, y - 75) > 24)] = side
        volume[truth > 0] = -860
        vessels = (np.hypot((x % 16) - 8, (y % 16) - 8) < 1.8) & (truth > 0)
        volume[vessels] = 20
    trachea = np.hypot(x, y - 10) < 8
    if with_lungs:
        trachea &= z > 40
        volume[(np.hypot(x, y - 10) < 10.5) & (z > 40)] = 30
        volume[trachea] = -995
    if gas:
        volume[((x - 60) / 35) ** 2 + ((y + 40) / 20) ** 2 < 1] = -990
        volume[np.hypot(x + 70, y + 30) < 12] = -980
    bronchogram = (np.indices(shape)[2] * spacing_mm[2]) % 14 <= 2.5
    dorsal = (y > consolidated_behind_mm) & (np.abs(z) < 60) & (truth > 0) & ~bronchogram
    consolidation = dorsal & consolidated
    volume[consolidation] = 40
    volume += rng.normal(0, noise_hu, shape)
    return Chest(
        volume_hu=np.clip(volume, -1024, 3071).astype(np.int16),
        spacing_mm=spacing_mm,
        truth=truth,
        consolidation=consolidation,
        trachea=trachea & bool(with_lungs),
    )


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def positions_mm(chest: Chest) -> tuple[NDArray[np.float64], ...]:
    """Return (z, y, x), mm from the middle, of each voxel."""
    axes = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(chest.truth.shape, chest.spacing_mm, strict=True))
    return tuple(np.meshgrid(*axes, indexing="ij"))
