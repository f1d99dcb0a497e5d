"""Noise of a CT at the network's resolution: noise of a low dose or a sharp kernel looks like ground glass."""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

NOISE_PIXEL_MM: Final = 1.5
"""Width of the pixels over which HU are averaged first, about that of the network's, which does not see finer noise."""
NOISY_HU: Final = 60.0
"""At this noise or more, the packaged model calls .3 % or more of lungs without lesions opacity
(benchmarks/false_alarms.py)."""
_SOFT_HU: Final = (0.0, 100.0)
_WINDOW: Final = 5
"""Width of the square over which a standard deviation is taken, pixels: 7.5 mm."""
_BIN_HU: Final = 2.0
_BINS: Final = 150
_LEAST_PIXELS: Final = 500
_SLICES: Final = 16


def soft_tissue_noise(volume_hu: NDArray[np.int16], pixel_spacing_mm: tuple[float, float]) -> float | None:
    """Return the noise of a chest CT: the most frequent standard deviation in small squares of soft tissue.

    The global noise level of Christianson et al. 2015 (AJR 205:W93), on 1.5 mm pixels in squares of 7.5 mm.

    Parameters
    ----------
    volume_hu : (Z, Y, X) int16, HU
        Up to 16 slices, evenly spaced, are used.
    pixel_spacing_mm : (y, x) mm

    Returns
    -------
    float or None
        HU; None where too little soft tissue (0 to 100 HU) is in view.
    """
    counts = np.zeros(_BINS)
    shape = [
        max(1, round(size * mm / max(mm, NOISE_PIXEL_MM)))
        for size, mm in zip(volume_hu.shape[1:], pixel_spacing_mm, strict=True)
    ]
    for z in np.unique(np.linspace(0, len(volume_hu) - 1, _SLICES).round().astype(int)):
        image = cv2.resize(volume_hu[z].astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
        mean, square = (cv2.blur(values, (_WINDOW, _WINDOW)) for values in (image, image**2))
        soft = (mean > _SOFT_HU[0]) & (mean < _SOFT_HU[1])
        variance = np.maximum(square[soft] - mean[soft] ** 2, 0) * (_WINDOW**2 / (_WINDOW**2 - 1))
        counts += np.histogram(np.sqrt(variance), bins=_BINS, range=(0, _BINS * _BIN_HU))[0]
    if counts.sum() < _LEAST_PIXELS:
        return None
    smooth = np.convolve(counts, (1, 2, 3, 2, 1), "same")
    return float((np.argmax(smooth) + 0.5) * _BIN_HU)
