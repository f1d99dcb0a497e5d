"""Quirks of cohorts and of series: what is found, how it is grouped, where its slices lie."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import (
    RLELossless,
)

from cohortseg.synthetic.dicom_files import uid_from_text
from cohortseg.synthetic.quirk_files import (
    CORONAL,
    SHAPE,
    SPACING_MM,
    chest_hu,
    chest_slices,
    enhanced_file,
    lung_ml,
    write_files,
)
from cohortseg.synthetic.quirk_registry import CHEST_ML, VOXEL_ML, Expected, measured, quirk, skipped


@quirk("Nothing odd")
def _plain(folder: Path) -> list[Expected]:
    return [measured(write_files(folder, chest_slices("plain")))]


@quirk("Files without endings in nested folders, in no order")
def _meaningless_names(folder: Path) -> list[Expected]:
    paths = []
    for index, path in enumerate(write_files(folder, chest_slices("names"))):
        (folder / f"d{index % 3}").mkdir(exist_ok=True)
        paths.append(path.rename(folder / f"d{index % 3}" / f"IM_{(index * 7) % 12}.jpg"))
    return [measured(paths)]


@quirk("Archives and other files among the images")
def _archives(folder: Path) -> list[Expected]:
    found = [measured(write_files(folder, chest_slices("archives")))]
    starts = {
        "zip": b"PK\x03\x04",
        "gzip": b"\x1f\x8b\x08",
        "7z": b"7z\xbc\xaf\x27\x1c",
        "rar": b"Rar!\x1a\x07\x00",
        "tar": b"name".ljust(257, b"\0") + b"ustar\0",
    }
    for kind, start in starts.items():
        path = folder / f"{kind}_without_ending"
        path.write_bytes(start.ljust(600, b"\0"))
        found.append(
            Expected(files=[path], decision="no series", reason=f"not DICOM ({kind} archive: unpack it first)")
        )
    (folder / "notes.txt").write_text("not an image")
    return [*found, Expected(files=[folder / "notes.txt"], decision="no series", reason="not DICOM")]


@quirk("Files without the 128 bytes and DICM at their start")
def _no_preamble(folder: Path) -> list[Expected]:
    files = write_files(folder, chest_slices("preamble"))
    for path in files:
        path.write_bytes(path.read_bytes()[132:])
    return [measured(files)]


@quirk("Bare data sets: neither those bytes nor file meta information")
def _bare(folder: Path) -> list[Expected]:
    files = write_files(folder, chest_slices("bare"))
    for path in files:
        content = path.read_bytes()
        (meta_length,) = struct.unpack("<I", content[140:144])  # of what follows (0002,0000)
        path.write_bytes(content[144 + meta_length :])
    return [measured(files, "transfer_syntax_missing")]


@quirk("Enhanced multi-frame CT: frames in any order, each with a rescale of its own")
def _enhanced(folder: Path) -> list[Expected]:
    slices = chest_slices("enhanced")
    for index, dataset in enumerate(slices):
        pixels = np.frombuffer(dataset.PixelData, "<i2") - np.int16(10 * index)
        dataset.PixelData, dataset.RescaleIntercept = pixels.tobytes(), -1024 + 10 * index
    return [measured(write_files(folder, [enhanced_file([slices[(index * 5) % 12] for index in range(12)])]))]


@quirk("Enhanced multi-frame CT each of whose frames tells its orientation and pixel spacing")
def _enhanced_grid_a_frame(folder: Path) -> list[Expected]:
    file = enhanced_file(chest_slices("grid a frame"))
    (shared,) = file.SharedFunctionalGroupsSequence
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        for frame in file.PerFrameFunctionalGroupsSequence:
            frame[keyword] = shared[keyword]
        del shared[keyword]
    return [measured(write_files(folder, [file]))]


@quirk("One series of axial slices and coronal reformats")
def _mixed_planes(folder: Path) -> list[Expected]:
    axial = write_files(folder / "a", chest_slices("planes"))
    coronal = chest_slices("planes", hu=chest_hu()[:4], orientation=CORONAL, SOPInstanceUID=None)
    for index, dataset in enumerate(coronal):
        dataset.SOPInstanceUID = f"1.2.3.{index}"
    other = write_files(folder / "c", coronal)
    return [measured(axial, "split_series"), skipped(other, "coronal slices", "split_series")]


def _two_volumes(folder: Path, name: str, second: dict[str, Any], reason: str) -> list[Expected]:
    """Write one series of two volumes, of 12 and 11 slices, that differ in some attributes."""
    files = write_files(folder / "a", chest_slices(name))
    slices = chest_slices(name, hu=chest_hu()[:11] + np.int16(3), **second)
    for index, dataset in enumerate(slices):
        dataset.SOPInstanceUID = uid_from_text(f"{name}/second/{index}")
    other = write_files(folder / "b", slices)
    alternative = Expected(files=other, decision="alternative", reason=reason, qc_flags=("split_series",), n_slices=11)
    return [measured(files, "split_series"), alternative]


@quirk("One series of two reconstructions: soft and lung kernel")
def _two_kernels(folder: Path) -> list[Expected]:
    return _two_volumes(folder, "kernels", {"ConvolutionKernel": "LUNG"}, "its kernel is not soft")


@quirk("One series of two scans, the patient having moved")
def _two_frames_of_reference(folder: Path) -> list[Expected]:
    return _two_volumes(folder, "spaces", {"FrameOfReferenceUID": "1.2.3.9"}, "11 slices against 12")


@quirk("One series of two acquisitions at the same positions")
def _two_acquisitions(folder: Path) -> list[Expected]:
    return _two_volumes(folder, "acquisitions", {"AcquisitionNumber": 2}, "11 slices against 12")


@quirk("One series of two acquisitions whose slices alternate")
def _alternating_acquisitions(folder: Path) -> list[Expected]:
    slices = chest_slices("alternating", hu=chest_hu((24, *SHAPE[1:])), spacing_mm=(2.5, *SPACING_MM[1:]))
    for index, dataset in enumerate(slices):
        dataset.AcquisitionNumber = 1 + index % 2
        dataset.SliceThickness = str(SPACING_MM[0])
    files = write_files(folder, slices[:23])
    reason = "11 slices against 12"
    alternative = Expected(
        files=files[1::2], decision="alternative", reason=reason, qc_flags=("split_series",), n_slices=11
    )
    return [measured(files[::2], "split_series", tolerance_pct=5.0), alternative]


@quirk("One series of two phases in time, of one acquisition")
def _two_phases(folder: Path) -> list[Expected]:
    return _two_volumes(folder, "phases", {"TemporalPositionIdentifier": 2}, "11 slices against 12")


@quirk("One series of two scans at the same positions that only their time tells apart")
def _two_times(folder: Path) -> list[Expected]:
    return _two_volumes(folder, "times", {"AcquisitionTime": "100230"}, "11 slices against 12")


@quirk("A step-and-shoot scan, which numbers each slice as an acquisition")
def _acquisition_a_slice(folder: Path) -> list[Expected]:
    slices = chest_slices("stepping")
    for index, dataset in enumerate(slices):
        dataset.AcquisitionNumber = index
    return [measured(write_files(folder, slices))]


@quirk("Slices of another image size at the end of a series")
def _mixed_sizes(folder: Path) -> list[Expected]:
    slices = chest_slices("sizes")
    for dataset in slices[9:]:
        pixels = np.frombuffer(dataset.PixelData, "<i2").reshape(96, 96)[::2, ::2]
        dataset.PixelData, dataset.Rows, dataset.Columns = pixels.tobytes(), 48, 48
    files = write_files(folder, slices)
    flags = ("split_series", "partial_coverage")
    small = Expected(
        files=files[9:], decision="alternative", reason="a field of view of 163 mm against 326 mm", qc_flags=flags
    )
    return [measured(files[:9], *flags, ml=lung_ml(chest_hu()[:9], VOXEL_ML), n=9), small]


@quirk("One study of several usable series: the soft one of all slices is preferred")
def _several_series(folder: Path) -> list[Expected]:
    best = write_files(folder / "1", chest_slices("several"))
    lung = write_files(folder / "2", chest_slices("several", series="2", ConvolutionKernel="B70f"))
    slab = write_files(folder / "3", chest_slices("several", series="3", hu=chest_hu()[:3]))
    ones = ((lung, "its kernel is not soft"), (slab, "reaches over 10 mm against 55 mm"))
    return [measured(best), *(Expected(files=paths, decision="alternative", reason=reason) for paths, reason in ones)]


@quirk("A slice is missing")
def _gap(folder: Path) -> list[Expected]:
    slices = chest_slices("gap", spacing_mm=(4.0, *SPACING_MM[1:]))
    files = write_files(folder, slices[:5] + slices[6:])
    repaired = measured(
        files, "slice_gap", "resampled", n=11, ml=CHEST_ML * 4.0 / SPACING_MM[0], tolerance_pct=2.0, repair=["resample"]
    )
    return [skipped(files, "gap: 8.00 mm after slice 5 of 11", "slice_gap"), repaired]


@quirk("Distances between slices change along the patient")
def _uneven_spacing(folder: Path) -> list[Expected]:
    heights = np.concatenate([np.arange(7) * 4.0, 24.0 + np.arange(1, 6) * 6.0])
    files = write_files(folder, chest_slices("uneven", positions=[(-160.0, -150.0, z) for z in heights]))
    # Areas between slices are interpolated; at 4 mm, the last slice lies at 52 mm and reaches to 54 mm.
    fine = np.arange(-2.0, 54.0, 0.1) + 0.05
    areas_mm2 = (chest_hu() == -850).sum(axis=(1, 2)) * SPACING_MM[1] * SPACING_MM[2]
    areas = np.interp(fine, heights, areas_mm2).sum() * 0.1 / 1000.0
    repaired = measured(
        files, "uneven_spacing", "resampled", ml=float(areas), tolerance_pct=4.0, repair=["resample"], n=12
    )
    return [skipped(files, "uneven spacing: 4.00 to 6.00 mm", "uneven_spacing"), repaired]


@quirk("A slice of one value throughout, between others")
def _blank_slice(folder: Path) -> list[Expected]:
    hu = chest_hu()
    hu[5] = -1024
    files = write_files(folder, chest_slices("blank", hu=hu))
    reason = "1 of 12 slices, between others, hold one value and no image"
    return [Expected(files=files, status="not_evaluable", qc_flags=("blank_slices",), reason=reason)]


@quirk("A slice apart from the others, which cannot be used")
def _fragment(folder: Path) -> list[Expected]:
    slices = chest_slices("fragment")
    slices[5].FrameOfReferenceUID = "1.2.3.9"
    slices[6].PhotometricInterpretation = "RGB"
    files = write_files(folder, slices)
    reason = "fragment: 1 slice(s) apart from the 11 of another volume of this series"
    return [
        skipped([*files[:5], *files[6:]], "PhotometricInterpretation is RGB in 1 of 11 slices", "split_series"),
        skipped(files[5:6], reason, "single_slice", "split_series", "partial_coverage"),
    ]


@quirk("Slices sheared by 12 degrees against their normal")
def _gantry_tilt(folder: Path) -> list[Expected]:
    shear = np.tan(np.radians(12.0)) * SPACING_MM[0]
    places = [(-160.0, -150.0 + shear * index, SPACING_MM[0] * index) for index in range(SHAPE[0])]
    files = write_files(folder, chest_slices("tilt", positions=places))
    repaired = measured(files, "gantry_tilt", "untilted", tolerance_pct=6.0, repair=["untilt"])
    return [skipped(files, "gantry tilt: slices are sheared by 12.0 degrees", "gantry_tilt"), repaired]


@quirk("A slice lies 15 mm beside the others")
def _shifted_slices(folder: Path) -> list[Expected]:
    places = [(-160.0 + 15.0 * (index == 5), -150.0, 5.0 * index) for index in range(SHAPE[0])]
    return [skipped(write_files(folder, chest_slices("shifted", positions=places)), "shifted against each other")]


@quirk("Slices repeated with the same pixels")
def _copies(folder: Path) -> list[Expected]:
    files = write_files(folder / "a", chest_slices("copies"))
    more = write_files(folder / "b", chest_slices("copies")[:4], RLELossless)
    copies = Expected(files=more, decision="copy", reason="copy of a slice of its series, with the same pixels")
    return [measured(files, "duplicates_dropped"), copies]


@quirk("Other pixels at the same positions")
def _conflicting_slices(folder: Path) -> list[Expected]:
    more = chest_slices("conflict", hu=chest_hu() + np.int16(5))
    for index, dataset in enumerate(more):
        dataset.SOPInstanceUID = f"1.2.5.{index}"
    files = write_files(folder / "a", chest_slices("conflict")) + write_files(folder / "b", more)
    return [skipped(files, "different pixels at the same position (12 of 24", "conflicting_slices")]


@quirk("Rows run to the front, slices to the feet")
def _upside_down(folder: Path) -> list[Expected]:
    return [measured(write_files(folder, chest_slices("down", orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0))))]


@quirk("Columns run to the patient's right, slices to the feet")
def _mirrored(folder: Path) -> list[Expected]:
    return [measured(write_files(folder, chest_slices("mirrored", orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0))))]


@quirk("Axial slices that lean by 6 degrees")
def _slightly_oblique(folder: Path) -> list[Expected]:
    cosines = (1.0, 0.0, 0.0, 0.0, np.cos(np.radians(6.0)), np.sin(np.radians(6.0)))
    return [measured(write_files(folder, chest_slices("leaning", orientation=cosines)), tolerance_pct=0.01)]


@quirk("Slices that lean by 30 degrees")
def _oblique(folder: Path) -> list[Expected]:
    cosines = (1.0, 0.0, 0.0, 0.0, np.cos(np.radians(30.0)), np.sin(np.radians(30.0)))
    return [skipped(write_files(folder, chest_slices("oblique", orientation=cosines)), "oblique slices (30 degrees")]


@quirk("A series of one slice")
def _single_slice(folder: Path) -> list[Expected]:
    files = write_files(folder, chest_slices("single", hu=chest_hu()[3:4], SliceThickness="5"))
    return [measured(files, "single_slice", ml=None, n=1)]
