"""Masks for viewers: every kind of series in its true place; killed, repeated and refused exports."""

import errno
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import polars as pl
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from phantoms import ill_body, write_series
from PIL import Image
from pydicom.uid import generate_uid
from runs import run
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.config import REPAIRS
from cohortseg.datasets.label_volumes import read_label_volume
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.series import record_from_row
from cohortseg.errors import StoreError
from cohortseg.export.dicom_seg import segmentation_bytes
from cohortseg.labels import LESIONS
from cohortseg.overlays import OUTLINE_RGB
from cohortseg.store.files import write_file
from cohortseg.store.masks import SeriesMasks, masks_hash, read_masks, write_masks
from cohortseg.store.schemas import BURDEN, MANIFEST
from cohortseg.store.tables import read_table, write_table

Run = tuple[Path, Path]
"""A cohort, and the output folder of its segmentation."""


def paint_lesions(out: Path, *, count: int = 40, swapped: bool = False) -> None:
    """Give every series some voxels of both classes in its lungs: the model of the tests knows nothing."""
    first, second = (2, 1) if swapped else (1, 2)
    for key in keys_of(out):
        masks = read_masks(out / "masks.zarr", key)
        lung = np.argwhere(masks.lungs > 0)
        chosen = lung[np.random.default_rng(0).permutation(len(lung))[:count]]
        labels = np.zeros_like(masks.labels)
        labels[tuple(chosen[: count // 2].T)] = first
        labels[tuple(chosen[count // 2 :].T)] = second
        write_masks(out / "masks.zarr", key, replace(masks, labels=labels))


def keys_of(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "masks.zarr").iterdir() if path.is_dir())


def places(affine: NDArray[np.float64], indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the places of voxels, (N, 3), sorted."""
    found = (affine @ np.c_[indices, np.ones(len(indices))].T)[:3].T.round(2)
    return found[np.lexsort(found.T)]


def own_affine(masks: SeriesMasks) -> NDArray[np.float64]:
    return np.array(masks.facts.affine)


def export(out: Path, target: Path, form: str, *more: str | Path) -> tuple[int, str]:
    """Return the exit code and all that was said."""
    arguments = ["export", str(out), "-o", str(target), "--format", form, *map(str, more)]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def quirks(quirks_sample: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every kind of odd DICOM, what needs repair repaired; only read."""
    out = tmp_path_factory.mktemp("quirks") / "out"
    run(quirks_sample / "dicom", out, model_path, repair=REPAIRS, overlays=False)
    paint_lesions(out)
    return quirks_sample / "dicom", out


@pytest.fixture(scope="module")
def small_once(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients of one series each, and their output; tests work on the copies of `small`."""
    root = tmp_path_factory.mktemp("small")
    for patient in "AB":
        folder = root / f"cohort/Secret^{patient}"
        write_series(folder, shape=(4, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=ill_body, patient_id=patient)
    run(root / "cohort", root / "out", model_path)
    paint_lesions(root / "out")
    return root


@pytest.fixture
def small(small_once: Path, tmp_path: Path) -> Run:
    cohort, out = (shutil.copytree(small_once / name, tmp_path / name) for name in ("cohort", "out"))
    return cohort, out


def test_dicom_seg_puts_the_lesions_of_every_odd_series_in_their_place(quirks: Run, tmp_path: Path) -> None:
    cohort, out = quirks
    code, said = export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)
    assert (code, sorted(path.stem for path in (tmp_path / "seg").glob("*.dcm"))) == (0, keys_of(out)), said
    rows = {row["series_key"]: row for row in pl.read_parquet(out / "manifest.parquet").iter_rows(named=True)}
    for key in keys_of(out):
        masks = read_masks(out / "masks.zarr", key)
        segmentation = hd.seg.segread(tmp_path / f"seg/{key}.dcm")
        source = pydicom.dcmread(cohort / rows[key]["files"][0], force=True)
        for attribute in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
            assert segmentation.get(attribute) == (source.get(attribute) or segmentation[attribute].empty_value)
        assert segmentation.StudyInstanceUID == masks.facts.study_instance_uid
        referred = segmentation.ReferencedSeriesSequence[0]
        assert referred.SeriesInstanceUID == source.SeriesInstanceUID
        measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert measures.get("SpacingBetweenSlices") == pytest.approx(masks.facts.spacing_mm[0])
        for number, label in enumerate(LESIONS, start=1):
            described = segmentation.get_segment_description(number)
            assert (described.segment_label, described.segmented_property_type.value) == (
                label.title,
                label.snomed_code,
            )
            volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True)
            found = places(volume.affine, np.argwhere(volume.array > 0))
            expected = np.argwhere(masks.labels == label.value)
            np.testing.assert_allclose(found, places(own_affine(masks), expected), atol=0.02)
        if not rows[key]["repairs"]:
            uids = masks.facts.sop_instance_uids
            assert Counter(sources_of(segmentation)) == Counter({uid: 2 * n for uid, n in Counter(uids).items()})
    n_repaired = sum(bool(rows[key]["repairs"]) for key in keys_of(out))
    assert f"{n_repaired} of them are of repaired series" in " ".join(said.split())


def sources_of(segmentation: pydicom.Dataset) -> list[str]:
    """Return the SOPInstanceUID of the one image that each frame says it was made from."""
    found = []
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (derivation,) = frame.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        assert source.SpatialLocationsPreserved == "YES"
        found.append(source.ReferencedSOPInstanceUID)
    return found


def test_frames_lie_on_their_slices_and_name_them_where_those_are_not_quite_even(
    model_path: Path, tmp_path: Path
) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "out"
    steps_mm = {"rounded": ((0, 0, 1.25), 1), "sheared by .3 degrees": ((0, 0.011, 2.0), 4)}
    for patient, (step_mm, decimals) in steps_mm.items():
        positions = np.round(np.arange(40)[:, None] * step_mm, decimals).tolist()
        kind = {"shape": (40, 96, 80), "spacing_mm": (step_mm[2], 3.0, 3.5), "hu": ill_body}
        write_series(cohort / patient, patient_id=patient, positions=positions, **kind)
    run(cohort, out, model_path)
    assert read_table(out / "manifest.parquet", MANIFEST)["repairs"].to_list() == [[], []]
    paint_lesions(out, count=400)
    code, said = export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)
    assert code == 0, said
    headers = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, cohort.rglob("*.dcm"))}
    for key in keys_of(out):
        segmentation = hd.seg.segread(tmp_path / f"seg/{key}.dcm")
        for uid, frame in zip(sources_of(segmentation), segmentation.PerFrameFunctionalGroupsSequence, strict=True):
            assert frame.PlanePositionSequence[0].ImagePositionPatient == headers[uid].ImagePositionPatient
        masks = read_masks(out / "masks.zarr", key)
        pixels = segmentation.get_pixels_by_source_instance([*masks.facts.sop_instance_uids], combine_segments=True)
        np.testing.assert_array_equal(pixels, masks.labels)


def test_nifti_lies_where_simpleitk_puts_the_dicom_series(quirks: Run, tmp_path: Path) -> None:
    cohort, out = quirks
    assert export(out, tmp_path / "nifti", "nifti", "--cohort", cohort)[0] == 0
    manifest = pl.read_parquet(out / "manifest.parquet").filter(pl.col("series_key").is_in(keys_of(out)))
    compared = 0
    for row in manifest.iter_rows(named=True):
        masks = read_masks(out / "masks.zarr", row["series_key"])
        names = ("labels", "lungs", "ct")
        labels, lungs, ct = (nib.load(tmp_path / f"nifti/{row['series_key']}_{name}.nii.gz") for name in names)
        assert labels.shape == lungs.shape == ct.shape
        assert labels.header.get_xyzt_units()[0] == "mm"
        for image, array in ((labels, masks.labels), (lungs, masks.lungs)):
            np.testing.assert_array_equal(np.asarray(image.dataobj).T.reshape(array.shape), array)
        if len(row["files"]) != row["n_slices"] or row["repairs"] or row["frames"] or row["n_slices"] == 1:
            continue
        compared += 1
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(cohort / path) for path in row["files"]])
        try:
            source = reader.Execute()
        except RuntimeError:  # not every syntax, and no file without preamble
            compared -= 1
            continue
        mine = sitk.ReadImage(str(tmp_path / f"nifti/{row['series_key']}_ct.nii.gz"))
        assert mine.GetSize() == source.GetSize()
        for index in ((0, 0, 0), (5, 7, 3), tuple(size - 1 for size in mine.GetSize())):
            there = source.TransformIndexToPhysicalPoint(index)
            np.testing.assert_allclose(mine.TransformIndexToPhysicalPoint(index), there, atol=0.02)
    assert compared > 20


def test_exported_labels_are_read_back_whatever_the_order_of_their_axes(quirks: Run, tmp_path: Path) -> None:
    """As other tools save them: turned to other axes by nibabel, and written again by SimpleITK (with a qform)."""
    cohort, out = quirks
    assert export(out, tmp_path / "nifti", "nifti")[0] == 0
    manifest = pl.read_parquet(out / "manifest.parquet").filter(pl.col("series_key").is_in(keys_of(out)))
    rows = [row for row in manifest.iter_rows(named=True) if not row["repairs"]]
    for row, codes in zip(rows, itertools.cycle(["LPS", "PIR", "SAL", "RAS", "IRP"]), strict=False):
        path = tmp_path / f"nifti/{row['series_key']}_labels.nii.gz"
        volume = read_volume(record_from_row(row), cohort)
        expected = read_masks(out / "masks.zarr", row["series_key"]).labels
        assert np.unique(expected).tolist() == [0, 1, 2]
        np.testing.assert_array_equal(read_label_volume(path, volume), expected)
        if len(expected) == 1:
            continue
        turned = nib.load(path)
        turned = turned.as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.io_orientation(turned.affine), nib.orientations.axcodes2ornt(codes)
            )
        )
        nib.save(turned, tmp_path / "turned.nii")
        np.testing.assert_array_equal(read_label_volume(tmp_path / "turned.nii", volume), expected)
        sitk.WriteImage(sitk.Cast(sitk.ReadImage(path), sitk.sitkFloat64), tmp_path / "again.nii.gz")
        np.testing.assert_array_equal(read_label_volume(tmp_path / "again.nii.gz", volume), expected)


def test_a_single_slice_becomes_a_flat_nifti_without_an_invented_thickness(model_path: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "cohort", shape=(1, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=ill_body)
    run(tmp_path / "cohort", tmp_path / "out", model_path)
    paint_lesions(tmp_path / "out")
    assert export(tmp_path / "out", tmp_path / "nifti", "nifti")[0] == 0
    (path,) = (tmp_path / "nifti").glob("*_labels.nii.gz")
    image = nib.load(path)
    assert (image.shape, image.header.get_xyzt_units()[0]) == ((80, 96), "mm")
    for form, code in (image.header.get_qform(coded=True), image.header.get_sform(coded=True)):
        assert code == 1, "readers go by the one or the other"
        np.testing.assert_allclose(form[:3, :3].diagonal(), (-3.5, -3.0, 1.0), atol=1e-4)
    assert export(tmp_path / "out", tmp_path / "seg", "dicom-seg", "--cohort", tmp_path / "cohort")[0] == 0
    (path,) = (tmp_path / "seg").glob("*.dcm")
    (frame,) = hd.seg.segread(path).SharedFunctionalGroupsSequence
    assert "SpacingBetweenSlices" not in frame.PixelMeasuresSequence[0]


def test_names_in_any_script_and_dates_that_are_none_are_exported(model_path: Path, tmp_path: Path) -> None:
    """De-identified files hold ANON for a date; the study's is then not known."""
    kind = {"shape": (4, 96, 80), "spacing_mm": (5.0, 3.0, 3.5), "hu": ill_body}
    named = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "山田^太郎"}
    write_series(tmp_path / "cohort/a", patient_id="A", attributes=named, **kind)
    for path in write_series(tmp_path / "cohort/b", patient_id="B", **kind):
        path.write_bytes(path.read_bytes().replace(b"DA\x08\x0020200401", b"DA\x08\x00ANON    "))
    run(tmp_path / "cohort", tmp_path / "out", model_path)
    paint_lesions(tmp_path / "out")
    assert export(tmp_path / "out", tmp_path / "seg", "dicom-seg", "--cohort", tmp_path / "cohort")[0] == 0
    found = {file.PatientID: file for file in map(pydicom.dcmread, (tmp_path / "seg").glob("*.dcm"))}
    assert str(found["A"].PatientName) == "山田^太郎"
    assert (found["A"].StudyDate, found["B"].StudyDate) == ("20200401", "")


def test_png_draws_each_slice_with_lung_at_its_own_size(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    assert export(out, tmp_path / "png", "png", "--cohort", cohort)[0] == 0
    for key in keys_of(out):
        masks = read_masks(out / "masks.zarr", key)
        with_lung = np.flatnonzero(masks.lungs.any(axis=(1, 2)))
        pictures = sorted((tmp_path / "png" / key).iterdir())
        assert [path.name for path in pictures] == [f"{z:04d}.png" for z in with_lung]
        for z, path in zip(with_lung, pictures, strict=True):
            rgb = np.asarray(Image.open(path)).astype(int)
            assert rgb.shape == (96, 80, 3)
            inside = masks.labels[z] == 1
            inside &= rgb[..., 2] < 200  # not on the outline, which is drawn last
            assert (rgb[inside, 0] > rgb[inside, 1]).all()
            outlined = (rgb == OUTLINE_RGB).all(axis=2)
            assert outlined.any()
            assert (masks.lungs[z][outlined] > 0).all()


def test_an_export_repeated_does_nothing_until_the_masks_change(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    target, first = tmp_path / "seg", keys_of(out)[0]
    more = ("--cohort", cohort)
    assert "written" in export(out, target, "dicom-seg", *more)[1]
    before = {path.name: path.read_bytes() for path in target.glob("*.dcm")}
    code, said = export(out, target, "dicom-seg", *more)
    assert code == 0
    assert "written" not in said
    (target / f"{first}.dcm").write_bytes(before[f"{first}.dcm"][:1000])
    assert "written" in export(out, target, "dicom-seg", *more)[1], "a damaged one is written again"
    (target / f"{first}.dcm").unlink()
    assert "written" in export(out, target, "dicom-seg", *more)[1], "and so is one that was removed"
    again, whole = pydicom.dcmread(target / f"{first}.dcm"), pydicom.dcmread(io.BytesIO(before[f"{first}.dcm"]))
    assert (again.SOPInstanceUID, again.PixelData) == (whole.SOPInstanceUID, whole.PixelData)
    masks = read_masks(out / "masks.zarr", first)
    write_masks(out / "masks.zarr", first, replace(masks, labels=masks.labels[:, ::-1].copy()))
    later = time.time() + 60
    os.utime(target / f"{first}.dcm", (later, later))  # as if it had been written from another run's masks since
    assert "written" in export(out, target, "dicom-seg", *more)[1]
    write_masks(out / "masks.zarr", first, masks)
    assert "written" in export(out, target, "dicom-seg", *more)[1]
    uids = {pydicom.dcmread(target / f"{first}.dcm").SOPInstanceUID}
    (target / f"{first}.dcm").write_bytes(before[f"{first}.dcm"])
    assert uids == {pydicom.dcmread(target / f"{first}.dcm").SOPInstanceUID}  # sent twice, it is still one object
    (shard,) = (path for path in (out / "masks.zarr" / first / "labels/c").rglob("*") if path.is_file())
    shard.unlink()
    code, said = export(out, target, "dicom-seg", *more)
    assert (code, "lost a file" in said) == (3, True)
    assert (target / f"{first}.dcm").exists()
    write_masks(out / "masks.zarr", first, replace(masks, labels=np.zeros_like(masks.labels)))
    code, said = export(out, target, "dicom-seg", *more)
    assert code == 0
    assert "without lesion" in said
    assert not (target / f"{first}.dcm").exists()  # no lesion any more, so no old ones either


def test_exported_labels_that_somebody_corrected_are_kept(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    target, first = tmp_path / "nifti", keys_of(out)[0]
    assert export(out, target, "nifti", "--cohort", cohort)[0] == 0
    path = target / f"{first}_labels.nii.gz"
    exported = path.read_bytes()
    for more in ([], ["--cohort", cohort]):
        path.write_bytes(b"a reader's work")
        code, said = export(out, target, "nifti", *more)
        assert (code, f"{path.name} was changed since it was exported; move it away" in " ".join(said.split())) == (
            3,
            True,
        )
        paint_lesions(out, swapped=True)
        assert export(out, target, "nifti", *more)[0] == 3
        assert path.read_bytes() == b"a reader's work"
        paint_lesions(out)
        path.unlink()
        assert export(out, target, "nifti", *more)[0] == 0
        assert path.read_bytes() == exported


def test_the_ct_of_an_earlier_export_does_not_stay_beside_newer_masks(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    key, other = keys_of(out)
    assert export(out, tmp_path / "nifti", "nifti", "--cohort", cohort)[0] == 0
    paint_lesions(out, count=20)
    write_masks(out / "masks.zarr", other, read_masks(out / "masks.zarr", other))
    assert export(out, tmp_path / "nifti", "nifti", "--series", key)[0] == 0
    left = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "nifti").glob("*.nii.gz")}
    assert left == {f"{key}_labels", f"{key}_lungs", *(f"{other}_{name}" for name in ("labels", "lungs", "ct"))}


def test_the_ct_stays_beside_masks_that_are_the_same(small: Run, model_path: Path, tmp_path: Path) -> None:
    cohort, out = small
    assert export(out, tmp_path / "nifti", "nifti", "--cohort", cohort)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "nifti").glob("*_ct.nii.gz")}
    for path in cohort.rglob("*.dcm"):
        os.utime(path, (1, 1))  # a copy of the cohort, say
    hashes = [masks_hash(out / "masks.zarr", key) for key in keys_of(out)]
    run(cohort, out, model_path)
    paint_lesions(out)
    assert [masks_hash(out / "masks.zarr", key) for key in keys_of(out)] == hashes
    code, said = export(out, tmp_path / "nifti", "nifti")
    assert (code, "written" in said) == (0, True)
    assert {path: path.read_bytes() for path in (tmp_path / "nifti").glob("*_ct.nii.gz")} == before


def test_a_ct_that_the_last_export_did_not_write_is_written_again(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    target = tmp_path / "nifti"
    assert export(out, target, "nifti", "--cohort", cohort)[0] == 0
    for path in target.glob("*_labels.nii.gz"):
        path.unlink()
    assert export(out, target, "nifti")[0] == 0
    code, said = export(out, target, "nifti", "--cohort", cohort)
    assert (code, "written │ 2" in " ".join(said.split())) == (0, True), said


def test_a_users_own_file_among_exported_pictures_stays(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    assert export(out, tmp_path / "png", "png", "--cohort", cohort)[0] == 0
    note = tmp_path / "png" / keys_of(out)[0] / "note.txt"
    note.write_text("mine")
    assert "up to date" in export(out, tmp_path / "png", "png", "--cohort", cohort)[1]
    assert note.read_text() == "mine"
    (tmp_path / "elsewhere").mkdir()
    (note.parent / "link").symlink_to(tmp_path / "elsewhere")
    (note.parent / "9999.png").write_bytes(b"of a slice that no longer has lung")
    (note.parent / "9998.png").mkdir()
    killed = note.parent / f".0001.png.{'a' * 32}.tmp"
    killed.touch()
    number = note.stat().st_ino
    lost = next(note.parent.glob("*.png"))
    lost.unlink()
    assert "written │ 1" in " ".join(export(out, tmp_path / "png", "png", "--cohort", cohort)[1].split())
    assert (note.read_text(), note.stat().st_ino) == ("mine", number), "it has never been elsewhere"
    assert (note.parent / "link").is_symlink()
    assert lost.exists()
    assert not (note.parent / "9999.png").exists()
    assert (note.parent / "9998.png").is_dir()
    assert not killed.exists(), "a killed export left it"


def test_masks_of_another_model_than_the_table_says_are_not_exported(small: Run, tmp_path: Path) -> None:
    """A worker that was stopped for as long as a run with another model took commits late."""
    _, out = small
    key = keys_of(out)[0]
    assert export(out, tmp_path / "earlier", "nifti")[0] == 0
    masks = read_masks(out / "masks.zarr", key)
    late = replace(masks, facts=replace(masks.facts, model_sha256="0" * 64))
    write_masks(out / "masks.zarr", key, late)
    code, said = export(out, tmp_path / "nifti", "nifti")
    assert code == 3
    assert f"series {key}: its masks are of another model than its row in burden.parquet; run infer again" in (
        " ".join(said.split())
    )
    assert not list((tmp_path / "nifti").glob(f"{key}*"))
    write_masks(out / "masks.zarr", key, masks)
    table = read_table(out / "burden.parquet", BURDEN)
    of_another = pl.when(pl.col("series_key") == key).then(pl.lit("0" * 64)).otherwise("model_sha256")
    write_table(out / "burden.parquet", table.with_columns(of_another.alias("model_sha256")), BURDEN, {})
    assert export(out, tmp_path / "earlier", "nifti")[0] == 3, "not up to date: the table tells of another model now"


def test_an_export_that_dies_between_file_and_marker_is_not_taken_for_an_earlier_one(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of other masks has the size of the one that the old marker tells of."""
    cohort, out = small
    target, form = tmp_path / "seg", ("dicom-seg", "--cohort", cohort)

    def only_files(path: Path, content: bytes) -> None:
        if ".exported" in path.parts:
            raise StoreError(f"{path}: no space left")
        write_file(path, content)

    def written() -> dict[str, bytes]:
        return {path.name: pydicom.dcmread(path).PixelData for path in target.glob("*.dcm")}

    paint_lesions(out)
    assert export(out, target, *form)[0] == 0
    before = written()
    paint_lesions(out, swapped=True)
    with monkeypatch.context() as patched:
        patched.setattr("cohortseg.export.run.write_file", only_files)
        assert export(out, target, *form)[0] == 1
    others = written()
    assert {name: len(content) for name, content in others.items()} == {n: len(b) for n, b in before.items()}
    assert others != before
    paint_lesions(out)
    assert export(out, target, *form)[0] == 0
    assert written() == before


def test_a_manifest_of_another_scan_is_refused(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    manifest = read_table(out / "manifest.parquet", MANIFEST)
    write_table(out / "manifest.parquet", manifest.head(1), MANIFEST, {})
    code, said = export(out, tmp_path / "nifti", "nifti")
    assert code == 1
    assert "manifest.parquet: lacks 1 of the series in burden.parquet" in " ".join(said.split())
    scanned = CliRunner().invoke(app, ["scan", str(cohort), "-o", str(out / "manifest.parquet")])
    assert scanned.exit_code == 2
    assert "its folder is an output of infer" in " ".join(scanned.output.split())


def test_ct_that_changed_where_no_lung_is_is_exported_again(small: Run, model_path: Path, tmp_path: Path) -> None:
    """Its masks stay the same."""
    cohort, out = small
    more, key = ("--cohort", cohort), keys_of(out)[0]
    assert export(out, tmp_path / "x", "nifti", *more)[0] == 0
    for path in cohort.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = (77).to_bytes(2, "little") + dataset.PixelData[2:]
        dataset.save_as(path)
    before = masks_hash(out / "masks.zarr", key)
    run(cohort, out, model_path)
    paint_lesions(out)
    assert masks_hash(out / "masks.zarr", key) == before
    assert "up to date" not in export(out, tmp_path / "x", "nifti", *more)[1]
    assert nib.load(tmp_path / f"x/{key}_ct.nii.gz").dataobj[0, 0, 0] == 77 - 1024
    assert "up to date" in export(out, tmp_path / "x", "nifti", *more)[1]


def test_a_dicom_seg_has_a_frame_of_each_slice_also_where_it_holds_no_lesion(small: Run) -> None:
    cohort, out = small
    row = read_table(out / "manifest.parquet", MANIFEST).row(0, named=True)
    masks = read_masks(out / "masks.zarr", row["series_key"])
    labels = np.zeros_like(masks.labels)
    labels[1, 40:45, 20:25] = 2
    sources = [pydicom.dcmread(cohort / path, stop_before_pixels=True) for path in row["files"]]
    content = segmentation_bytes(replace(masks, labels=labels), sources, record_from_row(row))
    segmentation = pydicom.dcmread(io.BytesIO(content))
    assert segmentation.NumberOfFrames == len(labels)
    (segment,) = segmentation.SegmentSequence
    assert (segment.SegmentNumber, segment.SegmentLabel) == (1, LESIONS[1].title), "the only one has the number 1"


def test_the_same_labels_elsewhere_are_another_object(small: Run) -> None:
    """An archive keeps what it has under a UID: masks of slices with mended positions need another."""
    cohort, out = small
    row = read_table(out / "manifest.parquet", MANIFEST).row(0, named=True)
    masks = read_masks(out / "masks.zarr", row["series_key"])

    def uid(masks: SeriesMasks) -> str:
        sources = [pydicom.dcmread(cohort / path, stop_before_pixels=True) for path in row["files"]]
        return str(pydicom.dcmread(io.BytesIO(segmentation_bytes(masks, sources, record_from_row(row)))).SOPInstanceUID)

    higher = (own_affine(masks) + np.array([0, 0, 0, 1.0]) * np.array([[0], [0], [1], [0]])).tolist()
    moved = replace(masks, facts=replace(masks.facts, affine=tuple(map(tuple, higher))))
    assert uid(masks) == uid(masks) != uid(moved)


def test_files_of_series_that_are_no_longer_measured_are_named(quirks: Run, tmp_path: Path) -> None:
    _, out = quirks
    target, changed, gone = tmp_path / "nifti", shutil.copytree(out, tmp_path / "out"), keys_of(out)[0]
    assert "does not measure" not in export(changed, target, "nifti")[1]
    burden = read_table(changed / "burden.parquet", BURDEN)
    write_table(changed / "burden.parquet", burden.filter(pl.col("series_key") != gone), BURDEN, {})
    code, said = export(changed, target, "nifti")
    assert code == 0
    assert f"does not measure (any more): {gone}" in " ".join(said.split())
    for file in target.glob(f"{gone}*"):
        file.unlink()
    assert "does not measure" not in export(changed, target, "nifti")[1]


def test_a_series_whose_files_are_gone_costs_the_others_nothing_and_names_no_patient(
    small: Run, tmp_path: Path
) -> None:
    cohort, out = small
    shutil.rmtree(cohort / "Secret^A")
    for form in ("dicom-seg", "png", "nifti"):
        code, said = export(out, tmp_path / form, form, "--cohort", cohort)
        assert code == 3
        assert "failed" in said
        assert "cannot be read" in said
        assert "Secret" not in said
        assert len({path.name[:16] for path in (tmp_path / form).glob("[0-9a-f]*")}) == 1
    assert export(out, tmp_path / "masks-only", "nifti")[0] == 0


def test_ct_that_lies_elsewhere_than_it_was_segmented_is_refused(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    for path in (cohort / "Secret^A").rglob("*"):
        if path.is_file():
            dataset = pydicom.dcmread(path)
            dataset.ImagePositionPatient[0] += 100
            dataset.save_as(path)
    for form in ("dicom-seg", "png", "nifti"):
        code, said = export(out, tmp_path / form, form, "--cohort", cohort)
        assert (code, "not those that were segmented" in said) == (3, True)


def _flip_bytes(group: Path) -> None:
    (shard,) = (path for path in (group / "labels").rglob("*") if path.is_file() and path.name != "zarr.json")
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2] = bytes(255 - byte for byte in content[: len(content) // 2])
    shard.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_bytes,
        lambda group: (group / "zarr.json").write_text("{}"),
        lambda group: (group / "lungs/zarr.json").unlink(),
        shutil.rmtree,
    ],
    ids=["chunk", "attributes", "array", "all"],
)
def test_damaged_masks_cost_the_others_nothing_and_are_made_again(
    small: Run, model_path: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    cohort, out = small
    group = out / "masks.zarr" / keys_of(out)[0]
    damage(group)
    code, said = export(out, tmp_path / "x", "nifti")
    assert code == 3
    assert re.search(f"{group.name}: no (readable masks|masks as cohortseg writes them)", "".join(said.split("\n"))), (
        said
    )
    assert {path.name[:16] for path in (tmp_path / "x").glob("*.gz")} == {keys_of(out)[-1]}
    shutil.rmtree(group, ignore_errors=True)  # as the message says
    assert run(cohort, out, model_path).num_done >= 1
    assert export(out, tmp_path / "x", "nifti")[0] == 0


def test_slices_that_were_changed_since_are_not_drawn_under_the_old_masks(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    shutil.rmtree(cohort / "Secret^A")
    folder = cohort / "Secret^A"
    other = write_series(folder, shape=(4, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=ill_body, patient_id="A")
    for path in other:
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = generate_uid()
        dataset.save_as(path)
    for form in ("dicom-seg", "png"):
        code, said = export(out, tmp_path / form, form, "--cohort", cohort)
        assert code == 3, form
        assert "not those that were segmented" in said


def test_what_was_exported_is_told_of_each_format_and_no_other_output_is_mixed_with_it(
    small: Run, tmp_path: Path
) -> None:
    cohort, out = small
    key = keys_of(out)[0]
    assert export(out, tmp_path / "x", "nifti", "--series", key)[0] == 0
    assert export(out, tmp_path / "x", "png", "--cohort", cohort)[0] == 0
    told = json.loads((tmp_path / "x/run.json").read_text())
    assert told["command"] == "export"
    assert {form: facts["counts"] for form, facts in told["formats"].items()} == {
        "nifti": {"written": 1},
        "png": {"written": 2},
    }
    assert told["formats"]["nifti"]["series"] == [key]
    assert told["formats"]["nifti"]["finished"] is True
    assert told["formats"]["png"]["model"] == json.loads((out / "run.json").read_text())["model"]
    (tmp_path / "x/run.json").write_text(json.dumps({"command": "train"}))
    code, said = export(out, tmp_path / "x", "nifti")
    assert (code, "holds the output of another command" in " ".join(said.split())) == (2, True)


def test_a_single_frame_of_an_enhanced_file_becomes_a_segmentation(
    quirks_sample: Path, model_path: Path, tmp_path: Path
) -> None:
    (path,) = (file for file in (quirks_sample / "dicom/enhanced").rglob("*") if file.is_file())
    dataset = pydicom.dcmread(path)
    pixels, middle = dataset.pixel_array, dataset.NumberOfFrames // 2
    dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[middle]]
    dataset.NumberOfFrames, dataset.PixelData = 1, pixels[middle].tobytes()
    (tmp_path / "cohort").mkdir()
    dataset.save_as(tmp_path / "cohort/one")
    run(tmp_path / "cohort", tmp_path / "out", model_path)
    paint_lesions(tmp_path / "out")
    code, said = export(tmp_path / "out", tmp_path / "seg", "dicom-seg", "--cohort", tmp_path / "cohort")
    assert code == 0, said
    (path,) = (tmp_path / "seg").glob("*.dcm")
    assert sources_of(pydicom.dcmread(path)) == [dataset.SOPInstanceUID] * 2


def test_frames_of_another_stack_at_the_same_place_are_not_referred_to(
    quirks_sample: Path, model_path: Path, tmp_path: Path
) -> None:
    (path,) = (file for file in (quirks_sample / "dicom/enhanced").rglob("*") if file.is_file())
    dataset = pydicom.dcmread(path)
    count, pixels = dataset.NumberOfFrames, dataset.pixel_array
    frames = [*dataset.PerFrameFunctionalGroupsSequence, *deepcopy(dataset.PerFrameFunctionalGroupsSequence)]
    for number, frame in enumerate(frames):
        content = pydicom.Dataset()
        content.StackID = str(1 + number // count)
        frame.FrameContentSequence = [content]
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames, dataset.PixelData = 2 * count, np.concatenate([pixels, pixels[:, ::-1]]).tobytes()
    (tmp_path / "cohort").mkdir()
    dataset.save_as(tmp_path / "cohort/two")
    run(tmp_path / "cohort", tmp_path / "out", model_path, select=("all",))
    paint_lesions(tmp_path / "out")
    assert export(tmp_path / "out", tmp_path / "seg", "dicom-seg", "--cohort", tmp_path / "cohort")[0] == 0
    rows = {row["series_key"]: row for row in pl.read_parquet(tmp_path / "out/manifest.parquet").iter_rows(named=True)}
    assert len(keys_of(tmp_path / "out")) == 2
    for key in keys_of(tmp_path / "out"):
        segmentation = pydicom.dcmread(tmp_path / f"seg/{key}.dcm")
        sources_of(segmentation)
        referred = {
            frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
            for frame in segmentation.PerFrameFunctionalGroupsSequence
        }
        assert referred == set(rows[key]["frames"])


def test_an_enhanced_file_without_shared_groups_becomes_a_segmentation(
    quirks_sample: Path, model_path: Path, tmp_path: Path
) -> None:
    (path,) = (file for file in (quirks_sample / "dicom/enhanced").rglob("*") if file.is_file())
    dataset = pydicom.dcmread(path)
    (shared,) = dataset.SharedFunctionalGroupsSequence
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.update(deepcopy(shared))
    del dataset.SharedFunctionalGroupsSequence
    (tmp_path / "cohort").mkdir()
    dataset.save_as(tmp_path / "cohort/one")
    out = tmp_path / "out"
    run(tmp_path / "cohort", out, model_path)
    paint_lesions(out)
    code, messages = export(out, tmp_path / "seg", "dicom-seg", "--cohort", tmp_path / "cohort")
    assert (code, len([*(tmp_path / "seg").glob("*.dcm")])) == (0, 1), messages


def test_each_stack_of_an_enhanced_file_keeps_its_own_orientation(
    quirks_sample: Path, model_path: Path, tmp_path: Path
) -> None:
    """The first stack is the second one with columns from the left to the right; both begin at the head."""
    (path,) = (file for file in (quirks_sample / "dicom/enhanced_grid_a_frame").rglob("*") if file.is_file())
    dataset = pydicom.dcmread(path)
    pixels, frames = dataset.pixel_array[::-1], list(dataset.PerFrameFunctionalGroupsSequence)[::-1]
    mirrored = deepcopy(frames)
    for frame in mirrored:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        width_mm = (dataset.Columns - 1) * frame.PixelMeasuresSequence[0].PixelSpacing[1]
        frame.PlanePositionSequence[0].ImagePositionPatient = [x + width_mm, y, z]
        frame.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    dataset.PerFrameFunctionalGroupsSequence = [*mirrored, *frames]
    dataset.NumberOfFrames = 2 * len(frames)
    dataset.PixelData = np.concatenate([pixels[:, :, ::-1], pixels]).tobytes()
    (tmp_path / "cohort").mkdir()
    dataset.save_as(tmp_path / "cohort/two")
    out = tmp_path / "out"
    run(tmp_path / "cohort", out, model_path, select=("all",))
    paint_lesions(out)
    assert export(out, tmp_path / "seg", "dicom-seg", "--cohort", tmp_path / "cohort")[0] == 0
    assert len(keys_of(out)) == 2
    for key in keys_of(out):
        masks = read_masks(out / "masks.zarr", key)
        volume = hd.seg.segread(tmp_path / f"seg/{key}.dcm").get_volume(segment_numbers=[1], combine_segments=True)
        found = places(volume.affine, np.argwhere(volume.array > 0))
        expected = places(own_affine(masks), np.argwhere(masks.labels == 1))
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_series_are_named_by_uid_or_by_the_beginning_of_their_key(small: Run, tmp_path: Path) -> None:
    _, out = small
    burden = pl.read_parquet(out / "burden.parquet")
    first, second = burden["series_key"]
    assert export(out, tmp_path / "a", "nifti", "--series", first[:8])[0] == 0
    assert {path.name[:16] for path in (tmp_path / "a").glob("*.gz")} == {first}
    assert export(out, tmp_path / "b", "nifti", "--series", burden["series_instance_uid"][1])[0] == 0
    assert {path.name[:16] for path in (tmp_path / "b").glob("*.gz")} == {second}
    code, said = export(out, tmp_path / "c", "nifti", "--series", "nothing")
    assert (code, "no series 'nothing'" in said) == (2, True)
    assert not (tmp_path / "c").exists()


def test_the_beginning_of_several_keys_is_refused(quirks: Run, tmp_path: Path) -> None:
    _, out = quirks
    beginning, count = Counter(key[0] for key in keys_of(out)).most_common(1)[0]
    code, said = export(out, tmp_path / "x", "nifti", "--series", beginning)
    assert (code, f"series have a key that begins with {beginning!r}" in said) == (2, count > 1)
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_exported_is_refused_before_anything_is_written(small: Run, tmp_path: Path) -> None:
    cohort, out = small
    for form in ("dicom-seg", "png"):
        code, said = export(out, tmp_path / "x", form)
        assert (code, "--cohort" in said) == (2, True)
    code, said = export(out, cohort / "x", "nifti", "--cohort", cohort)
    assert (code, "inside the cohort" in said) == (2, True)
    for inside in (out, out / "masks.zarr"):
        code, said = export(out, inside, "nifti")
        assert (code, "choose another -o" in said) == (2, True)
    assert export(out, tmp_path / "x", "nifti", "--cohort", tmp_path / "nowhere")[0] == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("burden", "series_key", "../victim/x"),
        ("manifest", "series_key", "/victim"),
        ("manifest", "files", ["a/../../secret.dcm"]),
        ("manifest", "files", ["/secret.dcm"]),
    ],
)
def test_tables_that_lead_elsewhere_are_refused(
    small: Run, tmp_path: Path, name: str, column: str, value: object
) -> None:
    """An output folder may come from someone else: nothing outside the target is replaced, and no other file read."""
    cohort, out = small
    schema = {"burden": BURDEN, "manifest": MANIFEST}[name]
    table = pl.read_parquet(out / schema.file_name)
    changed = pl.Series(column, [value, *table[column][1:]], dtype=table.schema[column])
    write_table(out / schema.file_name, table.with_columns(changed), schema, {})
    code, said = export(out, tmp_path / "x", "nifti", "--cohort", cohort)
    assert (code, f"{column} would lead out of the folder" in " ".join(said.split())) == (2, True)
    assert not (tmp_path / "x").exists()


def test_another_cohort_is_refused_at_once(small: Run, tmp_path: Path) -> None:
    write_series(tmp_path / "other")
    options = ["--format", "png", "--cohort", str(tmp_path / "other"), "-o", str(tmp_path / "x")]
    result = CliRunner().invoke(app, ["export", str(small[1]), *options])
    assert result.exit_code == 2
    assert "holds none of the files of" in " ".join(result.stderr.split())
    assert not (tmp_path / "x").exists()


def test_a_series_that_was_not_measured_is_refused_by_name_and_left_out_otherwise(
    unbroken: Path, tmp_path: Path
) -> None:
    burden = pl.read_parquet(unbroken / "burden.parquet")
    (failed,) = burden.filter(pl.col("status") == "failed")["series_key"]
    code, said = export(unbroken, tmp_path / "x", "nifti", "--series", failed)
    assert (code, "was not measured (failed)" in said) == (2, True)
    assert export(unbroken, tmp_path / "all", "nifti")[0] == 0
    assert len(list((tmp_path / "all").glob("*_labels.nii.gz"))) == len(burden) - 1


def test_a_killed_export_leaves_whole_folders_and_is_finished_by_the_same_command(quirks: Run, tmp_path: Path) -> None:
    cohort, out = quirks
    target = tmp_path / "png"
    command = [sys.executable, "-m", "cohortseg", "-q", "export", str(out), "--format", "png", "--cohort", str(cohort)]
    process = subprocess.Popen([*command, "-o", str(target)], env={**os.environ, "PYTHONUNBUFFERED": "1"})
    deadline = time.monotonic() + 60
    while len(list(target.glob("[0-9a-f]*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = sorted(target.glob("[0-9a-f]*"))
    assert 3 <= len(killed) < len(keys_of(out))
    for folder in killed:
        lungs = read_masks(out / "masks.zarr", folder.name).lungs
        assert len(list(folder.iterdir())) == lungs.any(axis=(1, 2)).sum()
    (target / f".exported/.key-png.json.{'0' * 32}.tmp").touch()  # what a kill leaves in the midst of a marker
    code, said = export(out, target, "png", "--cohort", cohort)
    assert (code, "up to date" in said) == (0, True)
    assert sorted(
        path.name for path in target.iterdir() if path.name not in (".lock", ".exported", "run.json")
    ) == keys_of(out)
    assert not list(target.rglob("*.tmp"))


def test_a_segmentation_names_the_patient_that_its_source_names_now(
    small: Run, model_path: Path, tmp_path: Path
) -> None:
    cohort, out = small
    assert export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)[0] == 0
    before = {path.stem: pydicom.dcmread(path) for path in (tmp_path / "seg").glob("*.dcm")}
    for path in cohort.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = "Anonymous", f"P{dataset.PatientID}"
        dataset.save_as(path)
    run(cohort, out, model_path)
    paint_lesions(out)
    code, said = export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)
    assert (code, "up to date" in said) == (0, False)
    for key, old in before.items():
        new = pydicom.dcmread(tmp_path / f"seg/{key}.dcm")
        assert (new.PatientName, new.PatientID) == ("Anonymous", f"P{old.PatientID}")
        assert new.SOPInstanceUID != old.SOPInstanceUID  # an archive would keep the one it has
    assert "up to date" in export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)[1]


def test_one_folder_without_rights_refuses_no_export(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, out = small
    stat = os.stat

    def closed(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if "Secret^A" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", closed)
    code, said = export(out, tmp_path / "png", "png", "--cohort", cohort)
    assert code in (0, 3)
    assert "Secret" not in said
    assert len(list((tmp_path / "png").glob("[0-9a-f]*"))) >= 1


@pytest.mark.parametrize(
    "keyword",
    [
        *("ReferringPhysicianName", "PatientComments", "StudyDescription", "OtherPatientNames", "PatientAge"),
        "DeviceSerialNumber",
    ],
)
def test_what_a_source_tells_no_more_goes_from_its_segmentation(small: Run, tmp_path: Path, keyword: str) -> None:
    """Whatever highdicom takes over; in an archive the new one must not be taken for the one it has."""
    cohort, out = small
    paths = list(cohort.rglob("*.dcm"))
    seen, told = [], "045Y" if keyword == "PatientAge" else "Secret^S"
    for value in (told, None):
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.pop(keyword, None)
            if value is not None:
                setattr(dataset, keyword, value)
            dataset.save_as(path)
        assert export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)[0] == 0
        seen.append(pydicom.dcmread(next((tmp_path / "seg").glob("*.dcm"))))
    assert told in str(seen[0])
    assert told not in str(seen[1])
    if keyword != "DeviceSerialNumber":  # which has its place in a sequence
        assert seen[0].get(keyword)
        assert not seen[1].get(keyword)
    assert seen[0].SOPInstanceUID != seen[1].SOPInstanceUID


def test_headers_that_highdicom_refuses_and_infer_does_not(model_path: Path, tmp_path: Path) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "out"
    odd = {
        "character set": {"SpecificCharacterSet": "ISO_IR_100"},
        "no character set": {"SpecificCharacterSet": ""},
        "frames": {"NumberOfFrames": 1},
        "thickness": {"SliceThickness": None},
        "orientation": lambda z: {"ImageOrientationPatient": ["1", "0", f"{z % 2}e-6", "0", "1", "0"]},
        "sex": {"PatientSex": "MALE"},
        "a known sex": {"PatientSex": "F"},
        "no reference in the first": lambda z: {"FrameOfReferenceUID": "1.2.3" if z else None},
        "no reference in the third": lambda z: {"FrameOfReferenceUID": None if z == 2 else "1.2.3"},
    }
    kind = {"shape": (4, 96, 80), "spacing_mm": (5.0, 3.0, 3.5), "hu": ill_body}
    for patient, attributes in odd.items():
        write_series(cohort / patient, patient_id=patient, attributes=attributes, **kind)
    run(cohort, out, model_path)
    paint_lesions(out)
    code, said = export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)
    assert code == 0, said
    found = {
        segmentation.PatientID: segmentation for segmentation in map(hd.seg.segread, (tmp_path / "seg").glob("*.dcm"))
    }
    assert found.keys() == odd.keys()
    keys = dict(read_table(out / "manifest.parquet", MANIFEST).select("patient_id", "series_key").iter_rows())
    for patient, segmentation in found.items():
        reference = read_masks(out / "masks.zarr", keys[patient]).facts.frame_of_reference_uid
        assert reference is not None, patient
        assert segmentation.FrameOfReferenceUID == reference, patient
        assert str(segmentation.PatientName) == "Secret^Name"
        assert segmentation.PatientSex == ("F" if patient == "a known sex" else ""), patient
        assert segmentation.get_volume().spacing == (5.0, 3.0, 3.5)
        assert segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 5.0


def test_a_single_slice_of_unknown_thickness_is_no_segmentation_that_others_read(
    model_path: Path, tmp_path: Path
) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "out"
    odd = {"SliceThickness": None}
    write_series(cohort, shape=(1, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=ill_body, attributes=odd)
    run(cohort, out, model_path)
    paint_lesions(out)
    code, said = export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)
    assert (code, "a single slice without SliceThickness" in " ".join(said.split())) == (3, True)
    assert not list((tmp_path / "seg").glob("*.dcm"))


def test_a_header_that_no_segmentation_can_hold_costs_the_others_nothing(model_path: Path, tmp_path: Path) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "out"
    for patient, odd in (("A", {}), ("B", {"PatientSexNeutered": "ALTERED"})):
        paths = write_series(
            cohort / patient,
            shape=(4, 96, 80),
            spacing_mm=(5.0, 3.0, 3.5),
            hu=ill_body,
            patient_id=patient,
            attributes=odd,
        )
    for path in paths:  # a length that no number of that type has
        content = path.read_bytes()
        assert content.count(b"CS\x08\x00ALTERED ") == 1
        path.write_bytes(content.replace(b"CS\x08\x00ALTERED ", b"US\x07\x00ALTERED"))
    run(cohort, out, model_path)
    paint_lesions(out)
    code, said = export(out, tmp_path / "seg", "dicom-seg", "--cohort", cohort)
    assert (code, len(list((tmp_path / "seg").glob("*.dcm")))) == (3, 1)
    assert "its headers do not allow a DICOM SEG" in said
    assert "Traceback" not in said
    assert "ALTERED" not in said


def test_two_exports_into_one_folder_at_once_are_refused(small: Run, tmp_path: Path) -> None:
    import filelock

    _, out = small
    (tmp_path / "x").mkdir()
    with filelock.FileLock(tmp_path / "x/.lock"):
        code, said = export(out, tmp_path / "x", "nifti")
    assert (code, "another cohortseg export" in said) == (1, True)
