"""Image noise: known Gaussian noise in soft tissue is measured as what it is, at the resolution of the network."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg.noise import soft_tissue_noise


def noisy_body(sigma_hu: float, *, size: int = 120, grain: float = 0.0) -> NDArray[np.int16]:
    """Return (4, size, size): muscle (50 HU) around lung (-850 HU) in air, with noise, HU."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size),) * 2, indexing="ij")
    hu = np.where(np.hypot(x, y) < 0.9, 50.0, -1000.0)
    hu[np.hypot(x, y) < 0.4] = -850.0
    noise = np.random.default_rng(0).standard_normal((4, size, size))
    if grain:
        noise = ndimage.gaussian_filter(noise, (0, grain, grain), mode="wrap")
        noise /= noise.std()
    return (hu + sigma_hu * noise).round().astype(np.int16)


@pytest.mark.parametrize("sigma_hu", [5.0, 20.0, 60.0])
def test_noise_is_its_standard_deviation(sigma_hu: float) -> None:
    assert soft_tissue_noise(noisy_body(sigma_hu), (1.5, 1.5)) == pytest.approx(sigma_hu, abs=3)


def test_white_noise_of_fine_pixels_is_averaged_and_coarse_grain_is_not() -> None:
    white = soft_tissue_noise(noisy_body(60.0, size=240), (0.75, 0.75))
    grainy = soft_tissue_noise(noisy_body(60.0, size=240, grain=1.5), (0.75, 0.75))
    assert white == pytest.approx(60 / 2, abs=4)
    assert grainy is not None
    assert grainy > 45


def test_pixels_that_are_not_square_count_by_their_size() -> None:
    assert soft_tissue_noise(noisy_body(60.0, size=240), (1.5, 0.75)) == pytest.approx(60 / 2**0.5, abs=4)


def test_without_soft_tissue_nothing_is_measured() -> None:
    assert soft_tissue_noise(np.full((3, 64, 64), -900, np.int16), (1.5, 1.5)) is None
