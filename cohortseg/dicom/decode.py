"""From a manifest row to a volume in HU on its true grid."""

from pathlib import Path
from typing import Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_rescale
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, JPEGTransferSyntaxes

from cohortseg.dicom.geometry import SAME_POSITION_MM, Stack, irregular, stack_slices
from cohortseg.dicom.headers import READ_ERRORS, reals, text
from cohortseg.dicom.series import FLAGS, SeriesRecord
from cohortseg.errors import DicomError, GeometryError
from cohortseg.volume import HU_MAX, HU_MIN, Volume

MIN_AIR_SHARE: Final = 0.02
"""Least part of voxels from -1023 to -500 HU (air around the patient, lung); 0.22 and more in real slices."""
MIN_SOFT_SHARE: Final = 0.05
"""Least part of voxels from -200 to 200 HU (fat, muscle, blood); 0.30 and more in real slices."""

_KEYWORDS: Final = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "PlanarConfiguration",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
)
_TAGS: Final = [tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None]


def read_volume(record: SeriesRecord, root: Path) -> Volume:
    """Decode one series into HU, in slice order, with the geometry that its files state.

    Pixels that the files declare as padding (PixelPaddingValue, PixelPaddingRangeLimit) become air. Memory is taken
    once the first file has proved to hold what its header claims.

    Parameters
    ----------
    record
        The series as the scan saw it; its ``files`` are in slice order.
    root
        The folder that was scanned.

    Returns
    -------
    Volume
        (Z, Y, X) int16 in [HU_MIN, HU_MAX]; ``qc_flags`` are the record's, and ``hu_implausible`` where it applies.

    Raises
    ------
    DicomError
        If a file is missing, damaged, not in HU, cannot be decoded, or is not what the scan saw.
    GeometryError
        If the slices do not form a volume.

    References
    ----------
    DICOM PS3.3, C.11.1 (rescale), C.7.5.1.1.2 (padding), Equation C.7.6.2.1-1 (affine).
    """
    datasets: list[Dataset] = []
    volume_hu: NDArray[np.int16] = np.empty(0, dtype=np.int16)
    for z, path in enumerate(record.files):
        dataset = _read_dataset(root, path, record)
        slice_hu = _slice_hu(dataset, path)
        if z == 0:
            volume_hu = np.empty((len(record.files), *slice_hu.shape), dtype=np.int16)
        volume_hu[z] = slice_hu
        del dataset.PixelData  # only the header is needed from here on
        datasets.append(dataset)
    stack = _checked_stack(datasets, record)
    flags = (*record.qc_flags, *(() if is_plausible_hu(volume_hu) else ("hu_implausible",)))
    return Volume(
        volume_hu=volume_hu,
        affine=stack.affine,
        spacing_mm=(stack.spacing_z_mm, *_pixel_spacing(datasets[0], record)),
        series_instance_uid=record.series_instance_uid,
        sop_instance_uids=tuple(str(dataset.SOPInstanceUID) for dataset in datasets),
        frame_of_reference_uid=text(datasets[0], "FrameOfReferenceUID"),
        study_date=record.study_date,
        qc_flags=tuple(name for name in FLAGS if name in flags),
    )


def is_plausible_hu(volume_hu: NDArray[np.int16]) -> bool:
    """Return whether values look like HU of a trunk: some air (or lung) and some soft tissue.

    HU_MIN itself counts as neither, because padding has that value. Series without rescale, with it applied twice, or
    windowed to 8 bits fail.

    Parameters
    ----------
    volume_hu : any shape, HU
        At least one voxel.
    """
    air = np.count_nonzero((volume_hu > HU_MIN) & (volume_hu <= -500)) / volume_hu.size
    soft = np.count_nonzero((volume_hu >= -200) & (volume_hu <= 200)) / volume_hu.size
    return bool(air >= MIN_AIR_SHARE and soft >= MIN_SOFT_SHARE)


def _read_dataset(root: Path, path: str, record: SeriesRecord) -> Dataset:
    """Read pixels and what describes them, and check that the file still belongs to the series."""
    try:
        dataset = pydicom.dcmread(root / path, specific_tags=_TAGS, force=True)  # files without preamble exist
    except OSError as error:
        raise DicomError(f"{path}: cannot be read: {error.strerror or 'damaged'}; scan the cohort again") from error
    except READ_ERRORS as error:
        raise DicomError(f"{path}: damaged DICOM file") from error
    if text(dataset, "SeriesInstanceUID") != record.series_instance_uid or text(dataset, "SOPInstanceUID") is None:
        raise DicomError(f"{path}: belongs to another series than the scan saw; scan the cohort again")
    # Before any memory is taken: the scan has seen to it that the size is sensible.
    if [reals(dataset, keyword, 1) for keyword in ("Rows", "Columns")] != [(record.rows,), (record.columns,)]:
        raise DicomError(f"{path}: image size differs from what the scan saw; scan the cohort again")
    return dataset


def _slice_hu(dataset: Dataset, path: str) -> NDArray[np.int16]:
    """Return one slice (Y, X), HU, clipped."""
    stored = _stored_values(dataset, path)
    rescale = [reals(dataset, keyword, 1) for keyword in ("RescaleSlope", "RescaleIntercept")]
    if None in rescale:
        raise DicomError(f"{path}: RescaleSlope or RescaleIntercept is missing: values are not in HU")
    hu: NDArray[np.float64] = np.rint(apply_rescale(stored, dataset))
    padding = _padding_range(dataset, stored.dtype)
    if padding is not None:
        hu[(stored >= padding[0]) & (stored <= padding[1])] = HU_MIN
    clipped: NDArray[np.int16] = np.clip(hu, HU_MIN, HU_MAX).astype(np.int16)
    return clipped


def _stored_values(dataset: Dataset, path: str) -> NDArray[np.integer]:
    """Return the decoded pixels (Y, X), before any rescale."""
    syntax = UID(text(dataset.file_meta, "TransferSyntaxUID") or "")
    if "PixelData" not in dataset:
        raise DicomError(f"{path}: no pixel data; the file was probably cut off: copy it again")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DicomError(f"{path}: transfer syntax {syntax.name or 'missing'} is not supported") from error
    if not decoder.is_available:
        raise DicomError(f"{path}: {syntax.name} needs one of: {'; '.join(decoder.missing_dependencies)}")
    try:
        stored: NDArray[np.integer] = pixel_array(dataset, raw=True, index=0)
    except READ_ERRORS as error:
        # These texts, often of several lines, are about the encoding only.
        detail = " ".join(str(error).split())
        hint = " (pip install pylibjpeg-libjpeg reads more kinds of JPEG)" if syntax in JPEGTransferSyntaxes else ""
        raise DicomError(f"{path}: pixel data ({syntax.name}) cannot be decoded: {detail}{hint}") from error
    if stored.ndim != 2:
        raise DicomError(f"{path}: one grey-scale image is expected, got an array of shape {stored.shape}")
    return stored


def _padding_range(dataset: Dataset, dtype: np.dtype[np.integer]) -> tuple[int, int] | None:
    """Return the lowest and highest stored value that means padding."""
    value = reals(dataset, "PixelPaddingValue", 1)
    if value is None:
        return None
    limit = reals(dataset, "PixelPaddingRangeLimit", 1) or value
    # Both are often written as unsigned although the pixels are signed: -2000 as 63536.
    ends = sorted(int(np.array(int(end) % 2 ** (8 * dtype.itemsize)).astype(dtype)) for end in (*value, *limit))
    return ends[0], ends[1]


def _pixel_spacing(dataset: Dataset, record: SeriesRecord) -> tuple[float, float]:
    spacing = reals(dataset, "PixelSpacing", 2)
    if spacing is None:
        raise GeometryError(f"series {record.series_key}: PixelSpacing is missing")
    return spacing[0], spacing[1]


def _checked_stack(datasets: list[Dataset], record: SeriesRecord) -> Stack:
    """Return the geometry of the files as read now; it must be regular, and as the scan saw it."""
    positions = [reals(dataset, "ImagePositionPatient", 3) for dataset in datasets]
    orientation = reals(datasets[0], "ImageOrientationPatient", 6)
    known = [position for position in positions if position is not None]
    if len(known) < len(positions) or orientation is None:
        raise GeometryError(f"series {record.series_key}: slice positions or orientation are missing")
    stack = stack_slices(known, orientation, _pixel_spacing(datasets[0], record))
    if len(irregular(stack.distances_mm)) or (stack.distances_mm < SAME_POSITION_MM).any():
        raise GeometryError(f"series {record.series_key}: {len(known)} slices do not form a volume with one spacing")
    if stack.order != tuple(range(len(known))) or not np.isclose(stack.spacing_z_mm or 0, record.spacing_z_mm or 0):
        raise DicomError(f"series {record.series_key}: positions differ from what the scan saw; scan the cohort again")
    return stack
