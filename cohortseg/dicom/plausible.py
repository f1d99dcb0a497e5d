"""Checks that decoded values are HU of one chest: as a whole, and each slice against its neighbours."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cohortseg import qc
from cohortseg.errors import NotEvaluableError
from cohortseg.volume import HU_MIN

MIN_AIR_SHARE: Final = 0.02
"""Smallest share of voxels from -1023 to -500 HU (air around the patient, lung); 0.22 or more in real slices."""
MIN_SOFT_SHARE: Final = 0.05
"""Smallest share of voxels from -200 to 200 HU (fat, muscle, blood); 0.30 or more in real slices."""
_SOFT_OF_SMALL: Final = (0.01, 0.5)
"""A child in a wide field has less: at least this share, and this part of all voxels above -500 HU."""
_AIR_HU: Final = -950.0
"""Air around the patient is not above this."""
_BORDER_SHARE: Final = 0.5
_ALIKE_HU: Final = 30.0
_ALIKE_SHARE: Final = 0.8
"""What fills half of the image's border is air if most of it lies this close to one value, and next to nothing in the
images (`_DARKER_SHARE`) is darker by `_DARKER_HU`. Much of lung does not, and the airways are darker."""
_DARKER_HU: Final = 60.0
_DARKER_SHARE: Final = 0.001
_CLIPPED_SHARE: Final = 0.3
"""Air was clipped if more than this part of it has one value, the lowest."""
SOFT_TISSUE_HU: Final = (-140.0, 130.0)
"""Range of the most frequent HU between -300 and 300: that of fat (-110) or of muscle (50)."""

_GRID: Final = 32
_ODD: Final = (80.0, 0.7)
"""Limits of the mean difference (HU) and the correlation of a slice with its neighbours; a slice beyond either is odd.
Chests stay below 30 HU and above .94 at 25 mm between slices, below 75 HU and above .8 at 75 mm."""
_TURNS: Final = 0.8
"""Two scans are interleaved if the difference to the slice after next is less than this part of that to the next one.
The ratio is .1 to .6 in interleaved scans, 1.3 to 1.8 in one scan (above .9 in six slices of one)."""
_NOT_AIR_HU: Final = -900.0
_LEAST_SLICES: Final = 6
_HISTOGRAM_SLICES: Final = 16


def check_hu(
    volume_hu: NDArray[np.int16], series_key: str, rescales: Sequence[Hashable] | None = None
) -> tuple[str, ...]:
    """Return flags for values that look odd, and refuse those that cannot be measured.

    Parameters
    ----------
    volume_hu : (Z, Y, X) int16, HU
        At least one voxel; padding is HU_MIN.
    series_key
        For messages.
    rescales
        Rescale of each slice, compared for equality only; None: all slices have the same.

    Returns
    -------
    tuple of str
        Those found of ``blank_slices``, ``repeated_slices``, ``odd_slices`` and ``hu_shifted``.

    Raises
    ------
    NotEvaluableError
        If the values are not HU of a trunk, slices between others are blank, slices that do not fit their neighbours
        have another rescale than most, or the slices belong to two scans in turn.
    """
    _require_hu(volume_hu, series_key)
    held = np.flatnonzero([image.min() < image.max() for image in volume_hu])
    flags = [*_blank(held, len(volume_hu), series_key), *_repeated(volume_hu, held)]
    flags += _odd(volume_hu, held, series_key, rescales)
    return (*flags, qc.HU_SHIFTED) if _is_shifted(volume_hu) else tuple(flags)


def _require_hu(volume_hu: NDArray[np.int16], series_key: str) -> None:
    """Refuse values without some air (or lung) and some soft tissue.

    HU_MIN itself counts as neither, because padding has that value. Series without rescale, with the rescale applied
    twice, or windowed to 8 bits fail.
    """
    air = np.count_nonzero((volume_hu > HU_MIN) & (volume_hu <= -500)) / volume_hu.size
    soft = np.count_nonzero((volume_hu >= -200) & (volume_hu <= 200)) / volume_hu.size
    dense = np.count_nonzero(volume_hu > -500) / volume_hu.size
    is_small = soft >= _SOFT_OF_SMALL[0] and soft >= _SOFT_OF_SMALL[1] * dense
    if air < MIN_AIR_SHARE or (soft < MIN_SOFT_SHARE and not is_small):
        raise NotEvaluableError(
            f"series {series_key}: values are not Hounsfield units of a chest: {100 * air:.1f} % are like air,"
            f" {100 * soft:.1f} % like soft tissue; at least {100 * MIN_AIR_SHARE:.0f} and {100 * MIN_SOFT_SHARE:.0f} %"
            " are expected",
            qc_flags=(qc.HU_IMPLAUSIBLE,),
        )


def _blank(held: NDArray[np.intp], count: int, series_key: str) -> list[str]:
    """Flag slices of one value throughout, and refuse them between slices that hold an image: they make a gap."""
    if not len(held):
        raise NotEvaluableError(
            f"series {series_key}: every slice holds one value and no image", qc_flags=(qc.BLANK_SLICES,)
        )
    between = int(np.ptp(held)) + 1 - len(held)
    if between:
        raise NotEvaluableError(
            f"series {series_key}: {between} of {count} slices, between others, hold one value and no image",
            qc_flags=(qc.BLANK_SLICES,),
        )
    return [qc.BLANK_SLICES] if len(held) < count else []


def _repeated(volume_hu: NDArray[np.int16], held: NDArray[np.intp]) -> list[str]:
    """Flag neighbouring slices with equal pixels, unless most are equal, as in a phantom without noise."""
    pairs = sum(np.array_equal(volume_hu[low], volume_hu[high]) for low, high in pairwise(held))
    return [qc.REPEATED_SLICES] if 0 < 2 * pairs < len(volume_hu) - 1 else []


def _odd(
    volume_hu: NDArray[np.int16],
    held: NDArray[np.intp],
    series_key: str,
    rescales: Sequence[Hashable] | None,
) -> list[str]:
    """Flag slices with an image that differ from the mean of their neighbours far more than slices of a chest do.

    If an odd slice has another rescale than most, the rescale is taken to be wrong, and the series is refused.
    """
    if len(held) < 3:
        return []
    coarse = np.stack([cv2.resize(volume_hu[z], (_GRID, _GRID), interpolation=cv2.INTER_AREA) for z in held])
    coarse = coarse.reshape(len(held), -1).astype(np.float64)
    _require_one_scan(np.maximum(coarse, _NOT_AIR_HU), series_key)  # noise moves the mean of air, which is clipped
    beside = np.concatenate([coarse[1:2], (coarse[:-2] + coarse[2:]) / 2, coarse[-2:-1]])
    offset = np.abs((coarse - beside).mean(axis=1))
    offset[[0, -1]] /= 2  # the first and the last have only one neighbour, so their difference is not averaged
    a, b = (part - part.mean(axis=1, keepdims=True) for part in (coarse, beside))
    norms = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    alike = np.divide((a * b).sum(axis=1), norms, out=np.ones(len(a)), where=norms > 0)
    odd = (offset > _ODD[0]) | (alike < _ODD[1])
    if not odd.any():
        return []
    usual = Counter(rescales or ()).most_common(1)
    wrong = [z for z, is_odd in zip(held, odd, strict=True) if is_odd and rescales and rescales[z] != usual[0][0]]
    if wrong:
        raise NotEvaluableError(
            f"series {series_key}: {len(wrong)} of {len(volume_hu)} slices have another rescale than most, and values"
            " that do not fit those of the slices beside them",
            qc_flags=(qc.ODD_SLICES,),
        )
    return [qc.ODD_SLICES]


def _require_one_scan(coarse: NDArray[np.float64], series_key: str) -> None:
    """Refuse slices (Z, pixel) that resemble those after next more than the next, as interleaved scans do."""
    if len(coarse) < _LEAST_SLICES:
        return
    next_hu, after_next_hu = (float(np.median(np.abs(coarse[n:] - coarse[:-n]).mean(axis=1))) for n in (1, 2))
    if after_next_hu < _TURNS * next_hu:
        raise NotEvaluableError(
            f"series {series_key}: slices differ by {next_hu:.0f} HU from the next, and by {after_next_hu:.0f} HU from"
            " those after it: two scans of one place that lie between each other (breathing in and out?)",
            qc_flags=(qc.INTERLEAVED_SCANS,),
        )


def _is_shifted(volume_hu: NDArray[np.int16]) -> bool:
    """Return whether the most frequent soft-tissue HU is neither that of fat nor of muscle, or air not that of air."""
    sample = volume_hu[:: max(1, len(volume_hu) // _HISTOGRAM_SLICES)]
    soft_hu = _most_frequent(sample[:, ::4, ::4], (-300.0, 300.0))
    return not SOFT_TISSUE_HU[0] <= soft_hu <= SOFT_TISSUE_HU[1] or _has_dense_air(sample)


def _has_dense_air(volume_hu: NDArray[np.int16]) -> bool:
    """Return whether the air in the outer sixteenth of the images (Z, Y, X) is denser than air."""
    border = np.ones(volume_hu.shape[1:], bool)
    width = math.ceil(min(border.shape) / 16)
    border[width:-width, width:-width] = False
    values = volume_hu[:, border]
    air = values[(values > HU_MIN) & (values <= -500)]
    if air.size < _BORDER_SHARE * values.size:
        return False
    air_hu = _most_frequent(air, (float(HU_MIN), -500.0))
    if air_hu <= _AIR_HU or np.count_nonzero(air == air.min()) > _CLIPPED_SHARE * air.size:
        return False
    alike = np.count_nonzero(np.abs(air - air_hu) <= _ALIKE_HU)
    darker = np.count_nonzero((volume_hu > HU_MIN) & (volume_hu < air_hu - _DARKER_HU))
    return bool(alike >= _ALIKE_SHARE * air.size and darker <= _DARKER_SHARE * volume_hu.size)


def _most_frequent(values: NDArray[np.int16], limits: tuple[float, float]) -> float:
    """Return the middle of the fullest of the bins of 20 HU between two limits."""
    counts, edges = np.histogram(values, bins=round((limits[1] - limits[0]) / 20), range=limits)
    most = int(counts.argmax())
    return float(edges[most] + edges[most + 1]) / 2
