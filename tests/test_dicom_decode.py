"""From files to HU on the true grid; damage is an error that names the file."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from phantoms import CORONAL, body_hu, write_series
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from runs import only_series

from cohortseg.config import ScanConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.pixels import stored_values
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import CohortSegError, DicomError, GeometryError, NotEvaluableError
from cohortseg.synthetic.quirk_files import chest_slices, enhanced_file
from cohortseg.volume import HU_MAX, HU_MIN, Volume

SHAPE = (4, 32, 24)
LARGE = (4, 64, 80)
"""As small as the JPEG 2000 encoder takes."""


def read_only(root: Path) -> Volume:
    """Read the one series of a folder."""
    return read_volume(only_series(root), root)


def copy_testdata(name: str, folder: Path) -> Path:
    """Copy one of pydicom's own test files."""
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(str(get_testdata_file(name, download=False)), folder / "file"))


def test_values_and_geometry(tmp_path: Path) -> None:
    paths = write_series(tmp_path, shuffle=1, origin=(-10, -20, 100), spacing_mm=(2.5, 0.8, 0.6))
    volume = read_only(tmp_path)
    np.testing.assert_array_equal(volume.volume_hu, body_hu(SHAPE))
    assert volume.volume_hu.dtype == np.int16
    np.testing.assert_allclose(volume.affine, [[0, 0, 0.6, -10], [0, 0.8, 0, -20], [2.5, 0, 0, 100], [0, 0, 0, 1]])
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.6))
    assert volume.voxel_volume_ml == pytest.approx(0.0012)
    assert volume.qc_flags == ()
    assert len(set(volume.sop_instance_uids)) == 4
    assert volume.frame_of_reference_uid == pydicom.dcmread(paths[0]).FrameOfReferenceUID


def round_picture(fill: int) -> Callable[[tuple[int, int, int]], np.ndarray]:
    """Return a maker of a body in air inside the circle that touches the image's sides, and a value outside it."""

    def make(shape: tuple[int, int, int]) -> np.ndarray:
        y, x = (np.linspace(-1, 1, size) for size in shape[1:])
        return np.where(np.hypot(y[:, None], x) > 1, fill, body_hu(shape)).astype(np.int16)

    return make


@pytest.mark.parametrize("fill", [0, 3071, -1024])
def test_padding_outside_the_circle_need_not_be_declared(tmp_path: Path, fill: int) -> None:
    write_series(tmp_path / "declared", shape=(4, 64, 64), hu=round_picture(-1024))
    write_series(tmp_path / "not", shape=(4, 64, 64), hu=round_picture(fill))
    expected, volume = read_only(tmp_path / "declared"), read_only(tmp_path / "not")
    np.testing.assert_array_equal(volume.volume_hu, expected.volume_hu)
    assert ("undeclared_padding" in volume.qc_flags) == (fill > -900)


def test_tissue_up_to_the_corners_is_no_padding(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(4, 64, 64), hu=lambda shape: np.where(body_hu(shape) < -900, 40, body_hu(shape)))
    volume = read_only(tmp_path)
    assert volume.volume_hu[:, 0, 0].tolist() == [40] * 4
    assert "undeclared_padding" not in volume.qc_flags


def test_tissue_that_borders_on_undeclared_padding_of_its_value_stays(tmp_path: Path) -> None:
    def hu(shape: tuple[int, int, int]) -> np.ndarray:
        made = round_picture(0)(shape)
        made[:, 28:36, :20] = 0  # from the image's side inwards
        return made

    write_series(tmp_path, shape=(4, 64, 64), hu=hu)
    volume = read_only(tmp_path)
    assert "undeclared_padding" in volume.qc_flags
    assert (volume.volume_hu[:, 0, 0] == -1024).all()
    assert (volume.volume_hu[:, 30:34, 10:20] == 0).all()


def test_padding_of_a_value_that_tissue_has_is_only_around_the_picture(tmp_path: Path) -> None:
    def hu(shape: tuple[int, int, int]) -> np.ndarray:
        made = round_picture(0)(shape)
        made[:, 30:34, 30:34] = 0
        return made

    write_series(tmp_path, shape=(4, 64, 64), hu=hu, intercept=0, attributes={"PixelPaddingValue": 0})
    volume = read_only(tmp_path)
    assert (volume.volume_hu[:, 0, 0] == -1024).all()
    assert (volume.volume_hu[:, 30:34, 30:34] == 0).all()


@pytest.mark.parametrize("shifted", [True, False])
def test_values_in_the_upper_bits_and_a_high_bit_that_is_wrong(tmp_path: Path, shifted: bool) -> None:
    bits = {"BitsStored": 12, "HighBit": 15, "PixelRepresentation": 0}
    shape = (4, 32, 24)
    hu = body_hu(shape)
    hu[:, 16] = -1008  # 16, whose lower bits are empty whichever they are
    write_series(tmp_path / "plain", shape=shape, hu=hu)
    stored = (hu + 1024) * (16 if shifted else 1)
    write_series(
        tmp_path / "upper",
        shape=shape,
        hu=np.asarray(stored, np.uint16).view(np.int16),
        intercept=0,
        attributes=bits | {"RescaleIntercept": "-1024"},
    )
    np.testing.assert_array_equal(read_only(tmp_path / "upper").volume_hu, read_only(tmp_path / "plain").volume_hu)


def test_every_frame_with_values_in_the_upper_bits_is_shifted(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, shape=(1, 8, 8), hu=160, intercept=0, attributes={"PixelRepresentation": 0})
    dataset = pydicom.dcmread(path)
    dataset.update({"NumberOfFrames": 2, "BitsStored": 12, "HighBit": 15, "PixelData": 2 * dataset.PixelData})
    assert [stored_values(dataset, "", frame)[0, 0] for frame in (0, 1)] == [10, 10]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["upper bits", "overlay", "signed"])
def test_bits_outside_those_stored_in_images_that_were_compressed_with_all(
    tmp_path: Path, syntax: str, kind: str
) -> None:
    """PS3.5, 8.1.1: twelve bits of sixteen, and an old overlay or no sign in the others."""
    shape = (4, 64, 48)
    hu = np.maximum(body_hu(shape), -1000)
    attributes = {"BitsStored": 12, "HighBit": 15 if kind == "upper bits" else 11}
    intercept = 0 if kind == "signed" else -1024
    paths = write_series(tmp_path, shape=shape, hu=hu, intercept=intercept, attributes={"PixelRepresentation": 0})
    for path in paths:
        dataset = pydicom.dcmread(path)
        stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(shape[1:]) & 0xFFF
        stored = stored << 4 if kind == "upper bits" else stored
        if kind == "overlay":
            stored[::4] |= 0x1000
        dataset.PixelData = stored.tobytes()
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.update(attributes | {"PixelRepresentation": int(kind == "signed")})
        dataset.save_as(path)
    np.testing.assert_array_equal(read_only(tmp_path).volume_hu, hu)


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, np.cos(0.1), np.sin(0.1)), (-1, 0, 0, 0, -1, 0), (0, 1, 0, -1, 0, 0)],
)
def test_agrees_with_simpleitk(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    paths = write_series(tmp_path, orientation=orientation, slope=2, intercept=-1000)
    volume = read_only(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in paths])
    image = reader.Execute()
    np.testing.assert_array_equal(volume.volume_hu, sitk.GetArrayFromImage(image))
    for index in [(0, 0, 0), (3, 0, 0), (0, 31, 0), (0, 0, 23), (2, 7, 5)]:
        expected = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], expected, atol=1e-4)


def test_falling_positions_give_the_same_volume_turned_up(tmp_path: Path) -> None:
    write_series(tmp_path, spacing_mm=(-2.5, 0.8, 0.6), origin=(0, 0, 50))
    volume = read_only(tmp_path)
    np.testing.assert_array_equal(volume.volume_hu, body_hu(SHAPE)[::-1])
    np.testing.assert_allclose(volume.affine[:3, 3], [0, 0, 42.5])
    assert volume.affine[2, 0] == pytest.approx(2.5)


def test_single_slice(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(1, 32, 24))
    volume = read_only(tmp_path)
    assert volume.spacing_mm == (None, 0.8, 0.6)
    assert volume.voxel_volume_ml is None
    np.testing.assert_allclose(volume.affine[:3, 0], [0, 0, 1])
    assert volume.qc_flags == ("single_slice",)


def half_air(_shape: tuple[int, int, int]) -> np.ndarray:
    """Return columns of 0 HU, then of -800 HU."""
    return np.repeat([0, -800], SHAPE[2] // 2)


def test_rescale_is_per_slice(tmp_path: Path) -> None:
    # Slice i is stored with intercept -1024; a header that says -1000 - i moves it by 24 - i.
    write_series(tmp_path, hu=half_air, attributes=lambda index: {"RescaleIntercept": str(-1000 - index)})
    assert read_only(tmp_path).volume_hu[:, 0, 0].tolist() == [24, 23, 22, 21]


def test_fractional_slope_is_rounded(tmp_path: Path) -> None:
    write_series(tmp_path, hu=half_air, intercept=0, attributes={"RescaleSlope": "0.9", "RescaleIntercept": "-10.8"})
    assert np.unique(read_only(tmp_path).volume_hu).tolist() == [-731, -11]


def test_values_are_clipped(tmp_path: Path) -> None:
    hu = body_hu(SHAPE)
    hu[:, 0, 0], hu[:, 0, 1] = -3024, 9000
    write_series(tmp_path, hu=hu)
    corner = read_only(tmp_path).volume_hu[:, 0, :2]
    assert (corner == [HU_MIN, HU_MAX]).all()


@pytest.mark.parametrize("declared", [-1500, 64036])
def test_padding_becomes_air(tmp_path: Path, declared: int) -> None:
    hu = body_hu(SHAPE)
    hu[:, :2] = -500  # stored as -1500
    paths = write_series(tmp_path, hu=hu, intercept=1000)
    for path in paths:  # the VR decides the sign: SS is signed, US is what many scanners write all the same
        content = path.read_bytes()
        element = b"\x28\x00\x20\x01" + (b"SS" if declared < 0 else b"US") + b"\x02\x00"
        element += (declared % 65536).to_bytes(2, "little")
        place = content.index(b"\x28\x00\x52\x10")  # before Rescale Intercept, so that tags rise
        path.write_bytes(content[:place] + element + content[place:])
    volume = read_only(tmp_path)
    assert (volume.volume_hu[:, :2] == HU_MIN).all()
    np.testing.assert_array_equal(volume.volume_hu[:, 2:], hu[:, 2:])


@pytest.mark.parametrize("value", [3000, -200], ids=["above-air", "signed"])
def test_padding_without_a_vr(tmp_path: Path, value: int) -> None:
    hu = body_hu(SHAPE)
    hu[:, :2] = value
    attributes = {"PixelPaddingValue": value}
    write_series(tmp_path, hu=hu, intercept=0, attributes=attributes, transfer_syntax=ImplicitVRLittleEndian)
    volume = read_only(tmp_path)
    assert (volume.volume_hu[:, :2] == HU_MIN).all()
    np.testing.assert_array_equal(volume.volume_hu[:, 2:], hu[:, 2:])


@pytest.mark.parametrize(
    ("representation", "declared"),
    [(0, 63536), (1, -3024)],
    ids=["unsigned", "signed"],
)
def test_padding_that_does_not_fit_the_bits_stored(tmp_path: Path, representation: int, declared: int) -> None:
    hu = body_hu(SHAPE)
    write_series(tmp_path, hu=hu, intercept=-1024 if representation == 0 else 0)
    for path in tmp_path.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        stored = np.frombuffer(dataset.PixelData, np.uint16).reshape(SHAPE[1:]).copy()
        stored[:2] = declared % 2**16
        dataset.PixelData = stored.tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, representation
        dataset.add_new("PixelPaddingValue", "SS" if declared < 0 else "US", declared)
        dataset.save_as(path)
    volume = read_only(tmp_path)
    assert (volume.volume_hu[:, :2] == HU_MIN).all()
    np.testing.assert_array_equal(volume.volume_hu[:, 2:], hu[:, 2:])


@pytest.mark.parametrize("value", [-32768, -3024])
def test_a_padding_range_that_does_not_fit_the_bits_stored_covers_no_tissue(tmp_path: Path, value: int) -> None:
    hu = body_hu(SHAPE)
    attributes = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": value, "PixelPaddingRangeLimit": -1025}
    write_series(tmp_path, hu=hu, intercept=0, attributes=attributes)
    np.testing.assert_array_equal(read_only(tmp_path).volume_hu, hu)


def test_padding_range(tmp_path: Path) -> None:
    hu = body_hu(SHAPE)
    hu[:, 0] = np.linspace(2000, 2023, 24)
    attributes = {"PixelPaddingValue": 2010 + 1024, "PixelPaddingRangeLimit": 2000 + 1024}
    write_series(tmp_path, hu=hu, attributes=attributes)
    row = read_only(tmp_path).volume_hu[0, 0]
    assert row.tolist() == [HU_MIN] * 11 + list(range(2011, 2024))


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless],
    ids=lambda syntax: syntax.keyword,
)
def test_transfer_syntaxes_give_the_same_volume(tmp_path: Path, syntax: str) -> None:
    write_series(tmp_path, shape=LARGE, transfer_syntax=syntax)
    np.testing.assert_array_equal(read_only(tmp_path).volume_hu, body_hu(LARGE))


def test_an_image_of_noise_that_rle_does_not_make_smaller_is_read(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, (1, 256, 256))
    write_series(tmp_path, shape=hu.shape, hu=hu, transfer_syntax=RLELossless)
    assert np.array_equal(stored_values(pydicom.dcmread(tmp_path / "0000.dcm"), "") - 1024, hu[0])


@pytest.mark.parametrize("size", [{"Rows": 32}, {"Columns": 40}], ids=str)
def test_a_compressed_image_larger_than_the_header_says_is_not_cut_to_it(tmp_path: Path, size: dict[str, int]) -> None:
    """As the decoder of JPEG-LS would."""
    (path,) = write_series(tmp_path, shape=(1, 64, 80), transfer_syntax=JPEGLSLossless, attributes=size)
    with pytest.raises(DicomError, match="the compressed image is 64 x 80, the header says"):
        stored_values(pydicom.dcmread(path), path.name)


def test_real_scanner_file_agrees_with_simpleitk(tmp_path: Path) -> None:
    path = copy_testdata("CT_small.dcm", tmp_path)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(read_only(tmp_path).volume_hu, expected)


def test_real_lossy_jpeg_2000_is_read_and_flagged(tmp_path: Path) -> None:
    copy_testdata("693_J2KI.dcm", tmp_path)
    volume = read_only(tmp_path)
    assert volume.volume_hu.shape == (1, 512, 512)
    assert "lossy_compression" in volume.qc_flags


@pytest.mark.parametrize(
    ("hu", "refused"),
    [
        (body_hu(SHAPE), False),
        (body_hu(SHAPE) + 1024, True),  # rescale forgotten
        (body_hu(SHAPE) - 1024, True),  # rescale applied twice
        (np.clip((body_hu(SHAPE) + 1350) / 1500 * 255, 0, 255), True),  # an 8-bit window
        (np.zeros(SHAPE), True),
    ],
)
def test_values_that_are_not_hu_are_refused(tmp_path: Path, hu: np.ndarray, refused: bool) -> None:
    write_series(tmp_path, hu=hu)
    if not refused:
        assert read_only(tmp_path).qc_flags == ()
        return
    with pytest.raises(NotEvaluableError, match="not Hounsfield units") as caught:
        read_only(tmp_path)
    assert caught.value.qc_flags == ("hu_implausible",)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_truncated_file_is_an_error_with_its_name(tmp_path: Path, syntax: str) -> None:
    paths = write_series(tmp_path, shape=LARGE, transfer_syntax=syntax)
    (record,) = scan_cohort(tmp_path).series
    paths[2].write_bytes(paths[2].read_bytes()[:-60])
    with pytest.raises(DicomError, match=r"0002\.dcm"):
        read_volume(record, tmp_path)


def test_what_stands_behind_the_pixels_does_not_matter(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    before = read_volume(only_series(tmp_path), tmp_path).volume_hu
    for path in paths:
        path.write_bytes(path.read_bytes() + b"\xff" * 64)
    assert np.array_equal(read_volume(only_series(tmp_path), tmp_path).volume_hu, before)


def test_claimed_size_beyond_the_file_is_an_error(tmp_path: Path) -> None:
    write_series(tmp_path, attributes={"Rows": 4096, "Columns": 4096})
    with pytest.raises(DicomError, match=r"0000\.dcm: pixel data \(Explicit VR Little Endian\) cannot be decoded"):
        read_only(tmp_path)


def test_lossy_jpeg_of_12_bits(tmp_path: Path) -> None:
    stored = stored_values(pydicom.dcmread(copy_testdata("JPEG-lossy.dcm", tmp_path)), "JPEG-lossy.dcm")
    # as libjpeg-turbo decodes it
    assert (stored.shape, stored.max()) == ((1024, 256), 264)
    assert stored.mean() == pytest.approx(14.369991, abs=1e-6)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_a_high_bit_that_is_wrong_in_a_jpeg(tmp_path: Path, name: str) -> None:
    dataset = pydicom.dcmread(copy_testdata(name, tmp_path))
    expected = stored_values(dataset, name)
    dataset.HighBit = 15
    np.testing.assert_array_equal(stored_values(dataset, name), expected)


def test_errors_of_lossy_coding_beyond_the_bits_stored_stay_small(tmp_path: Path) -> None:
    """They are no bits of an overlay: cut off, air would become metal."""
    shape = (1, 64, 48)
    (path,) = write_series(tmp_path, shape=shape, attributes={"PixelRepresentation": 0})
    dataset = pydicom.dcmread(path)
    truth = np.zeros(shape[1:], np.uint16)
    truth[20:40, 10:30] = 4095
    dataset.PixelData = truth.tobytes()
    dataset.compress(JPEG2000, j2k_cr=[8], generate_instance_uid=False)
    dataset.BitsStored, dataset.HighBit = 12, 11
    found = stored_values(dataset, "a.dcm").astype(int)
    assert found.max() > 4095, "some values are beyond twelve bits"
    assert np.abs(found - truth).max() < 1000


def test_jpeg_that_no_decoder_reads(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(copy_testdata("JPEG-lossy.dcm", tmp_path))
    dataset.BitsStored = 16
    dataset.HighBit = 15
    with pytest.raises(DicomError, match=r"JPEG Extended.*cannot be decoded.*pylibjpeg-libjpeg"):
        stored_values(dataset, "JPEG-lossy.dcm")


def test_unknown_transfer_syntax(tmp_path: Path) -> None:
    for path in write_series(tmp_path, shape=(1, 8, 8)):
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))
    with pytest.raises(DicomError, match=r"0000\.dcm: transfer syntax .* is not supported"):
        read_only(tmp_path)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_bare_data_sets_are_read_as_they_stand_and_flagged(tmp_path: Path, syntax: str) -> None:
    write_series(tmp_path / "whole", transfer_syntax=syntax)
    for path in write_series(tmp_path / "bare", transfer_syntax=syntax)[1:]:
        content = path.read_bytes()
        path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    bare = read_only(tmp_path / "bare")
    np.testing.assert_array_equal(bare.volume_hu, read_only(tmp_path / "whole").volume_hu)
    assert "transfer_syntax_missing" in bare.qc_flags


def test_big_endian_pixels_are_read_so_where_no_syntax_tells(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, shape=(1, 8, 8), hu=40, transfer_syntax=ExplicitVRBigEndian)
    dataset = pydicom.dcmread(path)
    del dataset.file_meta.TransferSyntaxUID
    assert (stored_values(dataset, "") == 1064).all()


def test_pixels_that_are_native_whatever_the_syntax_says_are_read_so(tmp_path: Path) -> None:
    """As of archives that decompress pixels and leave the file meta information."""
    write_series(tmp_path / "right")
    for path in write_series(tmp_path / "wrong"):
        content = path.read_bytes()
        assert content.count(ExplicitVRLittleEndian.encode() + b"\0") == 1
        path.write_bytes(content.replace(ExplicitVRLittleEndian.encode(), RLELossless.encode()))
    np.testing.assert_array_equal(read_only(tmp_path / "wrong").volume_hu, read_only(tmp_path / "right").volume_hu)


def test_compressed_pixels_of_a_bare_data_set_are_not_guessed_at(tmp_path: Path) -> None:
    for path in write_series(tmp_path, shape=(1, 8, 8), transfer_syntax=RLELossless):
        content = path.read_bytes()
        path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    with pytest.raises(DicomError, match=r"0000\.dcm: the pixels are compressed, and TransferSyntaxUID.* is missing"):
        read_only(tmp_path)


def scanned(folder: Path) -> tuple[SeriesRecord, list[Path]]:
    """Write a series, scan it, and return its record and files."""
    paths = write_series(folder)
    (record,) = scan_cohort(folder).series
    return record, paths


def test_a_file_that_went_away(tmp_path: Path) -> None:
    record, paths = scanned(tmp_path)
    paths[1].unlink()
    with pytest.raises(
        DicomError,
        match=r"0001\.dcm: cannot be read: No such file or directory; if it has changed .*, run infer again",
    ):
        read_volume(record, tmp_path)


def test_a_file_that_became_another(tmp_path: Path) -> None:
    record, _ = scanned(tmp_path)
    write_series(tmp_path, patient_id="P2")
    with pytest.raises(DicomError, match=r"0000\.dcm: belongs to another series than the scan saw"):
        read_volume(record, tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"shape": (4, 8, 8)}, "image size differs"), ({"spacing_mm": (3.0, 0.8, 0.6)}, "positions differ")],
)
def test_a_series_that_changed(tmp_path: Path, change: dict[str, tuple[float, ...]], match: str) -> None:
    record, _ = scanned(tmp_path)
    write_series(tmp_path, **change)
    with pytest.raises(DicomError, match=match):
        read_volume(record, tmp_path)


def test_a_series_with_a_gap_is_never_given_an_affine(tmp_path: Path) -> None:
    record, paths = scanned(tmp_path)
    with pytest.raises(GeometryError, match="3 slices do not form a volume"):
        read_volume(replace(record, files=(*record.files[:1], *record.files[2:])), tmp_path)
    paths[1].unlink()
    (skipped,) = scan_cohort(tmp_path).series
    assert skipped.decision == "skipped"


def test_lost_rescale_is_an_error(tmp_path: Path) -> None:
    record, _ = scanned(tmp_path)
    write_series(tmp_path, attributes={"RescaleSlope": None})
    with pytest.raises(DicomError, match="RescaleSlope is missing"):
        read_volume(record, tmp_path)


@pytest.mark.parametrize("keyword", ["BitsAllocated", "BitsStored", "PixelRepresentation"])
def test_a_lost_pixel_format_is_named(tmp_path: Path, keyword: str) -> None:
    write_series(tmp_path, attributes={keyword: None})
    with pytest.raises(DicomError, match=rf"\.dcm: {keyword} is missing"):
        read_volume(only_series(tmp_path), tmp_path)


def test_a_damaged_pixel_format_is_an_error_of_its_file(tmp_path: Path) -> None:
    path, *_ = write_series(tmp_path)
    bits = b"\x28\x00\x00\x01US\x02\x00\x10\x00"
    whole = path.read_bytes()
    assert whole.count(bits) == 1
    path.write_bytes(whole.replace(bits, b"\x28\x00\x00\x01US\x03\x00\x10\x00\x00"))
    with pytest.raises(DicomError, match=r"\.dcm: pixel data .* cannot be decoded: BytesLengthException"):
        read_volume(only_series(tmp_path), tmp_path)


def test_errors_hold_no_identity(tmp_path: Path) -> None:
    write_series(tmp_path, patient_id="Secret7", attributes={"Rows": 4096, "Columns": 4096})
    with pytest.raises(DicomError) as caught:
        read_only(tmp_path)
    assert "Secret" not in str(caught.value)


def test_other_planes_can_be_read_too(tmp_path: Path) -> None:
    write_series(tmp_path, orientation=CORONAL, origin=(0, 0, 0))
    assert read_only(tmp_path).affine[1, 0] == pytest.approx(2.5)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[SeriesRecord, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    (path,) = write_series(folder, shape=(1, 4, 4), transfer_syntax=RLELossless)
    (record,) = scan_cohort(folder).series
    return record, path.read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_a_cohortseg_error_or_a_volume(
    whole_file: tuple[SeriesRecord, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    (tmp_path / "bad").mkdir(exist_ok=True)
    record, content = whole_file[0], bytearray(whole_file[1])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    (tmp_path / "bad" / "0000.dcm").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shape = read_volume(record, tmp_path / "bad").volume_hu.shape
        except CohortSegError:
            shape = (1, 4, 4)
    assert shape == (1, 4, 4)


@pytest.mark.realdata
def test_hospital_slices_are_plausible_and_agree_with_simpleitk(ny_sbu: Path) -> None:
    root = ny_sbu
    selected = scan_cohort(root).selected
    for record in selected:
        volume = read_volume(record, root)
        assert "hu_implausible" not in volume.qc_flags
        image = sitk.ReadImage(str(root / record.files[0]))
        expected = np.clip(sitk.GetArrayFromImage(image), HU_MIN, HU_MAX)
        np.testing.assert_array_equal(volume.volume_hu, expected)
        np.testing.assert_allclose(volume.affine[:3, 3], image.GetOrigin(), atol=1e-3)


@pytest.mark.parametrize("shear", [-0.2, 0.2])
@pytest.mark.parametrize("heights_mm", [(0, 3, 6, 9, 12, 15, 18, 21), (0, 3, 6, 9, 11, 15, 17, 21)])
def test_a_repaired_volume_lies_where_its_files_say(
    tmp_path: Path, shear: float, heights_mm: tuple[float, ...]
) -> None:
    """Each slice shows a rod along z at x = 25, y = 20 mm (LPS), however its rows are sheared against the others."""

    def rod(shape: tuple[int, int, int]) -> NDArray[np.int16]:
        hu = body_hu(shape)
        for z, height in enumerate(heights_mm):
            y = 20 - (shear * height - 5)
            hu[z][np.hypot(np.arange(48)[:, None] - y, np.arange(48) - 25) < 4] = 1500
        return hu

    positions = [(0.0, shear * height - 5, height) for height in heights_mm]
    write_series(tmp_path, shape=(8, 48, 48), spacing_mm=(3, 1, 1), positions=positions, hu=rod)
    (record,) = scan_cohort(tmp_path, config=ScanConfig(repair=("resample", "untilt"))).series
    assert "untilt" in record.repairs
    volume = read_volume(record, tmp_path)
    assert np.linalg.norm(volume.affine[:3, 0]) == pytest.approx(record.spacing_z_mm)
    assert abs(volume.affine[:3, 0] @ volume.affine[:3, 1]) < 1e-6
    for z, image in enumerate(volume.volume_hu):
        weights = np.clip(image.astype(float) - 800, 0, None)
        y, x = (float(np.average(axis, weights=weights)) for axis in np.indices(image.shape))
        place = (volume.affine @ [z, y, x, 1])[:3]
        np.testing.assert_allclose(place, (25, 20, z * record.spacing_z_mm), atol=0.3)


@pytest.mark.parametrize(("degrees", "repaired"), [(25, True), (40, False)])
def test_shear_that_no_gantry_has_is_not_set_upright(tmp_path: Path, degrees: float, repaired: bool) -> None:
    positions = [(0.0, np.tan(np.radians(degrees)) * 3 * z, 3.0 * z) for z in range(8)]
    write_series(tmp_path, shape=(8, 48, 48), spacing_mm=(3, 1, 1), positions=positions)
    record = only_series(tmp_path, ScanConfig(repair=("untilt",)))
    assert (record.decision, record.repairs) == (("selected", ("untilt",)) if repaired else ("skipped", ()))
    assert repaired or "gantry tilt: slices are sheared by 40.0 degrees; up to 30 can" in (record.reason or "")


def test_rounded_directions_of_a_tilted_slice_do_not_keep_it_from_being_untilted(tmp_path: Path) -> None:
    shear = np.tan(np.radians(15))
    heights_mm = [3.0 * z for z in reversed(range(8))]  # the first file is the topmost slice
    write_series(
        tmp_path,
        shape=(8, 48, 48),
        spacing_mm=(3, 1, 1),
        positions=[(0.0, shear * height, height) for height in heights_mm],
        attributes=lambda z: {"ImageOrientationPatient": [1, 0, 0, 0, 1, 5e-4]} if z == 0 else {},
    )
    record = only_series(tmp_path, ScanConfig(repair=("untilt",)))
    assert record.repairs == ("untilt",)
    assert len(read_volume(record, tmp_path).volume_hu) == 8


@pytest.mark.parametrize("fragments", [1, 2], ids=["a fragment a frame", "two"])
def test_compressed_frames_without_a_table_of_offsets_are_each_found(fragments: int) -> None:
    file = enhanced_file(chest_slices("enhanced"))
    images = [stored_values(file, "", frame) for frame in range(file.NumberOfFrames)]
    file.compress(JPEGLSLossless)
    frames = list(generate_frames(file.PixelData, number_of_frames=file.NumberOfFrames))
    file.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=False)
    for frame in (3, 0, len(images) - 1):
        np.testing.assert_array_equal(stored_values(file, "", frame), images[frame])
    assert ("ExtendedOffsetTable" in file) == (fragments == 1), "then not all are walked through for each"
