"""Labels of a whole series as one NIfTI volume on the series' own grid, as annotation tools save them."""

import gzip
import zlib
from itertools import product
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from cohortseg.errors import DataError
from cohortseg.labels import NUM_CLASSES
from cohortseg.volume import Volume

_READ_ERRORS: Final = (
    *(ImageFileError, HeaderDataError, WrapStructError),
    *(OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError),
)
_GZIP: Final = b"\x1f\x8b"
_NIFTI2: Final = frozenset({(540).to_bytes(4, "little"), (540).to_bytes(4, "big")})
"""How files of NIfTI-2 begin; those of NIfTI-1, with 348."""
_MOST_HEADER_BYTES: Final = 2**20
_RAS_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_TOLERANCE: Final = 0.25
"""Voxels of both grids may lie this far apart, in voxels: headers are rounded."""


def read_label_volume(path: Path, volume: Volume) -> NDArray[np.uint8]:
    """Return the labels of a series, brought to the order of its voxels.

    Parameters
    ----------
    path
        A NIfTI file (``.nii``, ``.nii.gz``) with the voxels of the series, whatever the order and direction of their
        axes, and values 0, 1, 2. One slice may be an image of two axes.
    volume
        The series.

    Returns
    -------
    (Z, Y, X) uint8
        0 background, 1 ground-glass opacity, 2 consolidation.

    Raises
    ------
    DataError
        If the file cannot be read, lies on another grid, or holds other values; the message names it.
    """
    try:
        content = _content(path, 8 * volume.volume_hu.size + _MOST_HEADER_BYTES)
        kind = nib.Nifti2Image if content[:4] in _NIFTI2 else nib.Nifti1Image
        with LoggingOutputSuppressor():  # of nibabel, about what it then raises or mends
            image = kind.from_bytes(content)
        if image.get_data_dtype().kind not in "iuf":
            raise DataError(f"{path}: holds no volume of numbers")
        shape = (*image.shape, 1) if len(image.shape) == 2 else tuple(image.shape)
        while len(shape) > 3 and shape[-1] == 1:  # a series of one volume
            shape = shape[:-1]
        axes, flipped = _placed(path, shape, np.asarray(image.affine), volume)
        stored = np.asarray(image.dataobj).reshape(shape)
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a readable NIfTI file: {error}") from error
    placed = np.flip(stored.transpose(axes), flipped)
    if not np.isin(placed, range(NUM_CLASSES)).all():
        raise DataError(f"{path}: labels must be 0, 1, 2, found {np.unique(placed)[:10].tolist()}")
    return np.ascontiguousarray(placed, dtype=np.uint8)


def _content(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file, decompressed and checked if it is compressed; no more than is allowed."""
    with path.open("rb") as file:
        is_compressed = file.read(2) == _GZIP
    with gzip.open(path) if is_compressed else path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise DataError(f"{path}: holds more voxels than its series")
    return content


def _placed(
    path: Path, shape: tuple[int, ...], affine_ras: NDArray[np.float64], volume: Volume
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes of the file that are z, y and x of the series, and which of these run the other way.

    Raises
    ------
    DataError
        If the voxels of the two do not lie in the same places.
    """
    sizes = volume.volume_hu.shape
    advice = "save the labels on the grid of the CT, neither cropped nor resampled"
    elsewhere = DataError(f"{path}: its voxels lie elsewhere than those of its series; {advice}")
    if sorted(shape) != sorted(sizes):
        found, needed = (" x ".join(map(str, sorted(item))) for item in (shape, sizes))
        raise DataError(f"{path}: holds {found} voxels, and its series {needed}; {advice}")
    try:
        to_stored = np.linalg.inv(_RAS_TO_LPS @ affine_ras) @ volume.affine
    except np.linalg.LinAlgError:
        raise elsewhere from None
    along = to_stored[:3, :3]
    axes = tuple(int(axis) for axis in np.abs(along).argmax(axis=0))
    if sorted(axes) != [0, 1, 2] or tuple(shape[axis] for axis in axes) != sizes:
        raise elsewhere
    flipped = tuple(n for n, axis in enumerate(axes) if along[axis, n] < 0)
    corners = np.array([*product(*((0, size - 1) for size in sizes))])
    expected = np.empty_like(corners)
    for n, axis in enumerate(axes):
        expected[:, axis] = sizes[n] - 1 - corners[:, n] if n in flipped else corners[:, n]
    # Written so that a place that is no number is elsewhere, too.
    if not np.abs(corners @ along.T + to_stored[:3, 3] - expected).max() <= _TOLERANCE:
        raise elsewhere
    return axes, flipped
