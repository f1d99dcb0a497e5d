"""Probability maps and their truth in, tables out: the same for our model and for published maps."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cohortseg.errors import DataError
from cohortseg.evaluate.tables import IMAGES, METRICS, OPACITY, TOOLBOX_METRICS
from cohortseg.labels import LESIONS, NUM_CLASSES, is_opacity
from cohortseg.metrics import (
    Confusion,
    area_agreement,
    confusion,
    mean_defined,
    overlap,
    pooled_confusion,
    toolbox_scores,
)
from cohortseg.store.tables import table_from_rows

Row = dict[str, Any]


class Case(NamedTuple):
    """One image to score."""

    name: str
    prob: NDArray[np.float32]
    """(3, H, W) probability of each class in [0, 1]; of published label maps, 0 and 1."""
    truth: NDArray[np.uint8]
    """(H, W) ground truth: 0 background, 1 ground-glass opacity, 2 consolidation."""
    in_training: bool | None = None
    """Whether the model was trained on this image; None where not known."""
    file: str | None = None
    """Path of the image; None where not known."""


def score_images(cases: Iterable[Case]) -> pl.DataFrame:
    """Return the table `IMAGES`: every number of every image and class.

    Images are taken one at a time, so memory does not grow with their number.

    Raises
    ------
    DataError
        If there is no image, a name comes twice, shapes differ, or a map or truth holds invalid values.
    """
    rows: list[Row] = []
    names: set[str] = set()
    for case in cases:
        if case.name in names:
            raise DataError(f"image {case.name}: comes twice in one evaluation; give every image a name of its own")
        names.add(case.name)
        rows.extend(_image_rows(case))
    if not rows:
        raise DataError("there is no image to evaluate")
    return table_from_rows(rows, IMAGES)


def summarise(images: pl.DataFrame) -> pl.DataFrame:
    """Return the table `METRICS` of a table `IMAGES`: one row per class, kind of map and protocol."""
    return table_from_rows(_metric_rows(images), METRICS)


def label_map(prob: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the most probable class of each pixel; (3, H, W) becomes (H, W), ties go to the lower class."""
    labels: NDArray[np.uint8] = np.argmax(prob, axis=0).astype(np.uint8)
    return labels


def eight_bit(prob: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return probabilities in [0, 1] as the toolbox reads them: 0 to 255, rounded."""
    return np.rint(prob * 255).astype(np.uint8)


def _image_rows(case: Case) -> Iterator[Row]:
    _check_case(case)
    labels = label_map(case.prob)
    for label in LESIONS:
        truth = case.truth == label.value
        scores: Row = {}
        for maps, class_map in (("labels", labels == label.value), ("softmax", eight_bit(case.prob[label.value]))):
            toolbox = asdict(toolbox_scores(class_map, truth))
            scores |= {f"toolbox_{maps}_{name}": toolbox[name] for name in TOOLBOX_METRICS}
        yield _overlap_row(case, label.name, labels == label.value, truth) | scores
    yield _overlap_row(case, OPACITY, is_opacity(labels), is_opacity(case.truth))


def _overlap_row(case: Case, class_name: str, predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Row:
    counts = confusion(predicted, truth)
    truth_pixels = counts.true_positive + counts.false_negative
    predicted_pixels = counts.true_positive + counts.false_positive
    return {
        "image": case.name,
        "file": case.file,
        "class_name": class_name,
        "in_training": case.in_training,
        "rows": truth.shape[0],
        "columns": truth.shape[1],
        "truth_pixels": truth_pixels,
        "predicted_pixels": predicted_pixels,
        "true_positive_pixels": counts.true_positive,
        "truth_area_pct": 100 * truth_pixels / truth.size,
        "predicted_area_pct": 100 * predicted_pixels / truth.size,
        **asdict(overlap(counts)),
    }


def _check_case(case: Case) -> None:
    if case.truth.ndim != 2 or case.truth.size < 2:
        raise DataError(f"image {case.name}: truth must have shape (H, W), got {case.truth.shape}")
    if case.prob.shape != (NUM_CLASSES, *case.truth.shape):
        raise DataError(
            f"image {case.name}: maps must have shape (3, H, W) at the truth's size {case.truth.shape}, "
            f"got {case.prob.shape}; resize nearest for labels, linear for probabilities"
        )
    if case.truth.min() < 0 or case.truth.max() >= NUM_CLASSES:
        raise DataError(f"image {case.name}: truth must hold 0, 1 and 2 only, got {np.unique(case.truth).tolist()[:9]}")
    low, high = float(case.prob.min()), float(case.prob.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise DataError(f"image {case.name}: maps must hold probabilities in [0, 1], got {low:g} to {high:g}")


def _metric_rows(images: pl.DataFrame) -> Iterator[Row]:
    rows = images.to_dicts()
    by_class = {
        name: [row for row in rows if row["class_name"] == name]
        for name in (*(label.name for label in LESIONS), OPACITY)
    }
    for label in LESIONS:
        for maps in ("labels", "softmax"):
            yield _toolbox_row(label.name, maps, by_class[label.name])
    for name, of_class in by_class.items():
        yield _row(name, "pooled", len(of_class), asdict(overlap(pooled_confusion(_counts(row) for row in of_class))))
    for name, of_class in by_class.items():
        yield _per_image_row(name, of_class)
    for name, of_class in by_class.items():
        yield _area_row(name, of_class)


def _row(name: str, protocol: str, count: int, numbers: Row, *, maps: str = "labels") -> Row:
    return {"class_name": name, "maps": maps, "protocol": protocol, "n_images": count, **numbers}


def _toolbox_row(name: str, maps: str, rows: list[Row]) -> Row:
    numbers = {metric: mean_defined(row[f"toolbox_{maps}_{metric}"] for row in rows) for metric in TOOLBOX_METRICS}
    return _row(name, "toolbox", len(rows), numbers, maps=maps)


def _per_image_row(name: str, rows: list[Row]) -> Row:
    present = [row for row in rows if row["truth_pixels"]]
    numbers: Row = {
        metric: mean_defined(row[metric] for row in present) for metric in ("dice", "sensitivity", "specificity", "ppv")
    }
    return _row(name, "per_image", len(present), numbers | {"n_ppv": sum(row["ppv"] is not None for row in present)})


def _area_row(name: str, rows: list[Row]) -> Row:
    predicted, true = [row["predicted_area_pct"] for row in rows], [row["truth_area_pct"] for row in rows]
    agreement = area_agreement(predicted, true)
    numbers = {
        "truth_area_pct": mean_defined(true),
        "predicted_area_pct": mean_defined(predicted),
        "area_pearson_r": agreement.pearson_r,
        "area_bias_pct": agreement.bias,
        "area_limit_low_pct": agreement.limit_low,
        "area_limit_high_pct": agreement.limit_high,
    }
    return _row(name, "area", len(rows), numbers)


def _counts(row: Row) -> Confusion:
    both, truth, predicted = row["true_positive_pixels"], row["truth_pixels"], row["predicted_pixels"]
    return Confusion(
        true_positive=both,
        false_positive=predicted - both,
        false_negative=truth - both,
        true_negative=row["rows"] * row["columns"] - truth - predicted + both,
    )
