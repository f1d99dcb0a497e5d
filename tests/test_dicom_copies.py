"""Which files of a series repeat a slice, and what becomes of them."""

import os
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from phantoms import CORONAL, body_hu, own_uid, write_series
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from runs import only_series

from cohortseg.config import ScanConfig
from cohortseg.dicom.scan import scan_cohort
from cohortseg.processors import SecondProcess
from cohortseg.synthetic.quirk_files import chest_slices, enhanced_file, write_files


def test_a_copy_counts_in_the_volume_whose_slice_it_repeats(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    coronal = write_series(tmp_path / "b", shape=(2, 32, 24), orientation=CORONAL, attributes=own_uid)
    shutil.copy(coronal[1], tmp_path / "b" / "z_copy")
    found = scan_cohort(tmp_path)
    assert [file.path for file in found.copies] == ["b/z_copy"]
    assert [(record.n_files, record.n_duplicates) for record in found.series] == [(4, 0), (3, 1)]
    assert [("duplicates_dropped" in record.qc_flags) for record in found.series] == [False, True]


def test_copies_are_dropped_and_counted(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a")
    (tmp_path / "0").mkdir()
    shutil.copy(paths[2], tmp_path / "z_copy")
    shutil.copy(paths[0], tmp_path / "0" / "first")
    write_series(tmp_path / "again", attributes=own_uid)  # other SOPInstanceUIDs, same places and pixels
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


def test_copies_are_found_however_their_compressed_pixels_are_wrapped(tmp_path: Path) -> None:
    """In other fragments, without a table of offsets, or torn within the image."""
    paths = write_series(tmp_path / "a", transfer_syntax=RLELossless)
    (tmp_path / "b").mkdir()
    for path in paths:
        copy = pydicom.dcmread(path)
        (frame,) = generate_frames(copy.PixelData, number_of_frames=1)
        torn = path == paths[0]
        copy.PixelData = encapsulate([frame[:-40] if torn else frame], fragments_per_frame=2 - torn, has_bot=False)
        copy["PixelData"].is_undefined_length = True
        copy.save_as(tmp_path / "b" / path.name)
    found = scan_cohort(tmp_path)
    (record,) = found.series
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 4)
    assert {path.split("/")[0] for path in record.files} == {"a"}
    assert [("cannot be decoded" in file.reason) for file in found.copies] == [True, False, False, False]


@pytest.mark.parametrize("lost", ["PixelRepresentation", "BitsStored"])
def test_of_copies_the_one_whose_pixels_can_be_read_stays(tmp_path: Path, lost: str) -> None:
    write_series(tmp_path / "a", attributes={lost: None})
    write_series(tmp_path / "b")
    record = only_series(tmp_path)
    assert (record.decision, record.n_duplicates) == ("selected", 4)
    assert {path.split("/")[0] for path in record.files} == {"b"}


def test_equal_bytes_of_another_sign_are_no_copies(tmp_path: Path) -> None:
    write_series(tmp_path / "a", intercept=0)
    write_series(tmp_path / "b", intercept=0, attributes={"PixelRepresentation": 0})
    assert only_series(tmp_path).qc_flags == ("conflicting_slices",)


def test_copies_whose_spacing_was_rounded_are_copies(tmp_path: Path) -> None:
    write_series(tmp_path / "a", attributes={"PixelSpacing": ["0.703125", "0.703125"]})
    write_series(tmp_path / "b", attributes={"PixelSpacing": ["0.703", "0.703"]})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 4)


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


def test_slices_that_are_all_cut_off_are_not_dropped(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a")
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:-100])
    (tmp_path / "a" / "other.dcm").write_bytes(whole[:-200])
    (record,) = scan_cohort(tmp_path).series
    assert record.reason == "different pixels at the same position (1 of 5 slices)"


def test_different_pixels_at_one_position_are_never_dropped(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", hu=lambda shape: body_hu(shape) + 1, attributes=own_uid)
    record = only_series(tmp_path)
    assert record.reason == "different pixels at the same position (4 of 8 slices)"
    assert (record.n_duplicates, record.qc_flags) == (0, ("conflicting_slices",))


@pytest.mark.parametrize(
    "other", [{"RescaleIntercept": "-1000"}, {"RescaleSlope": "2"}, {"TemporalPositionIdentifier": 2}]
)
def test_equal_pixels_that_mean_something_else_are_no_copies(tmp_path: Path, other: dict[str, Any]) -> None:
    """Of two rescales one is wrong, and which of them is not known."""
    write_series(tmp_path / "a", attributes={"TemporalPositionIdentifier": 1})
    write_series(tmp_path / "b", attributes=lambda z: {"TemporalPositionIdentifier": 1} | other | own_uid(z))
    found = scan_cohort(tmp_path)
    assert found.copies == ()
    assert sum(record.n_slices for record in found.series) == 8


def test_multi_frame_files_that_differ_behind_their_first_frame_are_no_copies(tmp_path: Path) -> None:
    write_files(tmp_path / "a", [enhanced_file(chest_slices("enhanced"))])
    slices = chest_slices("enhanced")
    slices[-1].PixelData = bytes(len(slices[-1].PixelData))
    write_files(tmp_path / "b", [enhanced_file(slices)], RLELossless)
    found = scan_cohort(tmp_path)
    assert found.copies == ()
    assert [record.decision for record in found.series] == ["skipped"]


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


def test_near_copies_of_slices_are_not_resampled_to_their_distance(tmp_path: Path) -> None:
    """Ten slices 5 mm apart, each there twice, .03 mm beside: by their median distance they would make 1500."""
    z = np.repeat(np.arange(10) * 5.0, 2) + np.tile([0.0, 0.03], 10)
    write_series(tmp_path, shape=(20, 32, 24), positions=[(0, 0, value) for value in z])
    (record,) = scan_cohort(tmp_path, config=ScanConfig(repair=("resample",))).series
    assert (record.decision, record.repairs) == ("skipped", ())


def test_a_scan_sent_again_under_another_date_is_flagged(tmp_path: Path) -> None:
    """Which date is right is not known, and goes by names of files."""
    write_series(tmp_path / "a", study_date="20200305")
    write_series(tmp_path / "b", study_date="20200305", attributes={"StudyDate": "20200310"})
    record = only_series(tmp_path)
    assert (record.study_date, record.n_duplicates) == (date(2020, 3, 5), 4)
    assert record.qc_flags == ("duplicates_dropped", "study_date_conflict")


@pytest.mark.parametrize(
    "correction", [{"StudyDate": "20200310"}, {"FrameOfReferenceUID": "1.2.77"}], ids=["date", "frame of reference"]
)
def test_of_a_scan_sent_twice_one_version_is_kept_of_all_slices(tmp_path: Path, correction: dict[str, str]) -> None:
    """Whatever the names of the files, which here come by turns."""
    for name, attributes in (("a", {}), ("b", correction)):
        for path in write_series(tmp_path / name, shuffle=3, attributes=attributes):
            number = int(path.name[1:])
            path.rename(tmp_path / f"IM{2 * number + (number % 2 == (name == 'a')):05d}")
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 4)


def test_of_a_scan_of_which_some_slices_were_sent_again_the_whole_version_is_kept(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "a", attributes={"StudyDate": "20200310"})[2:]:
        path.unlink()
    write_series(tmp_path / "b", attributes={"StudyDate": "20200305"})
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.study_date) == ("selected", 4, date(2020, 3, 5))
    assert "study_date_conflict" in record.qc_flags


@pytest.mark.parametrize("lost", ["PatientID", "StudyInstanceUID", "ConvolutionKernel", "AcquisitionNumber"])
def test_a_copy_that_lost_an_attribute_is_a_copy(tmp_path: Path, lost: str) -> None:
    told = {"ConvolutionKernel": "B30f", "AcquisitionNumber": 1}
    write_series(tmp_path / "a", attributes=told | {lost: ""})
    write_series(tmp_path / "b", attributes=told)
    record = only_series(tmp_path)
    assert (record.decision, record.n_slices, record.n_duplicates) == ("selected", 4, 4)
    assert {path.split("/")[0] for path in record.files} == {"b"}, "what says more stays"


@pytest.mark.parametrize(
    ("name", "value", "flag"),
    [("SeriesDescription", "LUNG MIP", "maybe_projection"), ("ImageType", ["DERIVED", "AXIAL"], "derived_reformat")],
)
def test_a_copy_that_lost_what_tells_of_its_kind_is_the_one_that_goes(
    tmp_path: Path, name: str, value: Any, flag: str
) -> None:
    write_series(tmp_path / "a", attributes={name: ""})
    write_series(tmp_path / "b", attributes={name: value})
    assert flag in only_series(tmp_path).qc_flags


def test_of_copies_the_one_that_knows_patient_and_date_stays(tmp_path: Path) -> None:
    told = {"ConvolutionKernel": "B30f", "AcquisitionNumber": 1}
    for name, lost in (("a", ["PatientID"]), ("b", ["StudyDate"]), ("c", ["ConvolutionKernel", "AcquisitionNumber"])):
        write_series(tmp_path / name, attributes=told | dict.fromkeys(lost, ""))
    record = only_series(tmp_path)
    assert (record.patient_id, record.study_date, record.n_duplicates) == ("P1", date(2020, 4, 1), 8)
    assert record.qc_flags == ("duplicates_dropped",), "what lacks a date contradicts none"


def test_slices_of_two_kernels_are_no_copies_of_one_that_lost_its_own(tmp_path: Path) -> None:
    for name, kernel in (("a", None), ("b", "B30f"), ("c", "B70f")):
        write_series(tmp_path / name, attributes={"ConvolutionKernel": kernel})
    assert not scan_cohort(tmp_path).copies


def test_a_scan_there_under_two_dates_and_uids_is_flagged(tmp_path: Path) -> None:
    """As a study is sent again with a corrected date; a scan that runs past midnight has two as well."""
    write_series(tmp_path / "a", study_date="20200305")
    for day in ("20200306", "20200310"):
        again = {"StudyDate": day, "SeriesInstanceUID": "1.2.7", "StudyInstanceUID": "1.2.8"}
        write_series(tmp_path / "b", study_date="20200305", attributes=again)
        records = scan_cohort(tmp_path).series
        assert ["study_date_conflict" in record.qc_flags for record in records] == [True] * 2
    undated = {"StudyDate": "", "SeriesInstanceUID": "1.2.5", "StudyInstanceUID": "1.2.6"}
    write_series(tmp_path / "0", study_date="20200305", attributes=undated)
    records = scan_cohort(tmp_path).series
    assert ["study_date_conflict" in record.qc_flags for record in records] == [True] * 3


def test_a_copy_of_what_is_itself_dropped_counts_for_what_stays(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", attributes={"LossyImageCompression": "01", "StudyDate": "20200410"})
    write_series(tmp_path / "c")
    record = only_series(tmp_path)
    assert (record.n_slices, record.n_duplicates) == (4, 8)
    assert "study_date_conflict" in record.qc_flags


def test_copies_with_other_bytes_behind_their_pixels_are_copies(tmp_path: Path) -> None:
    for name, count in (("a", 64), ("b", 128)):
        for path in write_series(tmp_path / name):
            path.write_bytes(path.read_bytes() + b"\xff" * count)
    found = scan_cohort(tmp_path)
    assert [record.n_duplicates for record in found.series] == [4]
    assert {file.reason for file in found.copies} == {"copy of a slice of its series, with the same pixels"}


def test_a_copy_that_ends_the_process_that_decodes_it_is_dropped_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDCM aborts at some damage; what it was reading is a row, and the scan goes on."""
    paths = write_series(tmp_path / "a")
    write_series(tmp_path / "b", transfer_syntax=RLELossless)
    killed: list[Path] = []

    class Killed(SecondProcess):
        def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if args[0] == tmp_path / "b" / paths[2].name:
                killed.append(args[0])
                return super().call(os.abort)
            return super().call(function, *args, **kwargs)

    monkeypatch.setattr("cohortseg.dicom.scan.SecondProcess", Killed)
    found = scan_cohort(tmp_path)
    assert [(record.decision, record.n_slices) for record in found.series] == [("selected", 4)]
    reasons = {file.path: file.reason for file in found.copies}
    assert len(reasons) == 4
    assert [tmp_path / path for path, reason in reasons.items() if "not compared" in reason] == killed
