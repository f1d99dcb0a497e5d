"""Small chests as DICOM in which anything can be wrong: the building blocks of the quirks."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cohortseg.synthetic.dicom_files import SeriesHeader, decimal_string, slice_dataset, uid_from_text

SHAPE: Final = (12, 96, 96)
SPACING_MM: Final = (5.0, 3.6, 3.4)
AXIAL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL: Final = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
LUNG_HU: Final = (-900, -800)
"""Range that holds every lung voxel of the chest, and no other voxel."""
_NATIVE: Final = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian)


def chest_hu(shape: Sequence[int] = SHAPE) -> NDArray[np.int16]:
    """Return a chest (Z, Y, X), HU, z to the head: lungs of -850 that narrow upwards, body of 40, spine of 350."""
    z, y, x = np.meshgrid(np.linspace(0, 1, shape[0]), *(np.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
    hu = np.full(tuple(shape), -1000, dtype=np.int16)
    hu[(x / 0.92) ** 2 + (y / 0.7) ** 2 < 1] = 40
    lungs = ((np.abs(x) - 0.42) / 0.32) ** 2 + (y / 0.48) ** 2 < (1 - 0.4 * z) ** 2
    hu[lungs] = -850
    hu[np.hypot(x, y - 0.5) < 0.09] = 350
    return hu


def lung_ml(hu: NDArray[np.int16], voxel_ml: float) -> float:
    """Return the volume of the voxels that are lung."""
    return float(((hu >= LUNG_HU[0]) & (hu <= LUNG_HU[1])).sum() * voxel_ml)


def chest_slices(
    name: str,
    *,
    hu: NDArray[np.int16] | None = None,
    series: str = "1",
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    orientation: Sequence[float] = AXIAL,
    positions: Iterable[Sequence[float]] | None = None,
    **attributes: Any,
) -> list[FileDataset]:
    """Return the slices of a series, not written yet, from the feet up.

    Parameters
    ----------
    name
        Name of the quirk; decides patient and study.
    hu
        (Z, Y, X); None: `chest_hu`.
    series
        Decides the series' UID.
    spacing_mm, orientation, positions
        The geometry; positions (Z, 3) mm instead of steps along row x column.
    attributes
        Set on every slice.
    """
    volume = chest_hu() if hu is None else hu
    normal = np.cross(orientation[:3], orientation[3:])
    steps = np.arange(len(volume))[:, None] * spacing_mm[0] * normal
    places = np.add(steps, (-160.0, -150.0, 50.0)).tolist() if positions is None else positions
    header = SeriesHeader(
        patient_id=f"QRK-{name}",
        sex="F",
        birth_date=date(1960, 1, 15),
        study_date=date(2020, 4, 1),
        study_number=1,
        uid_seed=f"cohortseg/quirk/{name}",
        spacing_mm=spacing_mm,
        first_position_mm=(0.0, 0.0, 0.0),
        slice_thickness_mm=spacing_mm[0],
    )
    slices = []
    for index, (slice_hu, place) in enumerate(zip(volume, places, strict=True)):
        dataset = slice_dataset(header, slice_hu, index, len(volume) - index)
        dataset.SeriesInstanceUID = uid_from_text(f"{header.uid_seed}/series/{series}")
        dataset.SOPInstanceUID = uid_from_text(f"{header.uid_seed}/series/{series}/{index}")
        dataset.ImageOrientationPatient = [decimal_string(value) for value in orientation]
        dataset.ImagePositionPatient = [decimal_string(value) for value in place]
        del dataset.SliceLocation, dataset.PixelPaddingValue
        slices.append(change(dataset, attributes))
    return slices


def change(dataset: FileDataset, attributes: dict[str, Any]) -> FileDataset:
    """Set attributes and return the dataset; None deletes."""
    for keyword, value in attributes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return dataset


def store(
    slices: Iterable[FileDataset], encode: Callable[[NDArray[np.int16]], NDArray[Any]], **attributes: Any
) -> None:
    """Replace each slice's stored values by a function of its HU, and set the attributes that describe them."""
    for dataset in slices:
        hu = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns) - np.int16(1024)
        dataset.PixelData = encode(hu.astype(np.int16)).tobytes()
        change(dataset, attributes)


def write_files(folder: Path, slices: Iterable[FileDataset], syntax: UID = ExplicitVRLittleEndian) -> list[Path]:
    """Write one file per dataset in the given transfer syntax and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, dataset in enumerate(slices, 1):
        path = folder / f"{number:04d}.dcm"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
        if syntax in _NATIVE:
            dataset.file_meta.TransferSyntaxUID = syntax
        elif syntax.name.startswith("RLE") or "2000" in syntax.name:
            dataset.compress(syntax, generate_instance_uid=False)
        # Unlike the dataset, a plain one has no byte order of its own that must be kept.
        plain = Dataset()
        plain.update(dataset)
        plain.file_meta = dataset.file_meta
        plain["PixelData"].VR = "OW" if not dataset.file_meta.TransferSyntaxUID.is_encapsulated else "OB"
        plain.save_as(path, enforce_file_format=True)
        if not (syntax in _NATIVE or dataset.file_meta.TransferSyntaxUID == syntax):
            _transcode(path, syntax)
        paths.append(path)
    return paths


def _transcode(path: Path, syntax: UID) -> None:
    """Compress a file with GDCM, which knows JPEG and JPEG-LS."""
    import gdcm

    reader, converter, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    reader.Read()
    converter.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    converter.SetInput(reader.GetImage())
    converter.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(converter.GetOutput())
    writer.Write()


def enhanced_file(slices: Sequence[FileDataset]) -> FileDataset:
    """Return the slices as one enhanced CT, whose frames keep the given order and their own rescale (PS3.3 A.38).

    It has the functional groups of geometry and values; those of the acquisition are left out, so validators object.
    """
    first = slices[0]
    file = FileDataset("", first, file_meta=first.file_meta, preamble=b"\0" * 128)
    file.SOPClassUID = EnhancedCTImageStorage
    file.NumberOfFrames = len(slices)
    file.PixelData = b"".join(dataset.PixelData for dataset in slices)
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.CTImageFrameTypeSequence = _item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    shared.CTReconstructionSequence = _item(ConvolutionKernel=first.ConvolutionKernel)
    frames = []
    for dataset in slices:
        frame = Dataset()
        frame.PlanePositionSequence = _item(ImagePositionPatient=dataset.ImagePositionPatient)
        frame.PixelValueTransformationSequence = _item(
            RescaleIntercept=dataset.RescaleIntercept, RescaleSlope=dataset.RescaleSlope, RescaleType="HU"
        )
        frame.FrameContentSequence = _item(FrameAcquisitionNumber=1)
        frames.append(frame)
    file.SharedFunctionalGroupsSequence = DicomSequence([shared])
    file.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del file[keyword]
    for keyword in ("RescaleIntercept", "RescaleSlope", "RescaleType", "ConvolutionKernel", "AcquisitionNumber"):
        del file[keyword]
    return file


def _item(**attributes: Any) -> DicomSequence:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return DicomSequence([item])
