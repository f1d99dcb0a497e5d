"""What is decided about one series, and why: selected or skipped, flags, identity."""

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from phantoms import CORONAL, SAGITTAL, write_series
from pydicom.uid import (
    EnhancedCTImageStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    MRImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)
from runs import only_series

from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.store.schemas import MANIFEST
from cohortseg.store.tables import table_from_rows


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
    assert frame["spacing_z_mm"].to_list() == [2.5, None], "the series without a patient comes last"


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
        ({"ImageType": None, "SeriesDescription": "Chest MIP 8mm"}, "projection, rendering or map"),
        ({"ImageType": None, "SeriesDescription": "MAX-IP 8mm"}, "projection, rendering or map"),
        ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "NONE"]}, "projection, rendering or map"),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MAX_IP"]}, "projection, rendering or map"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]}, "map of a material"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"]}, "map of a material"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "ELECTRON_DENSITY"]}, "map of a material"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen capture"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation is PALETTE COLOR"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour image"),
        ({"Rows": None}, "no image"),
        ({"Rows": 60000}, "image size must be 1 to 4096"),
        ({"RescaleIntercept": None}, "RescaleSlope or RescaleIntercept is missing"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"RescaleType": "hu_mod"}, "RescaleType is HU_MOD"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient is missing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two perpendicular unit vectors"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"PixelSpacing": ["60", "60"]}, "the image is 1920 mm wide"),
        ({"PixelSpacing": ["0.0008", "0.0007"]}, "PixelSpacing is 0.0007 mm"),
        ({"PixelSpacing": ["0.8", "0"]}, "PixelSpacing is missing, not two positive"),
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


@pytest.mark.parametrize(
    "image_type", [["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], ["ORIGINAL", "PRIMARY", "PERFUSION"], None]
)
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
    assert (record.decision, record.lowest_z_mm, record.highest_z_mm) == ("skipped", None, None)
    assert (record.reason or "").startswith(reason)


def test_axial_reformat_is_segmented_and_flagged(tmp_path: Path) -> None:
    write_series(tmp_path, attributes={"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]})
    record = only_series(tmp_path)
    assert (record.decision, record.qc_flags) == ("selected", ("derived_reformat",))


@pytest.mark.parametrize(
    ("image_type", "flags"),
    [
        (["DERIVED", "PRIMARY", "AXIAL"], {"maybe_projection", "lossy_compression"}),
        (["DERIVED", "SECONDARY", "AXIAL"], None),
        (["DERIVED", "PRIMARY", "MPR"], None),
    ],
)
def test_an_original_compressed_with_loss_is_no_reformat(
    tmp_path: Path, image_type: list[str], flags: set[str] | None
) -> None:
    """PS3.3 C.7.6.1.1.2: it becomes DERIVED; of a reformat a description would be believed that says MIP."""
    lossy = {"ImageType": image_type, "LossyImageCompression": "01", "SeriesDescription": "LUNG MIP"}
    write_series(tmp_path, attributes=lossy)
    record = only_series(tmp_path)
    if flags is None:
        assert (record.reason or "").startswith("projection")
    else:
        assert (record.decision, {*record.qc_flags}) == ("selected", flags)


def test_single_slice_is_segmented_without_spacing(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(1, 32, 24))
    record = only_series(tmp_path)
    assert (record.decision, record.qc_flags, record.spacing_z_mm) == ("selected", ("single_slice",), None)


def test_a_slice_that_is_not_segmented_has_no_flag_of_one_that_is(tmp_path: Path) -> None:
    kind = {"shape": (1, 32, 24), "spacing_mm": (8, 0.8, 4.1)}
    write_series(tmp_path, attributes={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, **kind)
    record = only_series(tmp_path)
    assert (record.decision, record.qc_flags) == ("skipped", ())


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless])
def test_a_syntax_that_always_loses_tells_of_loss_where_no_attribute_does(tmp_path: Path, syntax: str) -> None:
    for path in write_series(tmp_path, shape=(4, 64, 80), transfer_syntax=JPEG2000Lossless):
        path.write_bytes(path.read_bytes().replace(JPEG2000Lossless.encode(), syntax.encode(), 1))
    assert only_series(tmp_path).qc_flags == ("lossy_compression",)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"spacing_mm": (8, 0.8, 0.6)}, "thick_slices"),
        ({"spacing_mm": (8, 0.8, 0.6), "attributes": {"SliceThickness": None}}, "thick_slices"),
        ({"attributes": {"SliceThickness": "1.0"}}, "sparse_slices"),
        ({"attributes": {"LossyImageCompression": "01"}}, "lossy_compression"),
        ({"attributes": lambda z: {"LossyImageCompression": "01" if z == 2 else "00"}}, "lossy_compression"),
        ({"attributes": lambda z: {"ImageType": ["DERIVED", "REFORMATTED"]} if z == 2 else {}}, "derived_reformat"),
        ({"spacing_mm": (2.5, 0.8, 4.1)}, "coarse_pixels"),
        ({"attributes": {"SeriesDescription": "CHEST EXPIRATION 3mm"}}, "expiration"),
        ({"attributes": {"PhotometricInterpretation": "MONOCHROME1"}}, "monochrome1"),
        ({"attributes": {"PatientID": ""}}, "missing_patient_id"),
        ({"attributes": {"PatientID": "Anonymous"}}, "placeholder_patient_id"),
        ({"attributes": {"PatientID": "no-id"}}, "placeholder_patient_id"),
        ({"attributes": {"PatientID": "0000"}}, "placeholder_patient_id"),
        ({"attributes": {"PatientID": "***"}}, "placeholder_patient_id"),
        ({"attributes": {"PatientID": "-"}}, "placeholder_patient_id"),
        ({"attributes": {"PatientID": "Unknown^Patient"}}, "placeholder_patient_id"),
        ({"attributes": {"StudyDate": None}}, "missing_study_date"),
        ({"orientation": (0.8, 0.6, 0, -0.6, 0.8, 0)}, "rotated_in_plane"),
    ],
)
def test_findings_that_do_not_stop_a_series(tmp_path: Path, options: dict[str, Any], flag: str) -> None:
    write_series(tmp_path, **options)
    record = only_series(tmp_path)
    assert (record.decision, record.qc_flags) == ("selected", (flag,))


@pytest.mark.parametrize(
    ("spacing_mm", "thickness", "flags"),
    [
        ((5.0, 0.8, 0.6), "5", ()),
        ((5.0, 0.8, 0.6), "5.1", ("thick_slices",)),
        ((3.0, 0.8, 0.6), "2", ()),
        ((3.1, 0.8, 0.6), "2", ("sparse_slices",)),
        ((2.5, 4.0, 4.0), "2.5", ()),
        ((2.5, 4.05, 4.0), "2.5", ("coarse_pixels",)),
    ],
)
def test_slices_are_thick_above_5_mm_sparse_above_half_as_much_again_and_pixels_coarse_above_4_mm(
    tmp_path: Path, spacing_mm: tuple[float, float, float], thickness: str, flags: tuple[str, ...]
) -> None:
    write_series(tmp_path, spacing_mm=spacing_mm, attributes={"SliceThickness": thickness})
    assert only_series(tmp_path).qc_flags == flags


@pytest.mark.parametrize("patient_id", ["ANON-0001", "TEST 7", "0001", "Patient 1", "X12", "NA-03", "患者"])
def test_an_id_that_tells_patients_apart_is_no_placeholder(tmp_path: Path, patient_id: str) -> None:
    write_series(tmp_path, patient_id=patient_id, attributes={"SpecificCharacterSet": "ISO_IR 192"})
    assert only_series(tmp_path).qc_flags == ()


@pytest.mark.parametrize(("spacing_mm", "gap"), [(1.25, "5.00"), (20, "80.00")])
def test_missing_slices_are_counted(tmp_path: Path, spacing_mm: float, gap: str) -> None:
    paths = write_series(tmp_path, shape=(10, 8, 8), spacing_mm=(spacing_mm, 1, 1))
    for index in (4, 5, 6):
        paths[index].unlink()
    record = only_series(tmp_path)
    missing = f"spacing is {spacing_mm:.2f} mm, 3 slice(s) missing in all"
    assert record.reason == f"gap: {gap} mm after slice 4 of 7, {missing}"
    assert (record.qc_flags, record.spacing_z_mm) == (("slice_gap",), None)


def test_uneven_spacing_is_not_averaged_away(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(5, 8, 8), positions=[(0, 0, z) for z in (0, 2, 4, 7, 10)])
    record = only_series(tmp_path)
    assert record.reason == "uneven spacing: 2.00 to 3.00 mm between 5 slices"
    assert (record.qc_flags, record.spacing_z_mm) == (("uneven_spacing",), None)


def test_of_positions_that_were_rounded_no_slices_are_said_to_be_missing(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(40, 8, 8), positions=[(0, 0, round(1.5 * z)) for z in range(40)])
    assert only_series(tmp_path).reason == "uneven spacing: 1.00 to 2.00 mm between 40 slices"


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
    for path in write_series(tmp_path / "c/e", attributes=own | other, patient_id="P2", study_date="20200602"):
        born = (own | other)["PatientBirthDate"].encode()
        dotted = b"DA\x0a\x00" + b".".join((born[:4], born[4:6], born[6:]))  # pydicom would refuse to write it
        path.write_bytes(path.read_bytes().replace(b"DA\x08\x00" + born, dotted))
    write_series(tmp_path / "c/d", patient_id="P2", study_date="20200601")  # says nothing, so contradicts nothing
    assert not any("patient_conflict" in record.qc_flags for record in scan_cohort(tmp_path / "c").series)


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


def test_a_day_ahead_of_this_clock_is_no_future_date(tmp_path: Path) -> None:
    """In the east it is tomorrow already."""
    write_series(tmp_path, study_date=f"{datetime.now(UTC) + timedelta(days=1):%Y%m%d}")
    assert only_series(tmp_path).qc_flags == ()


def test_a_date_before_there_was_ct_is_kept_and_flagged(tmp_path: Path) -> None:
    write_series(tmp_path, study_date="19600101")
    record = only_series(tmp_path)
    assert (record.study_date, record.qc_flags) == (date(1960, 1, 1), ("early_study_date",))


def test_flags_stand_in_the_order_of_their_list(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(1, 8, 8), attributes={"PatientID": "", "LossyImageCompression": "01"})
    assert only_series(tmp_path).qc_flags == ("single_slice", "lossy_compression", "missing_patient_id")


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
