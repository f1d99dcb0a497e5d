"""Writing one synthetic series as DICOM: CT Image Storage, one file per slice."""

from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from cohortseg import __version__
from cohortseg.errors import StoreError
from cohortseg.synthetic.scanner import PADDING_HU

RESCALE_INTERCEPT = -1024


@dataclass(frozen=True, kw_only=True)
class SeriesHeader:
    """What all files of a series share."""

    patient_id: str
    """PatientID (0010,0020)."""
    sex: str
    """PatientSex (0010,0040): F or M."""
    birth_date: date
    """PatientBirthDate (0010,0030)."""
    study_date: date
    """StudyDate (0008,0020)."""
    study_number: int
    """StudyID (0020,0010)."""
    uid_seed: str
    """Text from which all UIDs of the series and its study are derived."""
    spacing_mm: tuple[float, float, float]
    """Between slice centres, rows, columns."""
    first_position_mm: tuple[float, float, float]
    """ImagePositionPatient (0020,0032) of the lowest slice: x, y, z in LPS."""
    slice_thickness_mm: float
    """SliceThickness (0018,0050)."""

    @property
    def series_instance_uid(self) -> str:
        """SeriesInstanceUID (0020,000E)."""
        return uid_from_text(f"{self.uid_seed}/series")

    @property
    def study_instance_uid(self) -> str:
        """StudyInstanceUID (0020,000D)."""
        return uid_from_text(f"{self.uid_seed}/study")


def uid_from_text(text: str) -> UID:
    """Return a UID that depends on the text only: root 2.25 and a number of 120 bits (DICOM PS3.5, B.2)."""
    return UID(f"2.25.{int.from_bytes(sha256(text.encode()).digest()[:15], 'big')}")


def write_series(folder: Path, header: SeriesHeader, volume_hu: NDArray[np.int16]) -> None:
    """Write a series into a folder, which is created.

    Parameters
    ----------
    folder
        Gets one file per slice, ``0001.dcm`` being the slice nearest the head.
    header
        What the files share.
    volume_hu
        (Z, Y, X) int16, HU; index z rises towards the head.

    Raises
    ------
    StoreError
        If a file cannot be written.
    """
    count = len(volume_hu)
    try:
        folder.mkdir(parents=True)
        for number in range(1, count + 1):  # scanners number from the head to the feet
            index = count - number
            dataset = slice_dataset(header, volume_hu[index], index, number)
            dataset.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    except OSError as error:
        raise StoreError(f"{folder}: the series cannot be written: {str(error).splitlines()[0]}") from error


def slice_dataset(header: SeriesHeader, slice_hu: NDArray[np.int16], index: int, number: int) -> FileDataset:
    """Return one file: ``index`` counts from the feet, ``number`` from the head."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid_from_text(f"{header.uid_seed}/instance/{index}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid_from_text("cohortseg/implementation")
    meta.ImplementationVersionName = f"COHORTSEG {__version__}"[:16]
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    _add_study(dataset, header)
    _add_acquisition(dataset, header)
    _add_image(dataset, header, slice_hu, index, number)
    return dataset


def _add_study(dataset: FileDataset, header: SeriesHeader) -> None:
    """Add the Patient, General Study, General Series and Frame of Reference modules (PS3.3, C.7.1 to C.7.4)."""
    born, taken = header.birth_date, header.study_date
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = f"Synthetic^{header.patient_id}"
    dataset.PatientID = header.patient_id
    dataset.PatientBirthDate = born.strftime("%Y%m%d")
    dataset.PatientSex = header.sex
    dataset.PatientAge = f"{taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day)):03d}Y"
    dataset.PatientComments = "Synthetic phantom, not a person"
    dataset.StudyInstanceUID = header.study_instance_uid
    dataset.StudyID = str(header.study_number)
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = taken.strftime("%Y%m%d")
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "090000"
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "CT CHEST WITHOUT CONTRAST"
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = header.series_instance_uid
    dataset.SeriesNumber = 2
    dataset.SeriesDescription = "AXIAL CHEST SYNTHETIC"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.FrameOfReferenceUID = uid_from_text(f"{header.uid_seed}/frame")
    dataset.PositionReferenceIndicator = ""


def _add_acquisition(dataset: FileDataset, header: SeriesHeader) -> None:
    """Add the General Equipment module and the acquisition part of the CT Image module (PS3.3, C.7.5.1 and C.8.2.1)."""
    dataset.Manufacturer = "cohortseg"
    dataset.ManufacturerModelName = "synthetic chest"
    dataset.SoftwareVersions = __version__
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.KVP = 120
    dataset.ConvolutionKernel = "STANDARD"
    dataset.AcquisitionNumber = 1
    dataset.SliceThickness = decimal_string(header.slice_thickness_mm)
    dataset.GantryDetectorTilt = 0
    dataset.BurnedInAnnotation = "NO"


def _add_image(
    dataset: FileDataset, header: SeriesHeader, slice_hu: NDArray[np.int16], index: int, number: int
) -> None:
    """Add the Image Plane, Image Pixel and VOI LUT modules and the pixels (PS3.3, C.7.6.2, C.7.6.3 and C.11.2)."""
    x, y, z = header.first_position_mm
    dataset.InstanceNumber = number
    position = (x, y, z + index * header.spacing_mm[0])
    dataset.ImagePositionPatient = [decimal_string(value) for value in position]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SliceLocation = decimal_string(position[2])
    dataset.PixelSpacing = [decimal_string(header.spacing_mm[1]), decimal_string(header.spacing_mm[2])]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = slice_hu.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.PixelPaddingValue = PADDING_HU - RESCALE_INTERCEPT
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = RESCALE_INTERCEPT, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = -600, 1500
    dataset.PixelData = (slice_hu - np.int16(RESCALE_INTERCEPT)).astype("<i2").tobytes()


def decimal_string(value: float) -> str:
    """Return a decimal string of at most 16 characters (VR DS)."""
    return f"{value:.5f}".rstrip("0").rstrip(".")
