"""What of one series is one volume, and what is a volume of its own."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from phantoms import AXIAL, CORONAL, body_hu, own_uid, write_series
from pydicom.dataset import Dataset
from pydicom.uid import (
    SecondaryCaptureImageStorage,
    generate_uid,
)
from runs import only_series

from cohortseg.config import ScanConfig
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.visits import visit_numbers
from cohortseg.dicom.volumes import MAX_VOLUMES
from cohortseg.identity import series_key
from cohortseg.synthetic.quirk_files import chest_slices, enhanced_file, write_files

PHASES_PCT = ("NominalPercentageOfCardiacPhase", "NominalPercentageOfRespiratoryPhase")


def test_planes_of_one_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", shape=(2, 32, 24), orientation=CORONAL, attributes=own_uid)
    axial, coronal = scan_cohort(tmp_path).series
    assert (axial.orientation, axial.n_slices, axial.decision, axial.volume) == ("axial", 4, "selected", 1)
    assert (coronal.orientation, coronal.n_slices, coronal.decision, coronal.volume) == ("coronal", 2, "skipped", 2)
    assert axial.series_instance_uid == coronal.series_instance_uid
    assert axial.series_key == series_key(axial.series_instance_uid) != coronal.series_key
    assert axial.qc_flags == coronal.qc_flags == ("split_series",)


def test_volumes_of_equal_size_keep_their_keys_when_folders_are_renamed(tmp_path: Path) -> None:
    def keys() -> dict[str | None, str]:
        return {record.convolution_kernel: record.series_key for record in scan_cohort(tmp_path).series}

    for first, kernel in ((0, "B30f"), (10, "B70f")):
        tell = {"ConvolutionKernel": kernel}
        write_series(tmp_path / kernel, attributes=lambda z, first=first, tell=tell: own_uid(first + z) | tell)
    before = keys()
    (tmp_path / "B30f").rename(tmp_path / "z")
    assert keys() == before


def test_a_slice_that_lacks_its_kernel_is_no_volume_of_its_own(tmp_path: Path) -> None:
    lacking = {"ConvolutionKernel": None, "FrameOfReferenceUID": None}
    write_series(tmp_path, attributes=lambda index: lacking if index == 2 else {})
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("selected", 4)


def test_stations_of_one_series_cover_it_in_part(tmp_path: Path) -> None:
    for station, origin in enumerate((100.0, 280.0)):
        write_series(
            tmp_path / str(station),
            shape=(8, 16, 16),
            spacing_mm=(30, 1, 1),
            origin=(0, 0, origin),
            attributes=lambda index, station=station: (
                own_uid(index + 100 * station) | {"AcquisitionNumber": station, "SeriesInstanceUID": "1.2.3"}
            ),
            hu=lambda shape, station=station: body_hu(shape) + station,
        )
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [record.n_slices for record in records] == [8, 8]
    assert all({"split_series", "partial_coverage"} <= {*record.qc_flags} for record in records)


@pytest.mark.parametrize(
    "others",
    [
        {"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"]},
        {"ImageOrientationPatient": ["1", "0", "0", "0", "0", "-1"]},
    ],
    ids=["projections", "coronal"],
)
def test_many_slices_of_another_kind_make_no_fragments_of_the_axial_ones(
    tmp_path: Path, others: dict[str, list[str]]
) -> None:
    """Nine slices and three in another space, under one UID with sixty that show something else."""
    for part, (number, origin) in enumerate(((9, 100.0), (3, 140.0))):
        space = {"FrameOfReferenceUID": f"1.2.{part}", "SeriesInstanceUID": "1.2.3"}
        write_series(
            tmp_path / str(part),
            shape=(number, 16, 16),
            origin=(0, 0, origin),
            attributes=lambda index, part=part, space=space: own_uid(index + 100 * part) | space,
        )
    shared = {"FrameOfReferenceUID": "1.2.0", "SeriesInstanceUID": "1.2.3"} | others
    write_series(tmp_path / "others", shape=(60, 16, 16), attributes=lambda index: own_uid(index + 900) | shared)
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(record.n_slices, record.decision) for record in records][1:] == [(9, "selected"), (3, "selected")]


@pytest.mark.parametrize("step_mm", [4.0, 0.0, -10.0])
def test_slabs_that_overlap_do_not_stand_for_the_lungs(tmp_path: Path, step_mm: float) -> None:
    """Three of 35 mm, each with the step from the last slice of the one below to its first."""
    positions = [(0.0, 0.0, 5.0 * z + (step_mm - 5) * (z // 8)) for z in range(24)]
    attributes = [{"AcquisitionNumber": z // 8} for z in range(24)]
    write_series(tmp_path, shape=(24, 16, 16), positions=positions, attributes=attributes.__getitem__)
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("skipped", 24)


def test_two_scans_of_nearly_the_same_place_are_no_slabs(tmp_path: Path) -> None:
    positions = [(0.0, 0.0, 5.0 * (z % 16) + 42.0 * (z // 16 == 1) / 2) for z in range(32)]
    attributes = [{"AcquisitionNumber": z // 16} for z in range(32)]
    write_series(tmp_path, shape=(32, 16, 16), positions=positions, attributes=attributes.__getitem__)
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(record.decision, record.n_slices) for record in records] == [("selected", 16)] * 2


@pytest.mark.parametrize("tilt", [0.0008, -0.0008])
def test_stations_whose_planes_jitter_are_parts_of_one_scan(tmp_path: Path, tilt: float) -> None:
    for station in range(2):
        tilts = [(tilt if station else 0.0008) * (-1) ** z for z in range(8)]
        write_series(
            tmp_path / str(station),
            shape=(8, 16, 16),
            spacing_mm=(30, 1, 1),
            origin=(0, 0, 300.0 * station),
            attributes=lambda z, station=station, tilts=tilts: (
                own_uid(z + 100 * station)
                | {"ImageOrientationPatient": [1, tilts[z], 0, -tilts[z], 1, 0]}
                | {"FrameOfReferenceUID": f"1.2.{station}", "SeriesInstanceUID": "1.2.3"}
            ),
        )
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [("partial_coverage" in record.qc_flags) for record in records] == [True, True]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_names_of_files_do_not_decide_which_planes_are_one(tmp_path: Path, first: int) -> None:
    tilts = np.roll([0.0, -0.0008, 0.0008], first)
    planes = [[1, tilts[z % 3], 0, -tilts[z % 3], 1, 0] for z in range(12)]
    write_series(tmp_path, shape=(12, 16, 16), attributes=lambda z: {"ImageOrientationPatient": planes[z]})
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("selected", 12)


@pytest.mark.parametrize("phase", ["TemporalPositionIdentifier", *PHASES_PCT])
def test_phases_that_interleave_are_volumes_of_their_own(tmp_path: Path, phase: str) -> None:
    write_series(tmp_path, shape=(12, 8, 8), attributes=lambda index: {phase: 40 * (index % 2)})
    assert [record.n_slices for record in scan_cohort(tmp_path).series] == [6, 6]


def write_scans(root: Path, name: str, values: Sequence[int]) -> None:
    """Write scans of three slices each at one place into one series, told apart by an attribute."""
    for number, value in enumerate(values):
        place = (-10.0, -20.0, 110.0)
        attributes = [{"SOPInstanceUID": f"1.9.{99 - number}.{z}", name: value} for z in range(3)]
        write_series(root / f"{value}", shape=(3, 16, 16), origin=place, hu=number, attributes=attributes.__getitem__)


@pytest.mark.parametrize("name", ["NominalPercentageOfRespiratoryPhase", "AcquisitionNumber", "KVP"])
def test_each_of_many_scans_of_one_place_is_a_volume(tmp_path: Path, name: str) -> None:
    write_scans(tmp_path, name, range(80, 81 + MAX_VOLUMES))
    records = scan_cohort(tmp_path).series
    assert [record.n_slices for record in records] == [3] * (1 + MAX_VOLUMES)
    (chosen,) = [record for record in records if record.decision == "selected"]
    if name != "KVP":
        assert (chosen.volume, chosen.files[0].partition("/")[0]) == (1, "80"), "the same at every visit"
    assert chosen.phase == ("respiratory 80 %" if name.endswith("RespiratoryPhase") else None)


def test_no_rotation_of_many_stands_for_the_lungs(tmp_path: Path) -> None:
    numbers = [1 + z // 4 + 10 * (z >= 60) for z in range(120)]
    positions = [(-10.0, -20.0, 2.5 * z + 60 * (z >= 60)) for z in range(120)]
    attributes = [{"AcquisitionNumber": number} for number in numbers]
    write_series(tmp_path, shape=(120, 8, 8), positions=positions, attributes=attributes.__getitem__)
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("skipped", 120)


def test_a_gap_is_no_change_of_voltage(tmp_path: Path) -> None:
    paths = write_series(
        tmp_path, shape=(60, 8, 8), spacing_mm=(5, 1, 1), attributes=lambda z: {"KVP": "120" if z < 50 else "100"}
    )
    paths[50].unlink()
    assert (only_series(tmp_path).reason or "").startswith("gap:")


@pytest.mark.parametrize(
    ("count", "low_mm", "description"), [(4, 110.0, "Thorax corr"), (28, 170.0, "venous 5.0")], ids=["few", "beyond"]
)
def test_what_contradicts_a_scan_or_reaches_beyond_it_is_no_expiration(
    tmp_path: Path, count: int, low_mm: float, description: str
) -> None:
    write_series(tmp_path / "a", shape=(30, 8, 8), spacing_mm=(10, 1, 1), attributes={"SeriesDescription": "Thorax"})
    write_series(
        tmp_path / "b",
        shape=(count, 8, 8),
        spacing_mm=(10, 1, 1),
        origin=(-10.0, -20.0, low_mm),
        hu=1,
        attributes=lambda z: own_uid(z) | {"SeriesDescription": description},
    )
    assert [record.decision for record in scan_cohort(tmp_path).series] == ["skipped"]


def test_images_that_guide_a_needle_do_not_cost_the_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", shape=(30, 16, 16), attributes={"AcquisitionNumber": 1})
    write_scans(tmp_path, "AcquisitionNumber", range(2, 3 + MAX_VOLUMES))
    (chosen,) = scan_cohort(tmp_path).selected
    assert (chosen.n_slices, chosen.files[0].partition("/")[0]) == (30, "scan")


def test_a_shorter_expiration_in_its_series_does_not_cost_the_inspiration(tmp_path: Path) -> None:
    write_series(tmp_path / "in", shape=(20, 16, 16), attributes={"SeriesDescription": "Thorax Insp"})
    write_series(
        tmp_path / "ex",
        shape=(12, 16, 16),
        origin=(-10.0, -20.0, 110.0),
        hu=lambda shape: body_hu(shape) + 1,
        attributes=lambda z: own_uid(z) | {"SeriesDescription": "Thorax Exsp"},
    )
    found = scan_cohort(tmp_path).series
    assert [(record.decision, record.series_description) for record in found] == [
        ("selected", "Thorax Insp"),
        ("alternative", "Thorax Exsp"),
    ]


def test_slices_whose_pixel_spacing_is_rounded_are_one_volume(tmp_path: Path) -> None:
    turns = [["0.703125", "0.6"], ["0.703", "0.601"]]
    write_series(tmp_path, shape=(12, 8, 8), attributes=lambda index: {"PixelSpacing": turns[index % 2]})
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("selected", 12)


@pytest.mark.parametrize("odd", [["0.8007", "0.6"], None], ids=["drifting", "missing"])
def test_slices_whose_pixel_spacing_drifts_or_is_missing_are_no_volume(tmp_path: Path, odd: list[str] | None) -> None:
    turns = [["0.8", "0.6"], odd, ["0.8014", "0.6"] if odd else ["0.8", "0.6"]]
    write_series(tmp_path, shape=(12, 8, 8), attributes=lambda index: {"PixelSpacing": turns[index % 3]})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices) == ("skipped", 12)
    assert record.reason == "PixelSpacing is missing, not two positive numbers, or differs between slices"


@pytest.mark.parametrize("name", ["TemporalPositionIdentifier", *PHASES_PCT])
def test_slabs_of_one_scan_that_each_have_a_phase_are_one_volume(tmp_path: Path, name: str) -> None:
    slabs = [{name: 70 + 2 * (index >= 6)} for index in range(12)]
    write_series(tmp_path, shape=(12, 8, 8), attributes=slabs.__getitem__)
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("selected", 12)


def test_reconstructions_of_two_pixel_spacings_are_volumes_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "a", shape=(6, 8, 8))
    zoomed = write_series(tmp_path / "b", shape=(4, 8, 8), spacing_mm=(2.5, 0.5, 0.5), attributes=own_uid)
    wide, narrow = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(one.n_slices, one.decision, one.spacing_y_mm) for one in (wide, narrow)] == [
        (6, "selected", 0.8),
        (len(zoomed), "selected", 0.5),
    ]


@pytest.mark.parametrize(
    ("macro", "of_the_frame", "of_the_file"),
    [
        ("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionDateTime"),
        ("FrameContentSequence", "StackID", None),
        ("CTReconstructionSequence", "ConvolutionKernel", "ConvolutionKernel"),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", None),
        ("RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase", None),
    ],
)
def test_frames_of_an_enhanced_file_told_apart_by_themselves_are_volumes(
    tmp_path: Path, macro: str, of_the_frame: str, of_the_file: str | None
) -> None:
    slices = [*chest_slices("passes"), *chest_slices("passes")]
    for dataset in slices[len(slices) // 2 :]:
        dataset.PixelData = bytes(reversed(dataset.PixelData))
    file = enhanced_file(slices)
    if of_the_file is not None:
        setattr(file, of_the_file, "20200401090000")
    file.AcquisitionTime = "090000"
    for index, frame in enumerate(file.PerFrameFunctionalGroupsSequence):
        item = Dataset()
        late = 2 * index >= len(slices)
        told = 40.0 + late if "Synchronization" in macro else f"2020040109{30 if late else 0:02}00"
        setattr(item, of_the_frame, told)
        setattr(frame, macro, [item])
    (path,) = write_files(tmp_path, [file])
    (tmp_path / "zz-again.dcm").write_bytes(path.read_bytes())
    records = scan_cohort(tmp_path).series
    assert [record.n_slices for record in records] == [len(slices) // 2] * 2
    assert [record.n_duplicates for record in records] == [1, 0], "a copy of the file counts once"


@pytest.mark.parametrize(
    "told",
    [
        {"FrameType": ["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"]},
        {"FrameType": ["DERIVED", "PRIMARY", "VOLUME", "NONE"], "VolumeBasedCalculationTechnique": "CURVED_MPR"},
    ],
)
def test_the_type_of_its_frames_tells_an_enhanced_file_of_projections(tmp_path: Path, told: dict[str, Any]) -> None:
    file = enhanced_file(chest_slices("projections"))
    file.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    (frame_type,) = file.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence
    for keyword, value in told.items():
        setattr(frame_type, keyword, value)
    write_files(tmp_path, [file])
    assert (only_series(tmp_path).reason or "").startswith("projection")


def test_a_series_that_falls_into_single_slices_is_left_whole(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(12, 8, 8), attributes=lambda index: {"FrameOfReferenceUID": f"1.2.{index}"})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices) == ("skipped", 12)
    assert "12 frames of reference" in (record.reason or "")


def test_a_series_of_as_many_kernels_as_slices_is_left_whole_and_skipped(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(20, 8, 8), attributes=lambda index: {"ConvolutionKernel": f"B{20 + index}f"})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices) == ("skipped", 20)
    assert record.reason == "mixed: files of 20 kernels share this SeriesInstanceUID"


def test_classic_files_that_fall_into_single_slices_are_not_taken_for_frames(tmp_path: Path) -> None:
    slices = chest_slices("both kinds")
    write_files(tmp_path / "enhanced", [enhanced_file(slices[:4])])
    for index, item in enumerate(slices[4:]):
        item.ConvolutionKernel = f"B{20 + index}f"
    write_files(tmp_path / "classic", slices[4:])
    record = only_series(tmp_path)
    assert record.decision == "skipped"
    assert (record.reason or "").startswith("mixed: files of ")


def test_a_fan_of_planes_is_mixed(tmp_path: Path) -> None:
    planes = [(1, 0, 0, 0, np.cos(0.01 * index), np.sin(0.01 * index)) for index in range(20)]
    write_series(
        tmp_path,
        shape=(20, 8, 8),
        attributes=lambda index: {"ImageOrientationPatient": [f"{v:.6f}" for v in planes[index]]},
    )
    record = only_series(tmp_path)
    assert record.reason == "mixed orientations in one series: 18 axial, 2 oblique"
    assert record.qc_flags == ("mixed_orientation",)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PatientID": "P9"}, "files of 2 patients share"),
        ({"StudyInstanceUID": "1.2.9"}, "files of 2 studies share"),
        ({"PatientID": ""}, "1 of 4 files lack the PatientID that the others have"),
        ({"StudyInstanceUID": ""}, "1 of 4 files lack the StudyInstanceUID that the others have"),
        ({"SOPInstanceUID": "1.2.3.1"}, "1 slice(s) carry the SOPInstanceUID of another slice"),
    ],
)
def test_one_volume_per_series(tmp_path: Path, attributes: Mapping[str, str], reason: str) -> None:
    write_series(
        tmp_path,
        attributes=lambda index: attributes if index in (0, 1)[: 2 if "SOPInstanceUID" in attributes else 1] else {},
    )
    assert reason in (only_series(tmp_path).reason or "")


@pytest.mark.parametrize(
    "told_by",
    [
        lambda z: {"AcquisitionNumber": z},
        lambda z: {"SliceThickness": min(z, 10)},
        lambda z: {"SeriesDescription": str(z)},
    ],
)
def test_images_that_track_a_bolus_do_not_cost_the_scan(
    tmp_path: Path, told_by: Callable[[int], dict[str, Any]]
) -> None:
    write_series(tmp_path / "scan", shape=(20, 32, 24), attributes=told_by(1))
    write_series(
        tmp_path / "tracking",
        positions=[(-10.0, -20.0, 110.0)] * 6,
        shape=(6, 32, 24),
        hu=lambda shape: body_hu(shape) + np.arange(1, 7)[:, None, None],
        attributes=lambda z: {**told_by(10 + z), "SOPInstanceUID": generate_uid()},
    )
    scan, tracking = scan_cohort(tmp_path).series
    assert (scan.decision, scan.n_slices, "split_series" in scan.qc_flags) == ("selected", 20, True)
    assert (tracking.decision, tracking.n_slices) == ("skipped", 6)


@pytest.mark.parametrize(("count", "decisions"), [(11, {"selected", "skipped"}), (10, {"skipped"})])
def test_a_scan_beside_images_of_one_place_has_more_than_ten_slices(
    tmp_path: Path, count: int, decisions: set[str]
) -> None:
    write_series(tmp_path / "scan", shape=(count, 16, 16), attributes={"AcquisitionNumber": 1})
    place = {"AcquisitionNumber": 2}
    positions = [(-10.0, -20.0, 110.0)] * 2
    write_series(
        tmp_path / "place", shape=(2, 16, 16), positions=positions, attributes=lambda z: own_uid(z) | place, hu=40
    )
    assert {record.decision for record in scan_cohort(tmp_path).series} == decisions


@pytest.mark.parametrize("name", ["SeriesDescription", "SliceThickness"])
def test_a_chest_and_an_abdomen_of_another_spacing_in_one_series_are_two_volumes(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "a", shape=(90, 8, 8), spacing_mm=(2.5, 1, 1), origin=(0, 0, 0), attributes={name: "2"})
    write_series(tmp_path / "b", shape=(10, 8, 8), spacing_mm=(5, 1, 1), origin=(0, 0, -50), attributes={name: "5"})
    assert [(record.n_slices, record.spacing_z_mm) for record in scan_cohort(tmp_path).series] == [(90, 2.5), (10, 5.0)]


def test_halves_of_a_chest_in_one_series_do_not_stand_for_it(tmp_path: Path) -> None:
    for name, z_mm, first in (("CHEST LOWER", 0, 0), ("CHEST UPPER", 123, 50)):
        write_series(
            tmp_path / name,
            shape=(50, 8, 8),
            spacing_mm=(2.4, 1, 1),
            origin=(0, 0, z_mm),
            attributes=lambda z, name=name, first=first: own_uid(first + z) | {"SeriesDescription": name},
        )
    record = only_series(tmp_path)
    assert (record.n_slices, record.decision) == (100, "skipped")


def test_a_sparse_chest_is_no_fragment_of_an_abdomen(tmp_path: Path) -> None:
    write_series(tmp_path / "a", shape=(81, 8, 8), spacing_mm=(5, 1, 1), attributes={"SeriesDescription": "ABD"})
    chest = {"SeriesDescription": "CHEST HR"}
    write_series(tmp_path / "b", shape=(13, 8, 8), spacing_mm=(20, 1, 1), origin=(0, 0, 520), attributes=chest)
    found = {record.n_slices: record.decision for record in scan_cohort(tmp_path).series}
    assert found == {81: "alternative", 13: "selected"}


def test_a_regular_stack_whose_slice_thickness_alternates_is_one_volume(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(12, 32, 24), attributes=lambda z: {"SliceThickness": 2.5 * (1 + z % 2)})
    assert only_series(tmp_path).n_slices == 12


def test_slices_far_apart_are_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "far", shape=(2, 32, 24), spacing_mm=(140.0, 1, 1))
    write_series(tmp_path / "sparse", shape=(6, 32, 24), spacing_mm=(30.0, 1, 1), series="2")
    decided = {record.n_slices: (record.decision, record.reason or "") for record in scan_cohort(tmp_path).series}
    assert decided == {
        2: ("skipped", "slices lie 140.0 mm or more apart; those of a volume at most 50 mm"),
        6: ("selected", ""),
    }


@pytest.mark.parametrize("other", [{19}, {0, 19}])
def test_an_end_slice_of_another_acquisition_stays_in_its_scan(tmp_path: Path, other: set[int]) -> None:
    write_series(tmp_path, shape=(20, 16, 16), attributes=lambda z: {"AcquisitionNumber": 2 if z in other else 1})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.qc_flags) == ("selected", 20, ())


def test_a_stray_slice_without_position_does_not_cost_the_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", shape=(6, 16, 16))
    stray = pydicom.dcmread(paths[5])
    del stray.ImagePositionPatient
    stray.save_as(paths[5])
    volume, alone = scan_cohort(tmp_path).series
    assert (volume.decision, volume.n_slices) == ("selected", 5)
    assert {"split_series", "files_unreadable"} <= set(volume.qc_flags)
    assert (alone.decision, alone.n_slices) == ("skipped", 1)
    assert "ImagePositionPatient" in (alone.reason or "")


def test_a_stray_slice_between_others_leaves_a_gap(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", shape=(6, 16, 16))
    stray = pydicom.dcmread(paths[2])
    del stray.ImagePositionPatient
    stray.save_as(paths[2])
    assert [record.decision for record in scan_cohort(tmp_path).series] == ["skipped", "skipped"]


def test_a_series_of_which_many_slices_lack_a_position_stays_whole_and_is_skipped(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", shape=(6, 16, 16))
    for path in paths[1::2]:
        stray = pydicom.dcmread(path)
        del stray.ImagePositionPatient
        stray.save_as(path)
    (record,) = scan_cohort(tmp_path).series
    assert (record.decision, record.n_slices) == ("skipped", 6)


def test_orientation_of_slices_is_the_same_to_rounding(tmp_path: Path) -> None:
    write_series(
        tmp_path, attributes=lambda index: {"ImageOrientationPatient": [*AXIAL[:5], f"{0.0004 * (index % 2)}"]}
    )
    assert only_series(tmp_path).decision == "selected"


def test_visits_that_share_a_series_uid_are_volumes_of_their_own_date(tmp_path: Path) -> None:
    """The slices of the second lie evenly between those of the first, and their study has one UID."""
    days = {"a": "20200301", "b": "20200320"}
    for number, (name, day) in enumerate(days.items()):
        write_series(
            tmp_path / name,
            origin=(0, 0, 100 + 1.25 * number),
            attributes=lambda z, day=day: {**(own_uid(z) if day == days["b"] else {}), "StudyDate": day},
        )
    records = scan_cohort(tmp_path).series
    assert [(record.study_date, record.n_slices, record.decision) for record in records] == [
        (date(2020, 3, 1), 4, "selected"),
        (date(2020, 3, 20), 4, "selected"),
    ]


@pytest.mark.parametrize("first", [range(5), range(3, 7), (0, 1, 3, 4, 7, 9)], ids=["ends", "middle", "any"])
def test_slices_of_one_scan_under_two_dates_are_no_visits(tmp_path: Path, first: Collection[int]) -> None:
    write_series(
        tmp_path, shape=(10, 16, 16), attributes=lambda z: {"StudyDate": "20200301" if z in first else "20200320"}
    )
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices) == ("skipped", 10)
    assert record.reason == "mixed: files of 2 study dates share this SeriesInstanceUID"


def test_slices_of_one_scan_each_under_a_date_of_its_own_are_no_visits(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(10, 16, 16), attributes=lambda z: {"StudyDate": f"2020{7 * z % 12 + 1:02d}03"})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices) == ("skipped", 10)


@pytest.mark.parametrize("spacing", ["1.6", None], ids=["corrected", "lost"])
def test_a_scan_sent_again_with_another_spacing_is_measured_by_none_of_both(
    tmp_path: Path, spacing: str | None
) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", attributes={"PixelSpacing": spacing and [spacing, spacing]})
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert {record.decision for record in records} == {"skipped"}
    assert any("with another PixelSpacing" in (record.reason or "") for record in records) == (spacing is not None)


@pytest.mark.parametrize("attribute", [{"PixelSpacing": [1.6, 1.6]}, {"ImageOrientationPatient": None}])
def test_one_corrected_or_bare_copy_does_not_cost_the_scan(tmp_path: Path, attribute: dict[str, Any]) -> None:
    write_series(tmp_path / "a", shape=(12, 16, 16))
    (other, *rest) = write_series(tmp_path / "b", shape=(12, 16, 16), attributes=attribute)
    for path in rest:
        path.unlink()
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert {(record.n_slices, record.decision) for record in records} == {(12, "selected"), (1, "skipped")}
    assert other.name in {path.rpartition("/")[2] for record in records for path in record.files}


def test_another_patients_versions_do_not_decide_which_copies_are_kept(tmp_path: Path) -> None:
    write_series(tmp_path / "a", shape=(10, 16, 16), attributes={"StudyDate": "20200310"})
    for path in write_series(tmp_path / "b", shape=(10, 16, 16), attributes={"StudyDate": "20200305"})[7:]:
        path.unlink()
    write_series(
        tmp_path / "c",
        shape=(10, 16, 16),
        hu=lambda shape: body_hu(shape) + 1,
        attributes=lambda z: own_uid(z) | {"PatientID": "P2", "StudyDate": "20200305"},
    )
    found = {record.patient_id: (record.study_date, record.n_slices) for record in scan_cohort(tmp_path).selected}
    assert found == {"P1": (date(2020, 3, 10), 10), "P2": (date(2020, 3, 5), 10)}


def test_however_many_patients_have_one_series_uid_each_has_a_volume(tmp_path: Path) -> None:
    for number in range(MAX_VOLUMES + 1):
        attributes = {"PatientID": f"P{number}"}
        write_series(tmp_path / f"{number}", shape=(2, 8, 8), hu=number, attributes=attributes)
    records = scan_cohort(tmp_path).series
    assert {record.patient_id for record in records if record.decision == "selected"} == {
        f"P{number}" for number in range(MAX_VOLUMES + 1)
    }


def test_slices_of_a_scan_past_midnight_are_one_volume(tmp_path: Path) -> None:
    write_series(tmp_path, attributes=lambda z: {"StudyDate": "20200302" if z < 2 else "20200301"})
    record = only_series(tmp_path)
    assert (record.n_slices, record.decision, record.study_date) == (4, "selected", date(2020, 3, 1))


def test_a_visit_has_the_dates_that_midnight_parts() -> None:
    days = [date(2020, 3, day) for day in (1, 2, 11, 12, 13)]
    assert visit_numbers([None, *days]) == {None: 0} | dict(zip(days, (0, 0, 1, 1, 2), strict=True))


@pytest.mark.parametrize(
    "attributes",
    [{"PatientID": "P2"}, {"StudyInstanceUID": "1.2.9"}, {"StudyDate": "20200402"}],
    ids=["patients", "studies", "following days"],
)
def test_what_an_anonymiser_put_under_one_series_uid_is_told_apart(tmp_path: Path, attributes: dict[str, str]) -> None:
    write_series(tmp_path / "a")
    write_series(
        tmp_path / "b",
        attributes=lambda index: own_uid(index) | attributes,
        hu=lambda shape: body_hu(shape) + 1,
    )
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(record.decision, record.n_slices) for record in records] == [("selected", 4)] * 2
    assert all(record.qc_flags == ("split_series",) for record in records)


@pytest.mark.parametrize("attribute", ["PatientID", "StudyInstanceUID"])
def test_a_small_scan_is_no_fragment_of_another_patients_or_studys(tmp_path: Path, attribute: str) -> None:
    write_series(tmp_path / "a", shape=(40, 16, 16))
    write_series(tmp_path / "b", shape=(5, 16, 16), attributes=lambda index: own_uid(index) | {attribute: "1.2.9"})
    records = scan_cohort(tmp_path).series
    assert {(record.n_slices, record.decision) for record in records} == {(40, "selected"), (5, "selected")}
    assert all(record.qc_flags == ("split_series",) for record in records)


@pytest.mark.parametrize(
    ("other", "flag"),
    [({"PatientID": "P2"}, "two_patient_ids"), ({"StudyDate": "20200420"}, "study_date_conflict")],
    ids=["patient", "date"],
)
@pytest.mark.parametrize("frame", ["1.2.3", "1.2.4", ""], ids=["one frame", "two frames", "no frame"])
def test_series_of_one_exam_filed_apart_are_flagged(
    tmp_path: Path, other: dict[str, str], flag: str, frame: str
) -> None:
    """As when an archive corrects one of three reconstructions."""
    common = {"StudyInstanceUID": "1.2.5", "FrameOfReferenceUID": frame and "1.2.3"}
    write_series(tmp_path / "a", attributes=common)
    sharp = {"ConvolutionKernel": "B70f", "SeriesInstanceUID": "1.2.6", "FrameOfReferenceUID": frame}
    write_series(tmp_path / "b", attributes=lambda z: own_uid(z) | common | sharp | other)
    write_series(tmp_path / "c", series="3", attributes=common)
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [flag in record.qc_flags for record in records] == [frame == "1.2.3"] * 3


@pytest.mark.parametrize("other", [{"PatientID": "P2"}, {"StudyDate": "20200420"}], ids=["patient", "date"])
def test_exams_whose_uids_an_anonymiser_repeats_are_not_flagged(tmp_path: Path, other: dict[str, str]) -> None:
    for name, attributes in (("a", {}), ("b", other)):
        for kernel in ("1", "2"):
            write_series(
                tmp_path / f"{name}{kernel}",
                origin=(0, 0, 100 + 500 * len(attributes)),
                attributes=attributes
                | {"StudyInstanceUID": "1.2.5", "FrameOfReferenceUID": "1.2.3", "SeriesInstanceUID": f"1.2.6.{kernel}"},
            )
    flags = {flag for record in scan_cohort(tmp_path).series for flag in record.qc_flags}
    assert not flags & {"two_patient_ids", "study_date_conflict"}


def test_one_scan_under_two_patient_ids_is_flagged(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", attributes={"PatientID": "ANON-7"})
    records = scan_cohort(tmp_path).series
    assert [record.patient_id for record in records] == ["ANON-7", "P1"]
    assert all("two_patient_ids" in record.qc_flags for record in records)
    write_series(
        tmp_path / "c", attributes={"PatientID": "C", "SeriesInstanceUID": "1.2.7", "StudyInstanceUID": "1.2.8"}
    )
    assert all("two_patient_ids" in record.qc_flags for record in scan_cohort(tmp_path).series)


def test_slices_numbered_alike_in_two_patients_are_not_of_both(tmp_path: Path) -> None:
    for patient, z_mm in (("P1", 100), ("P2", 101)):
        write_series(tmp_path / patient, patient_id=patient, origin=(-10, -20, z_mm), attributes=own_uid)
    assert [record.qc_flags for record in scan_cohort(tmp_path).series] == [(), ()]


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize(("count", "lost"), [(3, 16), (12, 4), (2, None)])
def test_a_scan_in_slabs_that_lacks_a_slice_is_not_its_slabs(
    tmp_path: Path, count: int, lost: int | None, *, repaired: bool
) -> None:
    """Nor are rotations of two slices each with a gap between: no slab may stand for the lungs."""
    size, gap = (48 // count, 0.0) if lost else (2, 8.0)
    heights = [2.0 * z + gap * (z // size) for z in range(count * size) if z != lost]
    slabs = [z // size for z in range(count * size) if z != lost]
    write_series(
        tmp_path,
        shape=(len(heights), 16, 16),
        spacing_mm=(2, 1, 1),
        positions=[(0.0, 0.0, height) for height in heights],
        attributes=lambda z: {"AcquisitionNumber": slabs[z], "AcquisitionTime": f"1000{slabs[z]:02}"},
    )
    record = only_series(tmp_path, ScanConfig(repair=("resample",) if repaired else ()))
    flag = "slice_gap" if lost or count == 2 else "uneven_spacing"
    assert (record.decision, record.n_slices) == ("selected" if repaired else "skipped", len(heights))
    assert flag in record.qc_flags


def test_scans_of_other_spacing_or_far_apart_are_volumes_of_their_own(tmp_path: Path) -> None:
    for name, spacing, origin in (("chest", 1.0, 100.0), ("belly", 5.0, 40.0), ("legs", 1.0, -300.0)):
        number = ("chest", "belly", "legs").index(name)
        write_series(
            tmp_path / name,
            shape=(10, 16, 16),
            spacing_mm=(spacing, 1, 1),
            origin=(0, 0, origin),
            attributes=lambda index, number=number: own_uid(index + 100 * number) | {"AcquisitionNumber": number},
        )
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(record.decision, record.n_slices) for record in records] == [("selected", 10)] * 3


def test_an_end_slice_without_orientation_is_told_of(tmp_path: Path) -> None:
    write_series(
        tmp_path, shape=(12, 16, 16), attributes=lambda z: {"ImageOrientationPatient": None} if z == 11 else {}
    )
    (scan,) = [record for record in scan_cohort(tmp_path).series if record.decision == "selected"]
    assert (scan.n_slices, "files_unreadable" in scan.qc_flags) == (11, True)


@pytest.mark.parametrize("boundary_mm", [0.02, 2.5, 10.0, 40.0])
def test_a_chest_and_what_was_scanned_beside_it_are_no_broken_scan(tmp_path: Path, boundary_mm: float) -> None:
    """What reaches over all of the lungs is no slab; nor are slices missing where two scans border on each other."""
    for number, (count, top) in enumerate(((60, 400.0), (40, 105.0 - boundary_mm))):
        write_series(
            tmp_path / str(number),
            shape=(count, 8, 8),
            spacing_mm=(5, 1, 1),
            origin=(0, 0, top - 5.0 * (count - 1)),
            attributes=lambda z, number=number: own_uid(z + 100 * number) | {"AcquisitionNumber": number + 1},
        )
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(record.decision, record.n_slices) for record in records] == [("selected", 60), ("selected", 40)]


def test_a_scan_that_reaches_over_most_of_its_series_is_no_slab(tmp_path: Path) -> None:
    write_series(
        tmp_path,
        shape=(44, 8, 8),
        positions=[(0, 0, 5.0 * z if z < 41 else 5.0 * z + 15) for z in range(44)],
        attributes=lambda z: {"AcquisitionNumber": 1 + z // 41},
    )
    records = scan_cohort(tmp_path).series
    assert [(record.n_slices, record.decision) for record in records] == [(41, "selected"), (3, "skipped")]


def test_a_stray_slice_is_one_of_its_own_patient(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(
        tmp_path / "b",
        attributes=lambda z: own_uid(z) | {"PatientID": "P2"} | ({"ImagePositionPatient": None} if z == 3 else {}),
    )
    records = [record for record in scan_cohort(tmp_path).series if record.decision == "selected"]
    assert [(record.patient_id, "files_unreadable" in record.qc_flags) for record in records] == [
        ("P1", False),
        ("P2", True),
    ]


@pytest.mark.parametrize("attribute", ["PatientID", "StudyInstanceUID"])
@pytest.mark.parametrize("of_another", [{5}, set(range(20, 40)), set(range(0, 40, 2))], ids=["one", "half", "by turns"])
def test_one_scan_filed_under_two_names_is_not_two(tmp_path: Path, attribute: str, of_another: set[int]) -> None:
    write_series(tmp_path, shape=(40, 16, 16), attributes=lambda z: {attribute: "1.2.9"} if z in of_another else {})
    record = only_series(tmp_path)
    what = "patients" if attribute == "PatientID" else "studies"
    assert (record.decision, record.n_slices) == ("skipped", 40)
    assert f"mixed: files of 2 {what}" in (record.reason or "")


def test_one_scan_under_two_names_that_lost_slices_is_not_two(tmp_path: Path) -> None:
    paths = write_series(tmp_path, shape=(40, 8, 8), attributes=lambda z: {"PatientID": "P2"} if z >= 20 else {})
    for path in (*paths[10:13], *paths[30:33]):
        path.unlink()
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("skipped", 34)


def test_persons_scanned_far_apart_in_one_frame_of_reference_are_two(tmp_path: Path) -> None:
    for first, patient, z_mm in ((0, "P1", 0), (100, "P2", 210)):
        write_series(
            tmp_path / patient,
            shape=(31, 8, 8),
            spacing_mm=(5, 1, 1),
            origin=(0, 0, z_mm),
            attributes=lambda z, first=first, patient=patient: own_uid(first + z) | {"PatientID": patient},
        )
    assert [(record.patient_id, record.n_slices) for record in scan_cohort(tmp_path).series] == [("P1", 31), ("P2", 31)]


def test_narrow_slabs_of_which_a_slice_is_lost_are_one_scan(tmp_path: Path) -> None:
    """The slab that lost its middle slice has twice the spacing."""
    slices = [z for z in range(45) if z != 22]
    write_series(
        tmp_path,
        shape=(len(slices), 16, 16),
        positions=[(0.0, 0.0, 4.0 * z) for z in slices],
        attributes=lambda index: {"AcquisitionNumber": 1 + slices[index] // 3},
    )
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, "slice_gap" in record.qc_flags) == ("skipped", 44, True)


def test_a_thicker_visit_at_another_height_is_no_fragment(tmp_path: Path) -> None:
    for month, (count, step) in enumerate(((60, 2.0), (10, 12.0)), start=4):
        write_series(
            tmp_path / str(month),
            shape=(count, 16, 16),
            spacing_mm=(step, 1, 1),
            origin=(0, 0, 500.0 * month),
            attributes=lambda z, month=month: (
                own_uid(z + 100 * month) | {"StudyDate": f"20200{month}01", "FrameOfReferenceUID": f"1.2.{month}"}
            ),
        )
    records = scan_cohort(tmp_path).series
    assert [(record.decision, record.n_slices) for record in records] == [("selected", 60), ("selected", 10)]
    assert not any("partial_coverage" in record.qc_flags for record in records)


@pytest.mark.parametrize("date", ["20200402", None])
def test_a_regular_scan_with_dates_by_turns_is_one(tmp_path: Path, date: str | None) -> None:
    write_series(tmp_path, shape=(12, 16, 16), attributes=lambda z: {"StudyDate": date} if z % 2 else {})
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("selected", 12)


@pytest.mark.parametrize(("bad", "selected"), [({11}, 11), (set(range(0, 12, 2)), None)])
def test_slices_of_an_unusable_orientation_are_strays(tmp_path: Path, bad: set[int], selected: int | None) -> None:
    write_series(
        tmp_path,
        shape=(12, 16, 16),
        attributes=lambda z: {"ImageOrientationPatient": ["1", "0", "0", "0", "0", "0"]} if z in bad else {},
    )
    chosen = [record for record in scan_cohort(tmp_path).series if record.decision == "selected"]
    assert [record.n_slices for record in chosen] == ([] if selected is None else [selected])
    assert all("files_unreadable" in record.qc_flags for record in chosen)


def test_a_last_acquisition_of_one_slice_behind_lost_ones_is_no_bolus(tmp_path: Path) -> None:
    write_series(
        tmp_path,
        shape=(41, 16, 16),
        positions=[(0.0, 0.0, 5.0 * (z if z < 40 else 49)) for z in range(41)],
        attributes=lambda z: {"AcquisitionNumber": 1 + (z == 40)},
    )
    record = only_series(tmp_path)
    assert (record.decision, "slice_gap" in record.qc_flags) == ("skipped", True)


def test_an_abdomen_of_double_spacing_below_a_chest_is_no_broken_scan(tmp_path: Path) -> None:
    for number, (count, step, lowest) in enumerate(((90, 2.5, 0.0), (44, 5.0, -220.0))):
        write_series(
            tmp_path / str(number),
            shape=(count, 8, 8),
            spacing_mm=(step, 1, 1),
            origin=(0, 0, lowest),
            attributes=lambda z, number=number: own_uid(z + 100 * number) | {"AcquisitionNumber": number},
        )
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(record.decision, record.n_slices) for record in records] == [("selected", 90), ("selected", 44)]


@pytest.mark.parametrize("space", ["1.2.3", None])
@pytest.mark.parametrize("origin", [(-11.5, -20.0, 100.0), (-10.0, -20.0, 100.8)], ids=["beside", "between"])
def test_two_persons_of_one_frame_of_reference_are_told_apart(
    tmp_path: Path, space: str | None, origin: tuple[float, float, float]
) -> None:
    shared = {"FrameOfReferenceUID": space}
    write_series(tmp_path / "a", shape=(12, 16, 16), attributes=shared)
    write_series(
        tmp_path / "b",
        shape=(11, 16, 16),
        origin=origin,
        attributes=lambda z: own_uid(z) | shared | {"PatientID": "P2", "StudyInstanceUID": "1.2.9"},
    )
    records = scan_cohort(tmp_path).series
    assert [(record.patient_id, record.decision, record.n_slices) for record in records] == [
        ("P1", "selected", 12),
        ("P2", "selected", 11),
    ]


def test_halves_of_one_scan_are_no_persons_whatever_lies_beside_them(tmp_path: Path) -> None:
    write_series(tmp_path / "a", shape=(40, 16, 16), attributes=lambda z: {"PatientID": "P2"} if z >= 20 else {})
    write_series(
        tmp_path / "b",
        shape=(12, 16, 16),
        attributes=lambda z: own_uid(z) | {"PatientID": "P3", "FrameOfReferenceUID": "1.2.77"},
    )
    found = {record.n_slices: record for record in scan_cohort(tmp_path).series}
    assert {count: record.decision for count, record in found.items()} == {40: "skipped", 12: "selected"}
    assert "mixed: files of 2 patients" in (found[40].reason or "")


@pytest.mark.parametrize("lost", [True, False])
def test_pictures_in_a_series_do_not_count_as_its_strays(tmp_path: Path, lost: bool) -> None:
    write_series(
        tmp_path / "a",
        shape=(20, 16, 16),
        attributes=lambda z: {"ImageOrientationPatient": None} if lost and z == 19 else {},
    )
    picture = {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None}
    write_series(tmp_path / "b", shape=(2, 16, 16), attributes=lambda z: own_uid(z) | picture)
    (scan,) = [record for record in scan_cohort(tmp_path).series if record.decision == "selected"]
    assert (scan.n_slices, "files_unreadable" in scan.qc_flags) == ((19, True) if lost else (20, False))


@pytest.mark.parametrize("lost", [0, 7], ids=["an end", "between others"])
def test_a_slice_with_another_date_is_no_visit(tmp_path: Path, lost: int) -> None:
    write_series(tmp_path, shape=(20, 16, 16), attributes=lambda z: {"StudyDate": "20180401"} if z == lost else {})
    scan, stray = scan_cohort(tmp_path).series
    if scan.n_slices == 1:
        scan, stray = stray, scan
    assert (stray.n_slices, stray.decision) == (1, "skipped")
    assert stray.reason == "fragment: 1 slice(s) apart from the 19 of another volume of this series"
    assert "study_date_conflict" in scan.qc_flags
    assert (scan.decision, (scan.reason or "none")[:4]) == (("selected", "none") if lost == 0 else ("skipped", "gap:"))


def test_slices_of_both_ends_with_another_date_are_told(tmp_path: Path) -> None:
    """Too far apart for a fragment, they are skipped for another reason."""
    write_series(
        tmp_path,
        shape=(20, 16, 16),
        spacing_mm=(5, 1, 1),
        attributes=lambda z: {"StudyDate": "20180401"} if z in (0, 19) else {},
    )
    strays, scan = sorted(scan_cohort(tmp_path).series, key=lambda record: record.n_slices)
    assert (strays.n_slices, strays.decision) == (2, "skipped")
    assert (scan.n_slices, scan.decision, "study_date_conflict" in scan.qc_flags) == (18, "selected", True)


def test_a_slice_that_lacks_modality_is_of_the_scan(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(20, 16, 16), attributes=lambda z: {"Modality": None} if z == 7 else {})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.qc_flags) == ("selected", 20, ())


def test_a_volume_of_which_half_has_no_orientation_is_skipped_beside_another_of_its_kind(tmp_path: Path) -> None:
    lacking = {"ImageOrientationPatient": None}
    write_series(tmp_path / "a", shape=(10, 32, 24), attributes=lambda z: lacking if z < 5 else {})
    write_series(tmp_path / "b", shape=(1, 16, 24), attributes=lambda _: own_uid(20))
    half, single = scan_cohort(tmp_path).series
    assert (half.n_slices, half.decision) == (10, "skipped")
    assert (half.reason or "").startswith("ImageOrientationPatient is missing")
    assert single.n_slices == 1


def test_phases_of_an_unusable_orientation_are_skipped_with_that_reason(tmp_path: Path) -> None:
    odd = {"ImageOrientationPatient": [1, 0, 0, 0, 0.9, 0]}
    write_series(
        tmp_path, shape=(12, 16, 16), attributes=lambda z: odd | {"TemporalPositionIdentifier": str(1 + z // 6)}
    )
    (record,) = scan_cohort(tmp_path).series
    assert record.reason == "ImageOrientationPatient is missing or not two perpendicular unit vectors"
