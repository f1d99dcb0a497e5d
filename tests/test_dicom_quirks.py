"""Every quirk that `cohortseg sample --quirks` writes becomes what its table says, by the commands users run."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import SimpleITK as sitk

import cohortseg.synthetic.quirks  # noqa: F401 - registers the quirks
from cohortseg import qc
from cohortseg.config import REPAIRS, ScanConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.scan import CohortScan, scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import DicomError, NotEvaluableError
from cohortseg.report.scan_tables import file_rows
from cohortseg.store.schemas import QUIRKS
from cohortseg.store.tables import read_table
from cohortseg.synthetic.quirk_files import LUNG_HU, chest_slices, enhanced_file, write_files
from cohortseg.synthetic.quirk_registry import QUIRKS_KNOWN
from cohortseg.volume import Volume

Cohort = tuple[Path, pl.DataFrame, CohortScan, CohortScan]


@pytest.fixture(scope="module")
def cohort(quirks_sample: Path) -> Cohort:
    """The folder, the table, and what a scan finds without and with repairs; only read."""
    root = quirks_sample / "dicom"
    plain = scan_cohort(root, config=ScanConfig())
    repaired = scan_cohort(root, config=ScanConfig(repair=REPAIRS))
    return root, read_table(quirks_sample / "quirks.parquet", QUIRKS), plain, repaired


def lung_ml(volume: Volume) -> float | None:
    """Lung by its HU alone; None without a voxel volume."""
    lung = (volume.volume_hu >= LUNG_HU[0]) & (volume.volume_hu <= LUNG_HU[1])
    return None if volume.voxel_volume_ml is None else float(lung.sum() * volume.voxel_volume_ml)


@pytest.mark.parametrize("name", [quirk.name for quirk in QUIRKS_KNOWN])
def test_a_quirk_becomes_what_its_table_says(cohort: Cohort, name: str) -> None:
    root, table, plain, repaired = cohort
    rows = table.filter(quirk=name).to_dicts()
    assert rows
    for row in rows:
        scan = repaired if row["repair"] else plain
        if row["decision"] in ("copy", "no series"):
            went = {file["path"]: (file["went_to"], file["reason"]) for file in file_rows(scan)}
            assert {went[path] for path in row["files"]} == {(row["decision"], row["reason"])}
        else:
            (record,) = (record for record in scan.series if set(record.files) & set(row["files"]))
            check(record, row, root)


def check(record: SeriesRecord, row: dict[str, Any], root: Path) -> None:
    assert set(record.files) <= set(row["files"])
    assert (record.decision, list(record.repairs)) == (row["decision"], row["repair"])
    assert row["n_slices"] in (None, record.n_slices)
    if record.decision != "selected":
        assert row["reason"] in (record.reason or "")
        assert list(record.qc_flags) == row["qc_flags"]
        return
    try:
        volume = read_volume(record, root)
    except NotEvaluableError as error:
        found, reason, flags = "not_evaluable", str(error), [*record.qc_flags, *error.qc_flags]
    except DicomError as error:
        found, reason, flags = "failed", str(error), list(record.qc_flags)
    else:
        found, reason, flags = "ok", None, list(volume.qc_flags)
        tolerance = max(row["tolerance_pct"] / 100, 1e-6)
        expected = row["lung_volume_ml"]
        assert lung_ml(volume) == (None if expected is None else pytest.approx(expected, rel=tolerance))
    assert (found, flags) == (row["status"], row["qc_flags"])
    assert set(flags) <= {*qc.HEADER_FLAGS, *qc.CHOICE_FLAGS, *qc.PIXEL_FLAGS}, "each has a meaning"
    assert (row["reason"] or "") in (reason or "")


@pytest.mark.parametrize("name", ["upside_down", "mirrored", "slightly_oblique"])
def test_geometry_agrees_with_simpleitk(cohort: Cohort, name: str) -> None:
    """SimpleITK places each file by itself; every corner of every slice must be where it says."""
    root, table, plain, _ = cohort
    files = set(table.filter(quirk=name)["files"][0])
    (record,) = (record for record in plain.series if set(record.files) == files)
    volume = read_volume(record, root)
    for z, path in enumerate(record.files):
        image = sitk.ReadImage(str(root / path))
        np.testing.assert_array_equal(volume.volume_hu[z], sitk.GetArrayFromImage(image)[0])
        for y, x in ((0, 0), (95, 0), (0, 95), (40, 70)):
            expected = image.TransformIndexToPhysicalPoint((x, y, 0))
            np.testing.assert_allclose((volume.affine @ [z, y, x, 1])[:3], expected, atol=1e-3)


def test_untilted_slices_lie_where_the_files_say(cohort: Cohort) -> None:
    root, table, _, repaired = cohort
    files = set(table.filter(quirk="gantry_tilt")["files"][0])
    (record,) = (record for record in repaired.series if set(record.files) == files)
    volume = read_volume(record, root)
    assert abs(volume.affine[:3, 0] @ volume.affine[:3, 1]) < 1e-6
    for z, path in enumerate(record.files):
        image = sitk.ReadImage(str(root / path))
        hu = sitk.GetArrayFromImage(image)[0]
        place = image.TransformContinuousIndexToPhysicalPoint(
            [float(np.average(axis, weights=hu == 350)) for axis in np.indices(hu.shape)[::-1]] + [0.0]
        )
        # The spine's centre, by HU in the repaired slice, is at the same point of the patient.
        spine = np.clip(volume.volume_hu[z].astype(float) - 60, 0, None)
        y, x = (float(np.average(axis, weights=spine)) for axis in np.indices(spine.shape))
        np.testing.assert_allclose((volume.affine @ [z, y, x, 1])[:3], place, atol=0.2)


def test_enhanced_frames_agree_with_the_classic_files(cohort: Cohort) -> None:
    root, table, plain, _ = cohort
    volumes = []
    for name in ("enhanced", "plain"):
        files = set(table.filter(quirk=name)["files"][0])
        (record,) = (record for record in plain.series if set(record.files) == files)
        volumes.append(read_volume(record, root))
    np.testing.assert_array_equal(volumes[0].volume_hu, volumes[1].volume_hu)
    np.testing.assert_allclose(volumes[0].affine, volumes[1].affine)


def test_every_file_went_somewhere(cohort: Cohort) -> None:
    root, _, plain, _ = cohort
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {row["path"] for row in file_rows(plain)} == found


def test_enhanced_ct_agrees_with_simpleitk(tmp_path: Path) -> None:
    leaning = (1.0, 0.0, 0.0, 0.0, np.cos(0.1), np.sin(0.1))
    (path,) = write_files(tmp_path, [enhanced_file(chest_slices("leaning", orientation=leaning))])
    (record,) = scan_cohort(tmp_path).series
    volume, image = read_volume(record, tmp_path), sitk.ReadImage(str(path))
    assert (record.n_files, record.n_slices, record.frames) == (1, 12, tuple(range(1, 13)))
    np.testing.assert_array_equal(volume.volume_hu, sitk.GetArrayFromImage(image))
    for index in ((0, 0, 0), (11, 0, 0), (3, 90, 20)):
        expected = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], expected, atol=5e-3)
