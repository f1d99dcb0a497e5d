"""What is decided about one series, and why: selected or skipped, volumes of their own, copies, flags."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from phantoms import AXIAL, CORONAL, SAGITTAL, body_hu, write_series
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from runs import only_series

from cohortseg.config import ScanConfig
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.identity import series_key
from cohortseg.store.schemas import MANIFEST
from cohortseg.store.tables import table_from_rows
from cohortseg.synthetic.quirk_files import chest_slices, enhanced_file, write_files


def test_fields_are_the_manifest_columns() -> None:
    assert [field.name for field in fields(SeriesRecord)] == [column.name for column in MANIFEST.columns]


def test_a_plain_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", shape=(5, 32, 24), spacing_mm=(2.5, 0.8, 0.6), study_date="20200401")
    record = only_series(tmp_path)
    assert (record.decision, record.reason, record.qc_flags) == ("selected", None, ())
    assert (record.n_files, record.n_slices, record.n_duplicates) == (5, 5, 0)
    assert (record.rows, record.columns, record.orientation) == (32, 24, "axial")
    assert (record.spacing_z_mm, record.spacing_y_mm, record.spacing_x_mm) == pytest.approx((2.5, 0.8, 0.6))
    assert (record.patient_id, record.study_date) == ("P1", date(2020, 4, 1))
    assert record.files == tuple(f"a/{path.name}" for path in paths)


def test_rows_fit_the_manifest(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(
        tmp_path / "b", series="2", attributes={"PatientID": "", "StudyDate": None, "ImagePositionPatient": None}
    )
    frame = table_from_rows([asdict(record) for record in scan_cohort(tmp_path).series], MANIFEST)
    assert frame.height == 2
    assert frame["spacing_z_mm"].to_list() == [None, 2.5]


def test_order_is_from_feet_to_head_also_for_falling_positions(tmp_path: Path) -> None:
    write_series(tmp_path, spacing_mm=(-2.5, 0.8, 0.6), attributes={"SliceThickness": "2.5"})
    record = only_series(tmp_path)
    assert [Path(path).stem for path in record.files] == ["0003", "0002", "0001", "0000"]
    assert record.spacing_z_mm == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "MR", "SOPClassUID": MRImageStorage}, "modality is MR, not CT"),
        ({"Modality": "RTSTRUCT", "SOPClassUID": RTStructureSetStorage}, "modality is RTSTRUCT, not CT"),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "secondary capture"),
        ({"SOPClassUID": EnhancedCTImageStorage}, "enhanced multi-frame CT whose functional groups are missing"),
        ({"SOPClassUID": None}, "SOPClassUID is missing"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MIP"]}, "projection, rendering or map"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MAXIMUM"]}, "projection, rendering or map"),
        ({"ImageType": ["DERIVED", "SECONDARY"], "SeriesDescription": "Chest MIP 8mm"}, "projection, rendering or map"),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MAX_IP"]}, "projection, rendering or map"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen capture"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation is PALETTE COLOR"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour image"),
        ({"Rows": None}, "no image"),
        ({"Rows": 60000}, "image size must be 1 to 4096"),
        ({"RescaleIntercept": None}, "RescaleSlope or RescaleIntercept is missing"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"RescaleType": "HU_MOD"}, "RescaleType is HU_MOD"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient is missing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two perpendicular unit vectors"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"PixelSpacing": ["0", "0"]}, "PixelSpacing is missing, not positive"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing in 4 of 4"),
    ],
)
def test_what_is_not_segmented_says_why(tmp_path: Path, attributes: Mapping[str, Any], reason: str) -> None:
    write_series(tmp_path, attributes=attributes)
    record = only_series(tmp_path)
    assert record.decision == "skipped"
    assert record.reason is not None
    assert reason in record.reason
    assert record.n_slices == 4


@pytest.mark.parametrize("image_type", [["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], ["ORIGINAL", "PRIMARY"], None])
def test_ordinary_image_types_are_segmented(tmp_path: Path, image_type: list[str] | None) -> None:
    write_series(tmp_path, attributes={"ImageType": image_type, "RescaleType": "HU"})
    assert only_series(tmp_path).decision == "selected"


@pytest.mark.parametrize(
    ("orientation", "image_type", "reason"),
    [
        (CORONAL, "DERIVED", "coronal reformat: only axial series are segmented"),
        (SAGITTAL, "DERIVED", "sagittal reformat: only axial series are segmented"),
        (CORONAL, "ORIGINAL", "coronal slices: only axial series are segmented"),
        ((1, 0, 0, 0, 0.8, 0.6), "DERIVED", "oblique reformat (37 degrees off the nearest axis)"),
    ],
)
def test_other_planes_are_not_segmented(
    tmp_path: Path, orientation: tuple[float, ...], image_type: str, reason: str
) -> None:
    write_series(tmp_path, orientation=orientation, attributes={"ImageType": [image_type, "SECONDARY"]})
    record = only_series(tmp_path)
    assert record.decision == "skipped"
    assert (record.reason or "").startswith(reason)


def test_axial_reformat_is_segmented_and_flagged(tmp_path: Path) -> None:
    write_series(tmp_path, attributes={"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]})
    record = only_series(tmp_path)
    assert (record.decision, record.qc_flags) == ("selected", ("derived_reformat",))


def test_single_slice_is_segmented_without_spacing(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(1, 32, 24))
    record = only_series(tmp_path)
    assert (record.decision, record.qc_flags, record.spacing_z_mm) == ("selected", ("single_slice",), None)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"spacing_mm": (8, 0.8, 0.6)}, "thick_slices"),
        ({"attributes": {"SliceThickness": "1.0"}}, "sparse_slices"),
        ({"attributes": {"LossyImageCompression": "01"}}, "lossy_compression"),
        ({"attributes": {"PhotometricInterpretation": "MONOCHROME1"}}, "monochrome1"),
        ({"attributes": {"PatientID": ""}}, "missing_patient_id"),
        ({"attributes": {"PatientID": "Anonymous"}}, "placeholder_patient_id"),
        ({"attributes": {"PatientID": "no-id"}}, "placeholder_patient_id"),
        ({"attributes": {"PatientID": "0000"}}, "placeholder_patient_id"),
        ({"attributes": {"StudyDate": None}}, "missing_study_date"),
        ({"orientation": (0.8, 0.6, 0, -0.6, 0.8, 0)}, "rotated_in_plane"),
    ],
)
def test_findings_that_do_not_stop_a_series(tmp_path: Path, options: dict[str, Any], flag: str) -> None:
    write_series(tmp_path, **options)
    record = only_series(tmp_path)
    assert (record.decision, record.qc_flags) == ("selected", (flag,))


@pytest.mark.parametrize("patient_id", ["ANON-0001", "TEST 7", "0001", "Patient 1", "X12", "NA-03", "患者"])
def test_an_id_that_tells_patients_apart_is_no_placeholder(tmp_path: Path, patient_id: str) -> None:
    write_series(tmp_path, patient_id=patient_id, attributes={"SpecificCharacterSet": "ISO_IR 192"})
    assert only_series(tmp_path).qc_flags == ()


def test_missing_slices_are_counted(tmp_path: Path) -> None:
    paths = write_series(tmp_path, shape=(10, 8, 8), spacing_mm=(1.25, 1, 1))
    for index in (4, 5, 6):
        paths[index].unlink()
    record = only_series(tmp_path)
    assert record.reason == "gap: 5.00 mm after slice 4 of 7, spacing is 1.25 mm, 3 slice(s) missing in all"
    assert (record.qc_flags, record.spacing_z_mm) == (("slice_gap",), None)


def test_uneven_spacing_is_not_averaged_away(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(5, 8, 8), positions=[(0, 0, z) for z in (0, 2, 4, 7, 10)])
    record = only_series(tmp_path)
    assert record.reason == "uneven spacing: 2.00 to 3.00 mm between 5 slices"
    assert (record.qc_flags, record.spacing_z_mm) == (("uneven_spacing",), None)


def test_rounding_of_positions_is_no_gap(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(5, 8, 8), positions=[(0, 0, z) for z in (0, 0.63, 1.25, 1.88, 2.5)])
    assert only_series(tmp_path).spacing_z_mm == pytest.approx(0.625)


def test_gantry_tilt_is_told_from_positions(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(4, 8, 8), positions=[(0, index * np.tan(np.radians(8)), index) for index in range(4)])
    record = only_series(tmp_path)
    assert record.reason == "gantry tilt: slices are sheared by 8.0 degrees"
    assert record.qc_flags == ("gantry_tilt",)


def test_shifted_slices_are_skipped(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(4, 8, 8), positions=[(5 * (index == 2), 0, 3 * index) for index in range(4)])
    assert only_series(tmp_path).reason == "slices are shifted against each other, by up to 5.0 mm sideways"


def test_planes_of_one_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", shape=(2, 32, 24), orientation=CORONAL, attributes=_own_uid)
    axial, coronal = scan_cohort(tmp_path).series
    assert (axial.orientation, axial.n_slices, axial.decision, axial.volume) == ("axial", 4, "selected", 1)
    assert (coronal.orientation, coronal.n_slices, coronal.decision, coronal.volume) == ("coronal", 2, "skipped", 2)
    assert axial.series_instance_uid == coronal.series_instance_uid
    assert axial.series_key == series_key(axial.series_instance_uid) != coronal.series_key
    assert axial.qc_flags == coronal.qc_flags == ("split_series",)


def test_a_slice_that_lacks_its_kernel_is_no_volume_of_its_own(tmp_path: Path) -> None:
    lacking = {"ConvolutionKernel": None, "FrameOfReferenceUID": None}
    write_series(tmp_path, attributes=lambda index: lacking if index == 2 else {})
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("selected", 4)


def test_stations_of_one_series_cover_it_in_part(tmp_path: Path) -> None:
    for station, origin in enumerate((100.0, 115.0)):
        write_series(
            tmp_path / str(station),
            shape=(8, 16, 16),
            origin=(0, 0, origin),
            attributes=lambda index, station=station: (
                _own_uid(index + 100 * station) | {"AcquisitionNumber": station, "SeriesInstanceUID": "1.2.3"}
            ),
            hu=lambda shape, station=station: body_hu(shape) + station,
        )
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [record.n_slices for record in records] == [8, 8]
    assert all(record.qc_flags == ("split_series", "partial_coverage") for record in records)


def test_a_copy_counts_in_the_volume_whose_slice_it_repeats(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    coronal = write_series(tmp_path / "b", shape=(2, 32, 24), orientation=CORONAL, attributes=_own_uid)
    shutil.copy(coronal[1], tmp_path / "b" / "z_copy")
    found = scan_cohort(tmp_path)
    assert [file.path for file in found.copies] == ["b/z_copy"]
    assert [(record.n_files, record.n_duplicates) for record in found.series] == [(4, 0), (3, 1)]
    assert [("duplicates_dropped" in record.qc_flags) for record in found.series] == [False, True]


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
            attributes=lambda index, part=part, space=space: _own_uid(index + 100 * part) | space,
        )
    shared = {"FrameOfReferenceUID": "1.2.0", "SeriesInstanceUID": "1.2.3"} | others
    write_series(tmp_path / "others", shape=(60, 16, 16), attributes=lambda index: _own_uid(index + 900) | shared)
    records = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(record.n_slices, record.decision) for record in records][1:] == [(9, "selected"), (3, "selected")]


@pytest.mark.parametrize("phase", ["TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase"])
def test_phases_that_interleave_are_volumes_of_their_own(tmp_path: Path, phase: str) -> None:
    write_series(tmp_path, shape=(12, 8, 8), attributes=lambda index: {phase: 40 * (index % 2)})
    assert [record.n_slices for record in scan_cohort(tmp_path).series] == [6, 6]


@pytest.mark.parametrize("odd", [["0.8003", "0.6"], None], ids=["rounded by turns", "missing by turns"])
def test_slices_whose_pixel_spacing_is_rounded_or_missing_are_no_volume(tmp_path: Path, odd: list[str] | None) -> None:
    turns = [["0.8", "0.6"], odd]
    write_series(tmp_path, shape=(12, 8, 8), attributes=lambda index: {"PixelSpacing": turns[index % 2]})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices) == ("skipped", 12)
    assert record.reason == "PixelSpacing is missing, not positive, or differs between slices"


def test_slabs_of_one_scan_that_each_have_a_cardiac_phase_are_one_volume(tmp_path: Path) -> None:
    slabs = [{"NominalPercentageOfCardiacPhase": 70 + 2 * (index >= 6)} for index in range(12)]
    write_series(tmp_path, shape=(12, 8, 8), attributes=slabs.__getitem__)
    assert (only_series(tmp_path).decision, only_series(tmp_path).n_slices) == ("selected", 12)


def test_reconstructions_of_two_pixel_spacings_are_volumes_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "a", shape=(6, 8, 8))
    zoomed = write_series(tmp_path / "b", shape=(4, 8, 8), spacing_mm=(2.5, 0.5, 0.5), attributes=_own_uid)
    wide, narrow = scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series
    assert [(one.n_slices, one.decision, one.spacing_y_mm) for one in (wide, narrow)] == [
        (6, "selected", 0.8),
        (len(zoomed), "selected", 0.5),
    ]


@pytest.mark.parametrize(
    ("macro", "of_the_frame", "of_the_file"),
    [
        ("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionDateTime"),
        ("CTReconstructionSequence", "ConvolutionKernel", "ConvolutionKernel"),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", None),
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
        told = 40.0 + late if of_the_file is None else f"2020040109{30 if late else 0:02}00"
        setattr(item, of_the_frame, told)
        setattr(frame, macro, [item])
    write_files(tmp_path, [file])
    assert [record.n_slices for record in scan_cohort(tmp_path).series] == [len(slices) // 2] * 2


def test_a_series_that_falls_into_single_slices_is_left_whole(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(12, 8, 8), attributes=lambda index: {"FrameOfReferenceUID": f"1.2.{index}"})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices) == ("skipped", 12)
    assert "12 frames of reference" in (record.reason or "")


def test_spacing_and_positions_agree_to_rounding(tmp_path: Path) -> None:
    def rounded(index: int) -> dict[str, list[str]]:
        return {"PixelSpacing": ["0.800001" if index == 1 else "0.8", "0.6"]}

    moved = {"ImagePositionPatient": ["-10.0001", "-20", "100.00004"]}
    write_series(tmp_path, attributes=rounded)
    write_series(tmp_path / "copies", attributes=lambda index: rounded(index) | (moved if index == 0 else {}))
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 4)


@pytest.mark.parametrize(
    "other", [{"PatientBirthDate": "19900101"}, {"PatientSex": "F"}, {"IssuerOfPatientID": "HOSPITAL B"}]
)
def test_persons_of_one_patient_id_are_flagged_without_their_facts(tmp_path: Path, other: dict[str, str]) -> None:
    own = {"PatientBirthDate": "19500101", "PatientSex": "M", "IssuerOfPatientID": "HOSPITAL A"}
    write_series(tmp_path / "a", attributes=own)
    write_series(tmp_path / "b", attributes=own | other, study_date="20200501")
    write_series(tmp_path / "c", attributes=own | other, patient_id="P2")
    records = scan_cohort(tmp_path).series
    assert [("patient_conflict" in record.qc_flags) for record in records] == [True, True, False]
    assert not any(value in repr(records) for value in (*own.values(), *other.values()) if len(value) > 1)
    write_series(tmp_path / "c", patient_id="P2", study_date="20200601")  # says nothing, so contradicts nothing
    assert not any("patient_conflict" in record.qc_flags for record in scan_cohort(tmp_path / "c").series)


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


def _own_uid(index: int) -> dict[str, str]:
    return {"SOPInstanceUID": f"1.2.3.{index + 1}"}


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PatientID": "P2"}, "files of 2 patients share"),
        ({"StudyInstanceUID": "1.2.9"}, "files of 2 studies share"),
        ({"SOPInstanceUID": "1.2.3.1"}, "1 slice(s) carry the SOPInstanceUID of another slice"),
    ],
)
def test_one_volume_per_series(tmp_path: Path, attributes: Mapping[str, str], reason: str) -> None:
    write_series(
        tmp_path,
        attributes=lambda index: attributes if index in (0, 1)[: 2 if "SOPInstanceUID" in attributes else 1] else {},
    )
    assert reason in (only_series(tmp_path).reason or "")


def test_copies_are_dropped_and_counted(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a")
    (tmp_path / "0").mkdir()
    shutil.copy(paths[2], tmp_path / "z_copy")
    shutil.copy(paths[0], tmp_path / "0" / "first")
    write_series(tmp_path / "again", attributes=_own_uid)  # other SOPInstanceUIDs, same places and pixels
    record = only_series(tmp_path)
    assert (record.n_files, record.n_slices, record.n_duplicates) == (10, 4, 6)
    assert (record.decision, record.qc_flags) == ("selected", ("duplicates_dropped",))
    assert record.files == ("0/first", "a/0001.dcm", "a/0002.dcm", "a/0003.dcm")


def test_a_compressed_copy_is_a_copy(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", transfer_syntax=RLELossless)
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 4)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_copy_that_was_cut_off_is_dropped_by_its_name(tmp_path: Path, syntax: str) -> None:
    paths = write_series(tmp_path / "a", transfer_syntax=syntax)
    torn = tmp_path / "a" / "0000-first-by-name.dcm"
    torn.write_bytes(paths[2].read_bytes()[:-100])
    found = scan_cohort(tmp_path)
    (record,) = found.series
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 1)
    assert [(file.path, file.reason) for file in found.copies] == [
        ("a/0000-first-by-name.dcm", "damaged copy of a slice of its series that is there whole")
    ]


def test_a_copy_that_no_decoder_reads_is_dropped_as_what_it_is(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", transfer_syntax=RLELossless)
    other = pydicom.dcmread(paths[2])
    other.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.92"  # JPEG 2000 Part 2
    other.SOPInstanceUID = generate_uid()
    other.save_as(tmp_path / "a/other.dcm")
    found = scan_cohort(tmp_path)
    assert [record.decision for record in found.series] == ["selected"]
    (dropped,) = found.copies
    assert (dropped.path, "cannot be decoded: not compared" in dropped.reason) == ("a/other.dcm", True)


def test_lossy_copies_of_slices_that_are_there_without_loss_are_dropped(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "b")
    (tmp_path / "a").mkdir()
    for path in paths:
        lossy = pydicom.dcmread(path)
        lossy.LossyImageCompression = "01"
        lossy.PixelData = (np.frombuffer(lossy.PixelData, "<i2") + 1).astype("<i2").tobytes()
        lossy.save_as(tmp_path / "a" / path.name)
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 4)
    assert {path.split("/")[0] for path in record.files} == {"b"}
    assert "lossy_compression" not in record.qc_flags
    other = pydicom.dcmread(tmp_path / "a" / paths[0].name)
    other.SOPInstanceUID = generate_uid()
    other.save_as(tmp_path / "a" / paths[0].name)
    assert only_series(tmp_path).reason == "different pixels at the same position (1 of 5 slices)"


def test_a_multi_frame_file_sent_again_under_another_uid_is_a_copy(tmp_path: Path) -> None:
    (path,) = write_files(tmp_path, [enhanced_file(chest_slices("enhanced"))])
    again = pydicom.dcmread(path)
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    again.save_as(tmp_path / "zz-again.dcm")
    found = scan_cohort(tmp_path)
    assert [record.decision for record in found.series] == ["selected"]
    assert [(file.path, file.reason) for file in found.copies] == [
        ("zz-again.dcm", "copy of a slice of its series, with the same pixels")
    ]


def test_images_that_track_a_bolus_do_not_cost_the_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", shape=(20, 32, 24), attributes={"AcquisitionNumber": 1})
    write_series(
        tmp_path / "tracking",
        positions=[(-10.0, -20.0, 110.0)] * 6,
        shape=(6, 32, 24),
        attributes=lambda z: {"AcquisitionNumber": 10 + z, "SOPInstanceUID": generate_uid()},
    )
    scan, tracking = scan_cohort(tmp_path).series
    assert (scan.decision, scan.n_slices, "split_series" in scan.qc_flags) == ("selected", 20, True)
    assert (tracking.decision, tracking.n_slices) == ("skipped", 6)


def test_an_end_slice_of_another_acquisition_stays_in_its_scan(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(20, 16, 16), attributes=lambda z: {"AcquisitionNumber": 2 if z == 19 else 1})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.qc_flags) == ("selected", 20, ())


def test_slices_that_are_all_cut_off_are_not_dropped(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a")
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:-100])
    (tmp_path / "a" / "other.dcm").write_bytes(whole[:-200])
    (record,) = scan_cohort(tmp_path).series
    assert record.reason == "different pixels at the same position (1 of 5 slices)"


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


def test_different_pixels_at_one_position_are_never_dropped(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", hu=lambda shape: body_hu(shape) + 1, attributes=_own_uid)
    record = only_series(tmp_path)
    assert record.reason == "different pixels at the same position (4 of 8 slices)"
    assert (record.n_duplicates, record.qc_flags) == (0, ("conflicting_slices",))


def test_old_date_format_and_nonsense_dates(tmp_path: Path) -> None:
    write_series(tmp_path / "a", attributes={"StudyDate": "20200431"})
    write_series(tmp_path / "b", series="2", patient_id="P2")
    for path in (tmp_path / "b").iterdir():  # pydicom would refuse to write it
        path.write_bytes(path.read_bytes().replace(b"DA\x08\x0020200401", b"DA\x0a\x002020.04.01"))
    assert [record.study_date for record in scan_cohort(tmp_path).series] == [None, date(2020, 4, 1)]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"2020-04-01", date(2020, 4, 1)),
        (b"2020/04/01", date(2020, 4, 1)),
        (b"20200401101010", date(2020, 4, 1)),
        (b"2020-0401 ", None),
        (b"0001.01.01", None),
        (b"19000101", None),
    ],
)
def test_dates_as_exports_write_them(tmp_path: Path, written: bytes, expected: date | None) -> None:
    write_series(tmp_path)
    for path in tmp_path.iterdir():
        stated = b"DA" + len(written).to_bytes(2, "little") + written
        path.write_bytes(path.read_bytes().replace(b"DA\x08\x0020200401", stated))
    assert only_series(tmp_path).study_date == expected


def test_a_date_in_the_future_is_kept_and_flagged(tmp_path: Path) -> None:
    write_series(tmp_path, study_date="21500401")
    record = only_series(tmp_path)
    assert (record.study_date, record.qc_flags) == (date(2150, 4, 1), ("future_study_date",))


def test_flags_stand_in_the_order_of_their_list(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(1, 8, 8), attributes={"PatientID": "", "LossyImageCompression": "01"})
    assert only_series(tmp_path).qc_flags == ("single_slice", "lossy_compression", "missing_patient_id")


def test_orientation_of_slices_is_the_same_to_rounding(tmp_path: Path) -> None:
    write_series(
        tmp_path, attributes=lambda index: {"ImageOrientationPatient": [*AXIAL[:5], f"{0.0004 * (index % 2)}"]}
    )
    assert only_series(tmp_path).decision == "selected"


@pytest.mark.parametrize("thickness", [0, -1])
def test_a_thickness_that_cannot_be_is_null(tmp_path: Path, thickness: int) -> None:
    write_series(tmp_path, attributes={"SliceThickness": thickness})
    assert only_series(tmp_path).slice_thickness_mm is None


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("RescaleIntercept", "-1000"), ("FrameOfReferenceUID", "1.2.9"), ("ImagePositionPatient", [-11.0, -20.0, 100.0])],
)
def test_a_header_changed_in_place_changes_the_fingerprint(tmp_path: Path, keyword: str, value: object) -> None:
    (path, *_) = write_series(tmp_path, shape=(1, 8, 8))
    before, status = only_series(tmp_path), path.stat()
    dataset = pydicom.dcmread(path)
    setattr(dataset, keyword, value)
    dataset.save_as(path)
    os.truncate(path, status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert only_series(tmp_path).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    "rewritten",
    [
        {"ImagePositionPatient": lambda z: ["-0.000004", "0.000004", f"{100.004999 + 2.5 * z:.7f}"]},
        {"ImageOrientationPatient": lambda _z: ["1", "0.0000001", "0", "0", "1", "0"]},
        {"PixelSpacing": lambda _z: ["0.70000001", "0.80000001"]},
    ],
    ids=["position", "orientation", "spacing"],
)
def test_a_copy_whose_header_was_rewritten_is_a_copy(tmp_path: Path, rewritten: dict[str, Any]) -> None:
    here = {
        "ImagePositionPatient": lambda z: ["0", "0", f"{100.005001 + 2.5 * z:.7f}"],
        "PixelSpacing": lambda _z: [".7", ".8"],
    }
    for name, given in (("a", here), ("b", here | rewritten)):
        write_series(tmp_path / name, attributes=lambda z, given=given: {key: value(z) for key, value in given.items()})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 4)


def test_a_copy_with_bytes_behind_its_pixels_is_a_copy(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    for path in write_series(tmp_path / "b"):
        dataset = pydicom.dcmread(path)
        dataset.PixelData += b"\0\0"
        dataset.save_as(path)
    assert only_series(tmp_path).n_duplicates == 4


def test_visits_that_share_a_series_uid_are_volumes_of_their_own_date(tmp_path: Path) -> None:
    """The slices of the second lie evenly between those of the first, and their study has one UID."""
    days = {"a": "20200301", "b": "20200320"}
    for number, (name, day) in enumerate(days.items()):
        write_series(
            tmp_path / name,
            origin=(0, 0, 100 + 1.25 * number),
            attributes=lambda z, day=day: {**(_own_uid(z) if day == days["b"] else {}), "StudyDate": day},
        )
    records = scan_cohort(tmp_path).series
    assert [(record.study_date, record.n_slices, record.decision) for record in records] == [
        (date(2020, 3, 1), 4, "selected"),
        (date(2020, 3, 20), 4, "selected"),
    ]


def test_slices_of_a_scan_past_midnight_are_one_volume(tmp_path: Path) -> None:
    write_series(tmp_path, attributes=lambda z: {"StudyDate": "20200301" if z < 2 else "20200302"})
    assert (only_series(tmp_path).n_slices, only_series(tmp_path).decision) == (4, "selected")


def test_near_copies_of_slices_are_not_resampled_to_their_distance(tmp_path: Path) -> None:
    """Ten slices 5 mm apart, each there twice, .03 mm beside: by their median distance they would make 1500."""
    z = np.repeat(np.arange(10) * 5.0, 2) + np.tile([0.0, 0.03], 10)
    write_series(tmp_path, shape=(20, 32, 24), positions=[(0, 0, value) for value in z])
    (record,) = scan_cohort(tmp_path, config=ScanConfig(repair=("resample",))).series
    assert (record.decision, record.repairs) == ("skipped", ())
