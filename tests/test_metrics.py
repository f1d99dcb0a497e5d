"""Metrics against numbers worked by hand, a plain transcription of the toolbox, and the library pysodmetrics."""

import numpy as np
import py_sod_metrics
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from cohortseg.metrics import (
    Confusion,
    area_agreement,
    confusion,
    mean_defined,
    minmax_map,
    overlap,
    pooled_confusion,
    s_measure,
    threshold_curves,
    toolbox_scores,
)

SHAPE = (2, 5)  # ten pixels


def mask(*pixels: tuple[int, int]) -> np.ndarray:
    """A 2 x 5 mask with the given pixels."""
    out = np.zeros(SHAPE, dtype=bool)
    for pixel in pixels:
        out[pixel] = True
    return out


TWO = mask((0, 0), (0, 1))


def naive_toolbox(class_map: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The toolbox as its authors wrote it: 256 passes over the image."""
    low, high = class_map.min(), class_map.max()
    unit = (class_map - low) / (high - low) if high > low else np.zeros(class_map.shape)
    rows = []
    for k in range(255, -1, -1):
        binary = unit >= k / 255
        hits = np.sum(binary & truth)
        if hits == 0:
            dice = sensitivity = specificity = 0.0
        else:
            dice = 2 * hits / (truth.sum() + binary.sum())
            sensitivity = hits / truth.sum()
            specificity = np.sum(~binary & ~truth) / np.sum(~truth)
        rows.append((dice, sensitivity, specificity, naive_e_measure(unit > k / 255, truth)))
    names = ("dice", "sensitivity", "specificity", "e_measure")
    return dict(zip(names, np.mean(rows, axis=0), strict=True)) | {"mae": float(np.mean(np.abs(unit - truth)))}


def naive_e_measure(binary: np.ndarray, truth: np.ndarray) -> float:
    if not truth.any():
        enhanced = 1.0 - binary
    elif truth.all():
        enhanced = binary.astype(float)
    else:
        a, b = binary - binary.mean(), truth - truth.mean()
        enhanced = (2 * a * b / (a * a + b * b + np.finfo(float).eps) + 1) ** 2 / 4
    return float(enhanced.sum() / (truth.size - 1))


def blobs(seed: int, shape: tuple[int, int] = (160, 210)) -> tuple[np.ndarray, np.ndarray]:
    """A soft probability map and a truth that it partly meets, both smooth as lesions are."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 9)
    other = gaussian_filter(rng.normal(size=shape), 5)
    field, other = field / field.std(), other / other.std()
    return 1 / (1 + np.exp(-4 * (field + 0.5 * other - 1.2))), field > 1.2


# ---- toolbox, by hand


def test_perfect_label_map_loses_only_what_threshold_zero_takes():
    scores = toolbox_scores(TWO, TWO)
    # Threshold 0 marks all ten pixels: Dice 2*2/(2+10), sensitivity 1, specificity 0; the other 255 are perfect.
    assert scores.dice == pytest.approx((255 + 1 / 3) / 256)
    assert scores.sensitivity == 1
    assert scores.specificity == pytest.approx(255 / 256)
    # Threshold 1 marks nothing (strictly above): every pixel's alignment is 0, so its term is 1/4.
    assert scores.e_measure == pytest.approx((255 + 0.25) / 256 * 10 / 9)
    assert scores.s_measure == pytest.approx(1)
    assert scores.mae == 0


def test_half_right_label_map():
    scores = toolbox_scores(mask((0, 0), (1, 4)), TWO)  # one hit, one miss, one false alarm, seven right
    assert scores.dice == pytest.approx((255 * 0.5 + 1 / 3) / 256)
    assert scores.sensitivity == pytest.approx((255 * 0.5 + 1) / 256)
    assert scores.specificity == pytest.approx(255 * 7 / 8 / 256)
    assert scores.mae == pytest.approx(0.2)


def test_graded_map_counts_each_threshold():
    graded = np.zeros(SHAPE)
    graded[0, 0], graded[0, 1] = 1.0, 51 / 255
    scores = toolbox_scores(graded, TWO)
    # >= : thresholds 52..255 find one of two, 1..51 both, 0 marks everything.
    assert scores.dice == pytest.approx((204 * 2 / 3 + 51 + 1 / 3) / 256)
    assert scores.sensitivity == pytest.approx((204 * 0.5 + 52) / 256)
    assert scores.specificity == pytest.approx(255 / 256)
    # > : thresholds 51..254 find one of two, 0..50 both, 255 none.
    one = ((1.44 / 1.45 + 1) ** 2 + (-0.16 / 0.65 + 1) ** 2 + 8 * (0.04 / 0.05 + 1) ** 2) / 4
    assert scores.e_measure == pytest.approx((204 * one + 51 * 10 + 10 / 4) / 9 / 256)
    assert scores.mae == pytest.approx((1 - 51 / 255) / 10)


def test_map_is_stretched_before_it_is_scored():
    graded = np.linspace(0.2, 0.3, 10).reshape(SHAPE)
    assert toolbox_scores(graded, TWO) == toolbox_scores(minmax_map(graded), TWO)
    assert minmax_map(graded).min() == 0
    assert minmax_map(graded).max() == 1


def test_constant_map_counts_as_zeros():
    assert toolbox_scores(np.full(SHAPE, 0.7), TWO) == toolbox_scores(np.zeros(SHAPE), TWO)


# ---- toolbox, the empty cases by name


def test_toolbox_truth_and_prediction_empty():
    scores = toolbox_scores(mask(), mask())
    # Right about every pixel, yet 0: no true positive can exist. This is why published consolidation tops out at .79.
    assert (scores.dice, scores.sensitivity, scores.specificity) == (0, 0, 0)
    assert scores.e_measure == pytest.approx(10 / 9)
    assert (scores.s_measure, scores.mae) == (1, 0)


def test_toolbox_truth_empty_prediction_not():
    scores = toolbox_scores(TWO, mask())
    assert (scores.dice, scores.sensitivity, scores.specificity) == (0, 0, 0)
    assert scores.e_measure == pytest.approx((255 * 8 + 10) / 9 / 256)
    assert scores.s_measure == pytest.approx(0.8)
    assert scores.mae == pytest.approx(0.2)


def test_toolbox_prediction_empty_truth_not():
    scores = toolbox_scores(mask(), TWO)
    # Only threshold 0 reaches the zeros: then everything is marked.
    assert scores.dice == pytest.approx(1 / 3 / 256)
    assert scores.sensitivity == pytest.approx(1 / 256)
    assert scores.specificity == 0
    assert scores.e_measure == pytest.approx(0.25 * 10 / 9)
    # Object: background 1 with weight .8, lesion 0. Region: each block is constant in map and truth, so each counts 1.
    assert scores.s_measure == pytest.approx(0.5 * 0.8 + 0.5 * 1)


def test_toolbox_truth_covers_the_image():
    scores = toolbox_scores(TWO, np.ones(SHAPE, dtype=bool))
    assert scores.specificity is None  # no pixel outside: 0 / 0
    assert scores.dice == pytest.approx((255 * 2 * 2 / 12 + 1) / 256)
    assert scores.e_measure == pytest.approx(255 * 2 / 9 / 256)
    assert scores.s_measure == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("class_map", "truth", "message"),
    [
        (np.zeros((5, 2)), TWO, r"shape \(H, W\) of the truth"),
        (np.zeros(10), TWO.ravel(), r"shape \(H, W\) of the truth"),
        (np.zeros(SHAPE), TWO.astype(np.uint8), "truth must be bool"),
        (np.full(SHAPE, np.nan), TWO, "map must be finite"),
        (np.zeros((1, 1)), np.ones((1, 1), dtype=bool), "at least two pixels"),
    ],
    ids=["wrong shape", "not an image", "labels for truth", "nan", "one pixel"],
)
def test_toolbox_refuses(class_map: np.ndarray, truth: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        toolbox_scores(class_map, truth)


# ---- toolbox, against a plain loop


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_histograms_equal_the_plain_loop(data: st.DataObject):
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(2, 7)))
    levels = arrays(np.float64, shape, elements=st.integers(0, 255).map(lambda k: k / 255))
    floats = arrays(np.float64, shape, elements=st.floats(0, 1, width=32))
    class_map, truth = data.draw(st.one_of(levels, floats)), data.draw(arrays(np.bool_, shape))
    if truth.all():
        return  # specificity 0 / 0: has its own test
    fast = toolbox_scores(class_map, truth)
    for name, value in naive_toolbox(class_map, truth).items():
        assert getattr(fast, name) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(3))
def test_real_like_maps_equal_the_plain_loop(seed: int):
    soft, truth = blobs(seed)
    for class_map in (soft, np.rint(soft * 255).astype(np.uint8), soft > 0.5):
        fast = toolbox_scores(class_map, truth)
        for name, value in naive_toolbox(class_map.astype(float), truth).items():
            assert getattr(fast, name) == pytest.approx(value, abs=1e-12), name


def test_values_a_hair_beside_a_threshold_equal_the_plain_loop():
    levels = np.arange(256) / 255
    values = np.stack([np.nextafter(levels, 0), levels, np.nextafter(levels, 1)]).clip(0, 1)
    truth = np.random.default_rng(0).random(values.shape) < 0.5
    fast = toolbox_scores(values, truth)
    for name, value in naive_toolbox(values, truth).items():
        assert getattr(fast, name) == pytest.approx(value, abs=1e-12), name


# ---- S- and E-measure, against pysodmetrics


def library_scores(unit_map: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """S-measure, mean E-measure over thresholds and MAE of the library, on a map that is in [0, 1] already."""
    s, e, mae = py_sod_metrics.Smeasure(alpha=0.5), py_sod_metrics.Emeasure(), py_sod_metrics.MAE()
    for metric in (s, e, mae):
        metric.step(unit_map, truth, normalize=False)
    return s.get_results()["sm"], float(e.get_results()["em"]["curve"].mean()), mae.get_results()["mae"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["labels", "8-bit", "float", "noise"])
def test_agrees_with_pysodmetrics(seed: int, kind: str):
    soft, truth = blobs(seed)
    noise = np.random.default_rng(seed).random(soft.shape)
    maps = {"labels": soft > 0.5, "8-bit": np.rint(minmax_map(soft) * 255) / 255, "float": soft, "noise": noise}
    unit = minmax_map(maps[kind])
    ours = toolbox_scores(unit, truth)
    s, e, mae = library_scores(unit, truth)
    assert ours.s_measure == pytest.approx(s, abs=1e-12)
    assert ours.mae == pytest.approx(mae, abs=1e-12)
    # On 256 levels ">= next level" is "> this level"; on floats the single pixel at the maximum makes the difference.
    assert ours.e_measure == pytest.approx(e, abs=1e-12 if kind in ("labels", "8-bit") else 1e-5)


def test_differs_from_pysodmetrics_without_truth():
    # The library's thresholds include "everything", ours "nothing": without truth these score 0 and 10/9.
    ours = toolbox_scores(TWO, mask())
    s, e, _ = library_scores(TWO.astype(float), mask())
    assert ours.s_measure == pytest.approx(s)
    assert ours.e_measure - e == pytest.approx(10 / 9 / 256)


def test_differs_from_pysodmetrics_where_the_centroid_lies_between_two_pixels():
    # Columns 1 and 2 (from 1): MATLAB rounds 1.5 up to 2, NumPy rounds 0.5 to the even 0.
    ours = s_measure(np.zeros(SHAPE), TWO)
    library, _, _ = library_scores(np.zeros(SHAPE), TWO)
    assert ours == pytest.approx(0.5 * 0.8 + 0.5 * 1.0)
    assert library == pytest.approx(0.5 * 0.8 + 0.5 * 0.6)


def test_centroid_in_the_last_row_and_column_leaves_three_blocks_empty():
    corner = mask((1, 4))
    assert s_measure(corner.astype(float), corner) == pytest.approx(1)
    assert s_measure(np.zeros(SHAPE), corner) == pytest.approx(0.5 * 0.9 + 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_scores_stay_in_range(data: st.DataObject):
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(2, 5)))
    unit = minmax_map(data.draw(arrays(np.float64, shape, elements=st.floats(0, 1))))
    truth = data.draw(arrays(np.bool_, shape))
    scores, curves = toolbox_scores(unit, truth), threshold_curves(unit, truth)
    assert 0 <= scores.s_measure <= 1 + 1e-9
    assert 0 <= scores.e_measure <= truth.size / (truth.size - 1) + 1e-9
    assert 0 <= scores.dice <= 1
    assert np.all(np.diff(curves.sensitivity) <= 0)  # a higher threshold finds no more


# ---- overlap of labels


def test_overlap_by_hand():
    counts = confusion(mask((0, 0), (1, 3), (1, 4)), TWO)
    assert counts == Confusion(true_positive=1, false_positive=2, false_negative=1, true_negative=6)
    scores = overlap(counts)
    assert scores.dice == pytest.approx(2 / 5)
    assert scores.sensitivity == pytest.approx(1 / 2)
    assert scores.specificity == pytest.approx(6 / 8)
    assert scores.ppv == pytest.approx(1 / 3)


def test_overlap_truth_and_prediction_empty():
    scores = overlap(confusion(mask(), mask()))
    assert (scores.dice, scores.sensitivity, scores.specificity, scores.ppv) == (None, None, 1, None)


def test_overlap_truth_empty_prediction_not():
    scores = overlap(confusion(TWO, mask()))
    assert (scores.dice, scores.sensitivity, scores.specificity, scores.ppv) == (0, None, 0.8, 0)


def test_overlap_prediction_empty_truth_not():
    scores = overlap(confusion(mask(), TWO))
    assert (scores.dice, scores.sensitivity, scores.specificity, scores.ppv) == (0, 0, 1, None)


def test_overlap_truth_covers_the_image():
    full = np.ones(SHAPE, dtype=bool)
    scores = overlap(confusion(full, full))
    assert (scores.dice, scores.sensitivity, scores.specificity, scores.ppv) == (1, 1, None, 1)


def test_overlap_refuses_wrong_shape():
    with pytest.raises(ValueError, match=r"shape of the truth, \(2, 5\)"):
        confusion(np.zeros((5, 2), dtype=bool), TWO)


def test_pooling_weights_images_by_their_pixels():
    parts = [confusion(TWO, TWO), confusion(mask((1, 0)), mask((1, 1), (1, 2), (1, 3)))]
    pooled = overlap(pooled_confusion(parts))
    assert pooled.dice == pytest.approx(2 * 2 / (2 * 2 + 1 + 3))  # the mean of the images' own would be 0.5
    assert pooled.sensitivity == pytest.approx(2 / 5)
    assert pooled.ppv == pytest.approx(2 / 3)
    assert overlap(pooled_confusion([])).dice is None


# ---- area


def test_area_agreement_by_hand():
    agreement = area_agreement([1, 3, 8], [2, 3, 4])
    assert agreement.bias == pytest.approx(1)
    assert agreement.limit_low == pytest.approx(1 - 1.96 * 7**0.5)
    assert agreement.limit_high == pytest.approx(1 + 1.96 * 7**0.5)
    assert agreement.pearson_r == pytest.approx(7 / 52**0.5)


@pytest.mark.parametrize(
    ("predicted", "true", "defined"),
    [
        ([], [], (False, False, False)),
        ([1.0], [2.0], (True, False, False)),
        ([1.0, 2.0], [2.0, 4.0], (True, True, False)),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], (True, True, False)),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], (True, True, False)),
        ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], (True, True, True)),
    ],
    ids=["no image", "one image", "two images", "no variation", "no truth", "three images"],
)
def test_area_agreement_is_none_where_it_is_undefined(
    predicted: list[float], true: list[float], defined: tuple[bool, bool, bool]
):
    agreement = area_agreement(predicted, true)
    assert (agreement.bias is not None, agreement.limit_low is not None, agreement.pearson_r is not None) == defined


def test_area_agreement_refuses_unpaired_lists():
    with pytest.raises(ValueError, match="two lists of one length"):
        area_agreement([1.0], [1.0, 2.0])


def test_mean_leaves_out_what_is_undefined():
    assert mean_defined([1.0, None, 0.0]) == 0.5
    assert mean_defined([None]) is None
