"""From folders to manifest rows: every file accounted for, whatever the tree looks like; and the command."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phantoms import CORONAL, write_series
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag
from runs import only_series
from typer.testing import CliRunner

from cohortseg.dicom import headers, scan
from cohortseg.dicom.elements import Attributes, first_attributes, quiet_pydicom
from cohortseg.dicom.guards import BoundedFile
from cohortseg.dicom.headers import Header, SkippedFile, read_headers
from cohortseg.dicom.scan import scan_cohort
from cohortseg.errors import ConfigError, StoreError
from cohortseg.report.scan_tables import file_rows, write_scan
from cohortseg.store.schemas import MANIFEST
from cohortseg.store.tables import read_table, table_from_rows
from cohortseg.synthetic.quirk_files import chest_slices, enhanced_file, write_files


def test_file_names_and_folders_mean_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "plain")
    write_series(tmp_path / "shuffled", shuffle=3)
    scattered = write_series(tmp_path / "scattered", shuffle=4)
    for number, path in enumerate(scattered):
        (tmp_path / "scattered" / str(number % 2)).mkdir(exist_ok=True)
        path.rename(tmp_path / "scattered" / str(number % 2) / f"{path.name}.jpg")
    rows = [asdict(only_series(tmp_path / name)) for name in ("plain", "shuffled", "scattered")]
    for row in rows:
        root = tmp_path / ("plain", "shuffled", "scattered")[rows.index(row)]
        row["positions"] = [pydicom.dcmread(root / path).ImagePositionPatient[2] for path in row.pop("files")]
        row.pop("fingerprint")
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]["positions"] == [100, 102.5, 105, 107.5]


def test_every_file_is_accounted_for(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "all.zip").write_bytes(b"PK\x03\x04rest")
    (tmp_path / "cut.dcm").write_bytes(paths[0].read_bytes()[:150])
    (tmp_path / "ghost.dcm").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = scan_cohort(tmp_path)
    assert {file.path: file.reason for file in found.skipped} == {
        "notes.txt": "not DICOM",
        "empty.dcm": "empty file",
        "all.zip": "not DICOM (zip archive: unpack it first)",
        "cut.dcm": "DICOM without SeriesInstanceUID or SOPInstanceUID",
        "ghost.dcm": "cannot be read: No such file or directory",
        "pipe": "not a regular file",
    }
    assert found.series[0].n_files == 4


def test_links_do_not_loop_or_double(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    record = only_series(tmp_path)
    assert (record.n_files, record.n_duplicates) == (4, 0)


def test_folders_of_two_disks_that_share_a_number_are_both_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below one FUSE mount, or with subvolumes of btrfs."""
    for name in ("a", "b"):
        write_series(tmp_path / name, series=str(ord(name)))
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    stat = Path.stat

    def alike(path: Path, **options: bool) -> os.stat_result:
        found = tuple(stat(path, **options))
        return os.stat_result((found[0], 256, *found[2:10]))

    monkeypatch.setattr(Path, "stat", alike)
    assert [(record.n_files, record.n_duplicates) for record in scan_cohort(tmp_path).series] == [(4, 0), (4, 0)]


def test_a_cohort_that_goes_while_it_is_read_is_no_smaller_cohort(tmp_path: Path) -> None:
    write_series(tmp_path / "cohort/a")
    write_series(tmp_path / "cohort/b", series="2")

    def unmounted(done: int, _of: int, what: str) -> None:
        if (done, what) == (0, "reading headers"):
            (tmp_path / "cohort").rename(tmp_path / "elsewhere")

    with pytest.raises(StoreError, match="the cohort has gone"):
        scan_cohort(tmp_path / "cohort", unmounted)


def test_a_link_in_circles_costs_its_folder_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "loop").symlink_to("loop")
    found = scan_cohort(tmp_path)
    assert [record.n_files for record in found.series] == [4]
    assert [file.path for file in found.skipped] == ["a/loop", "loop"]
    assert all("cannot be read" in file.reason for file in found.skipped)


def test_files_are_told_in_the_order_of_their_paths_where_others_lie_between_those_of_a_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a")
    notes = [path.with_suffix(".txt") for path in paths[1:]]
    for path in notes:
        path.write_text("no DICOM")
    told = [row["path"] for row in file_rows(scan_cohort(tmp_path))]
    assert told == sorted(str(path.relative_to(tmp_path)) for path in (*paths, *notes))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    paths[3].rename(tmp_path / os.fsdecode(b"M\xfcller"))
    (tmp_path / os.fsdecode(b"M\xf6ller")).write_bytes(b"")
    found = scan_cohort(tmp_path)
    assert [file.reason for file in found.skipped] == ["name is not UTF-8: rename it"] * 2
    assert found.num_unreadable == 2
    assert len({row["path"] for row in file_rows(found)}) == 5, "each file keeps a row of its own"
    table_from_rows([asdict(record) for record in found.series], MANIFEST)


def test_files_without_preamble_are_found(tmp_path: Path) -> None:
    for path in write_series(tmp_path):
        path.write_bytes(path.read_bytes()[132:])
    assert only_series(tmp_path).decision == "selected"


def test_fingerprint_tells_a_changed_input(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    before = only_series(tmp_path).fingerprint
    assert only_series(tmp_path).fingerprint == before
    os.utime(paths[0], ns=(1, 1))
    assert only_series(tmp_path).fingerprint != before


def test_processes_give_the_same_result(tmp_path: Path) -> None:
    write_series(tmp_path / "a", shape=(250, 4, 4))
    write_series(tmp_path / "b", patient_id="P2")
    (tmp_path / "notes.txt").write_text("hello")
    seen: list[tuple[int, int]] = []
    assert scan_cohort(tmp_path, lambda done, total, _: seen.append((done, total)), workers=2) == scan_cohort(tmp_path)
    assert seen == [(0, 255), (200, 255), (255, 255), (0, 2), (1, 2), (2, 2)], "files, then series"


def test_series_are_in_order_of_patient_and_date(tmp_path: Path) -> None:
    visits = [("B", "20200402"), ("A", ""), ("B", "20200301"), ("A", "20210101")]
    for folder, (patient, day) in enumerate(visits):
        write_series(tmp_path / str(folder), patient_id=patient, study_date=day, shape=(1, 8, 8))
    found = [(record.patient_id, str(record.study_date)) for record in scan_cohort(tmp_path).series]
    assert found == [("A", "2021-01-01"), ("A", "None"), ("B", "2020-03-01"), ("B", "2020-04-02")]


@pytest.mark.parametrize(("name", "match"), [("none", "does not exist"), ("file", "is a file"), ("folder", "no DICOM")])
def test_roots_without_series(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=match):
        scan_cohort(tmp_path / name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_never_stops_the_scan(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "good").exists():
        write_series(tmp_path / "good", shape=(1, 4, 4))
    content = bytearray((tmp_path / "good" / "0000.dcm").read_bytes())
    for position in data.draw(st.lists(st.integers(132, len(content) - 33), min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    (tmp_path / "bad").write_bytes(content[: data.draw(st.integers(132, len(content)))])
    with quiet_pydicom():
        found = read_headers(tmp_path, "bad")
        assert isinstance(found, SkippedFile) or all(isinstance(header, Header) for header in found)


def test_the_quick_way_to_a_header_finds_what_pydicom_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    quick = 0

    def counted(start: bytes, tags: list[int]) -> tuple[Attributes, Attributes] | None:
        nonlocal quick
        found = first_attributes(start, tags)
        quick += found is not None
        return found

    with quiet_pydicom():
        monkeypatch.setattr(headers, "first_attributes", counted)
        found = [read_headers(folder, name) for name in names]
        monkeypatch.setattr(headers, "first_attributes", lambda *_: None)
        assert found == [read_headers(folder, name) for name in names]
    assert quick > len(names) / 2


def test_a_header_beyond_the_first_bytes_is_found(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a", shape=(1, 4, 4))[0]
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x0009_0010, "LO", "somebody")
    dataset.add_new(0x0009_1001, "OB", bytes(100_000))  # before all that tells where the slice lies
    dataset.save_as(path)
    assert only_series(tmp_path).reason is None


def test_a_wild_mixture_is_sorted_without_a_crash() -> None:
    found = scan_cohort(Path(str(get_testdata_file("CT_small.dcm", download=False))).parent)
    reasons = {record.modality: record.reason for record in found.series}
    assert reasons["RTSTRUCT"] == "modality is RTSTRUCT, not CT"
    assert any(file.reason == "DICOMDIR: an index, not an image" for file in found.skipped)
    # CT_small, one series of the DICOMDIR examples, and a lossy JPEG 2000 reformat.
    assert len(found.selected) == 3


def test_command_prints_and_writes(tmp_path: Path) -> None:
    from cohortseg.cli import app

    write_series(tmp_path / "in" / "a", patient_id="Secret7")
    write_series(tmp_path / "in" / "b", series="2", orientation=CORONAL, patient_id="Secret7")
    arguments = ["scan", str(tmp_path / "in"), "-o", str(tmp_path / "manifest.parquet")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "2 series, 1 to be segmented; 0 other files" in result.stdout
    assert "coronal slices: only axial series are segmented" in result.stdout
    assert "Secret" not in result.output
    assert "Secret7" in CliRunner().invoke(app, [*arguments, "--show-ids"]).stdout
    frame = read_table(tmp_path / "manifest.parquet", MANIFEST)
    assert frame.filter(pl.col("decision") == "selected")["orientation"].to_list() == ["axial"]


def test_command_without_input_is_wrong_usage(tmp_path: Path) -> None:
    from cohortseg.cli import app

    for folder, text in ((tmp_path / "none", "does not exist"), (tmp_path, "no DICOM series found")):
        result = CliRunner().invoke(app, ["scan", str(folder)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert text in result.stderr.replace("\n", "")


@pytest.mark.realdata
def test_hospital_files(ny_sbu: Path) -> None:
    found = scan_cohort(ny_sbu)
    selected = found.selected
    skipped = [record.reason for record in found.series if record.decision == "skipped"]
    assert sum(record.n_files for record in found.series) == 32
    assert (len(found.series), len(selected), len(found.skipped)) == (30, 10, 0)
    assert sum("derived_reformat" in record.qc_flags for record in selected) == 1
    assert all("single_slice" in record.qc_flags for record in selected)
    assert skipped.count("coronal reformat: only axial series are segmented") == 10
    assert skipped.count("sagittal reformat: only axial series are segmented") == 10
    assert [record.n_duplicates for record in found.series if record.n_duplicates] == [1, 1]


def test_a_file_that_goes_on_with_zeros_is_damaged_and_holds_nobody_up(tmp_path: Path) -> None:
    """A copy that was given its size before its bytes came."""
    (path, *_) = write_series(tmp_path / "a")
    write_series(tmp_path / "b")
    with path.open("r+b") as file:
        file.truncate(700)
        file.truncate(2**20)
    with patch.object(BoundedFile, "read", autospec=True, side_effect=BoundedFile.read) as read:
        found = scan_cohort(tmp_path)
    assert read.call_count < 10_000, "zeros are walked, as if they were elements"
    assert [(item.path, item.reason) for item in found.skipped] == [("a/0000.dcm", "damaged DICOM header")]


def test_an_equal_slice_of_another_reconstruction_is_no_copy(tmp_path: Path) -> None:
    for kernel in ("STANDARD", "LUNG"):
        write_series(tmp_path / kernel, attributes={"ConvolutionKernel": kernel})
    result = scan_cohort(tmp_path)
    assert sorted((record.convolution_kernel, record.n_slices) for record in result.series) == [
        ("LUNG", 4),
        ("STANDARD", 4),
    ]


def test_an_empty_file_in_a_hidden_folder_is_no_lost_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "cohort")
    (tmp_path / "cohort/out/.state").mkdir(parents=True)
    (tmp_path / "cohort/out/.state/lock").touch()
    assert not any(item.unreadable for item in scan_cohort(tmp_path / "cohort").skipped)


@pytest.mark.parametrize(
    ("name", "lost"), [("IM0007", True), ("1.2.840.7", True), ("7.dcm", True), ("_SUCCESS", False), ("day1.txt", False)]
)
def test_an_empty_file_is_a_lost_slice_only_if_named_like_one(tmp_path: Path, name: str, lost: bool) -> None:
    write_series(tmp_path)
    (tmp_path / name).touch()
    (found,) = scan_cohort(tmp_path).skipped
    assert (found.reason, found.unreadable) == ("empty file", lost)


def test_a_file_that_vanishes_before_its_pixels_are_compared_is_told_of(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    other = pydicom.dcmread(paths[2])
    other.PixelData = bytes(reversed(other.PixelData))
    other.save_as(tmp_path / "zz.dcm")
    assert only_series(tmp_path).reason == "different pixels at the same position (1 of 5 slices)"
    for path in write_series(tmp_path / "elsewhere", series="2"):
        path.rename(tmp_path / f"!{path.name}")  # a series that is looked at before the other

    def report(_number: int, _total: int, title: str) -> None:
        if title.startswith("series:"):
            (tmp_path / "zz.dcm").unlink(missing_ok=True)

    found = scan_cohort(tmp_path, report)
    assert found.num_unreadable == 1
    assert [(file.path, "cannot be read any more" in file.reason) for file in found.copies] == [("zz.dcm", True)]
    assert ["files_unreadable" in record.qc_flags for record in found.series] == [True, True]


def test_a_cohort_that_goes_before_pixels_are_compared_is_no_cohort_of_other_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_series(tmp_path / "cohort" / name)

    def unmounted(done: int, _of: int, what: str) -> None:
        if (done, what.split(":")[0]) == (0, "series"):
            (tmp_path / "cohort").rename(tmp_path / "elsewhere")
            (tmp_path / "cohort").mkdir()

    with pytest.raises(StoreError, match="the cohort has gone"):
        scan_cohort(tmp_path / "cohort", unmounted)


def test_slices_that_vanish_with_all_their_copies_are_no_different_pixels(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a")
    write_series(tmp_path / "b")

    def report(_number: int, _total: int, title: str) -> None:
        if title.startswith("series:"):
            for folder in ("a", "b"):
                (tmp_path / folder / paths[2].name).unlink(missing_ok=True)

    found = scan_cohort(tmp_path, report)
    assert found.num_unreadable == 1
    (record,) = found.series
    assert (record.decision, record.reason) == ("selected", None)


def test_threads_that_scan_at_once_leave_warnings_and_validation_as_they_were() -> None:
    before = warnings.filters[:], pydicom.config.settings.reading_validation_mode
    first, second = quiet_pydicom(), quiet_pydicom()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert (warnings.filters[:], pydicom.config.settings.reading_validation_mode) == before


def test_where_no_process_can_begin_headers_are_read_in_this_one(tmp_path: Path) -> None:
    write_series(tmp_path)
    script = f"""
from pathlib import Path
from cohortseg.dicom.scan import scan_cohort

print(len(scan_cohort(Path({str(tmp_path)!r}), workers=2).series))
"""
    ended = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr
    assert "headers are read in this one" in ended.stderr


@pytest.mark.parametrize("name", ["a**b.parquet", "a[b.parquet"])
def test_a_manifest_may_be_called_like_a_pattern(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "cohort")
    write_scan(scan_cohort(tmp_path / "cohort"), {}, manifest=tmp_path / name)
    assert (tmp_path / name).exists()


def test_an_absurd_number_in_one_header_costs_the_cohort_nothing(tmp_path: Path) -> None:
    from cohortseg.cli import app

    write_series(tmp_path / "cohort/good")
    (odd, *_) = write_series(tmp_path / "cohort/odd", shape=(1, 8, 8), series="2", attributes={"AcquisitionNumber": 7})
    odd.write_bytes(odd.read_bytes().replace(b"\x28\x00\x10\x00US\x02\x00\x08\x00", b"\x28\x00\x10\x00DS\x04\x001e30"))
    result = CliRunner().invoke(app, ["scan", str(tmp_path / "cohort"), "-o", str(tmp_path / "manifest.parquet")])
    assert result.exit_code == 0, result.output
    rows = read_table(tmp_path / "manifest.parquet", MANIFEST).sort("n_slices").select("decision", "rows").rows()
    assert rows == [("skipped", None), ("selected", 32)]


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("declared", ["ISO_IR 100", "ISO_IR 192", None])
@pytest.mark.parametrize("written", ["utf-8", "latin-1"])
def test_patients_whose_ids_do_not_fit_their_character_set_stay_apart(
    tmp_path: Path, declared: str | None, written: str, *, enhanced: bool
) -> None:
    for name in ("M\N{LATIN CAPITAL LETTER U WITH DIAERESIS}L", "M\N{LATIN CAPITAL LETTER O WITH DIAERESIS}L"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        attributes = {} if declared is None else {"SpecificCharacterSet": declared}
        encoded = name.encode(written).ljust(4)
        identity = "Q" * len(encoded)
        if enhanced:
            slices = chest_slices(folder.name)
            for dataset in slices:
                dataset.update({"PatientID": identity} | attributes)
            paths = write_files(folder, [enhanced_file(slices)])
        else:
            paths = write_series(folder, patient_id=identity, series=folder.name, attributes=attributes)
        for path in paths:
            path.write_bytes(path.read_bytes().replace(identity.encode(), encoded))
    ids = {record.patient_id for record in scan_cohort(tmp_path).series}
    assert len(ids) == 2
    assert all(text is not None and text.isprintable() for text in ids)


KILLED_SCAN = """
import multiprocessing, os, signal, sys
from pathlib import Path
from cohortseg.dicom.scan import scan_cohort
from cohortseg.report.scan_tables import file_rows, write_scan

def report(done, total, what):
    if done:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    scan_cohort(Path(sys.argv[1]), report, workers=2)
"""


def test_a_killed_scan_leaves_no_process_behind(tmp_path: Path) -> None:
    write_series(tmp_path / "cohort")
    script = tmp_path / "scan.py"
    script.write_text(KILLED_SCAN)
    with (tmp_path / "pids").open("w") as file:  # a pipe would be held open by those that are left behind
        code = subprocess.run([sys.executable, script, tmp_path / "cohort"], stdout=file, check=False).returncode
    left = {int(pid) for pid in (tmp_path / "pids").read_text().split()}
    assert (code, bool(left)) == (-signal.SIGKILL, True)
    deadline = time.monotonic() + 30
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if Path(f"/proc/{pid}").exists()}
        time.sleep(0.1)
    assert not left


def test_how_a_scan_was_taken_is_in_its_row(tmp_path: Path) -> None:
    taken = {"ManufacturerModelName": "Aquilion ONE", "KVP": "120", "ContrastBolusAgent": "& NON IONIC"}
    write_series(tmp_path / "one", series="1", attributes=taken)
    write_series(tmp_path / "two", series="2", attributes=lambda z: taken | {"KVP": str(100 + z)})
    write_series(tmp_path / "three", series="3", attributes={"KVP": "0", "ContrastBolusAgent": ""})
    agents = ("", "OMNIPAQUE", "OMNIPAQUE", "I.V.")
    write_series(tmp_path / "four", series="4", attributes=lambda z: {"ContrastBolusAgent": agents[z]})
    (enhanced,) = write_files(tmp_path / "enhanced", [enhanced_file(chest_slices("enhanced"))])
    dataset = pydicom.dcmread(enhanced)
    details = pydicom.Dataset()
    details.KVP, details.ContrastBolusAgent = 80, "of a converted file"
    del dataset.KVP
    dataset.SharedFunctionalGroupsSequence[0].UnassignedSharedConvertedAttributesSequence = [details]
    dataset.save_as(enhanced)
    found = {
        record.files[0].partition("/")[0]: (record.manufacturer_model, record.kvp, record.contrast_agent)
        for record in scan_cohort(tmp_path).series
    }
    assert found == {
        "one": ("Aquilion ONE", 120.0, "& NON IONIC"),
        "two": ("Aquilion ONE", None, "& NON IONIC"),
        "three": (None, None, None),
        "four": (None, None, "I.V.; OMNIPAQUE"),
        "enhanced": ("synthetic chest", 80.0, "of a converted file"),
    }


def test_a_scan_taken_on_another_date_than_that_of_its_study_is_flagged(tmp_path: Path) -> None:
    dates = {
        "same": {"AcquisitionDate": "20200401"},
        "past_midnight": lambda z: {"AcquisitionDate": f"2020040{1 + z // 2}"},
        "another_visit": {"AcquisitionDate": "20200408"},
        "one_mistyped": lambda z: {"AcquisitionDate": "20200401" if z else "20100101"},
        "date_and_time": {"AcquisitionDateTime": "20200330235959.5+0100"},
        "filler": {"AcquisitionDate": "19000101"},
        "study_undated": {"StudyDate": "", "AcquisitionDate": "20200408"},
    }
    for series, (name, attributes) in enumerate(dates.items()):
        write_series(tmp_path / name, series=str(series), study_date="20200401", attributes=attributes)
    found = {
        record.files[0].partition("/")[0]: (
            record.acquisition_date and record.acquisition_date.isoformat(),
            "acquired_on_another_date" in record.qc_flags,
        )
        for record in scan_cohort(tmp_path).series
    }
    assert found == {
        "same": ("2020-04-01", False),
        "past_midnight": ("2020-04-01", False),
        "another_visit": ("2020-04-08", True),
        "one_mistyped": ("2020-04-01", False),
        "date_and_time": ("2020-03-30", True),
        "filler": (None, False),
        "study_undated": ("2020-04-08", False),
    }


@pytest.mark.parametrize(
    ("names", "flagged"),
    [
        ({"StudyDescription": "NEURO CT HEAD BRAIN WO", "SeriesDescription": "5mm Axial"}, True),
        ({"StudyDescription": "CT TRAUMA", "ProtocolName": "Head Routine"}, True),
        ({"StudyDescription": "CT ABDOMEN PELVIS", "ProtocolName": "Thorax"}, False),
        ({"StudyDescription": "CT HEAD, CHEST, ABDOMEN", "SeriesDescription": "5mm Axial"}, False),
        ({"StudyDescription": "CT HEAD", "BodyPartExamined": "CHEST"}, False),
        ({"StudyDescription": "CT HEAD", "SeriesDescription": "ABDOMEN 5.0"}, False),
        ({"StudyDescription": "CT CHEST ABDOMEN PELVIS", "ProtocolName": "5.8 ABD/PEL ROUTINE"}, False),
        ({"StudyDescription": "Radiation therapy planning"}, False),
    ],
)
def test_the_study_names_the_part_of_the_body_if_the_series_does_not(
    tmp_path: Path, names: dict[str, str], flagged: bool
) -> None:
    write_series(tmp_path, attributes={"BodyPartExamined": "", "SeriesDescription": ""} | names)
    assert ("study_of_other_part" in only_series(tmp_path).qc_flags) is flagged


def test_what_an_enhanced_file_tells_in_codes_or_of_two_tubes(tmp_path: Path) -> None:
    file = enhanced_file(chest_slices("enhanced"))
    agents, (shared,) = [Dataset(), Dataset(), Dataset()], file.SharedFunctionalGroupsSequence
    for agent, meaning in zip(agents, ("Iohexol", "Barium sulfate", "Iohexol"), strict=True):
        agent.CodeMeaning = meaning
    file.ContrastBolusAgentSequence = agents
    del file.BodyPartExamined
    tubes = [Dataset(), Dataset()]
    tubes[0].KVP, tubes[1].KVP = 80, 140
    shared.CTXRayDetailsSequence = tubes
    for index, frame in enumerate(file.PerFrameFunctionalGroupsSequence):
        region, anatomy = Dataset(), Dataset()
        region.CodeMeaning = "Abdomen" if index < 3 else "Chest"
        anatomy.AnatomicRegionSequence = [region]
        frame.FrameAnatomySequence = [anatomy]
    write_files(tmp_path, [file])
    record = only_series(tmp_path)
    assert (record.kvp, record.contrast_agent) == (None, "Iohexol; Barium sulfate")
    assert (record.body_part, "other_body_part" in record.qc_flags) == ("Abdomen; Chest", False)


def test_groups_do_not_hide_what_the_top_level_states(tmp_path: Path) -> None:
    file = enhanced_file(chest_slices("enhanced"))
    region, anatomy, unassigned = Dataset(), Dataset(), Dataset()
    region.CodeMeaning = "Abdomen"
    anatomy.AnatomicRegionSequence = [region]
    unassigned.ContrastBolusAgent, unassigned.KVP, unassigned.LossyImageCompression = "", None, "00"
    (shared,) = file.SharedFunctionalGroupsSequence
    shared.FrameAnatomySequence = [anatomy]
    shared.UnassignedSharedConvertedAttributesSequence = [unassigned]
    shared.CTReconstructionSequence[0].ConvolutionKernel = ""
    file.BodyPartExamined, file.ContrastBolusAgent, file.KVP = "CHEST", "OMNIPAQUE", 120
    file.ConvolutionKernel, file.LossyImageCompression = "B30f", "01"
    write_files(tmp_path, [file])
    record = only_series(tmp_path)
    found = record.body_part, record.contrast_agent, record.kvp, record.convolution_kernel
    assert found == ("CHEST", "OMNIPAQUE", 120.0, "B30f")
    assert {"lossy_compression", "other_body_part"} & {*record.qc_flags} == {"lossy_compression"}


@pytest.mark.parametrize(
    ("shared", "own", "lossy"),
    [(None, None, False), ("00", "00", False), ("00", "01", True), ("01", "00", True), (None, "01", True)],
)
def test_a_frame_is_lossy_if_any_group_says_so(
    tmp_path: Path, shared: str | None, own: str | None, lossy: bool
) -> None:
    file = enhanced_file(chest_slices("enhanced"))
    for extent, groups, told in (
        ("Shared", file.SharedFunctionalGroupsSequence, shared),
        ("PerFrame", file.PerFrameFunctionalGroupsSequence, own),
    ):
        for group in groups if told else ():
            unassigned = Dataset()
            unassigned.LossyImageCompression = told
            setattr(group, f"Unassigned{extent}ConvertedAttributesSequence", [unassigned])
    write_files(tmp_path, [file])
    assert ("lossy_compression" in only_series(tmp_path).qc_flags) == lossy


def test_an_odd_value_in_a_functional_group_costs_no_more_than_itself(tmp_path: Path) -> None:
    (path,) = write_files(tmp_path, [enhanced_file(chest_slices("enhanced"))])
    dataset = pydicom.dcmread(path)
    (shared,) = dataset.SharedFunctionalGroupsSequence
    shared.CTXRayDetailsSequence = [Dataset()]
    del dataset.KVP
    with disable_value_validation():
        shared.CTXRayDetailsSequence[0]["KVP"] = RawDataElement(Tag("KVP"), "DS", 6, b"120 kV", 0, False, True)
        shared.PixelMeasuresSequence[0]["SliceThickness"] = RawDataElement(
            Tag("SliceThickness"), "DS", 4, b"5 mm", 0, False, True
        )
        agents = Tag("ContrastBolusAgentSequence")
        dataset[agents] = RawDataElement(agents, "LO", 4, b"text", 0, False, True)
        dataset.save_as(path)
    content = path.read_bytes()
    assert content.count(b"\x18\x00\x60\x00DS\x06\x00") == 1
    path.write_bytes(content.replace(b"\x18\x00\x60\x00DS\x06\x00", b"\x18\x00\x60\x00FD\x06\x00"))  # raises if read
    record = only_series(tmp_path)
    assert (record.decision, record.slice_thickness_mm, record.contrast_agent) == ("selected", None, None)
    assert record.n_slices == len(dataset.PerFrameFunctionalGroupsSequence)


def test_a_converted_series_tells_what_its_files_told(tmp_path: Path) -> None:
    """The converter is highdicom's: it leaves what has no macro among the unassigned attributes."""
    slices = [*chest_slices("gated"), *chest_slices("gated")]
    half = len(slices) // 2
    for index, item in enumerate(slices):
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{index}"
        item.PatientName, item.PatientBirthDate, item.PatientSex, item.AccessionNumber = "A^B", "", "", ""
        item.ReferringPhysicianName = item.StudyID = item.StudyTime = ""
        item.InstanceNumber, item.BodyPartExamined, item.KVP = index + 1, "ABDOMEN", 100
        item.ContrastBolusAgent, item.LossyImageCompression = "OMNIPAQUE", "01"
        item.TemporalPositionIdentifier = 1 + index // half
        item.NominalPercentageOfRespiratoryPhase = 50.0 * (index // half)
        if index >= half:
            item.PixelData = bytes(reversed(item.PixelData))
    write_files(tmp_path / "files", slices)
    converted = LegacyConvertedEnhancedCTImage(
        slices, series_instance_uid="1.2.4", series_number=9, sop_instance_uid="1.2.5", instance_number=1
    )
    (tmp_path / "converted").mkdir()
    converted.save_as(tmp_path / "converted/one")
    told = [
        (
            *(record.n_slices, record.phase, record.kvp, record.contrast_agent, record.convolution_kernel),
            *((record.body_part or "").upper(), {"lossy_compression", "other_body_part"} & {*record.qc_flags}),
        )
        for folder in ("files", "converted")
        for record in scan_cohort(tmp_path / folder).series
    ]
    assert told[:2] == told[2:]
    assert [one[1] for one in told[:2]] == [
        f"temporal position {n}; respiratory {pct} %" for n, pct in ((1, 0), (2, 50))
    ]


def concatenation(uid: str, slices: list[FileDataset], total: int | None = 2) -> list[FileDataset]:
    """Return an enhanced file in two parts, of every other slice each."""
    parts = [enhanced_file(slices[::2]), enhanced_file(slices[1::2])]
    for number, part in enumerate(parts, start=1):
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{number}"
        part.ConcatenationUID, part.InConcatenationNumber = uid, number
        if total is not None:
            part.InConcatenationTotalNumber = total
    return parts


@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.parametrize(
    ("kept", "total"), [([1], 2), ([2], 2), ([2], None), ([1, 2], 2), ([1, 2], None), ([1], "no ConcatenationUID")]
)
def test_a_part_of_a_concatenation_that_is_not_there_is_told(
    tmp_path: Path, kept: list[int], total: int | str | None, *, phases: bool
) -> None:
    slices = chest_slices("enhanced")
    parts = concatenation("1.2", slices, total if isinstance(total, int | None) else 2)
    for number, part in enumerate(parts, start=1):
        if isinstance(total, str):
            del part.ConcatenationUID
        for frame in part.PerFrameFunctionalGroupsSequence if phases else ():
            frame.FrameContentSequence[0].TemporalPositionIndex = number
    write_files(tmp_path, [parts[number - 1] for number in kept])
    records = scan_cohort(tmp_path).series
    assert sum(record.n_slices for record in records) == len(kept) * len(slices) // 2
    assert {"concatenation_incomplete" in record.qc_flags for record in records} == {len(kept) == 1}


def test_a_concatenation_exported_twice_lacks_no_part(tmp_path: Path) -> None:
    first, second = (concatenation(uid, chest_slices("enhanced")) for uid in ("1.2", "1.3"))
    for name, part in zip("abcd", (first[0], second[0], second[1], first[1]), strict=True):
        write_files(tmp_path / name, [part])  # of the second part, the copy of the other export is kept
    record = only_series(tmp_path)
    assert (record.n_slices, record.n_duplicates, record.decision) == (len(chest_slices("enhanced")), 2, "selected")
    assert "concatenation_incomplete" not in record.qc_flags


def test_frames_that_repeat_a_position_are_not_said_to_differ(tmp_path: Path) -> None:
    slices = chest_slices("enhanced")
    write_files(tmp_path, [enhanced_file([*slices, *slices[:2]])])
    record = only_series(tmp_path)
    count = f"2 of {len(slices) + 2} slices"
    assert (record.decision, record.reason) == ("skipped", f"several frames at the same position ({count})")


def test_a_file_that_lost_its_preamble_but_not_its_prefix_is_told_of(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path)
    path.write_bytes(path.read_bytes()[128:])
    (lost,) = scan_cohort(tmp_path).skipped
    assert (lost.unreadable, lost.reason) == (True, "DICOM that lost its first 128 bytes: copy it again")


def test_an_image_of_a_disc_is_an_archive(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    (tmp_path / "patient.iso").write_bytes(b"\0" * 32769 + b"CD001" + b"\0" * 4096)
    found = scan_cohort(tmp_path)
    assert (found.num_archives, [file.reason for file in found.skipped]) == (
        1,
        ["not DICOM (ISO 9660 archive: unpack it first)"],
    )


def fails_on_secret(monkeypatch: pytest.MonkeyPatch, step: str, error: type[Exception]) -> None:
    """Let a step of the scan fail on the series with this description."""
    real = getattr(scan, step)

    def failing(*arguments: Any, **named: Any) -> Any:
        seen = next(part for part in arguments if isinstance(part, list))
        if seen[0].series_description == "SECRET":
            raise error("SECRET")
        return real(*arguments, **named)

    monkeypatch.setattr(scan, step, failing)


def write_good_and_odd(root: Path) -> None:
    write_series(root / "good", series="1", patient_id="A")
    write_series(root / "odd", series="2", patient_id="B", attributes=lambda _: {"SeriesDescription": "SECRET"})


@pytest.mark.parametrize("step", ["drop_copies", "split_volumes", "series_from_headers"])
def test_a_series_on_which_the_scan_itself_fails_is_left_out_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    fails_on_secret(monkeypatch, step, ValueError)
    write_good_and_odd(tmp_path)
    found = scan_cohort(tmp_path)
    assert [record.decision for record in found.series] == ["selected"]
    assert [file.path for file in found.skipped] == [f"odd/{z:04}.dcm" for z in range(4)]
    (reason,) = {file.reason for file in found.skipped}
    assert re.fullmatch(r"unexpected ValueError in test_dicom_scan\.py:\d+", reason)
    assert found.num_unreadable == 4, "so that the exit code tells"
    assert "is left out: unexpected ValueError" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("error", [MemoryError, OSError])
def test_what_the_machine_lacks_is_not_the_fault_of_a_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    write_good_and_odd(tmp_path)
    for step in ("split_volumes", "drop_copies"):
        fails_on_secret(monkeypatch, step, error)
        with pytest.raises(error):
            scan_cohort(tmp_path)
