"""One series: its masks, its burden row and the model's doubt, against numbers worked out by hand."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from phantoms import LESION, body_hu, ill_body, write_series
from PIL import Image
from runs import only_series
from scipy import ndimage

from cohortseg.config import CanonicalConfig, InferConfig, ScanConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.infer.commit import SeriesResult
from cohortseg.infer.segmenter import MEASURES, segment_series, segment_slices
from cohortseg.lungs import LUNG_METHOD
from cohortseg.overlays import overlay_slice, overview_slices
from cohortseg.volume import HU_MIN, Volume
from cohortseg.weights import Prediction, load_model

SHAPE, SPACING_MM = (6, 96, 80), (5.0, 3.0, 3.5)
VOXEL_ML = 5.0 * 3.0 * 3.5 / 1000


class Thresholds:
    """A perfect model of the phantom: every class by its HU, so that results can be worked out by hand."""

    name, sha256, device, has_trained_discriminator, bf16 = "thresholds", "0" * 64, torch.device("cpu"), True, False
    card = SimpleNamespace(canonical=CanonicalConfig(size=192))

    def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
        del flips
        low, high = self.card.canonical.window_hu
        hu = images[:, 0] * (high - low) + low
        ggo, consolidation = (hu > -560) & (hu < -440), (hu > -110) & (hu < 10)
        prob = torch.stack((~ggo & ~consolidation, ggo, consolidation), dim=1).float()
        return Prediction(prob, torch.full_like(images, 0.25))


class Doubtful(Thresholds):
    """The same, but sure of each class to 80 % only, and of another mind about mirrored consolidation."""

    def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
        prob, confidence, _ = super().predict(images)
        return Prediction(0.8 * prob + 0.2 * prob.roll(1, dims=1), confidence, prob[:, 2:] if flips else None)


class Elsewhere(Thresholds):
    """The same, but mirror images show consolidation everywhere."""

    def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
        prob, confidence, _ = super().predict(images)
        return Prediction(prob, confidence, 1 - prob[:, 2:] if flips else None)


class Everywhere(Thresholds):
    """Sees consolidation wherever it looks."""

    def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
        prob, confidence, _ = super().predict(images)
        return Prediction(torch.zeros_like(prob).index_fill(1, torch.tensor([2]), 1.0), confidence)


def segmented(record: SeriesRecord, volume: Volume, model: object, config: InferConfig | None = None) -> SeriesResult:
    return segment_series(record, volume, model, config or InferConfig())


def segment(root: Path, model: object | None = None) -> tuple[SeriesResult, NDArray[np.int16]]:
    record = only_series(root)
    assert record.decision == "selected", record.reason
    volume = read_volume(record, root)
    return segmented(record, volume, model or Thresholds()), volume.volume_hu


def test_burden_of_a_phantom_by_hand(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=ill_body)
    result, _ = segment(tmp_path)
    row = result.burden
    assert row["status"] == "ok"
    inside = result.masks.lungs > 0
    assert inside[LESION].mean() > 0.9, "the lung mask must keep the lesion"
    # Each is 3 slices of 9 rows and 9 columns; the model misses some of the edges.
    assert row["ggo_volume_ml"] == pytest.approx(3 * 9 * 9 * VOXEL_ML, rel=0.25)
    assert row["consolidation_volume_ml"] == pytest.approx(3 * 9 * 9 * VOXEL_ML, rel=0.25)
    assert row["po_right_pct"] > 20 * row["po_left_pct"], "the lesion is in the right lung"
    assert (result.masks.labels[2, 42:47, 18:23] == 1).all()
    assert (result.masks.labels[2, 51:56, 18:23] == 2).all()
    assert row["lung_volume_ml"] == pytest.approx(inside.sum() * VOXEL_ML)
    assert row["confidence"] == pytest.approx(0.25, abs=0.02)
    assert (row["n_slices"], row["model_sha256"], row["reason"]) == (6, "0" * 64, None)
    assert [slice_["slice_index"] for slice_ in result.slices] == list(range(6))
    assert [slice_["position_mm"] for slice_ in result.slices] == pytest.approx([100 + 5 * z for z in range(6)])
    assert sum(s["ggo_area_mm2"] for s in result.slices) * 5 / 1000 == pytest.approx(row["ggo_volume_ml"])
    assert result.picture_png.startswith(b"\x89PNG")


NUMBERS = (
    *("lung_volume_ml", "ggo_volume_ml", "consolidation_volume_ml", "lung_mean_hu", "lesion_p50_hu", "noise_hu"),
    *("po_right_pct", "po_right_middle_pct", "zone_score", "largest_lesion_volume_ml", "flip_disagreement_pct"),
)
"""Of each kind of column one, in the test of the version behind them."""
WHOLE = [367.92, 12.4425, 9.9225, -803.0402, -500, 1, 12.15753, 16.21005, 2, 22.365, 45.1389]
FIVE_OF_SIX = [369.18, 8.295, 6.615, -758.6561, -500, 1, 8.07736, None, None, 14.91, 45.1389]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("plain", {}, WHOLE),
        ("padded", {}, WHOLE),
        ("transposed", {"orientation": (0, 1, 0, 1, 0, 0), "spacing_mm": (5.0, 3.5, 3.0)}, WHOLE),
        (
            "resampled",
            {"positions": [(0, 0, height) for height in (0, 5, 10, 14, 19, 24)]},
            FIVE_OF_SIX,
        ),
    ],
)
def test_changed_numbers_have_a_new_version(
    tmp_path: Path, kind: str, options: dict[str, object], expected: list[float | None]
) -> None:
    """Results are kept by these versions. If this fails, raise one and write its numbers here."""

    def body(shape: tuple[int, int, int]) -> NDArray[np.int16]:
        hu = ill_body(shape)
        hu[[0, -1]] = np.where(hu[[0, -1]] > -900, 40, -1000)  # lungs that end within the slices have zones
        if kind == "padded":
            y, x = (np.linspace(-1, 1, size) for size in shape[1:])
            hu[:, np.hypot(y[:, None], x) > 1] = -1024
        return hu.swapaxes(1, 2) if kind == "transposed" else hu

    shape = (SHAPE[0], SHAPE[2], SHAPE[1]) if kind == "transposed" else SHAPE
    hu = body(SHAPE)
    write_series(tmp_path, **{"shape": shape, "spacing_mm": SPACING_MM, "hu": hu} | options)
    record = only_series(tmp_path, ScanConfig(repair=("resample",)))
    row = segmented(record, read_volume(record, tmp_path), Doubtful()).burden
    numbers = [None if value is None else pytest.approx(value, rel=1e-4) for value in expected]
    assert (LUNG_METHOD, MEASURES, [row[name] for name in NUMBERS]) == ("cohortseg-threshold 15", 7, numbers), (
        "raise LUNG_METHOD if the lungs alone have changed, else MEASURES"
    )


def test_what_the_model_doubts_is_measured_by_hand(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=ill_body)
    row = segment(tmp_path, Doubtful())[0].burden
    # half of the lesion is consolidation; every pixel is 0.8 one class and 0.2 another
    assert row["flip_disagreement_pct"] == pytest.approx(50, abs=8)
    assert row["lung_entropy"] == pytest.approx(-(0.2 * np.log(0.2) + 0.8 * np.log(0.8)) / np.log(3), abs=1e-4)
    # in a mirror image that shows lesion everywhere, all of the lung but the consolidation is of another mind
    elsewhere = segment(tmp_path, Elsewhere())[0].burden
    assert elsewhere["flip_disagreement_pct"] == pytest.approx(
        100 * (1 - elsewhere["consolidation_volume_ml"] / elsewhere["lung_volume_ml"]), abs=2
    )
    certain = segment(tmp_path)[0].burden
    assert certain["lung_entropy"] == pytest.approx(0, abs=1e-6)
    assert certain["flip_disagreement_pct"] is None, "this model did not look at mirror images"


def test_doubt_outside_the_lungs_does_not_count(tmp_path: Path) -> None:
    """Fat around them, which has the HU of consolidation here."""
    fat = np.where(body_hu(SHAPE) > 0, -60, ill_body(SHAPE))
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=fat)
    assert segment(tmp_path, Doubtful())[0].burden["flip_disagreement_pct"] == pytest.approx(50, abs=8)


@pytest.mark.parametrize(
    ("orientation", "origin", "turn"),
    [
        pytest.param((-1, 0, 0, 0, 1, 0), (79 * 3.5, 0, 100), np.s_[:, :, ::-1], id="mirrored"),
        pytest.param((1, 0, 0, 0, -1, 0), (0, 95 * 3.0, 100), np.s_[:, ::-1, :], id="upside-down"),
        pytest.param((0, 1, 0, 1, 0, 0), (0, 0, 100), "transpose", id="transposed"),
    ],
)
def test_mask_lies_on_the_series_own_grid(tmp_path: Path, orientation: tuple, origin: tuple, turn: object) -> None:
    stored = ill_body(SHAPE)
    reference = {"shape": SHAPE, "spacing_mm": SPACING_MM, "hu": stored, "origin": (0, 0, 100)}
    write_series(tmp_path / "upright", **reference)
    upright, _ = segment(tmp_path / "upright")
    turned_hu = stored.swapaxes(1, 2) if turn == "transpose" else stored[turn]
    spacing = (5.0, 3.5, 3.0) if turn == "transpose" else SPACING_MM
    # Slices go against the normal where turning has reversed it, so that the anatomy stays the same.
    positions = [(*origin[:2], 100 + 5 * z) for z in range(SHAPE[0])]
    write_series(
        tmp_path / "turned",
        shape=turned_hu.shape,
        spacing_mm=spacing,
        hu=turned_hu,
        orientation=orientation,
        positions=positions,
    )
    turned, volume_hu = segment(tmp_path / "turned")
    assert np.array_equal(volume_hu, turned_hu), "the volume is as the files have it"
    for name in ("labels", "lungs"):
        expected = getattr(upright.masks, name)
        expected = expected.swapaxes(1, 2) if turn == "transpose" else expected[turn]
        assert np.array_equal(getattr(turned.masks, name), expected)
    numbers = [name for name, value in upright.burden.items() if isinstance(value, float) and "spacing" not in name]
    assert {n: turned.burden[n] for n in numbers} == pytest.approx({n: upright.burden[n] for n in numbers})


def test_single_slice_is_measured_by_area(tmp_path: Path) -> None:
    hu = ill_body(SHAPE)[2:3]
    write_series(tmp_path, shape=hu.shape, spacing_mm=SPACING_MM, hu=hu)
    result, _ = segment(tmp_path)
    assert result.burden["status"] == "ok"
    assert "single_slice" in result.burden["qc_flags"]
    assert result.burden["po_pct"] > 5
    assert result.burden["lung_volume_ml"] is result.burden["po_right_upper_pct"] is None
    assert result.burden["spacing_z_mm"] is None


def test_a_discriminator_that_never_learned_has_no_confidence(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=ill_body)
    unlearned = Thresholds()
    unlearned.has_trained_discriminator = False
    assert segment(tmp_path, Thresholds())[0].burden["confidence"] == 0.25
    assert segment(tmp_path, unlearned)[0].burden["confidence"] is None


def test_labels_end_at_the_lungs(tmp_path: Path) -> None:
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=ill_body)
    masks = segment(tmp_path, Everywhere())[0].masks
    assert np.array_equal(masks.labels == 2, masks.lungs > 0)


def test_pictures_have_square_pixels(tmp_path: Path) -> None:
    widths = []
    for pixel_mm in (3.0, 4.5):
        folder = tmp_path / str(pixel_mm)
        write_series(folder, shape=SHAPE, spacing_mm=(5.0, 3.0, pixel_mm), hu=ill_body)
        widths.append(Image.open(io.BytesIO(segment(folder)[0].picture_png)).width)
    assert widths[1] > 1.3 * widths[0]


def test_pictures_show_slices_from_head_to_feet_the_one_with_most_lesion_among_them() -> None:
    lungs, labels = np.zeros((2, 40, 1, 1), np.uint8)
    lungs[3:36], labels[6] = 1, 1
    shown = overview_slices(labels, lungs, 4)
    assert shown == [35, 24, 14, 6]


def test_slices_without_lung_cost_no_forward_pass(tmp_path: Path) -> None:
    class Counting(Thresholds):
        seen = 0

        def predict(self, images: torch.Tensor, *, flips: bool = False) -> Prediction:
            self.seen += len(images)
            return super().predict(images, flips=flips)

    hu, model = ill_body((12, *SHAPE[1:])), Counting()
    write_series(tmp_path, shape=hu.shape, spacing_mm=SPACING_MM, hu=np.where(np.arange(12)[:, None, None] < 6, hu, 40))
    result, _ = segment(tmp_path, model)
    assert model.seen == result.burden["n_lung_slices"] == 6


def test_bfloat16_agrees_with_float32() -> None:
    root = Path(__file__).parents[1] / "sample_data/cohort/dicom"
    truth = pl.read_parquet(root.parent / "truth.parquet").sort("consolidation_volume_ml")
    record = next(r for r in scan_cohort(root).series if r.series_instance_uid == truth["series_instance_uid"][-1])
    volume = read_volume(record, root)
    plain = InferConfig(flips=False, overlays=False)  # without bfloat16 instructions this takes long
    exact, fast = (segmented(record, volume, load_model(bf16=bf16), plain) for bf16 in (False, True))
    for label in (1, 2):
        one, two = (result.masks.labels == label for result in (exact, fast))
        assert one.any()
        assert 2 * (one & two).sum() >= 0.99 * (one.sum() + two.sum())
    for name in ("ggo_pct", "consolidation_pct", "po_pct"):
        assert fast.burden[name] == pytest.approx(exact.burden[name], abs=0.1)


def test_noise_is_a_column_and_much_of_it_a_flag(tmp_path: Path) -> None:
    def noisy(shape: tuple[int, int, int]) -> np.ndarray:
        return ill_body(shape) + np.random.default_rng(0).normal(0, 100, shape)

    for name, hu in (("quiet", ill_body), ("noisy", noisy)):
        write_series(tmp_path / name, shape=SHAPE, spacing_mm=(2.5, 1.5, 1.5), hu=hu)
    quiet, loud = (segment(tmp_path / name)[0].burden for name in ("quiet", "noisy"))
    assert quiet["noise_hu"] < 10
    assert loud["noise_hu"] == pytest.approx(100, abs=5)
    assert ["noisy" in row["qc_flags"] for row in (quiet, loud)] == [False, True]


def test_noise_is_that_of_pixels_as_wide_and_as_high_as_they_are(tmp_path: Path) -> None:
    """Pixels of 0.75 mm along rows go two by two into one, here of the same noise; along columns none do."""
    noise = np.random.default_rng(0).normal(0, 60, SHAPE).repeat(2, axis=2)
    hu = ill_body(noise.shape) + noise
    write_series(tmp_path, shape=hu.shape, spacing_mm=(2.5, 1.5, 0.75), hu=hu)
    assert segment(tmp_path)[0].burden["noise_hu"] == pytest.approx(60, abs=4)


def test_no_lung_is_not_evaluable_and_never_zero(tmp_path: Path) -> None:
    hu = np.where(body_hu(SHAPE) < -900, -1000, 40).astype(np.int16)
    write_series(tmp_path, shape=SHAPE, spacing_mm=SPACING_MM, hu=hu)
    result, _ = segment(tmp_path)
    assert (result.burden["status"], result.burden["reason"]) == ("not_evaluable", "no lung was found in any slice")
    measured = [name for name in result.burden if name.endswith(("_ml", "_pct", "_hu"))]
    assert {result.burden[name] for name in measured} == {None}
    assert result.masks is None
    assert result.slices == ()


@pytest.mark.realdata
def test_opacity_does_not_depend_on_how_a_patient_lies(ny_sbu: Path) -> None:
    """The crop of a turned body holds air around it, which the model took for ground glass: 18 became 33 %."""
    model = load_model(None)
    record = next(record for record in scan_cohort(ny_sbu).series if record.series_key.startswith("5bdd66a2"))
    volume = read_volume(record, ny_sbu)
    opacity = []
    for degrees in (0, 8, 15, -15):
        turned = ndimage.rotate(volume.volume_hu, degrees, axes=(1, 2), reshape=False, order=1, cval=HU_MIN)
        opacity.append(segmented(record, replace(volume, volume_hu=turned), model).burden["po_pct"])
    assert max(opacity) - min(opacity) < 4


def test_what_a_program_set_for_its_own_numbers_changes_nothing(tmp_path: Path) -> None:
    write_series(tmp_path, shape=(24, 96, 80), spacing_mm=(12, 3.2, 3.8), hu=ill_body)
    model = load_model()
    (expected, _), default = segment(tmp_path, model), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with np.errstate(all="raise"):
            result, _ = segment(tmp_path, model)
    finally:
        torch.set_default_dtype(default)
    assert result.burden == expected.burden


def test_lungs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="lungs must be of the shape of upright_hu"):
        segment_slices(np.zeros((2, 64, 64), np.int16), np.zeros((1, 64, 64), np.uint8), Thresholds(), InferConfig())


def test_colours_of_lesions_lie_over_the_gray_of_the_lung_window_by_hand() -> None:
    volume_hu = np.array([[-1350, -1350, 150, 150, -600]], np.int16)
    labels = np.array([[0, 1, 2, 0, 0]], np.uint8)
    shown = overlay_slice(volume_hu, labels)[0].tolist()
    assert shown[1] == pytest.approx([103.5, 18, 18], abs=0.6)  # .45 of (230, 40, 40) over black
    assert shown[2] == [158, 230, 167]  # .55 of white and .45 of (40, 200, 60)
    assert [shown[0], shown[3], shown[4]] == [[0] * 3, [255] * 3, [128] * 3]
