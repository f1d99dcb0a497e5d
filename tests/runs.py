"""Scans and runs in tests: the only series of a folder, a cohort that vanishes, and what two runs differ in."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from cohortseg.config import InferConfig, ScanConfig
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.pipeline import InferSummary, infer_cohort
from cohortseg.store.masks import read_masks
from cohortseg.store.schemas import BURDEN, CLINICAL, OUTPUT_TABLES
from cohortseg.store.tables import read_table

Progress = Callable[[str], AbstractContextManager[Callable[..., None]]]


def only_series(root: Path, config: ScanConfig | None = None) -> SeriesRecord:
    """Return the one series of a folder."""
    (record,) = scan_cohort(root, config=config).series
    return record


def hiding(path: Path, away: Path) -> Progress:
    """Return a report that moves a file or folder away once segmentation begins, and back when it has ended well."""

    @contextmanager
    def progress(title: str) -> Iterator[Callable[..., None]]:
        if title == "Segmenting":
            path.rename(away)
        yield lambda *_: None
        if title == "Segmenting":
            away.rename(path)

    return progress


def run(cohort: Path, out: Path, model_path: Path, **settings: object) -> InferSummary:
    """Infer in this process."""
    config = InferConfig(engine="local", **settings)
    return infer_cohort(cohort, out, config=config, model_path=model_path)


def differences(out: Path, reference: Path) -> list[str]:
    """Return in which tables, masks and pictures two output folders differ; how long a series took does not count."""
    found = []
    for schema in OUTPUT_TABLES:
        if schema is CLINICAL:
            continue
        ours, theirs = (
            read_table(folder / schema.file_name, schema).drop("runtime_s", strict=False) for folder in (out, reference)
        )
        if not ours.equals(theirs):
            found.append(schema.name)
    burden = read_table(reference / BURDEN.file_name, BURDEN)
    for key in burden.filter(pl.col("status") == "ok")["series_key"]:
        one, two = (read_masks(folder / "masks.zarr", key) for folder in (out, reference))
        if not (np.array_equal(one.labels, two.labels) and np.array_equal(one.lungs, two.lungs)):
            found.append(f"masks of {key}")
        if one.facts != two.facts:
            found.append(f"attributes of {key}")
        if (out / f"pictures/{key}.png").read_bytes() != (reference / f"pictures/{key}.png").read_bytes():
            found.append(f"picture of {key}")
    for group in ("masks.zarr", "pictures"):
        names = [{path.name for path in (folder / group).iterdir()} for folder in (out, reference)]
        if names[0] != names[1]:
            found.append(f"names in {group}")
    return found
