"""Label maps as certain probabilities, and a row of the metrics table."""

import numpy as np
import polars as pl


def one_hot(labels: list[list[int]] | np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(labels) == value for value in range(3)]).astype(np.float32)


def row(metrics: pl.DataFrame, class_name: str, protocol: str, maps: str = "labels") -> dict[str, object]:
    found = metrics.filter(
        (pl.col("class_name") == class_name) & (pl.col("protocol") == protocol) & (pl.col("maps") == maps)
    )
    assert len(found) == 1
    return found.row(0, named=True)
