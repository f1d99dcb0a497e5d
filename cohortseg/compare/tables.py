"""The two tables of a comparison: every number of every image, and one line per row and class."""

from typing import Any, Final

import numpy as np
import polars as pl
import scipy.stats

from cohortseg.compare.rows import BASELINE, PHASE_1, ROWS
from cohortseg.datasets.covid_semiseg import SAME_SCAN
from cohortseg.evaluate.tables import IMAGES, TOOLBOX_METRICS
from cohortseg.labels import LESIONS
from cohortseg.metrics import mean_defined
from cohortseg.store.schemas import Column, TableSchema
from cohortseg.store.tables import table_from_rows

_REAL, _TEXT, _INT = pl.Float64(), pl.String(), pl.Int64()
_ROW = Column("row", _TEXT, "row of the paper's table 2, or student; with -phase1 the model of that row before phase 2")
_METRIC: Final = "toolbox_labels_{}"
_LEAST_SCANS: Final = 3
"""An interval over fewer says nothing."""

HELD_OUT: Final = TableSchema(
    name="held_out",
    version=1,
    row="one held-out image and class under one row",
    columns=(_ROW, Column("fold", _INT, "the fold that held the image out, from 1"), *IMAGES.columns),
)

COMPARISON: Final = TableSchema(
    name="comparison",
    version=2,
    row="one row (of table 2, or student) and class",
    columns=(
        _ROW,
        Column("class_name", _TEXT, "ggo or consolidation"),
        Column("n_images", _INT, "held-out images behind the means"),
        *(
            Column(metric, _REAL, f"{metric} by the toolbox protocol on label maps, mean over the images")
            for metric in TOOLBOX_METRICS
        ),
        Column("n_paired", _INT, "images that this row and the row plain both have"),
        Column(
            "dice_gain",
            _REAL,
            "mean over those of dice minus that of the row plain; null for plain itself. Of -phase1 it is no "
            "effect of what that row has: it learned for fewer iterations",
        ),
        Column(
            "dice_gain_low",
            _REAL,
            "lower end of its 95 % interval (t, images of one scan counted together); null below 3 scans",
        ),
        Column("dice_gain_high", _REAL, "upper end of its 95 % interval"),
    ),
)


def comparison_table(held_out: pl.DataFrame) -> pl.DataFrame:
    """Return the table `COMPARISON` made from a table `HELD_OUT`, in the order of the paper's rows."""
    order = [name for row in ROWS for name in (row + PHASE_1, row)]
    present = [row for row in order if row in set(held_out["row"])]
    lines = []
    for row in present:
        for label in LESIONS:
            images = held_out.filter(pl.col("class_name") == label.name, pl.col("row") == row)
            means = {metric: mean_defined(images[_METRIC.format(metric)].to_list()) for metric in TOOLBOX_METRICS}
            line: dict[str, Any] = {"row": row, "class_name": label.name, "n_images": len(images), **means}
            lines.append(line | ({} if row == BASELINE else _gain(paired_gains(held_out, row, label.name))))
    return table_from_rows(lines, COMPARISON)


def paired_gains(held_out: pl.DataFrame, row: str, class_name: str) -> pl.DataFrame:
    """Return the Dice gain over the row plain of each image that both rows have (``image``, ``gain``), in order."""
    dice, of_class = _METRIC.format("dice"), held_out.filter(pl.col("class_name") == class_name)
    of_row, of_plain = (of_class.filter(pl.col("row") == name).select("image", dice) for name in (row, BASELINE))
    paired = of_row.join(of_plain, on="image", suffix="_plain", maintain_order="left")
    return paired.select("image", gain=pl.col(dice) - pl.col(f"{dice}_plain"))


def _gain(gains: pl.DataFrame) -> dict[str, Any]:
    """Return the mean gain, and its interval from the t distribution with standard errors clustered by scan.

    The variance of the mean of n images of G scans is ``G / (G - 1) * sum(r ** 2) / n ** 2``, r being a scan's sum of
    deviations from the mean (Cameron and Miller 2015, equation 11 for a mean); without clusters that is s^2 / n.
    """
    if gains.is_empty():
        return {"n_paired": 0}
    values = gains["gain"].to_numpy()
    line = {"n_paired": len(values), "dice_gain": float(values.mean())}
    scan_of = {name: min(group) for group in SAME_SCAN for name in group}
    _, scans = np.unique([scan_of.get(name, name) for name in gains["image"]], return_inverse=True)
    sums = np.bincount(scans, values - values.mean())
    if sums.size < _LEAST_SCANS:
        return line
    error = np.sqrt(sums.size / (sums.size - 1) * (sums**2).sum()) / len(values)
    half = float(scipy.stats.t.ppf(0.975, sums.size - 1) * error)
    return line | {"dice_gain_low": line["dice_gain"] - half, "dice_gain_high": line["dice_gain"] + half}
