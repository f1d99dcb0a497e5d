"""Masks, and the CT they belong to, as NIfTI-1 files: one grid, in RAS and mm."""

import gzip
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cohortseg.store.masks import SeriesMasks

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ZYX_TO_XYZ = np.eye(4)[[2, 1, 0, 3]]
_COMPRESSION = 4


def nifti_bytes(array: NDArray[Any], masks: SeriesMasks) -> bytes:
    """Return an array on a series' grid as the content of a ``.nii.gz`` file.

    Parameters
    ----------
    array : (Z, Y, X) uint8 or int16
        Labels, lungs or HU.
    masks
        Masks of the series, for their geometry.

    Returns
    -------
    bytes
        The file of an image (X, Y, Z); for a single slice, whose extent along the normal is not known, (X, Y) at its
        place in space: a third axis would need an invented spacing, from which readers would get invented volumes. The
        sform is the masks' affine; the qform, which cannot hold a shear, leaves out that of slices which shift slightly
        (up to half a degree is accepted).
    """
    affine = _LPS_TO_RAS @ np.asarray(masks.facts.affine) @ _ZYX_TO_XYZ
    xyz = np.ascontiguousarray(array.transpose(2, 1, 0))
    image = nib.Nifti1Image(xyz[..., 0] if masks.facts.spacing_mm[0] is None else xyz, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return gzip.compress(image.to_bytes(), _COMPRESSION, mtime=0)
