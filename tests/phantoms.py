"""Tiny CT series as valid DICOM, every attribute of which a test can change."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

Attributes = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def body_hu(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return a body (40 HU) with two lungs (-850 HU) in air (-1000 HU), (Z, Y, X); each slice is a little different."""
    z, y, x = np.meshgrid(np.arange(shape[0]), *(np.linspace(-1, 1, size) for size in shape[1:]), indexing="ij")
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[(x / 0.9) ** 2 + (y / 0.75) ** 2 < 1] = 40
    hu[(((np.abs(x) - 0.42) / 0.3) ** 2 + (y / 0.5) ** 2) < 1] = -850
    return (hu + 3 * z).astype(np.int16)


def own_uid(index: int) -> dict[str, str]:
    """Return, as attributes of slice ``index``, a SOPInstanceUID that the slices of no other series have."""
    return {"SOPInstanceUID": f"1.9.{index}"}


def write_series(
    folder: Path,
    *,
    shape: tuple[int, int, int] = (4, 32, 24),
    spacing_mm: tuple[float, float, float] = (2.5, 0.8, 0.6),
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-10.0, -20.0, 100.0),
    positions: Sequence[Sequence[float]] | None = None,
    hu: ArrayLike | Callable[[tuple[int, int, int]], NDArray[Any]] = body_hu,
    slope: float = 1,
    intercept: float = -1024,
    patient_id: str = "P1",
    study_date: str = "20200401",
    series: str = "1",
    transfer_syntax: str = ExplicitVRLittleEndian,
    shuffle: int | None = None,
    attributes: Attributes | None = None,
) -> list[Path]:
    """Write one file a slice and return the paths, in the order of the slices.

    Parameters
    ----------
    folder
        Is made if it does not exist.
    shape
        (Z, Y, X).
    spacing_mm
        (z, y, x), mm; SliceThickness is z too.
    orientation
        (6,) ImageOrientationPatient.
    origin
        (3,) mm, LPS: centre of the first voxel of slice 0. Slice i lies ``i * z`` along row x column from it.
    positions
        (Z, 3) instead of ``origin`` and z.
    hu
        (Z, Y, X) or what broadcasts to it, or a function of the shape.
    slope, intercept
        Stored values are ``(hu - intercept) / slope``, rounded, int16.
    patient_id, study_date, series
        These decide all UIDs.
    transfer_syntax
        Native, deflated, or one that pydicom can compress to.
    shuffle
        Seed of meaningless file names without ending; None: names in slice order.
    attributes
        Set on every file last; a function gets the slice index. The value None deletes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    volume = np.broadcast_to(np.asarray(hu(shape) if callable(hu) else hu), shape)
    stored = np.rint((volume - intercept) / slope).astype(np.int16)
    normal = np.cross(orientation[:3], orientation[3:])
    if positions is None:
        positions = [np.asarray(origin) + index * spacing_mm[0] * normal for index in range(shape[0])]
    names = [f"{index:04d}.dcm" for index in range(shape[0])]
    if shuffle is not None:
        names = [f"f{number:04d}" for number in np.random.default_rng(shuffle).permutation(shape[0])]
    paths = []
    for index, name in enumerate(names):
        dataset = _slice(stored[index], index, positions[index], orientation, spacing_mm)
        dataset.update({"RescaleSlope": f"{slope:.10g}", "RescaleIntercept": f"{intercept:.10g}"})
        _identify(dataset, patient_id, study_date, series, index)
        _write(dataset, stored[index], folder / name, UID(transfer_syntax), attributes, index)
        paths.append(folder / name)
    return paths


def _slice(
    stored: NDArray[np.int16],
    index: int,
    position: Sequence[float],
    orientation: Sequence[float],
    spacing_mm: tuple[float, float, float],
) -> Dataset:
    dataset = Dataset()
    dataset.update(
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "SOPClassUID": CTImageStorage,
            "Modality": "CT",
            "Manufacturer": "phantom",
            "SeriesDescription": "CHEST",
            "ConvolutionKernel": "STANDARD",
            "PatientName": "Secret^Name",
            "InstanceNumber": index + 1,
            "SliceThickness": f"{spacing_mm[0]:.10g}",
            "ImagePositionPatient": [f"{value:.10g}" for value in position],
            "ImageOrientationPatient": [f"{value:.10g}" for value in orientation],
            "PixelSpacing": [f"{value:.10g}" for value in spacing_mm[1:]],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": stored.shape[0],
            "Columns": stored.shape[1],
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
        }
    )
    return dataset


def _identify(dataset: Dataset, patient_id: str, study_date: str, series: str, index: int) -> None:
    study = ["study", patient_id, study_date]
    dataset.PatientID = patient_id
    dataset.StudyDate = study_date
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=study)
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[*study, "frame"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*study, series])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[*study, series, str(index)])


def _write(
    dataset: Dataset,
    stored: NDArray[np.int16],
    path: Path,
    transfer_syntax: UID,
    attributes: Attributes | None,
    index: int,
) -> None:
    """Store the pixels in the byte order of the syntax, compress if it asks for that, and write."""
    byte_order = ">i2" if transfer_syntax == ExplicitVRBigEndian else "<i2"
    dataset.PixelData = stored.astype(byte_order).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if transfer_syntax.is_encapsulated else transfer_syntax
    if transfer_syntax.is_encapsulated:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    changes = attributes(index) if callable(attributes) else attributes or {}
    for keyword, value in changes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


LESION = np.s_[1:4, 40:58, 16:25]
"""In the right lung (left of the image), where `body_hu` has lung on every slice."""
CONSOLIDATED = np.s_[1:4, 49:58, 16:25]


def ill_body(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return a body with GGO at -500 HU and, below it, consolidation at -50 HU in the right lung."""
    hu = body_hu(shape)
    hu[LESION] = -500
    hu[CONSOLIDATED] = -50
    return hu
