"""The synthetic cohort: its files, its truth, their HU, and the command."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import highdicom
import numpy as np
import polars as pl
import pydicom
import pytest
import SimpleITK as sitk
from scipy import ndimage
from typer.testing import CliRunner

from cohortseg.config import SampleConfig
from cohortseg.errors import ConfigError, StoreError
from cohortseg.identity import series_key
from cohortseg.store.schemas import TRUTH
from cohortseg.store.tables import read_table
from cohortseg.synthetic.cohort import truth_amounts, write_cohort

CONFIG = SampleConfig(patients=3, timepoints=3, slices=6, size=96, seed=5)


def ignore(_done: int, _total: int | None, _text: str) -> None:
    return


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "cohort"
    write_cohort(out, CONFIG, ignore)
    return out


@pytest.fixture(scope="module")
def truth(cohort: Path) -> pl.DataFrame:
    return read_table(cohort / "truth.parquet", TRUTH)


def series_folders(cohort: Path) -> dict[str, Path]:
    """Every folder of DICOM files, by the SeriesInstanceUID in its files."""
    folders = sorted({path.parent for path in cohort.rglob("*.dcm")})
    return {pydicom.dcmread(min(folder.iterdir())).SeriesInstanceUID: folder for folder in folders}


def read_with_simpleitk(folder: Path) -> sitk.Image:
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


def masks_of(cohort: Path, series_instance_uid: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(cohort / "truth" / f"{series_key(series_instance_uid)}.npz") as arrays:
        return arrays["labels"], arrays["lungs"]


def rows_with_arrays(cohort: Path, truth: pl.DataFrame) -> Iterator[tuple[dict, np.ndarray, np.ndarray, np.ndarray]]:
    """Rows with HU as SimpleITK reads them, labels and lungs."""
    folders = series_folders(cohort)
    for row in truth.iter_rows(named=True):
        hu = sitk.GetArrayFromImage(read_with_simpleitk(folders[row["series_instance_uid"]]))
        yield row, hu, *masks_of(cohort, row["series_instance_uid"])


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


SMALL = SampleConfig(patients=1, timepoints=2, slices=2, size=64, seed=9)
WRITE_SMALL = (
    "import sys; from pathlib import Path; from cohortseg.config import SampleConfig;"
    "from cohortseg.synthetic.cohort import write_cohort;"
    f"write_cohort(Path(sys.argv[1]), {SMALL!r}, lambda *_: None)"
)


def test_same_seed_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    write_cohort(tmp_path / "here", SMALL, ignore)
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", WRITE_SMALL, str(tmp_path / "there")], check=True, env=environment)
    first = digest(tmp_path / "here")
    assert len(first) == 2 + 1 + 1  # two slices, one mask file, the table
    assert first == digest(tmp_path / "there")


def test_another_seed_shares_no_uid_and_no_pixels(tmp_path: Path) -> None:
    write_cohort(tmp_path / "a", SMALL, ignore)
    write_cohort(tmp_path / "b", SampleConfig(patients=1, timepoints=2, slices=2, size=64, seed=10), ignore)
    a, b = ([pydicom.dcmread(path) for path in sorted((tmp_path / name).rglob("*.dcm"))] for name in "ab")
    assert {item.SOPInstanceUID for item in a}.isdisjoint(item.SOPInstanceUID for item in b)
    assert all(not np.array_equal(one.pixel_array, other.pixel_array) for one, other in zip(a, b, strict=True))


def test_one_row_one_folder_one_mask_file_a_series(cohort: Path, truth: pl.DataFrame) -> None:
    uids = set(truth["series_instance_uid"])
    assert truth.height == len(uids) == 2 + 3 + 3  # the first patient has one date fewer
    assert set(series_folders(cohort)) == uids
    assert {path.stem for path in (cohort / "truth").iterdir()} == {series_key(uid) for uid in uids}
    assert truth["timepoint"].to_list() == [0, 1, 0, 1, 2, 0, 1, 2]
    days = truth.group_by("patient_id", maintain_order=True).agg(
        (pl.col("study_date") - pl.col("study_date").min()).dt.total_days() == pl.col("days_since_baseline")
    )
    assert days["study_date"].explode().all()


def test_every_file_has_the_attributes_of_a_ct_image(cohort: Path) -> None:
    uids = set()
    type_1 = [
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "Modality",
        "ImageType",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelSpacing",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "RescaleIntercept",
        "RescaleSlope",
        "PixelData",
    ]
    type_2 = [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "ReferringPhysicianName",
        "StudyID",
        "AccessionNumber",
        "SeriesNumber",
        "PatientPosition",
        "PositionReferenceIndicator",
        "Manufacturer",
        "SliceThickness",
        "KVP",
        "AcquisitionNumber",
        "InstanceNumber",
    ]
    for path in cohort.rglob("*.dcm"):
        item = pydicom.dcmread(path)
        assert item.SOPClassUID == pydicom.uid.CTImageStorage == item.file_meta.MediaStorageSOPClassUID
        assert item.SOPInstanceUID == item.file_meta.MediaStorageSOPInstanceUID
        assert all(item[keyword].value not in (None, "") for keyword in type_1)
        assert all(keyword in item for keyword in type_2)
        assert list(item.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
        assert item.PatientID.startswith("SYN-")
        assert all(item[k].value.is_valid for k in ("SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"))
        uids.add(item.SOPInstanceUID)
    assert len(uids) == 8 * CONFIG.slices


def test_identity_in_the_files_is_that_of_the_truth(cohort: Path, truth: pl.DataFrame) -> None:
    folders = series_folders(cohort)
    for row in truth.iter_rows(named=True):
        for path in folders[row["series_instance_uid"]].iterdir():
            item = pydicom.dcmread(path, stop_before_pixels=True)
            assert item.PatientID == row["patient_id"]
            assert item.StudyInstanceUID == row["study_instance_uid"]
            assert date.fromisoformat(item.StudyDate) == row["study_date"]


def test_highdicom_and_simpleitk_read_each_series_as_one_regular_volume(cohort: Path) -> None:
    for folder in series_folders(cohort).values():
        items = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        assert {item.FrameOfReferenceUID for item in items} == {items[0].FrameOfReferenceUID}
        volume = highdicom.get_volume_from_series(items)
        image = read_with_simpleitk(folder)
        assert volume.spatial_shape == (CONFIG.slices, CONFIG.size, CONFIG.size)
        np.testing.assert_allclose(volume.spacing, image.GetSpacing()[::-1], rtol=1e-6)
        positions = np.sort([float(item.ImagePositionPatient[2]) for item in items])
        np.testing.assert_allclose(np.diff(positions), volume.spacing[0], atol=1e-4)
        assert volume.spacing[0] > 5 * volume.spacing[1]  # anisotropic, as asked for
        assert float(items[0].SliceThickness) == 5.0  # and not the distance between slices


def test_truth_volumes_follow_from_masks_and_the_geometry_simpleitk_reads(cohort: Path, truth: pl.DataFrame) -> None:
    folders = series_folders(cohort)
    for row in truth.iter_rows(named=True):
        x, y, z = read_with_simpleitk(folders[row["series_instance_uid"]]).GetSpacing()
        labels, lungs = masks_of(cohort, row["series_instance_uid"])
        assert labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1, 2}
        assert lungs.dtype == np.bool_
        assert lungs[labels > 0].all()  # lesions lie in the lungs
        ml = x * y * z / 1000
        assert row["lung_volume_ml"] == pytest.approx(lungs.sum() * ml, rel=1e-6)
        assert row["ggo_volume_ml"] == pytest.approx((labels == 1).sum() * ml, rel=1e-6)
        assert row["consolidation_volume_ml"] == pytest.approx((labels == 2).sum() * ml, rel=1e-6)
        assert row["opacity_volume_ml"] == pytest.approx(row["ggo_volume_ml"] + row["consolidation_volume_ml"])
        assert row["po_pct"] == pytest.approx(100 * (labels > 0).sum() / lungs.sum())
        assert row["po_pct"] == pytest.approx(row["ggo_pct"] + row["consolidation_pct"])


def test_the_cohort_in_sample_data_is_whole_and_small() -> None:
    sample = Path(__file__).parents[1] / "sample_data" / "cohort"
    truth = read_table(sample / "truth.parquet", TRUTH)
    assert set(series_folders(sample)) == set(truth["series_instance_uid"])
    assert len(list(sample.rglob("*.dcm"))) == 80
    assert sum(path.stat().st_size for path in sample.rglob("*") if path.is_file()) < 12e6
    for row in truth.iter_rows(named=True):
        labels, lungs = masks_of(sample, row["series_instance_uid"])
        assert row["po_pct"] == pytest.approx(100 * (labels > 0).sum() / lungs.sum())


def test_amounts_by_hand() -> None:
    labels = np.zeros((2, 5, 10), dtype=np.uint8)
    labels[0, 0, :4], labels[1, 0, :1] = 1, 2
    lungs = np.ones_like(labels, dtype=bool)
    amounts = truth_amounts(labels, lungs, (10.0, 0.5, 2.0))  # 0.01 mL a voxel, 100 voxels
    expected = {
        "lung_volume_ml": 1.0,
        "ggo_volume_ml": 0.04,
        "consolidation_volume_ml": 0.01,
        "opacity_volume_ml": 0.05,
    }
    assert amounts == pytest.approx(expected | {"ggo_pct": 4.0, "consolidation_pct": 1.0, "po_pct": 5.0})


def test_a_single_slice_has_percents_but_no_volumes(tmp_path: Path) -> None:
    path = write_cohort(tmp_path / "one", SampleConfig(patients=1, timepoints=1, slices=1, size=64), ignore)
    row = read_table(path, TRUTH).row(0, named=True)
    assert row["lung_volume_ml"] is row["ggo_volume_ml"] is row["opacity_volume_ml"] is None
    assert 0 < row["po_pct"] < 100


def test_no_lung_means_no_percents() -> None:
    empty = np.zeros((2, 3, 3), dtype=np.uint8)
    assert truth_amounts(empty, empty.astype(bool), (1.0, 1.0, 1.0))["po_pct"] is None


def test_lesion_free_patients_are_measured_as_zero(truth: pl.DataFrame) -> None:
    free = truth.filter(pl.col("patient_id") == "SYN-003")
    ill = truth.filter(pl.col("patient_id") != "SYN-003")
    for column in ("ggo_volume_ml", "consolidation_volume_ml", "opacity_volume_ml", "ggo_pct", "po_pct"):
        assert free[column].to_list() == [0.0, 0.0, 0.0]
    assert (free["lung_volume_ml"] > 3000).all()
    assert (ill["opacity_volume_ml"] > 0).all()


def test_lungs_have_a_grown_persons_size(truth: pl.DataFrame) -> None:
    assert truth["lung_volume_ml"].is_between(3300, 6200).all()


def test_classes_and_tissues_have_their_hu(cohort: Path, truth: pl.DataFrame) -> None:
    glass, solid, healthy, padding = [], [], [], []
    for _, hu, labels, lungs in rows_with_arrays(cohort, truth):
        inner = ndimage.binary_erosion(lungs, np.ones((1, 3, 3)), iterations=2)
        glass.append(hu[(labels == 1) & inner])
        solid.append(hu[(labels == 2) & inner])
        healthy.append(hu[(labels == 0) & inner])
        padding.append(hu[:, 0, 0])
        body = hu[(hu > -150) & (hu < 150)]
        peaks = np.histogram(body, bins=np.arange(-150, 151, 10))[0]
        assert -120 <= -150 + 10 * int(np.argmax(peaks[:10])) <= -80  # fat
        assert 20 <= 10 * int(np.argmax(peaks[15:])) <= 60  # muscle, blood and liver
        assert (hu > 300).mean() > 0.002  # bone
        assert hu[hu > -2000].min() >= -1024
    for found, low, high in ((glass, -700, -450), (solid, -100, 60), (healthy, -900, -740)):
        quarter, three_quarters = np.quantile(np.concatenate(found), (0.25, 0.75))
        assert low <= quarter < three_quarters <= high
    assert set(np.concatenate(padding)) == {-3024}  # stored as -2000, outside the round field of view


def test_padding_is_declared_with_its_stored_value(cohort: Path) -> None:
    item = pydicom.dcmread(next(cohort.rglob("*.dcm")))
    assert item.PixelPaddingValue == item.pixel_array[0, 0] == -2000


def test_a_threshold_finds_the_healthy_lungs(cohort: Path, truth: pl.DataFrame) -> None:
    """Air inside the body, less its airways and the stomach, is the lung mask: what any threshold method relies on."""
    for row, hu, _, lungs in rows_with_arrays(cohort, truth):
        if row["po_pct"] > 0:
            continue
        air = hu < -500
        outside = np.stack([ndimage.binary_propagation(edge_seeds(plane.shape), mask=plane) for plane in air])
        found = ndimage.binary_closing(air & ~outside, np.ones((1, 3, 3)), iterations=2)
        overlap = 2 * (found & lungs).sum() / (found.sum() + lungs.sum())
        assert overlap > 0.93


def edge_seeds(shape: tuple[int, int]) -> np.ndarray:
    seeds = np.ones(shape, dtype=bool)
    seeds[1:-1, 1:-1] = False
    return seeds


def test_index_z_rises_to_the_head_and_left_is_left(cohort: Path, truth: pl.DataFrame) -> None:
    for _, hu, _, lungs in rows_with_arrays(cohort, truth):
        area = lungs.sum(axis=(1, 2))
        assert area[-1] < 0.6 * area.max()  # narrow tips
        half = CONFIG.size // 2
        middle = lungs[len(lungs) // 2 - 1]
        assert middle[:, :half].sum() > middle[:, half:].sum()  # the heart takes room from the left lung: larger x
        low = hu[0] > 0
        assert low[:, :half].sum() > low[:, half:].sum()  # the liver is right, air in the stomach left


def test_an_occupied_folder_and_a_file_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="not empty"):
        write_cohort(tmp_path, SMALL, ignore)
    with pytest.raises(ConfigError, match="is a file"):
        write_cohort(tmp_path / "mine.txt", SMALL, ignore)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_a_store_error() -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        write_cohort(Path("/proc/cohortseg-sample"), SMALL, ignore)


def test_progress_counts_series(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    write_cohort(tmp_path / "c", SMALL, lambda done, total, _text: seen.append((done, total)))
    assert seen == [(0, 1), (1, 1)]


ARGUMENTS = ["--patients", "1", "--timepoints", "1", "--slices", "2", "--size", "64"]


def test_command_writes_a_cohort_and_says_where(tmp_path: Path) -> None:
    from cohortseg.cli import app

    out = tmp_path / "cohort"
    result = CliRunner().invoke(app, ["sample", str(out), *ARGUMENTS, "--seed", "4"])
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "truth.parquet" in result.stderr
    assert len(list(out.rglob("*.dcm"))) == 2
    assert read_table(out / "truth.parquet", TRUTH).height == 1


def test_command_refuses_an_occupied_folder_with_exit_code_2(tmp_path: Path) -> None:
    from cohortseg.cli import app

    (tmp_path / "mine.txt").write_text("keep me")
    result = CliRunner().invoke(app, ["sample", str(tmp_path), *ARGUMENTS])
    assert result.exit_code == 2
    assert "is not empty" in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--patients", "0", "patients must be in 1..10000"),
        ("--timepoints", "51", "timepoints must be in 1..50"),
        ("--slices", "0", "slices must be in 1..1000"),
        ("--size", "63", "size must be in 64..1024"),
    ],
)
def test_command_names_a_value_out_of_range(tmp_path: Path, option: str, value: str, rule: str) -> None:
    from cohortseg.cli import app

    result = CliRunner().invoke(app, ["sample", str(tmp_path / "c"), option, value])
    assert result.exit_code == 2
    assert rule in result.stderr
    assert not (tmp_path / "c").exists()
