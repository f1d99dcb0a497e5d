"""Quality of a segmentation: the COVID-SemiSeg toolbox protocol, and overlap and area as a clinician reads them.

Arrays are single images of shape (H, W). A number that is undefined is ``None``, never 0 and never NaN; where the
toolbox itself defines a 0, that 0 is kept, because published tables contain it (docs/evaluation.md lists each case).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

THRESHOLDS: Final[FloatArray] = np.arange(256) / 255
"""The toolbox's thresholds, (256,): 0, 1/255, ..., 1."""
LIMITS_SD: Final = 1.96
"""Standard deviations from the bias to the 95 % limits of agreement."""
_EPS: Final = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class ThresholdCurves:
    """Toolbox metrics of one image at each threshold, (256,) float64, in the order of ``THRESHOLDS``."""

    dice: FloatArray
    sensitivity: FloatArray
    specificity: FloatArray | None
    """None where the truth leaves no pixel outside the class."""
    e_measure: FloatArray


@dataclass(frozen=True, kw_only=True)
class ToolboxScores:
    """The six metrics of the toolbox for one image and class, each in [0, 1] (E-measure: up to H*W / (H*W - 1))."""

    dice: float
    sensitivity: float
    specificity: float | None
    s_measure: float
    e_measure: float
    mae: float


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Pixel counts of one class, of one image or of many."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Overlap of two masks, each in [0, 1]; None where the denominator is zero."""

    dice: float | None
    """2 TP / (2 TP + FP + FN); None where neither mask has a pixel."""
    sensitivity: float | None
    """TP / (TP + FN); None where the truth has no pixel."""
    specificity: float | None
    """TN / (TN + FP); None where the truth covers the image."""
    ppv: float | None
    """TP / (TP + FP), positive predictive value; None where the prediction has no pixel."""


@dataclass(frozen=True, kw_only=True)
class AreaAgreement:
    """Agreement of predicted with true area over images, in the unit of the areas."""

    pearson_r: float | None
    """None with fewer than three images, or where one side does not vary."""
    bias: float | None
    """Mean of prediction minus truth; None without images."""
    limit_low: float | None
    """Bias minus 1.96 standard deviations (n - 1) of the differences; None with fewer than two images."""
    limit_high: float | None
    """Bias plus 1.96 standard deviations (n - 1) of the differences; None with fewer than two images."""


def toolbox_scores(class_map: NDArray[Any], truth: BoolArray) -> ToolboxScores:
    """Return the six metrics of the COVID-SemiSeg evaluation toolbox for one class of one image.

    Parameters
    ----------
    class_map : (H, W), real or bool, finite
        How much each pixel is of the class: probabilities, 8-bit probabilities, or the binary map ``labels == class``.
    truth : (H, W), bool
        Pixels of the class in the ground truth.

    Returns
    -------
    ToolboxScores
        Means over the thresholds; S-measure and MAE on the normalised map.

    Raises
    ------
    ValueError
        If the shapes differ, the image has fewer than two pixels, or the map is not finite.

    References
    ----------
    D.-P. Fan et al., "Inf-Net", IEEE TMI 2020: EvaluationTool/main.m and Fmeasure_calu.m of its code.
    """
    _check_pair(class_map, truth)
    unit_map = minmax_map(class_map)
    curves = threshold_curves(unit_map, truth)
    return ToolboxScores(
        dice=float(curves.dice.mean()),
        sensitivity=float(curves.sensitivity.mean()),
        specificity=None if curves.specificity is None else float(curves.specificity.mean()),
        s_measure=s_measure(unit_map, truth),
        e_measure=float(curves.e_measure.mean()),
        mae=float(np.abs(unit_map - truth).mean()),
    )


def minmax_map(class_map: NDArray[Any]) -> FloatArray:
    """Return a map stretched to [0, 1]; a constant map becomes zeros.

    For this protocol only: in inference it would give every healthy slice a pixel of 1.
    """
    values = class_map.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def threshold_curves(unit_map: FloatArray, truth: BoolArray) -> ThresholdCurves:
    """Return Dice, sensitivity, specificity (map >= threshold) and E-measure (map > threshold) at all thresholds.

    Counts come from histograms of threshold levels, so that one pass replaces 256; they equal the counts of the plain
    comparisons exactly.

    Parameters
    ----------
    unit_map : (H, W), float64, [0, 1]
        The normalised map.
    truth : (H, W), bool
        Pixels of the class.

    Returns
    -------
    ThresholdCurves
        Dice, sensitivity and specificity are all 0 wherever no true positive exists, as in the toolbox; so also, at
        every threshold, for an image without the class.
    """
    # The largest k with k/255 <= value: rounding never lifts 255 x a double across k (tested for every k).
    level = (unit_map * 255).astype(np.int64)
    above = level + (THRESHOLDS[level] < unit_map)  # how many thresholds lie strictly below the value
    size, positives = truth.size, int(np.count_nonzero(truth))
    hit, false = _reached(level[truth]), _reached(level[~truth])
    found = hit > 0
    negatives = size - positives
    return ThresholdCurves(
        dice=np.where(found, 2 * hit / np.maximum(hit + false + positives, 1), 0.0),
        sensitivity=np.where(found, hit / max(positives, 1), 0.0),
        specificity=np.where(found, (negatives - false) / negatives, 0.0) if negatives else None,
        e_measure=_e_measures(_reached(above[truth] - 1), _reached(above[~truth] - 1), positives, size),
    )


def _reached(level: NDArray[np.int64]) -> FloatArray:
    """Return for each k in 0..255 how many values have a level of at least k; level -1 reaches none."""
    counts = np.bincount(level + 1, minlength=257)[1:]
    return counts[::-1].cumsum()[::-1].astype(np.float64)


def _e_measures(hit: FloatArray, false: FloatArray, positives: int, size: int) -> FloatArray:
    """Return the E-measure (Fan et al., IJCAI 2018) of binary maps, given by their pixel counts, each (256,).

    The enhanced alignment matrix of a binary map holds only four values, one for each pair of prediction and truth. If
    the truth has no foreground (or background), the matrix is the prediction's background (or foreground) itself. The
    sum is divided by size - 1 as in the authors' code, not by size as in the paper's equation: a perfect map scores
    slightly above 1.
    """
    predicted = hit + false
    if positives == 0:
        return (size - predicted) / (size - 1)
    if positives == size:
        return predicted / (size - 1)
    mean_predicted, mean_truth = predicted / size, positives / size
    total = np.zeros(256)
    groups = (
        (hit, 1, 1),
        (false, 1, 0),
        (positives - hit, 0, 1),
        (size - positives - false, 0, 0),
    )
    for count, predicted_value, true_value in groups:
        a, b = predicted_value - mean_predicted, true_value - mean_truth
        alignment = 2 * a * b / (a * a + b * b + _EPS)
        total += count * (alignment + 1) ** 2 / 4
    return total / (size - 1)


def s_measure(unit_map: FloatArray, truth: BoolArray) -> float:
    """Return the S-measure: half object-aware, half region-aware similarity (alpha = 0.5), not below 0.

    Parameters
    ----------
    unit_map : (H, W), float64, [0, 1]
        The normalised map.
    truth : (H, W), bool
        Pixels of the class. None at all: 1 minus the map's mean; all: the map's mean.

    References
    ----------
    D.-P. Fan et al., "Structure-measure", ICCV 2017, and its code (StructureMeasure.m, S_object.m, S_region.m).
    """
    part = float(truth.mean())
    if part == 0:
        return 1 - float(unit_map.mean())
    if part == 1:
        return float(unit_map.mean())
    objects = part * _object_score(unit_map[truth]) + (1 - part) * _object_score(1 - unit_map[~truth])
    return max(0.0, 0.5 * objects + 0.5 * _region_score(unit_map, truth))


def _object_score(values: FloatArray) -> float:
    """Return how high and how even the map is on an object: 2 x / (x^2 + 1 + sigma), the paper's lambda being 0.5."""
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + deviation + _EPS)


def _region_score(unit_map: FloatArray, truth: BoolArray) -> float:
    """Return the area-weighted similarity of the four blocks that meet at the truth's centroid."""
    height, width = truth.shape
    # MATLAB counts from 1 and rounds halves up; the centroid's own row and column belong to the upper left block.
    row, column = (int(np.floor(np.mean(index) + 1.5)) for index in np.nonzero(truth))
    score = 0.0
    for rows in (slice(0, row), slice(row, height)):
        for columns in (slice(0, column), slice(column, width)):
            block = truth[rows, columns]
            if block.size:  # the centroid can lie in the last row or column
                score += block.size / truth.size * _block_similarity(unit_map[rows, columns], block)
    return score


def _block_similarity(values: FloatArray, truth: BoolArray) -> float:
    """Return the structural similarity of one block, as in the S-measure's code (no stabilising constants)."""
    x, y = float(values.mean()), float(truth.mean())
    dx, dy = values - x, truth - y
    scale = truth.size - 1 + _EPS
    alpha = 4 * x * y * float((dx * dy).sum()) / scale
    beta = (x * x + y * y) * float((dx * dx).sum() + (dy * dy).sum()) / scale
    if alpha != 0:
        return alpha / (beta + _EPS)
    return 1.0 if beta == 0 else 0.0


def confusion(prediction: BoolArray, truth: BoolArray) -> Confusion:
    """Return the pixel counts of two masks of one shape (H, W).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction must have the shape of the truth, {truth.shape}, got {prediction.shape}")
    both = int(np.count_nonzero(prediction & truth))
    predicted, positives = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    return Confusion(
        true_positive=both,
        false_positive=predicted - both,
        false_negative=positives - both,
        true_negative=truth.size - predicted - positives + both,
    )


def pooled_confusion(parts: Iterable[Confusion]) -> Confusion:
    """Return the sum of pixel counts over images."""
    total = [0, 0, 0, 0]
    for part in parts:
        counts = (part.true_positive, part.false_positive, part.false_negative, part.true_negative)
        total = [a + b for a, b in zip(total, counts, strict=True)]
    return Confusion(true_positive=total[0], false_positive=total[1], false_negative=total[2], true_negative=total[3])


def overlap(counts: Confusion) -> Overlap:
    """Return Dice, sensitivity, specificity and positive predictive value of pixel counts."""
    tp, fp, fn, tn = counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative
    return Overlap(
        dice=_ratio(2 * tp, 2 * tp + fp + fn),
        sensitivity=_ratio(tp, tp + fn),
        specificity=_ratio(tn, tn + fp),
        ppv=_ratio(tp, tp + fp),
    )


def area_agreement(predicted: Sequence[float], true: Sequence[float]) -> AreaAgreement:
    """Return correlation, bias and 95 % limits of agreement of predicted with true areas, one pair per image.

    References
    ----------
    J. M. Bland, D. G. Altman, "Statistical methods for assessing agreement", Lancet 1986.
    """
    a, b = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"areas must be two lists of one length, got {a.shape} and {b.shape}")
    differences = a - b
    bias = float(differences.mean()) if a.size else None
    spread = LIMITS_SD * float(differences.std(ddof=1)) if a.size > 1 else None
    varies = a.size > 2 and bool(np.ptp(a) > 0) and bool(np.ptp(b) > 0)
    return AreaAgreement(
        pearson_r=float(np.corrcoef(a, b)[0, 1]) if varies else None,
        bias=bias,
        limit_low=None if bias is None or spread is None else bias - spread,
        limit_high=None if bias is None or spread is None else bias + spread,
    )


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None, or None if there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None


def _check_pair(class_map: NDArray[Any], truth: BoolArray) -> None:
    if class_map.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"map must have the shape (H, W) of the truth, {truth.shape}, got {class_map.shape}")
    if truth.dtype != np.bool_:
        raise ValueError(f"truth must be bool, got {truth.dtype}")
    if truth.size < 2:
        raise ValueError(f"image must have at least two pixels, got shape {truth.shape}")
    if not np.isfinite(class_map).all():
        raise ValueError("map must be finite, got NaN or infinity")
