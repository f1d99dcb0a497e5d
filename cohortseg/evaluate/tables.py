"""The two tables of an evaluation: one row per image and class, and one row per class, map and protocol."""

from typing import Final

import polars as pl

from cohortseg.store.schemas import Column, TableSchema

_TEXT, _INT, _REAL, _FLAG = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean()

OPACITY: Final = "opacity"
"""Class name of ground-glass opacity and consolidation taken together."""

TOOLBOX_METRICS: Final = ("dice", "sensitivity", "specificity", "s_measure", "e_measure", "mae")
"""The six metrics, in the order of published tables."""

_ZERO_WITHOUT_TRUE_POSITIVE: Final = TOOLBOX_METRICS[:3]

_CLASS = Column("class_name", _TEXT, "ggo, consolidation, or opacity (both together)")
_OVERLAP = (
    Column("dice", _REAL, "2 TP / (2 TP + FP + FN); null where neither truth nor prediction has a pixel"),
    Column("sensitivity", _REAL, "TP / (TP + FN); null where the truth has no pixel"),
    Column("specificity", _REAL, "TN / (TN + FP); null where the truth covers the image"),
    Column("ppv", _REAL, "TP / (TP + FP), positive predictive value; null where the prediction has no pixel"),
)

IMAGES: Final = TableSchema(
    name="images",
    version=6,
    row="one image and class of an evaluation",
    columns=(
        Column(
            "image",
            _TEXT,
            "name of the slice: an image's file name without its suffix; of DICOM, series key and place in order",
        ),
        Column("file", _TEXT, "its file, relative to the folder of the images; null where not known"),
        _CLASS,
        Column(
            "in_training",
            _FLAG,
            "whether the model was trained on this very file, which an image saved again is not; null where not known",
        ),
        Column("rows", _INT, "height, pixels"),
        Column("columns", _INT, "width, pixels"),
        Column("truth_pixels", _INT, "pixels of the class in the ground truth"),
        Column("predicted_pixels", _INT, "pixels of the class in the argmax labels"),
        Column("true_positive_pixels", _INT, "pixels of the class in both"),
        Column("truth_area_pct", _REAL, "100 x truth_pixels / pixels of the slice"),
        Column("predicted_area_pct", _REAL, "100 x predicted_pixels / pixels of the slice"),
        *_OVERLAP,
        *(
            Column(
                f"toolbox_{maps}_{metric}",
                _REAL,
                f"toolbox protocol, {what}: {metric} of this image"
                f"{' (0, not null, without a true positive)' if metric in _ZERO_WITHOUT_TRUE_POSITIVE else ''}; "
                "null for opacity, which the toolbox does not score",
            )
            for maps, what in (("labels", "binary map of the argmax labels"), ("softmax", "8-bit probability map"))
            for metric in TOOLBOX_METRICS
        ),
    ),
)

METRICS: Final = TableSchema(
    name="metrics",
    version=5,
    row="one class, kind of map and protocol of an evaluation",
    columns=(
        _CLASS,
        Column("maps", _TEXT, "labels (binary map of the argmax labels) or softmax (8-bit probability map)"),
        Column(
            "protocol",
            _TEXT,
            "toolbox (mean over 256 thresholds, then over all images; without a true positive dice, sensitivity and "
            "specificity are 0, not null), pooled (all pixels together), per_image (mean over the images whose truth "
            "has the class) or area (area in percent of the image)",
        ),
        Column("n_images", _INT, "images the row is about; for per_image those whose truth has the class"),
        Column("n_ppv", _INT, "images behind the mean ppv of protocol per_image: those with predicted pixels"),
        *_OVERLAP,
        Column("s_measure", _REAL, "S-measure, alpha 0.5; protocol toolbox only"),
        Column("e_measure", _REAL, "mean E-measure; protocol toolbox only"),
        Column("mae", _REAL, "mean absolute error of the map; protocol toolbox only"),
        Column("truth_area_pct", _REAL, "mean area of the truth, percent of the image; protocol area only"),
        Column("predicted_area_pct", _REAL, "mean area of the prediction, percent of the image; protocol area only"),
        Column(
            "area_pearson_r", _REAL, "Pearson correlation of the areas; null below three images or without variation"
        ),
        Column("area_bias_pct", _REAL, "mean of predicted minus true area, percentage points of the image"),
        Column("area_limit_low_pct", _REAL, "lower 95 % limit of agreement: bias - 1.96 SD; null below two images"),
        Column("area_limit_high_pct", _REAL, "upper 95 % limit of agreement: bias + 1.96 SD; null below two images"),
    ),
)
