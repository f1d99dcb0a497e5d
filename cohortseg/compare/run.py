"""A whole comparison: every row on every fold, one after the other here or in parallel on Ray; safe to repeat."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from cohortseg import __version__
from cohortseg.cluster import check_here, cluster_address, cluster_with_room
from cohortseg.compare.fold import LABELED_DATA, FoldJob, run_fold, scores_in
from cohortseg.compare.on_ray import run_ray
from cohortseg.compare.page import comparison_html
from cohortseg.compare.rows import FOLDS, check_rows
from cohortseg.compare.tables import COMPARISON, HELD_OUT, comparison_table
from cohortseg.config import TrainConfig
from cohortseg.datasets import covid_semiseg
from cohortseg.datasets.preparation import prepare
from cohortseg.datasets.prepared import PreparedData, write_prepared
from cohortseg.datasets.slices import ImageSlice
from cohortseg.errors import ConfigError, SchemaError, StoreError
from cohortseg.models.device import limit_threads
from cohortseg.progress import Progress, Report, no_progress
from cohortseg.store.documents import parse_json
from cohortseg.store.files import LOCK, held, require_utf8, visible_files, write_file
from cohortseg.store.layout import DATA, PAGE
from cohortseg.store.provenance import read_run_json, write_run_json
from cohortseg.store.tables import read_table, write_table
from cohortseg.train.state import check_imagenet, check_same_settings, imagenet_sha256

_SETTINGS: Final = "comparison.json"
"""File that marks a comparison's folder: the settings and labelled images it was begun with."""
_FREE_TO_CHANGE: Final = frozenset({"imagenet_file"})
"""Settings that no result depends on: ImageNet weights are identified by their hash, wherever they lie."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison found, rows and folds of earlier starts included."""

    table: pl.DataFrame
    """Schema ``COMPARISON``."""
    num_done: int
    """Trainings of this start; 0: there was nothing to do."""


def compare_rows(
    config: TrainConfig,
    out: Path,
    *,
    data: Path | None = None,
    rows: Sequence[str],
    folds: Sequence[int],
    num_workers: int | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
) -> Comparison:
    """Train every row on every fold not done yet, and write the gains over the row plain.

    Parameters
    ----------
    config
        Settings of the training, before the changes of a row.
    out
        Folder of the comparison: new or empty, or one begun with the same settings and data.
    data
        As in `covid_semiseg.find_data`.
    rows, folds
        Names from `ROWS`, and fold numbers from 1.
    num_workers
        Trainings in parallel, on Ray; None: one per GPU of the cluster, or without a cluster one at a time here.
    address
        As in `cluster_address`; the folders must lie under the same paths on all nodes.
    progress
        Shows how many iterations of all trainings are done; on Ray, once each has ended.

    Raises
    ------
    ConfigError
        If rows, folds, workers, data or folder do not fit.
    DataError
        If an image or label map cannot be used.
    DivergedError
        If a loss is no longer a finite number.
    ModelError
        If ImageNet weights that are asked for cannot be used.
    StoreError
        If another process is at work in the folder, or it cannot be written.
    WorkerError
        If Ray or a worker fails.
    """
    started = time.perf_counter()
    config = config.resolved()
    check_rows(rows, folds, config)
    check_imagenet(config)
    root, out = covid_semiseg.find_data(data).resolve(), out.resolve()
    require_utf8(out, "the path of the output folder")
    images = _images_of(root, folds)
    on_ray = cluster_address(address) is not None or (num_workers or 1) > 1
    if on_ray and cluster_address(address) is None:
        check_here(num_workers)
    _refuse_foreign(out)
    with held(out, "compare"):
        jobs = [FoldJob(out=out, images=images, config=config, row=row, fold=fold) for fold in folds for row in rows]
        jobs = [job for job in jobs if not job.scores.is_file()]
        with cluster_with_room(address, num_workers) if jobs else nullcontext():
            _begin(out, jobs, images, root, config, progress)
            _read_scores(out)  # raises before the work if a table is damaged
            if jobs:
                write_run_json(out, "compare", {}, finished=False)
                with progress("Comparing") as report:
                    if on_ray:
                        run_ray(jobs, num_workers, address, report)
                    else:
                        _run_here(jobs, report)
        table = _write_tables(out, {"config": asdict(config)})
        if read_run_json(out).get("finished") is None:  # else it keeps describing the start that made the results
            facts = {
                "config": asdict(config),
                "arguments": {"data": str(root), "rows": list(rows), "folds": list(folds)},
                "counts": {"trainings": len(scores_in(out)), "trained_by_this_start": len(jobs)},
                "timings": {"total_s": round(time.perf_counter() - started, 1)},
            }
            write_run_json(out, "compare", facts)
        return Comparison(table=table, num_done=len(jobs))


def _images_of(root: Path, folds: Sequence[int]) -> tuple[ImageSlice, ...]:
    """Return all labelled images; refuse a fold to which none or all of them belong."""
    images = tuple(covid_semiseg.labeled_slices(root, "all"))
    for fold in folds:
        held_out = [item.name in FOLDS[fold - 1] for item in images]
        if not any(held_out):
            raise ConfigError(f"{root}: none of the images of fold {fold} is here; leave it out with --folds")
        if all(held_out):
            raise ConfigError(f"{root}: all images here are of fold {fold}, which leaves none to train on")
    return images


def _begin(
    out: Path,
    jobs: Sequence[FoldJob],
    images: Sequence[ImageSlice],
    root: Path,
    config: TrainConfig,
    progress: Progress,
) -> None:
    """Record settings and images of a new comparison, or check those of an older one; prepare data that jobs lack."""
    begun = {
        "version": __version__,
        "config": asdict(config),
        "folds": [sorted(fold) for fold in FOLDS],
        "images": {item.name: _content_hash(item) for item in images},
        "imagenet_sha256": imagenet_sha256(config),
        "unlabeled_sha256": None,
    }
    settings = out / _SETTINGS
    is_new = not settings.is_file()
    if is_new:  # a killed start may have left data of other images
        for name in (DATA, LABELED_DATA):
            (out / name).unlink(missing_ok=True)
    else:
        begun["unlabeled_sha256"] = _check_same(settings, begun, config)
    for path in sorted({job.data for job in jobs}):
        if path.is_file():
            continue
        prepared = _prepared(path, images, root, config, progress)
        if path.name == DATA:
            digest = hashlib.sha256("".join(prepared.unlabeled_images).encode()).hexdigest()
            if begun["unlabeled_sha256"] not in (None, digest):
                raise ConfigError(f"{out}: was begun with other unlabelled images; choose another -o")
            begun["unlabeled_sha256"] = digest
            if not is_new:
                _write_settings(settings, begun)
        write_prepared(path, prepared)
    if is_new:
        _write_settings(settings, begun)


def _write_settings(path: Path, begun: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(begun, indent=2) + "\n").encode())


def _refuse_foreign(out: Path) -> None:
    """Refuse a folder that is not empty, unless it holds a comparison or the remains of one killed while it began."""
    if not out.exists() or (out / _SETTINGS).is_file():
        return
    left = (DATA, LABELED_DATA) if (out / LOCK).is_file() else ()
    if not out.is_dir() or any(path.name not in left for path in visible_files(out)):
        raise ConfigError(f"{out}: is not empty, and holds no comparison; choose another -o")


def _check_same(settings: Path, now: Mapping[str, Any], config: TrainConfig) -> str | None:
    """Refuse to continue a comparison begun with another version, other settings, folds, labelled images or weights.

    Returns
    -------
    str or None
        The hash of the unlabelled images that it was begun with; None if it has not used any.
    """
    try:
        before = parse_json(settings.read_bytes())
        version, saved, folds, images, weights, unlabeled = (before[name] for name in now)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{settings}: cannot be read: {error}; choose another -o") from error
    if version != now["version"]:
        raise ConfigError(f"{settings.parent}: was begun by cohortseg {version}; choose another -o")
    if folds != now["folds"]:
        raise ConfigError(f"{settings.parent}: was begun with other folds; choose another -o")
    check_same_settings(saved, config, free_to_change=_FREE_TO_CHANGE)
    if images != now["images"]:
        raise ConfigError(f"{settings.parent}: was begun with other labelled images; choose another -o")
    if weights != now["imagenet_sha256"]:
        raise ConfigError(f"{settings.parent}: was begun with other ImageNet weights; choose another -o")
    return None if unlabeled is None else str(unlabeled)


def _content_hash(item: ImageSlice) -> str:
    """Return the SHA-256 of an image and its label map."""
    paths = (item.image_path, item.mask_path)
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path is not None)).hexdigest()


def _prepared(
    path: Path, images: Sequence[ImageSlice], root: Path, config: TrainConfig, progress: Progress
) -> PreparedData:
    unlabeled = covid_semiseg.unlabeled_slices(root) if path.name == DATA else []
    with progress("Preparing slices") as report:
        return prepare(images, unlabeled, config.canonical, covid_semiseg.TERMS, report)


def _run_here(jobs: Sequence[FoldJob], report: Report) -> None:
    limit_threads()
    total, before = sum(job.iterations for job in jobs), 0
    for job in jobs:
        run_fold(job, _told(report, before, total, job.title))
        before += job.iterations


def _told(report: Report, before: int, total: int, title: str) -> Callable[[int], None]:
    report(before, total, title)
    return lambda iteration: report(before + iteration, total, title)


def _read_scores(out: Path) -> list[pl.DataFrame]:
    """Return the tables `HELD_OUT` of all finished jobs."""
    tables = []
    for path in scores_in(out):
        try:
            tables.append(read_table(path, HELD_OUT))
        except SchemaError as error:
            raise SchemaError(f"{error}; remove {path.name}, and that row and fold is trained again") from error
    return tables


def _write_tables(out: Path, provenance: dict[str, Any]) -> pl.DataFrame:
    """Collect the scores of all starts, write tables and page, and return the table `COMPARISON`."""
    held_out = pl.concat(_read_scores(out)).sort("fold", "row", maintain_order=True)
    table = comparison_table(held_out)
    write_table(out / HELD_OUT.file_name, held_out, HELD_OUT, provenance)
    write_table(out / COMPARISON.file_name, table, COMPARISON, provenance)
    write_file(out / PAGE, comparison_html(table, held_out).encode())
    return table
