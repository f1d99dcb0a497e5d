"""Quirks of single attributes, of pixels and of damaged or hostile files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from cohortseg.synthetic.quirk_files import (
    change,
    chest_hu,
    chest_slices,
    store,
    write_files,
)
from cohortseg.synthetic.quirk_registry import Expected, measured, quirk, skipped


@dataclass(frozen=True)
class _Simple:
    """A series with something changed on every slice, or stored in another way."""

    name: str
    meaning: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    """Why it is skipped; None: it is measured."""
    flags: tuple[str, ...] = ()
    syntax: UID = ExplicitVRLittleEndian

    def write(self, folder: Path) -> list[Expected]:
        """Write its files."""
        files = write_files(folder, chest_slices(self.name, **self.attributes), self.syntax)
        return [measured(files, *self.flags) if self.reason is None else skipped(files, self.reason, *self.flags)]


_SIMPLE: Final = (
    _Simple("localizer", "a scout", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    _Simple(
        "projection", "a maximum intensity projection", {"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "projection"
    ),
    _Simple("screen_save", "a dose or protocol page", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen"),
    _Simple("secondary_capture", "a screen shot", {"SOPClassUID": SecondaryCaptureImageStorage}, "secondary capture"),
    _Simple("rtstruct", "contours", {"Modality": "RTSTRUCT", "SOPClassUID": RTStructureSetStorage}, "is RTSTRUCT"),
    _Simple("segmentation", "a mask", {"Modality": "SEG", "SOPClassUID": SegmentationStorage}, "modality is SEG"),
    _Simple("pdf", "a scanned report", {"SOPClassUID": EncapsulatedPDFStorage}, "Encapsulated PDF"),
    _Simple(
        "derived_axial",
        "an axial reformat",
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]},
        flags=("derived_reformat",),
    ),
    _Simple(
        "lossy_original",
        "an original that an archive compressed with loss, and so DERIVED",
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"], "LossyImageCompression": "01"},
        flags=("lossy_compression",),
    ),
    _Simple(
        "material_map",
        "an iodine map of a scan of two energies",
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]},
        "map of a material",
    ),
    _Simple(
        "virtual_unenhanced",
        "a scan of two energies, its iodine taken away",
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesDescription": "Chest 1.5 VNC"},
        flags=("spectral_image",),
    ),
    _Simple("rescale_missing", "no slope", {"RescaleSlope": None}, "RescaleSlope or RescaleIntercept is missing"),
    _Simple(
        "spacing_zero",
        "PixelSpacing of 0",
        {"PixelSpacing": ["0", "0"]},
        "PixelSpacing is missing, not two positive",
    ),
    _Simple(
        "spacing_in_micrometres",
        "PixelSpacing in another unit",
        {"PixelSpacing": ["3600", "3400"]},
        "the image is 345600 mm wide",
    ),
    _Simple("no_samples_per_pixel", "no SamplesPerPixel", {"SamplesPerPixel": None}),
    _Simple("no_positions", "no positions", {"ImagePositionPatient": None}, "ImagePositionPatient is missing in 12"),
    _Simple("monochrome1", "shown inverted", {"PhotometricInterpretation": "MONOCHROME1"}, flags=("monochrome1",)),
    _Simple(
        "text_in_pixels",
        "text drawn into the pixels, by the header",
        {"BurnedInAnnotation": "YES"},
        flags=("burned_in_annotation",),
    ),
    _Simple(
        "anonymised_away",
        "neither patient nor date",
        {"PatientID": "", "StudyDate": None},
        flags=("missing_patient_id", "missing_study_date"),
    ),
    _Simple(
        "hostile_names",
        "identifiers that are paths, or 10 kB long",
        {
            "PatientID": "../../etc/passwd",
            "StudyInstanceUID": "../CON",
            "SeriesDescription": "\u202e/tmp/" + "x" * 10000,
        },
    ),
    *(
        _Simple(name, f"transfer syntax {syntax.name}", syntax=syntax)
        for name, syntax in (
            ("implicit_vr", ImplicitVRLittleEndian),
            ("big_endian", ExplicitVRBigEndian),
            ("deflated", DeflatedExplicitVRLittleEndian),
            ("rle", RLELossless),
            ("jpeg_lossless", JPEGLosslessSV1),
            ("jpeg_ls", JPEGLSLossless),
            ("jpeg_2000", JPEG2000Lossless),
        )
    ),
)
for _simple in _SIMPLE:
    quirk(_simple.meaning, _simple.name)(_simple.write)


@quirk("A rescale of its own on every slice")
def _rescale_a_slice(folder: Path) -> list[Expected]:
    slices = chest_slices("rescale")
    for index, dataset in enumerate(slices):
        slope = 0.5 + 0.25 * (index % 2)
        store([dataset], lambda hu, slope=slope: np.rint((hu + 2000) / slope).astype("<u2"))  # type: ignore[misc]
        change(dataset, {"RescaleSlope": str(slope), "RescaleIntercept": "-2000", "PixelRepresentation": 0})
    return [measured(write_files(folder, slices))]


@quirk("A slice whose rescale lacks the intercept of the others")
def _wrong_intercept(folder: Path) -> list[Expected]:
    slices = chest_slices("intercept")
    slices[5].RescaleIntercept = "0"
    reason = "1 of 12 slices have another rescale than most, and values that do not fit"
    return [
        Expected(files=write_files(folder, slices), status="not_evaluable", qc_flags=("odd_slices",), reason=reason)
    ]


@quirk("Values from which 1024 was subtracted twice")
def _rescale_twice(folder: Path) -> list[Expected]:
    return _no_hu(folder, chest_hu() - np.int16(1024))


@quirk("Grey values 0 to 255 of a lung window, called HU")
def _eight_bit_window(folder: Path) -> list[Expected]:
    return _no_hu(folder, np.clip((chest_hu() + 1350.0) / 1500.0 * 255.0, 0, 255).astype(np.int16))


def _no_hu(folder: Path, hu: NDArray[np.int16]) -> list[Expected]:
    files = write_files(folder, chest_slices(folder.name, hu=hu))
    reason = "values are not Hounsfield units of a chest"
    return [Expected(files=files, status="not_evaluable", qc_flags=("hu_implausible",), reason=reason)]


@quirk("A field of view padded with -2000, declared as an unsigned number")
def _padding(folder: Path) -> list[Expected]:
    hu = chest_hu()
    hu[:, :5] = -2000
    slices = chest_slices("padding", hu=hu)
    for dataset in slices:
        dataset.add_new("PixelPaddingValue", "US", 2**16 - 976)
    return [measured(write_files(folder, slices))]


@quirk("Unsigned values of 16 bits, up to 65535")
def _unsigned(folder: Path) -> list[Expected]:
    slices = chest_slices("unsigned")
    store(slices, lambda hu: ((hu + 1024) * 40).astype("<u2"), PixelRepresentation=0, RescaleSlope="0.025")
    return [measured(write_files(folder, slices))]


@quirk("Unsigned values of 12 bits with foreign bits (an overlay) above them")
def _twelve_bits(folder: Path) -> list[Expected]:
    slices = chest_slices("twelve", BitsStored=12, HighBit=11)
    store(slices, lambda hu: (hu + 1024).astype("<u2") | np.uint16(0xA000), PixelRepresentation=0)
    return [measured(write_files(folder, slices))]


@quirk("Signed values of 12 bits whose sign does not fill the word")
def _signed_twelve_bits(folder: Path) -> list[Expected]:
    slices = chest_slices("signed", BitsStored=12, HighBit=11, RescaleIntercept=0)
    store(slices, lambda hu: hu.astype("<u2") & np.uint16(0x0FFF))
    return [measured(write_files(folder, slices))]


@quirk("A file that was cut off")
def _truncated(folder: Path) -> list[Expected]:
    files = write_files(folder, chest_slices("cut"))
    files[4].write_bytes(files[4].read_bytes()[:-2000])
    return [Expected(files=files, status="failed", reason="0005.dcm: pixel data (Explicit VR Little Endian) cannot be")]


@quirk("Rows and Columns of 4096 over the pixels of a small image")
def _claims_too_much(folder: Path) -> list[Expected]:
    files = write_files(folder, chest_slices("claim", Rows=4096, Columns=4096, PixelSpacing=["0.1", "0.1"]))
    return [Expected(files=files, status="failed", reason="0001.dcm: pixel data (Explicit VR Little Endian) cannot be")]


@quirk("A JPEG 2000 image whose code stream asks for 60000 x 60000 pixels")
def _bomb(folder: Path) -> list[Expected]:
    files = write_files(folder, chest_slices("bomb"), JPEG2000Lossless)
    size, huge = (96).to_bytes(4, "big") * 2, (60000).to_bytes(4, "big") * 2
    for path in files:
        content = path.read_bytes()
        at = content.index(b"\xff\x4f\xff\x51") + 8
        path.write_bytes(content[:at] + content[at:].replace(size, huge, 1))
    reason = "the compressed image is 60000 x 60000, the header says 96 x 96"
    return [Expected(files=files, status="failed", reason=reason)]
