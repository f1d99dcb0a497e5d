"""The COVID-SemiSeg layout and folders of one's own: what is found, how it lies, and what is refused."""

import contextlib
import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from phantoms import body_hu, write_series
from PIL import Image
from runs import run
from training_data import canonical_of, lesion_slice, prepared, write_covid_semiseg

from cohortseg.config import CanonicalConfig
from cohortseg.datasets import covid_semiseg
from cohortseg.datasets.covid_semiseg import SAME_SCAN, VALIDATION, find_data, labeled_slices, unlabeled_slices
from cohortseg.datasets.folders import labeled_folder, unlabeled_folder
from cohortseg.datasets.preparation import prepare
from cohortseg.datasets.prepared import load_prepared, write_prepared
from cohortseg.datasets.slices import DicomSlices, ImageSlice, check_source, read_image, read_mask, read_slices
from cohortseg.errors import ConfigError, DataError, StoreError
from cohortseg.export.run import export_masks
from cohortseg.preprocess import QUARTER_TURNED, TRANSPOSED, UPRIGHT, CropBox, within_black_frame
from cohortseg.synthetic.quirk_files import chest_slices, enhanced_file, write_files

CANONICAL = CanonicalConfig(size=64)


@pytest.fixture
def data(tmp_path):
    return write_covid_semiseg(tmp_path / "COVID-SemiSeg")


def names(slices):
    return [item.name for item in slices]


def test_splits_share_no_image_and_the_validation_names_are_fixed(data):
    assert names(labeled_slices(data, "train")) == ["1", "3"]
    assert names(labeled_slices(data, "val")) == ["2", "14"]
    assert names(labeled_slices(data, "all")) == ["1", "2", "3", "14"]
    assert names(labeled_slices(data, "test")) == ["1"]
    assert len(VALIDATION) == 5
    assert all(not group & VALIDATION for group in SAME_SCAN)


def test_hidden_files_of_an_archive_are_no_images(data):
    before = names(labeled_slices(data, "all"))
    for path in list(data.rglob("Imgs/*.jpg"))[:5]:
        path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    assert names(labeled_slices(data, "all")) == before


def test_data_are_found_by_option_by_variable_and_beside(data, monkeypatch, tmp_path):
    monkeypatch.delenv("COHORTSEG_DATA", raising=False)
    assert find_data(data) == data
    assert find_data(data.parent) == data
    monkeypatch.setenv("COHORTSEG_DATA", str(data.parent))
    assert find_data(None) == data
    monkeypatch.delenv("COHORTSEG_DATA")
    monkeypatch.chdir(tmp_path / "COVID-SemiSeg" / "TrainingSet")
    with pytest.raises(ConfigError, match=r"TrainingSet/MultiClassInfection-Train/\{Imgs,GT\}.*COHORTSEG_DATA"):
        find_data(None)


def test_a_split_needs_only_its_own_folders(data):
    import shutil

    shutil.rmtree(data / "TrainingSet")
    assert names(labeled_slices(data, "test")) == ["1"]
    with pytest.raises(ConfigError, match="folder is missing"):
        labeled_slices(data, "val")
    with pytest.raises(ConfigError, match="Pseudo-label"):
        unlabeled_slices(data)


def test_every_source_comes_upright(data):
    """The three ways images lie all end as the same kind of picture: lungs beside each other, not above."""
    for source in [*labeled_slices(data, "all"), *unlabeled_slices(data)]:
        image = canonical_of(source, CANONICAL).image[0]
        assert image[28:36, 30:34].mean() > 0.8, source.name  # mediastinum in the middle
        for side in (image[:, :26], image[:, 38:]):  # lung on either side
            assert (side < 0.5).float().mean() > 0.3, source.name
        assert (image[:, 30:34] < 0.5).float().mean() < 0.1, source.name


def test_a_prediction_goes_back_to_the_stored_image(data):
    source = labeled_slices(data, "all")[0]
    item = canonical_of(source, CanonicalConfig(size=128))
    prob = torch.nn.functional.one_hot(torch.from_numpy(item.labels).long(), 3).permute(2, 0, 1).float()
    restored = item.restore(prob).argmax(axis=0)
    truth = read_mask(source.mask_path)
    assert restored.shape == truth.shape
    for value in (1, 2):
        overlap = (
            2 * ((restored == value) & (truth == value)).sum() / ((restored == value).sum() + (truth == value).sum())
        )
        assert overlap > 0.93


def test_older_label_codes_are_read_and_others_refused(tmp_path):
    Image.fromarray(np.array([[0, 38, 75]], dtype=np.uint8)).save(tmp_path / "old.png")
    assert read_mask(tmp_path / "old.png").tolist() == [[0, 1, 2]]
    Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint8)).save(tmp_path / "bad.png")
    with pytest.raises(DataError, match=r"bad\.png: labels must be 0, 1, 2"):
        read_mask(tmp_path / "bad.png")


def _palette(order: list[int], colors: list[tuple[int, int, int]], labels: np.ndarray) -> Image.Image:
    """Labels as indices into a palette in which class ``order[i]`` is entry i, each of the color of its class."""
    picture = Image.fromarray(np.argsort(order).astype(np.uint8)[labels], "P")
    picture.putpalette([channel for value in order for channel in colors[value]])
    return picture


def _channels(*channels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


GRAYS = [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
CODES = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
BRIGHT = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]


@pytest.mark.parametrize(
    "make",
    [
        lambda m: _channels(m, m, m),
        lambda m: _channels(m, m, m, np.full_like(m, 255)),
        lambda m: _channels((m == 1) * 128, (m == 2) * 128, 0 * m),
        lambda m: _palette([0, 1, 2], GRAYS, m),
        lambda m: _palette([2, 0, 1], GRAYS, m),
        lambda m: _palette([1, 0, 2], CODES, m),
        lambda m: Image.fromarray(m.astype(np.float32)),
    ],
    ids=["rgb", "rgba", "codes", "palette", "shuffled palette", "palette of codes", "float"],
)
def test_label_maps_whose_meaning_is_plain_are_read(tmp_path, make):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    make(labels).save(tmp_path / "mask.png", format="TIFF" if make(labels).mode == "F" else "PNG")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), labels)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: _channels(m, 0 * m, 0 * m),
        lambda m: _channels(0 * m, 0 * m, m),
        lambda m: _channels((m == 1) * 78, (m == 2) * 128, (m == 1) * 128),
        lambda m: _channels(m == 1, m == 2, 0 * m),
        lambda m: _channels(0 * m, 0 * m, 0 * m, m),
        lambda m: _palette([0, 1, 2], BRIGHT, m),
        lambda m: _palette([1, 0, 2], BRIGHT, m),
        lambda m: _channels((m == 1) * 255, (m == 2) * 255, 0 * m).quantize(3),
    ],
    ids=["red", "blue", "violet", "one channel a class", "alpha", "palette", "shuffled palette", "quantized"],
)
def test_label_maps_that_could_mean_anything_are_refused(tmp_path, make):
    make(np.arange(12, dtype=np.uint8).reshape(3, 4) % 3).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png: what its colours, transparency or bits mean is not known"):
        read_mask(tmp_path / "mask.png")


def test_an_image_with_marks_drawn_over_it_is_refused(tmp_path):
    gray = np.full((64, 64, 3), 120, np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png").shape == (64, 64)
    gray[10:20, 10:20] = (250, 30, 30)
    Image.fromarray(gray).save(tmp_path / "marked.png")
    with pytest.raises(DataError, match=r"marked\.png: is coloured"):
        read_image(tmp_path / "marked.png")


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits_a_channel_is_refused(tmp_path, color_type, channels):
    """Pillow opens it with 8, the upper ones: labels of 0, 1, 2 would all be 0."""
    rows = b"".join(b"\0" + np.full((8, channels), 1, ">u2").tobytes() for _ in range(8))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, color_type, 0, 0, 0))
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    for read in (read_mask, read_image):
        with pytest.raises(DataError, match=r"deep\.png"):
            read(path)


def test_images_that_would_be_left_out_are_refused(tmp_path):
    gray, labels = lesion_slice(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(gray).save(tmp_path / "images/a.png")
    Image.fromarray(labels).save(tmp_path / "masks/a.png")
    assert names(labeled_folder(tmp_path, UPRIGHT)) == ["a"]
    for name, advice in (("b.tif", "save them as .png"), ("b.npy", "to DICOM"), ("b.nii.gz", "to DICOM")):
        (tmp_path / "images" / name).touch()
        with pytest.raises(ConfigError, match=rf"1 image\(s\) like {name} are not read; .*{advice}"):
            labeled_folder(tmp_path, UPRIGHT)
        (tmp_path / "images" / name).unlink()
    Image.fromarray(labels).save(tmp_path / "masks/b.png")
    with pytest.raises(DataError, match=r"b\.png: is the label map of no slice"):
        labeled_folder(tmp_path, UPRIGHT)
    (tmp_path / "Imgs").mkdir()
    with pytest.raises(ConfigError, match="one folder Imgs or images, found 2"):
        labeled_folder(tmp_path, UPRIGHT)


def test_labels_without_a_lesion_are_refused_and_without_a_class_told(tmp_path, caplog):
    gray, labels = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "a.png")
    source = ImageSlice(name="a", image_path=tmp_path / "a.png", mask_path=tmp_path / "mask.png", orientation=UPRIGHT)
    Image.fromarray(np.zeros_like(labels)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="none of the 1 labelled slices holds a lesion"):
        prepare([source], [], CANONICAL, "mine", lambda *_: None)
    Image.fromarray(np.where(labels > 0, 2, 1).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="none of the 1 labelled slices holds background"):
        prepare([source], [], CANONICAL, "mine", lambda *_: None)
    Image.fromarray((labels > 0).astype(np.uint8)).save(tmp_path / "mask.png")
    prepare([source], [], CANONICAL, "mine", lambda *_: None)
    assert "no labelled slice holds Consolidation" in caplog.text


def test_two_images_of_one_name_are_refused(data):
    (first, *_) = sorted(data.rglob("MultiClassInfection-Train/Imgs/*.jpg"))
    Image.open(first).save(first.with_suffix(".png"))
    with pytest.raises(ConfigError, match="two images are named"):
        labeled_slices(data, "all")


def test_what_is_no_image_or_does_not_fit_is_refused_by_name(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg: not a readable image"):
        canonical_of(ImageSlice(name="text", image_path=tmp_path / "text.jpg"), CANONICAL)
    gray, labels = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "a.png")
    Image.fromarray(labels[:-1]).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png: label map is \(127, 128\), its image \(128, 128\)"):
        canonical_of(ImageSlice(name="a", image_path=tmp_path / "a.png", mask_path=tmp_path / "mask.png"), CANONICAL)
    Image.fromarray(np.full((64, 64), 9, dtype=np.uint8)).save(tmp_path / "blank.png")
    with pytest.raises(DataError, match=r"blank\.png: the image is blank"):
        canonical_of(ImageSlice(name="blank", image_path=tmp_path / "blank.png"), CANONICAL)


def test_deep_tiny_and_huge_images_are_refused_and_deep_label_maps_read(tmp_path):
    """Pillow would cut 16-bit grays off at 255 without a word."""
    gray, labels = lesion_slice(0)
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: has more than 8 bits a pixel"):
        read_image(tmp_path / "deep.png")
    Image.fromarray(gray[:3, :3]).save(tmp_path / "tiny.png")
    with pytest.raises(DataError, match=r"tiny\.png: 3 x 3 pixels are too few"):
        read_image(tmp_path / "tiny.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"huge\.png"):
            read(tmp_path / "huge.png")
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "labels.png")
    assert np.array_equal(read_mask(tmp_path / "labels.png"), labels)
    Image.fromarray(labels.astype(np.uint16) * 256).save(tmp_path / "labels.png")
    with pytest.raises(DataError, match="labels must be 0, 1, 2"):
        read_mask(tmp_path / "labels.png")


@pytest.mark.parametrize("orientation", [UPRIGHT, TRANSPOSED, QUARTER_TURNED])
@pytest.mark.parametrize("frame", [((3, 3), (3, 3)), ((0, 0), (40, 25)), ((60, 10), (0, 0))])
def test_a_black_frame_around_an_image_changes_nothing_within(tmp_path, frame, orientation):
    gray, labels = (orientation.from_upright(array) for array in lesion_slice(0))
    Image.fromarray(np.ascontiguousarray(gray)).save(tmp_path / "bare.png")
    for name, array in (("framed.png", gray), ("mask.png", labels)):
        Image.fromarray(np.pad(array, frame)).save(tmp_path / name)
    bare = ImageSlice(name="bare", image_path=tmp_path / "bare.png", orientation=orientation)
    framed = ImageSlice(
        name="framed",
        image_path=tmp_path / "framed.png",
        mask_path=tmp_path / "mask.png",
        orientation=orientation,
    )
    (expected,), (found,) = (list(read_slices(source, CANONICAL)) for source in (bare, framed))
    assert torch.equal(found.canonical.image, expected.canonical.image)
    prob = torch.rand(3, CANONICAL.size, CANONICAL.size)
    inside = tuple(slice(before, -after or None) for before, after in frame)
    assert np.array_equal(found.canonical.restore(prob)[:, *inside], expected.canonical.restore(prob))
    assert np.array_equal(found.stored_labels[inside], labels)
    assert set(np.unique(found.canonical.labels)) == {0, 1, 2}


def test_black_air_around_a_body_is_no_frame():
    rows, columns = np.mgrid[:64, :96]
    body = np.hypot((rows - 32) / 24, (columns - 48) / 40) < 1
    gray = np.where(body, 200, 0).astype(np.uint8)
    assert within_black_frame(gray) == CropBox(0, 64, 0, 96)
    assert within_black_frame(np.zeros((9, 9), np.uint8)) == CropBox(0, 9, 0, 9)


def test_a_label_map_in_another_format_is_named(tmp_path):
    gray, labels = lesion_slice(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(gray).save(tmp_path / "images/1.png")
    Image.fromarray(labels).save(tmp_path / "masks/1.tif")
    Image.fromarray(labels).save(tmp_path / "masks/10.png")
    with pytest.raises(DataError, match=r"1\.png: the label map of 1\.png is missing; 1\.tif is none"):
        labeled_folder(tmp_path, UPRIGHT)
    (tmp_path / "masks/1.tif").unlink()
    (tmp_path / "masks/10.png").rename(tmp_path / "masks/1.Png")
    (source,) = labeled_folder(tmp_path, UPRIGHT)
    assert source.mask_path == tmp_path / "masks/1.Png"


def test_label_maps_in_a_linked_folder_are_found(tmp_path):
    for path in write_series(tmp_path / "images/a", shape=(3, 32, 24)):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((32, 24), np.uint8)).save(tmp_path / "elsewhere" / f"{path.stem}.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a").symlink_to(tmp_path / "elsewhere")
    (source,) = labeled_folder(tmp_path, UPRIGHT)
    assert len(source.mask_paths) == 3


def test_covid_semiseg_read_as_a_folder_of_ones_own_is_told(data, caplog):
    folder = data / "TrainingSet/MultiClassInfection-Train"
    labeled_folder(folder, TRANSPOSED)
    assert not caplog.text
    labeled_folder(folder, UPRIGHT)
    assert "lie transposed" in caplog.text


def test_a_mask_in_place_of_an_image_is_refused(tmp_path):
    Image.fromarray(lesion_slice(0)[0] > 128).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: has one bit a pixel"):
        read_image(tmp_path / "m.png")


def test_own_folders_of_images(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    gray, labels = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "images" / "x.png")
    with pytest.raises(DataError, match=r"x\.png: the label map of x\.png is missing"):
        labeled_folder(tmp_path, UPRIGHT)
    Image.fromarray(labels).save(tmp_path / "masks" / "x.PNG")
    assert len(labeled_folder(tmp_path, TRANSPOSED)) == 1
    (tmp_path / "masks" / "x.PNG").rename(tmp_path / "masks" / "x.png")
    (found,) = labeled_folder(tmp_path, TRANSPOSED)
    assert isinstance(found, ImageSlice)
    assert found.orientation == TRANSPOSED
    assert names(unlabeled_folder(tmp_path / "images", UPRIGHT)) == ["x"]
    with pytest.raises(ConfigError, match="images"):
        labeled_folder(tmp_path / "images", UPRIGHT)


def test_own_folders_of_dicom_with_masks(tmp_path):
    """Label maps keep with their slices, whatever the order of the files."""
    paths = write_series(
        tmp_path / "images", shape=(4, 128, 128), spacing_mm=(5.0, 2.6, 2.6), hu=body_hu((4, 128, 128))
    )
    (tmp_path / "masks").mkdir()
    for number, path in enumerate(paths):
        mask = np.zeros((128, 128), dtype=np.uint8)
        mask[60:68, 40 + 2 * number : 48 + 2 * number] = 1 + number % 2
        Image.fromarray(mask).save(tmp_path / "masks" / f"{path.stem}.png")
    (source,) = labeled_folder(tmp_path, UPRIGHT)
    assert isinstance(source, DicomSlices)
    found = prepare([source], [], CANONICAL, "mine", lambda *_: None)
    assert found.labeled.shape == (4, 1, 64, 64)
    assert found.terms == "mine"
    assert (len(found.labeled_images), found.unlabeled_images) == (4, ())
    assert sorted(int(labels.max()) for labels in found.labels) == [1, 1, 2, 2]
    assert len(unlabeled_folder(tmp_path / "images", UPRIGHT)) == 1


def test_slices_stored_transposed_have_the_lungs_of_upright_ones(tmp_path):
    body = body_hu((4, 256, 128))
    write_series(tmp_path / "upright", shape=(4, 256, 128), spacing_mm=(5, 1.2, 2.4), hu=body)
    turned = {"orientation": (0, 1, 0, 1, 0, 0), "spacing_mm": (5, 2.4, 1.2)}  # from head to feet, by its normal
    write_series(tmp_path / "turned", shape=(4, 128, 256), hu=body[::-1].swapaxes(1, 2), **turned)
    sources = [unlabeled_folder(tmp_path / name, UPRIGHT)[0] for name in ("upright", "turned")]
    upright, turned = (np.stack([item.lungs for item in read_slices(source, CANONICAL)]) for source in sources)
    assert upright.any()
    assert np.array_equal(upright, turned)


def write_labels(path, labels, *, spacing_mm=(2.5, 0.8, 0.6), origin=(-10.0, -20.0, 100.0)):
    """Write labels (Z, Y, X) of a series of `write_series` as NIfTI."""
    affine = np.diag([-spacing_mm[2], -spacing_mm[1], spacing_mm[0], 1.0])
    affine[:3, 3] = np.multiply(origin, (-1, -1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(labels.T), affine), path)


def some_labels(shape=(4, 32, 24)):
    return np.random.default_rng(0).integers(0, 3, shape, np.uint8)


@pytest.mark.parametrize("named_by", ["key", "uid", "folder"])
def test_one_volume_holds_the_labels_of_a_series(tmp_path, named_by):
    write_series(tmp_path / "images/a/b", shuffle=1)
    write_labels(tmp_path / "masks/a/b.nii.gz", some_labels())
    (source,) = labeled_folder(tmp_path, UPRIGHT)
    names = {"key": f"{source.record.series_key}_labels.nii", "uid": f"{source.record.series_instance_uid}.nii.gz"}
    if named_by != "folder":
        (tmp_path / "masks/a/b.nii.gz").unlink()
        write_labels(tmp_path / "masks" / names[named_by], some_labels())
        (source,) = labeled_folder(tmp_path, UPRIGHT)
    found = [item.stored_labels for item in read_slices(source, CANONICAL)]
    np.testing.assert_array_equal(found, some_labels())
    assert check_source(source) == {0, 1, 2}
    write_labels(source.label_volume, some_labels()[None])  # a series of one volume
    assert check_source(source) == {0, 1, 2}
    write_labels(tmp_path / "masks/a/other.nii.gz", some_labels())
    with pytest.raises(DataError, match=r"other\.nii\.gz: is the label map of no series"):
        labeled_folder(tmp_path, UPRIGHT)


def test_a_volume_named_otherwise_is_told_of(tmp_path):
    write_series(tmp_path / "images/a")
    write_labels(tmp_path / "masks/b.nii.gz", some_labels())
    with pytest.raises(
        DataError, match=r"0000\.dcm is missing, and so is .*, \w+_labels\.nii\.gz \(volumes there: b\.nii"
    ):
        labeled_folder(tmp_path, UPRIGHT)


def test_two_series_of_one_folder_may_each_have_a_volume(tmp_path):
    write_series(tmp_path / "images/a")
    for path in write_series(tmp_path / "images/c", series="2"):
        path.rename(tmp_path / "images/a" / f"2-{path.name}")
    (tmp_path / "images/c").rmdir()
    keys = [source.record.series_key for source in unlabeled_folder(tmp_path / "images", UPRIGHT)]
    write_labels(tmp_path / "masks/a.nii.gz", some_labels())
    write_labels(tmp_path / f"masks/{keys[1]}_labels.nii.gz", some_labels())
    found = {source.record.series_key: source.label_volume.name for source in labeled_folder(tmp_path, UPRIGHT)}
    assert found == {keys[0]: "a.nii.gz", keys[1]: f"{keys[1]}_labels.nii.gz"}


def test_lesions_outside_the_crops_are_told_once_for_a_volume(tmp_path, caplog):
    shape = (4, 128, 128)
    write_series(tmp_path / "images/a", shape=shape, spacing_mm=(5.0, 2.6, 2.6), hu=body_hu(shape))
    labels = np.zeros(shape, np.uint8)
    labels[:, 2:8, 2:8] = 1
    write_labels(tmp_path / "masks/a.nii.gz", labels, spacing_mm=(5.0, 2.6, 2.6))
    list(read_slices(labeled_folder(tmp_path, UPRIGHT)[0], CANONICAL))
    assert caplog.text.count("a.nii.gz: 100 % of its labelled lesions are lost: outside the lung") == 1
    assert caplog.text.count("are lost") == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_label_volumes_of_both_versions_of_nifti_and_either_byte_order_are_read(tmp_path, kind, order):
    write_series(tmp_path / "images/a")
    path = tmp_path / "masks/a.nii"
    write_labels(path, some_labels())
    (source,) = labeled_folder(tmp_path, UPRIGHT)
    image = nib.load(path)
    header = kind.header_class.from_header(image.header).as_byteswapped(order)
    content = kind(np.asarray(image.dataobj), image.affine, header).to_bytes()
    assert (content[0] == 0) == (order == ">")
    path.write_bytes(content)
    np.testing.assert_array_equal([item.stored_labels for item in read_slices(source, CANONICAL)], some_labels())


def test_a_label_volume_of_no_series_or_of_two_is_refused(tmp_path):
    write_series(tmp_path / "images/a", shape=(4, 32, 24))
    write_labels(tmp_path / "masks/a.nii.gz", some_labels())
    write_labels(tmp_path / "masks/._a.nii.gz", some_labels())
    write_labels(tmp_path / "masks/b.nii", some_labels())
    with pytest.raises(DataError, match=r"b\.nii: is the label map of no series that can be used"):
        labeled_folder(tmp_path, UPRIGHT)
    (tmp_path / "masks/b.nii").unlink()
    for path in write_series(tmp_path / "images/c", series="2"):
        path.rename(tmp_path / "images/a" / f"2-{path.name}")
    with pytest.raises(DataError, match=r"a\.nii\.gz: is the label map of two series; give each its own, named \w"):
        labeled_folder(tmp_path, UPRIGHT)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"labels": some_labels()[:3]}, "holds 3 x 24 x 32 voxels, and its series 4 x 24 x 32"),
        ({"origin": (-10.0, -20.0, 102.5)}, "its voxels lie elsewhere"),
        ({"labels": np.stack([some_labels()] * 2)}, "holds 2 x 4 x 24 x 32 voxels"),
        ({"spacing_mm": (2.5, 0.8, 0.65)}, "its voxels lie elsewhere"),
        ({"spacing_mm": (-2.5, 0.8, 0.6)}, "its voxels lie elsewhere"),
        ({"labels": np.zeros((80, 320, 240), np.uint8)}, "holds more voxels than its series"),
        ({"labels": some_labels() + np.uint8(1)}, r"labels must be 0, 1, 2, found \[1, 2, 3\]"),
        ({"labels": some_labels() / np.float32(2)}, r"labels must be 0, 1, 2, found \[0\.0, 0\.5, 1\.0\]"),
        ({"labels": np.zeros((4, 32, 24), [(c, np.uint8) for c in "RGB"])}, "holds no volume of numbers"),
    ],
)
def test_label_volumes_that_would_be_misread_are_refused(tmp_path, changed, problem):
    write_series(tmp_path / "images/a")
    write_labels(tmp_path / "masks/a.nii.gz", **{"labels": some_labels()} | changed)
    (source,) = labeled_folder(tmp_path, UPRIGHT)
    with pytest.raises(DataError, match=rf"a\.nii\.gz: {problem}"):
        check_source(source)


def test_a_damaged_label_volume_is_refused_by_name(tmp_path, capfd):
    write_series(tmp_path / "images/a")
    path = tmp_path / "masks/a.nii.gz"
    write_labels(path, some_labels())
    (source,) = labeled_folder(tmp_path, UPRIGHT)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for end in (0, 1, 40, 400, len(whole) - 20, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.nii\.gz: "):
            check_source(source)
    plain = gzip.decompress(whole)
    flat = bytearray(plain)
    flat[280:296] = bytes(16)  # srow_x
    path.write_bytes(gzip.compress(flat))
    with pytest.raises(DataError, match=r"a\.nii\.gz: its voxels lie elsewhere"):
        check_source(source)
    for _ in range(300):  # whatever a header claims, an error names the file
        mutated = np.frombuffer(plain, np.uint8).copy()
        mutated[random.integers(0, 352, 3)] = random.integers(0, 256, 3)
        path.write_bytes(gzip.compress(mutated.tobytes(), 1))
        with contextlib.suppress(DataError):
            check_source(source)
    assert not any(capfd.readouterr())


def test_dicom_of_two_folders_never_share_a_label_map(tmp_path):
    for folder in ("a", "b"):
        paths = write_series(tmp_path / "images" / folder, series=str(ord(folder)))
    (tmp_path / "masks").mkdir()
    blank = Image.fromarray(np.zeros((8, 8), dtype=np.uint8))
    for path in paths:
        blank.save(tmp_path / "masks" / f"{path.stem}.png")
    with pytest.raises(DataError, match=r"is the label map of two slices; put that of b/"):
        labeled_folder(tmp_path, UPRIGHT)
    for folder in ("a", "b"):
        (tmp_path / "masks" / folder).mkdir()
        for path in paths:
            blank.save(tmp_path / "masks" / folder / f"{path.stem}.png")
    with pytest.raises(DataError, match=r"0000\.png: is the label map of no slice"):
        labeled_folder(tmp_path, UPRIGHT)  # those of before, which now are nobody's
    for path in (tmp_path / "masks").glob("*.png"):
        path.unlink()
    sources = labeled_folder(tmp_path, UPRIGHT)
    for source in sources:
        assert {path.parent.name for path in source.mask_paths} == {Path(source.record.files[0]).parent.name}
    assert len(sources) == 2


def test_labelled_dicom_that_cannot_be_used_is_refused_with_the_reason(tmp_path):
    (tmp_path / "masks").mkdir()
    paths = write_series(tmp_path / "images", shape=(6, 8, 8))
    for path in paths:
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "masks" / f"{path.stem}.png")
    paths[2].unlink()
    with pytest.raises(DataError, match=r"0000\.dcm: its series of 5 slices cannot be used: gap"):
        labeled_folder(tmp_path, UPRIGHT)


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM" + b"\2\0"])
def test_a_labelled_dicom_file_that_cannot_be_read_is_refused_by_name(tmp_path, content):
    (tmp_path / "masks").mkdir()
    paths = write_series(tmp_path / "images", shape=(6, 8, 8))
    for path in paths:
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "masks" / f"{path.stem}.png")
    paths[-1].write_bytes(content)
    with pytest.raises(DataError, match=r"0005\.dcm: cannot be used: .*; take it out, or mend it"):
        labeled_folder(tmp_path, UPRIGHT)


def test_a_copy_among_labelled_dicom_is_refused_by_name(tmp_path):
    (tmp_path / "masks").mkdir()
    paths = write_series(tmp_path / "images", shape=(6, 8, 8))
    (tmp_path / "images/again.dcm").write_bytes(paths[0].read_bytes())
    for path in (tmp_path / "images").iterdir():
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "masks" / f"{path.stem}.png")
    with pytest.raises(DataError, match=r"again\.dcm: cannot be used: copy of a slice .*; take it out, or mend it"):
        labeled_folder(tmp_path, UPRIGHT)


def test_labelled_multi_frame_dicom_needs_a_volume(tmp_path, model_path):
    for name in ("images", "masks"):
        (tmp_path / "own" / name).mkdir(parents=True)
    write_files(tmp_path / "own/images", [enhanced_file(chest_slices("enhanced"))])
    with pytest.raises(DataError, match="the slices of a multi-frame file have one name") as refused:
        labeled_folder(tmp_path / "own", UPRIGHT)
    path = Path(re.search(r"give one volume, (.*)", str(refused.value))[1])
    run(tmp_path / "own/images", tmp_path / "out", model_path)
    export_masks(tmp_path / "out", tmp_path / "nifti", form="nifti", cohort=None)
    shutil.copy(tmp_path / "nifti" / path.name, path)
    (source,) = labeled_folder(tmp_path / "own", UPRIGHT)
    assert check_source(source) >= {0}


def test_a_picture_beside_a_tree_of_dicom_is_not_taken_for_the_data(tmp_path):
    write_series(tmp_path / "tree")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "preview.png")
    with pytest.raises(ConfigError, match=r"holds images \(preview\.png\) and also tree"):
        unlabeled_folder(tmp_path, UPRIGHT)


def test_dicom_without_ending_beside_a_picture_is_not_passed_over(tmp_path):
    for path in write_series(tmp_path):
        path.rename(path.with_name(f"1.2.{path.stem}"))
    gray, _ = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "preview.png")
    with pytest.raises(ConfigError, match=r"holds images \(preview\.png\) and also 1\.2\.0000"):
        unlabeled_folder(tmp_path, UPRIGHT)


def test_dicom_without_prefix_beside_a_picture_is_known_by_its_ending(tmp_path):
    gray, _ = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "preview.png")
    (tmp_path / "0000.DCM").write_bytes(b"\x08\x00\x05\x00")
    with pytest.raises(ConfigError, match=r"holds images \(preview\.png\) and also 0000\.DCM"):
        unlabeled_folder(tmp_path, UPRIGHT)


def test_files_beside_images_are_told(tmp_path, caplog):
    gray, _ = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "case.nii.png")
    (tmp_path / "notes.txt").write_text("mine")
    assert names(unlabeled_folder(tmp_path, UPRIGHT)) == ["case.nii"]
    assert "1 other files of" in caplog.text
    assert "notes.txt" in caplog.text
    (tmp_path / "ct.nii.gz").touch()
    with pytest.raises(ConfigError, match=r"ct\.nii\.gz are not read"):
        unlabeled_folder(tmp_path, UPRIGHT)


def test_a_folder_named_like_an_image_is_no_image(tmp_path):
    gray, _ = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "x.png")
    (tmp_path / "y.png").mkdir()
    with pytest.raises(ConfigError, match=r"holds images \(x\.png\) and also y\.png; keep one kind of data"):
        unlabeled_folder(tmp_path, UPRIGHT)


def test_a_dead_link_beside_images_is_passed_over(tmp_path, caplog):
    gray, _ = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "x.png")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert names(unlabeled_folder(tmp_path, UPRIGHT)) == ["x"]
    assert "1 other files of" in caplog.text


def test_an_image_whose_name_is_not_utf8_is_refused(tmp_path):
    gray, _ = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / os.fsdecode(b"b\xe9d.png"))
    with pytest.raises(ConfigError, match="an image's name must be UTF-8"):
        unlabeled_folder(tmp_path, UPRIGHT)


def test_files_named_by_uid_keep_all_of_it(tmp_path):
    (tmp_path / "masks").mkdir()
    for number, path in enumerate(write_series(tmp_path / "images")):
        path.rename(path.with_name(f"1.2.840.{number}"))
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "masks" / f"1.2.840.{number}.png")
    (source,) = labeled_folder(tmp_path, UPRIGHT)
    assert sorted(path.name for path in source.mask_paths)[0] == "1.2.840.0.png"


def test_an_unlabelled_series_that_cannot_be_used_is_left_out(tmp_path, caplog):
    body = {"shape": (4, 128, 128), "spacing_mm": (5.0, 2.6, 2.6), "hu": body_hu((4, 128, 128))}
    write_series(tmp_path / "good", series="1", **body)
    bad = write_series(tmp_path / "bad", series="2", **body)
    bad[0].write_bytes(bad[0].read_bytes()[:-5000])
    gray, labels = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "x.png")
    Image.fromarray(labels).save(tmp_path / "x-mask.png")
    labeled = [ImageSlice(name="x", image_path=tmp_path / "x.png", mask_path=tmp_path / "x-mask.png")]

    def prepared(folder):
        return prepare(labeled, unlabeled_folder(folder, UPRIGHT), CANONICAL, "mine", lambda *_: None)

    assert prepared(tmp_path / "good").unlabeled.shape[0] == 4
    (tmp_path / "both").mkdir()
    for name in ("good", "bad"):
        (tmp_path / name).rename(tmp_path / "both" / name)
    assert prepared(tmp_path / "both").unlabeled.shape[0] == 4
    assert "is left out" in caplog.text
    with pytest.raises(DataError, match="none of the 1 unlabelled series"):
        prepared(tmp_path / "both" / "bad")


def test_an_unlabelled_image_that_cannot_be_used_is_refused_by_name(tmp_path):
    gray, labels = lesion_slice(0)
    for name, pixels in (("x", gray), ("x-mask", labels), ("blank", np.zeros_like(gray))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    labeled = [ImageSlice(name="x", image_path=tmp_path / "x.png", mask_path=tmp_path / "x-mask.png")]
    unlabeled = [ImageSlice(name="blank", image_path=tmp_path / "blank.png")]
    with pytest.raises(DataError, match=r"blank\.png: the image is blank"):
        prepare(labeled, unlabeled, CANONICAL, "mine", lambda *_: None)


@pytest.fixture
def series_with_bad_uids(tmp_path: Path) -> DicomSlices:
    """Pydicom warns of an invalid UID by quoting it; in tests a warning is an error."""
    shape = (4, 128, 128)
    for index, path in enumerate(
        write_series(tmp_path / "d", shape=shape, spacing_mm=(5.0, 2.6, 2.6), hu=body_hu(shape))
    ):
        uid = pydicom.dcmread(path).SOPInstanceUID.encode()
        path.write_bytes(path.read_bytes().replace(uid, f"MUELLER_HANS.{index}".ljust(len(uid), "0").encode()))
    (series,) = unlabeled_folder(tmp_path / "d", UPRIGHT)
    return series


def test_header_values_do_not_reach_the_terminal_by_way_of_warnings(tmp_path, series_with_bad_uids):
    gray, labels = lesion_slice(0)
    Image.fromarray(gray).save(tmp_path / "x.png")
    Image.fromarray(labels).save(tmp_path / "x-mask.png")
    labeled = [ImageSlice(name="x", image_path=tmp_path / "x.png", mask_path=tmp_path / "x-mask.png")]
    found = prepare(labeled, [series_with_bad_uids], CANONICAL, "mine", lambda *_: None)
    assert len(found.unlabeled) == 4


def test_nor_do_they_when_slices_are_read_one_by_one(series_with_bad_uids):
    assert sum(item.canonical is not None for item in read_slices(series_with_bad_uids, CANONICAL)) == 4


def test_lesions_labelled_where_no_lung_was_found_are_told(tmp_path, caplog):
    masks = []
    for index, labels in enumerate((np.zeros((128, 128), np.uint8), np.full((128, 128), 2, np.uint8))):
        masks.append(tmp_path / f"mask{index}.png")
        Image.fromarray(labels).save(masks[-1])
    shape = (2, 128, 128)
    write_series(
        tmp_path / "belly", shape=shape, spacing_mm=(5.0, 2.6, 2.6), hu=np.where(body_hu(shape) < -900, -1000, 40)
    )
    (series,) = unlabeled_folder(tmp_path / "belly", UPRIGHT)
    slices = list(read_slices(replace(series, mask_paths=tuple(masks)), CANONICAL))
    assert [item.canonical for item in slices] == [None, None]
    assert f"{masks[1]}: 100 % of its labelled lesions are lost: no lung was found there" in caplog.text
    assert str(masks[0]) not in caplog.text


def test_damaged_exif_says_nothing(tmp_path):
    gray = lesion_slice(0)[0]
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010E] = "by hand"
    Image.fromarray(gray).save(tmp_path / "a.jpg", exif=turned, quality=100)
    whole = (tmp_path / "a.jpg").read_bytes()
    start = whole.index(b"Exif\0\0") + 6
    end = start - 6 + len(turned.tobytes())
    shapes = set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for at in rng.integers(start, end, 3):
            damaged[at] = rng.integers(256)
        (tmp_path / "a.jpg").write_bytes(damaged)
        shapes.add(read_image(tmp_path / "a.jpg").shape)
    assert shapes == {gray.shape}


@pytest.mark.parametrize("beside", [False, True])
def test_lesions_labelled_beside_the_one_lung_that_was_found_are_told(tmp_path, caplog, beside):
    """A lung that is all solid is no lung to the crop; an outline that reaches a little too far is nothing to tell."""
    gray, labels = lesion_slice(0)
    gray[:, 64:], labels[:] = 230, 0
    Image.fromarray(gray).save(tmp_path / "a.png")
    source = ImageSlice(name="a", image_path=tmp_path / "a.png", mask_path=tmp_path / "m.png")
    Image.fromarray(labels).save(tmp_path / "m.png")
    found = canonical_of(source, CANONICAL)
    assert found.lungs_found
    labels[found.box.y0 : found.box.y1, found.box.x0 : found.box.x1 + 2] = 2
    labels[30:90, 80:110] = 2 if beside else 0
    Image.fromarray(labels).save(tmp_path / "m.png")
    list(read_slices(source, CANONICAL))
    assert (f"{tmp_path / 'm.png'}: " in caplog.text) is beside
    assert ("outside the lung that was found" in caplog.text) is beside


def test_a_jpeg_is_read_as_viewers_show_it(tmp_path):
    upright = np.add.outer(np.arange(16), 4 * np.arange(32)).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.jpg", exif=turned, quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - upright).max() <= 3


def test_damaged_prepared_data_are_refused(tmp_path):
    (tmp_path / "data.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="prepared data"):
        load_prepared(tmp_path / "data.safetensors")


def test_prepared_slices_that_were_changed_on_disk_are_refused(tmp_path):
    path = tmp_path / "data.safetensors"
    write_prepared(path, prepared())
    assert len(load_prepared(path).labeled) == 6
    content = bytearray(path.read_bytes())
    content[-100:] = bytes(255 - byte for byte in content[-100:])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.safetensors: damaged: its slices are not those that were written"):
        load_prepared(path)


@pytest.mark.realdata
def test_the_real_data_set_has_its_known_sizes_and_every_lesion_lies_in_the_crop(covid_semiseg):
    root = find_data(covid_semiseg)
    assert (len(labeled_slices(root, "train")), len(labeled_slices(root, "val"))) == (45, 5)
    unlabelled = unlabeled_slices(root)
    assert len(unlabelled) == 1600
    assert sum("coronacases" in item.name for item in unlabelled) == 1119
    for source in labeled_slices(root, "all")[::5]:
        item = canonical_of(source, CanonicalConfig())
        upright = source.orientation.to_upright(read_mask(source.mask_path)) > 0
        box = item.box
        inside = upright[max(box.y0, 0) : box.y1, max(box.x0, 0) : box.x1].sum()
        assert inside >= 0.99 * upright.sum(), source.name


def test_terms_of_the_data_set_are_kept():
    assert "non-commercial" in covid_semiseg.TERMS


def test_prepared_data_are_written_as_other_files_are_or_not_at_all(tmp_path):
    code = """
import os, resource, sys
from pathlib import Path
import torch
from cohortseg.datasets.prepared import PreparedData, load_prepared, write_prepared
from cohortseg.errors import StoreError
os.umask(0o027)
images = torch.zeros(20, 1, 64, 64, dtype=torch.float16)
labels = torch.zeros(20, 64, 64, dtype=torch.uint8)
data = PreparedData(
    labeled=images, labels=labels, unlabeled=images.clone(), labeled_images=(), unlabeled_images=(), terms="none"
)
path = Path(sys.argv[1])
write_prepared(path, data)
assert path.stat().st_mode & 0o777 == 0o640
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    write_prepared(path, data)
except StoreError as error:
    print(error)
assert len(load_prepared(path).unlabeled) == 20
"""
    command = [sys.executable, "-c", code, str(tmp_path / "data.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "data.safetensors: cannot be written" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data.safetensors"]


def test_prepared_data_that_cannot_be_put_in_place_are_told_of(tmp_path):
    (tmp_path / "data.safetensors").mkdir()
    with pytest.raises(StoreError, match=r"data\.safetensors: cannot be written"):
        write_prepared(tmp_path / "data.safetensors", prepared())
    assert [path.name for path in tmp_path.iterdir()] == ["data.safetensors"]


def test_a_folder_of_unlabelled_images_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: no such folder"):
        unlabeled_folder(tmp_path / "nowhere", UPRIGHT)


def test_why_no_unlabelled_series_can_be_used_is_said(tmp_path):
    write_series(tmp_path, attributes={"Modality": "MR"})
    with pytest.raises(ConfigError, match="nor an axial DICOM CT series; 1 of 1 series: modality is MR, not CT"):
        unlabeled_folder(tmp_path, UPRIGHT)
