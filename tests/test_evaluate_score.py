"""Scores of label maps and probabilities, by hand: every row of the tables."""

import numpy as np
import polars as pl
import pytest
import torch
from scoring import one_hot, row

from cohortseg.errors import DataError
from cohortseg.evaluate.score import Case, eight_bit, label_map, score_images, summarise
from cohortseg.evaluate.tables import IMAGES, METRICS, TOOLBOX_METRICS
from cohortseg.metrics import toolbox_scores

# Two images of 2 x 5. In the first one GGO pixel of two is found and one is invented, consolidation is right.
# The second has no consolidation, but one pixel of it is predicted; its one GGO pixel is missed.
FIRST = Case("a", one_hot([[1, 0, 1, 0, 0], [2, 2, 0, 0, 0]]), np.array([[1, 1, 0, 0, 0], [2, 2, 0, 0, 0]], np.uint8))
SECOND = Case("b", one_hot([[2, 0, 0, 0, 0], [0, 0, 0, 0, 0]]), np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.uint8))


@pytest.fixture
def metrics() -> pl.DataFrame:
    return summarise(score_images([FIRST, SECOND]))


def test_one_row_per_class_map_and_protocol(metrics: pl.DataFrame):
    rows = list(zip(metrics["protocol"], metrics["class_name"], metrics["maps"], strict=True))
    assert rows == [
        ("toolbox", "ggo", "labels"),
        ("toolbox", "ggo", "softmax"),
        ("toolbox", "consolidation", "labels"),
        ("toolbox", "consolidation", "softmax"),
        *(
            (protocol, name, "labels")
            for protocol in ("pooled", "per_image", "area")
            for name in ("ggo", "consolidation", "opacity")
        ),
    ]
    assert metrics.schema == METRICS.polars_schema


def test_toolbox_row_is_the_mean_over_all_images(metrics: pl.DataFrame):
    # Consolidation: image a perfect (n = 2 of 10), image b without the class counts 0.
    found = row(metrics, "consolidation", "toolbox")
    assert found["dice"] == pytest.approx((255 + 1 / 3) / 256 / 2)
    assert found["sensitivity"] == pytest.approx(0.5)
    assert found["specificity"] == pytest.approx(255 / 256 / 2)
    assert found["mae"] == pytest.approx(0.1 / 2)
    assert found["n_images"] == 2
    assert found["ppv"] is None


def test_pooled_row_counts_pixels(metrics: pl.DataFrame):
    ggo = row(metrics, "ggo", "pooled")  # TP 1, FP 1, FN 2, TN 16
    assert ggo["dice"] == pytest.approx(2 / 5)
    assert ggo["sensitivity"] == pytest.approx(1 / 3)
    assert ggo["specificity"] == pytest.approx(16 / 17)
    assert ggo["ppv"] == pytest.approx(1 / 2)
    opacity = row(metrics, "opacity", "pooled")  # TP 3 + 1, FP 1, FN 1, TN 14: class does not matter
    assert opacity["dice"] == pytest.approx(8 / 10)
    assert opacity["s_measure"] is None


def test_per_image_row_leaves_out_images_without_the_class(metrics: pl.DataFrame):
    consolidation = row(metrics, "consolidation", "per_image")
    assert (consolidation["dice"], consolidation["n_images"]) == (1, 1)
    ggo = row(metrics, "ggo", "per_image")
    assert ggo["dice"] == pytest.approx((0.5 + 0) / 2)
    assert ggo["n_images"] == 2
    # Image b predicts no GGO: its PPV is undefined and not part of the mean.
    assert (ggo["ppv"], ggo["n_ppv"]) == (0.5, 1)


def test_area_row_is_in_percent_of_the_image(metrics: pl.DataFrame):
    ggo = row(metrics, "ggo", "area")  # truth 20 and 10 %, predicted 20 and 0 %
    assert ggo["truth_area_pct"] == pytest.approx(15)
    assert ggo["predicted_area_pct"] == pytest.approx(10)
    assert ggo["area_bias_pct"] == pytest.approx(-5)
    assert ggo["area_limit_low_pct"] == pytest.approx(-5 - 1.96 * 50**0.5)
    assert ggo["area_limit_high_pct"] == pytest.approx(-5 + 1.96 * 50**0.5)
    assert ggo["area_pearson_r"] is None  # two images


def test_image_rows_hold_null_where_nothing_is_defined():
    images = score_images([SECOND])
    assert images.schema == IMAGES.polars_schema
    consolidation = images.filter(pl.col("class_name") == "consolidation").row(0, named=True)
    assert (consolidation["dice"], consolidation["sensitivity"], consolidation["ppv"]) == (0, None, 0)
    assert consolidation["toolbox_labels_dice"] == 0  # the toolbox's own rule
    assert consolidation["in_training"] is None
    opacity = images.filter(pl.col("class_name") == "opacity").row(0, named=True)
    assert opacity["toolbox_labels_dice"] is None
    reals = images.select(pl.col(pl.Float64))
    assert not any(reals[name].is_nan().any() for name in reals.columns)


def test_class_that_is_nowhere_is_null_and_not_zero():
    empty = Case("a", one_hot(np.zeros((4, 5), int)), np.zeros((4, 5), np.uint8))
    metrics = summarise(score_images([empty]))
    pooled = row(metrics, "ggo", "pooled")
    assert (pooled["dice"], pooled["sensitivity"], pooled["ppv"], pooled["specificity"]) == (None, None, None, 1)
    per_image = row(metrics, "ggo", "per_image")
    assert (per_image["dice"], per_image["n_images"], per_image["n_ppv"]) == (None, 0, 0)


def test_label_rows_do_not_depend_on_how_sure_the_model_is():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(3, 20, 30)).astype(np.float32))
    truth = rng.integers(0, 3, (20, 30)).astype(np.uint8)
    unsure, sure = (
        summarise(score_images([Case("a", (scale * logits).softmax(0).numpy(), truth)])) for scale in (0.5, 5.0)
    )
    labels, softmax = pl.col("maps") == "labels", pl.col("maps") == "softmax"
    assert unsure.filter(labels).equals(sure.filter(labels))
    assert not unsure.filter(softmax).equals(sure.filter(softmax))


def test_label_map_of_one_class_enters_as_its_binary_map():
    images = score_images([FIRST])
    ggo = images.filter(pl.col("class_name") == "ggo").row(0, named=True)
    expected = toolbox_scores(label_map(FIRST.prob) == 1, FIRST.truth == 1)
    assert [ggo[f"toolbox_labels_{name}"] for name in TOOLBOX_METRICS] == [
        getattr(expected, name) for name in TOOLBOX_METRICS
    ]


def test_maps_of_8_bits_are_rounded():
    assert eight_bit(np.array([0, 0.4, 0.6, 254.4, 254.6, 255], np.float32) / 255).tolist() == [0, 0, 1, 254, 255, 255]


def test_order_of_images_changes_nothing():
    forward, backward = (summarise(score_images(cases)) for cases in ([FIRST, SECOND], [SECOND, FIRST]))
    assert forward.equals(backward)


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "no image"),
        ([FIRST, FIRST], "image a: comes twice"),
        ([FIRST._replace(prob=FIRST.prob[:2])], r"image a: maps must have shape \(3, H, W\)"),
        ([FIRST._replace(truth=FIRST.truth.T)], r"image a: maps must have shape \(3, H, W\)"),
        ([FIRST._replace(truth=FIRST.truth * 38)], "image a: truth must hold 0, 1 and 2"),
        ([FIRST._replace(prob=FIRST.prob * 255)], r"image a: maps must hold probabilities in \[0, 1\], got 0 to 255"),
        ([FIRST._replace(prob=FIRST.prob * np.nan)], "image a: maps must hold probabilities"),
    ],
    ids=["none", "twice", "two classes", "transposed", "old codes", "8-bit", "nan"],
)
def test_unusable_cases_are_named(cases: list[Case], message: str):
    with pytest.raises(DataError, match=message):
        score_images(cases)
