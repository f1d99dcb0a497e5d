"""From a manifest row to a volume in HU on its true grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from cohortseg import qc
from cohortseg.config import RESAMPLE, UNTILT
from cohortseg.dicom.elements import PIXEL_TAGS, READ_ERRORS, Attributes, behind_pixels, silence_pydicom, tag_of
from cohortseg.dicom.frames import GROUP_SEQUENCES, frame_datasets
from cohortseg.dicom.geometry import COSINE_ATOL, SAME_POSITION_MM, Stack, irregular, stack_slices
from cohortseg.dicom.guards import BoundedFile, inflates_too_far
from cohortseg.dicom.padding import fill_undeclared_padding
from cohortseg.dicom.pixels import slice_hu
from cohortseg.dicom.plausible import check_hu
from cohortseg.dicom.repair import resample_z, untilt
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import DicomError, GeometryError
from cohortseg.volume import Volume

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
    *GROUP_SEQUENCES,
)
_TAGS: Final = [tag_of(keyword) for keyword in _KEYWORDS]
_REMEDY: Final = "if it has changed since the scan, run infer again"


def read_volume(record: SeriesRecord, root: Path) -> Volume:
    """Decode one series into HU, in slice order, with the geometry that its files state.

    Pixels that the files declare as padding (PixelPaddingValue, PixelPaddingRangeLimit) become air, and so do corners
    that are padding without being declared. Memory for the volume is allocated only after the first file has been
    decoded, and so has proved to hold what its header claims.

    Parameters
    ----------
    record
        The series as the scan saw it; its ``files`` are in slice order.
    root
        The folder that was scanned.

    Returns
    -------
    Volume
        (Z, Y, X) int16 in [HU_MIN, HU_MAX]; ``qc_flags`` are the record's and those found while decoding. A repaired
        series can differ from its files in slices, rows and columns; each slice has the UID of the nearest source.

    Raises
    ------
    DicomError
        If a file is missing, damaged, not in HU, cannot be decoded, or is not what the scan saw.
    GeometryError
        If the slices do not form a volume.
    NotEvaluableError
        If the values are not Hounsfield units of a chest, or some slices are blank or do not belong (`check_hu`).

    References
    ----------
    DICOM PS3.3, C.11.1 (rescale), C.7.5.1.1.2 (padding), Equation C.7.6.2.1-1 (affine).
    """
    silence_pydicom()  # its warnings quote header values
    slices: list[Dataset] = [Dataset()] * len(record.files)
    volume_hu: NDArray[np.int16] = np.empty(0, dtype=np.int16)
    for path, indices in _by_file(record).items():
        dataset = _read_dataset(root, path, record)
        for z, slice_ in zip(indices, _slices_in(dataset, path, record, indices), strict=True):
            slices[z] = slice_
            image = slice_hu(dataset, path, record.frames[z] - 1 if record.frames else 0, slice_)
            if not volume_hu.size:
                volume_hu = np.empty((len(record.files), *image.shape), dtype=np.int16)
            volume_hu[z] = image
        del dataset.PixelData  # only the header is needed from here on
    stack = _checked_stack(slices, record)
    spacing_z, affine = stack.spacing_z_mm, stack.affine
    stated = [Attributes.of(item) for item in slices]
    uids = [str(item.text("SOPInstanceUID")) for item in stated]
    flags = record.qc_flags
    if fill_undeclared_padding(volume_hu):
        flags = (*flags, qc.UNDECLARED_PADDING)
    rescales = [(item.real("RescaleSlope"), item.real("RescaleIntercept")) for item in stated]
    flags = (*flags, *check_hu(volume_hu, record.series_key, rescales))
    if record.repairs:
        volume_hu, affine, nearest = _repaired(volume_hu, slices, stack, record)
        spacing_z, uids = record.spacing_z_mm, [uids[index] for index in nearest]
    return Volume(
        volume_hu=volume_hu,
        affine=affine,
        spacing_mm=(spacing_z, *_pixel_spacing(slices[0], record)),
        series_instance_uid=record.series_instance_uid,
        sop_instance_uids=tuple(uids),
        frame_of_reference_uid=next(filter(None, (item.text("FrameOfReferenceUID") for item in stated)), None),
        qc_flags=flags,
    )


def read_source_headers(record: SeriesRecord, root: Path) -> list[Dataset]:
    """Return all attributes but the pixels of a series' files, in slice order; a multi-frame file comes once.

    Raises
    ------
    DicomError
        If a file is missing, damaged, or is not what the scan saw.
    """
    return [_read_dataset(root, path, record, headers_only=True) for path in dict.fromkeys(record.files)]


def slices_of(record: SeriesRecord, sources: Sequence[Dataset]) -> list[Dataset]:
    """Return the attributes of each slice of a series, in slice order.

    Parameters
    ----------
    record
        The series as the scan saw it.
    sources
        What `read_source_headers` returned.

    Raises
    ------
    DicomError
        If the functional groups of a multi-frame file are damaged, or fewer than the scan saw.
    """
    slices: list[Dataset] = [Dataset()] * len(record.files)
    for (path, indices), dataset in zip(_by_file(record).items(), sources, strict=True):
        for z, slice_ in zip(indices, _slices_in(dataset, path, record, indices), strict=True):
            slices[z] = slice_
    return slices


def read_first_header(record: SeriesRecord, root: Path) -> Dataset:
    """Return all attributes but the pixels of a series' first file.

    Raises
    ------
    DicomError
        As `read_source_headers`.
    """
    return _read_dataset(root, record.files[0], record, headers_only=True)


def _by_file(record: SeriesRecord) -> dict[str, list[int]]:
    """Return the slice indices of each file: one, or several for a multi-frame file."""
    found: dict[str, list[int]] = {}
    for z, path in enumerate(record.files):
        found.setdefault(path, []).append(z)
    return found


def _slices_in(dataset: Dataset, path: str, record: SeriesRecord, indices: Sequence[int]) -> list[Dataset]:
    """Return the attributes of the slices that a file holds: those of its frames, if it is a multi-frame file."""
    if not record.frames:
        return [dataset] * len(indices)
    try:
        frames = frame_datasets(dataset)
    except READ_ERRORS as error:
        raise DicomError(f"{path}: damaged functional groups; {_REMEDY}") from error
    if max(record.frames[z] for z in indices) > len(frames):
        raise DicomError(f"{path}: holds fewer frames than the scan saw; {_REMEDY}")
    return [frames[record.frames[z] - 1] for z in indices]


def _repaired(
    volume_hu: NDArray[np.int16], slices: Sequence[Dataset], stack: Stack, record: SeriesRecord
) -> tuple[NDArray[np.int16], NDArray[np.float64], NDArray[np.int64]]:
    """Return the repaired volume, its affine, and for each of its slices the index of the nearest original slice."""
    positions = np.array([Attributes.of(item).reals("ImagePositionPatient", 3) for item in slices])
    affine, nearest = stack.affine.copy(), np.arange(len(volume_hu))
    if UNTILT in record.repairs:
        volume_hu, positions = untilt(volume_hu, positions, affine)
    spacing = record.spacing_z_mm or 0.0
    if RESAMPLE in record.repairs:
        volume_hu, nearest = resample_z(volume_hu, stack.distances_mm, spacing)
    step = positions[-1] - positions[0]
    affine[:3, 0] = step / (stack.distances_mm.sum() / spacing)
    affine[:3, 3] = positions[0]
    return volume_hu, affine, nearest


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) in PIXEL_TAGS


def _read_dataset(root: Path, path: str, record: SeriesRecord, *, headers_only: bool = False) -> Dataset:
    """Read the pixels and what describes them, or all but the pixels; refuse a file that no longer fits the scan."""
    stop, tags = (_at_pixels, None) if headers_only else (behind_pixels, _TAGS)
    try:
        with BoundedFile(root / path) as file:
            if inflates_too_far(file):
                raise DicomError(f"{path}: deflated data expand beyond 1 GiB")
            dataset = read_partial(file, stop, force=True, specific_tags=tags)  # files without preamble exist
    except OSError as error:
        raise DicomError(f"{path}: cannot be read: {error.strerror or 'damaged'}; {_REMEDY}") from error
    except READ_ERRORS as error:
        raise DicomError(f"{path}: damaged DICOM file") from error
    stated = Attributes.of(dataset)
    if stated.text("SeriesInstanceUID") != record.series_instance_uid or stated.text("SOPInstanceUID") is None:
        raise DicomError(f"{path}: belongs to another series than the scan saw; {_REMEDY}")
    # Before memory for pixels is allocated: the scan accepted only sensible sizes.
    if [stated.whole(keyword) for keyword in ("Rows", "Columns")] != [record.rows, record.columns]:
        raise DicomError(f"{path}: image size differs from what the scan saw; {_REMEDY}")
    return dataset


def _pixel_spacing(dataset: Dataset, record: SeriesRecord) -> tuple[float, float]:
    spacing = Attributes.of(dataset).reals("PixelSpacing", 2)
    if spacing is None:
        raise GeometryError(f"series {record.series_key}: PixelSpacing is missing")
    return spacing[0], spacing[1]


def _checked_stack(datasets: Sequence[Dataset], record: SeriesRecord) -> Stack:
    """Return the geometry of the files as read now; refuse one that is irregular or differs from the scan's."""
    positions = [Attributes.of(dataset).reals("ImagePositionPatient", 3) for dataset in datasets]
    orientation = Attributes.of(datasets[0]).reals("ImageOrientationPatient", 6)
    known = [position for position in positions if position is not None]
    if len(known) < len(positions) or orientation is None:
        raise GeometryError(f"series {record.series_key}: slice positions or orientation are missing")
    stack = stack_slices(known, orientation, _pixel_spacing(datasets[0], record))
    uneven = len(irregular(stack.distances_mm)) > 0 and RESAMPLE not in record.repairs
    if uneven or (stack.distances_mm < SAME_POSITION_MM).any():
        raise GeometryError(f"series {record.series_key}: {len(known)} slices do not form a volume with one spacing")
    spacing = np.median(stack.distances_mm) if RESAMPLE in record.repairs else stack.spacing_z_mm or 0
    if stack.order != tuple(range(len(known))) or not np.isclose(spacing, record.spacing_z_mm or 0, rtol=COSINE_ATOL):
        raise DicomError(f"series {record.series_key}: positions differ from what the scan saw; {_REMEDY}")
    return stack
