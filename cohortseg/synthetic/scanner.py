"""What a CT scanner adds to a section: blur, correlated noise, and a round field of view."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg.synthetic.fields import Floats, smoothstep

PADDING_HU = -3024
"""HU outside the round field of view: stored value -2000 at intercept -1024, as GE scanners write it."""


def scanned(
    section_hu: Floats, x: Floats, y: Floats, noise_hu: float, center: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.int16]:
    """Return a section as a scanner would reconstruct it.

    Parameters
    ----------
    section_hu
        (Y, X) HU.
    x, y
        (Y, X) points, mm, evenly spaced.
    noise_hu
        Standard deviation of the noise in the middle of the body.
    center
        (x, y) of the field of view, mm; its radius is half the picture.
    rng
        Draws the noise.

    Returns
    -------
    (Y, X) int16, HU
        In [-1024, 3071] inside the field of view, `PADDING_HU` outside.
    """
    pixel = float(x[0, 1] - x[0, 0])
    blurred = ndimage.gaussian_filter(section_hu, 0.55 / pixel)
    radius = np.hypot(x - center[0], y - center[1])
    field = pixel * len(x) / 2.0
    # Fewer photons reach the middle of the body; the filtered back-projection removes low frequencies.
    white = rng.standard_normal(section_hu.shape)
    grain = ndimage.gaussian_filter(white, 0.75 / pixel) - 0.8 * ndimage.gaussian_filter(white, 2.2 / pixel)
    grain *= noise_hu / grain.std() * (1.0 - 0.55 * smoothstep(radius, 0.2 * field, field))
    result = np.clip(np.rint(blurred + grain), -1024, 3071).astype(np.int16)
    result[radius > field - 0.5 * pixel] = PADDING_HU
    return result
