"""One row on one fold: train on the other folds, score the images held out."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import polars as pl
import torch

from cohortseg.compare.rows import BASELINE, FOLDS, PHASE_1, row_config, teacher_configs
from cohortseg.compare.tables import HELD_OUT
from cohortseg.config import TrainConfig
from cohortseg.datasets.prepared import PreparedData, load_prepared
from cohortseg.datasets.slices import ImageSlice
from cohortseg.errors import DataError
from cohortseg.evaluate.run import predicted_cases
from cohortseg.evaluate.score import score_images
from cohortseg.hashes import file_sha256
from cohortseg.models.device import find_device
from cohortseg.progress import silent
from cohortseg.store.files import store_errors
from cohortseg.store.layout import DATA
from cohortseg.store.tables import write_table
from cohortseg.train.loop import MODEL, PHASE_1_MODEL, train
from cohortseg.train.teachers import taught
from cohortseg.weights import load_model

LABELED_DATA: Final = "labeled.safetensors"
"""Prepared data for rows that need no unlabelled slices."""
_FOLDS: Final = "folds"


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """One row on one fold, which one process trains and scores."""

    out: Path
    """Folder of the comparison; it holds the prepared data."""
    images: tuple[ImageSlice, ...]
    """All labelled images, in the order of the prepared data."""
    config: TrainConfig
    """Settings of the comparison, before the changes of the row."""
    row: str
    fold: int
    """From 1."""

    @property
    def title(self) -> str:
        """Name in messages."""
        return f"{self.row}, fold {self.fold}"

    @property
    def iterations(self) -> int:
        """Iterations of both phases, and of all teachers."""
        configs = [row_config(self.config, self.row), *teacher_configs(self.config, self.row)]
        return sum(config.planned_iterations for config in configs)

    @property
    def data(self) -> Path:
        """Prepared slices: all labelled images and, if the row uses them, the unlabelled ones."""
        return self.out / (DATA if row_config(self.config, self.row).needs_unlabeled else LABELED_DATA)

    @property
    def folder(self) -> Path:
        """Folder of what training leaves: history, page, pictures, models."""
        return self.out / _FOLDS / f"{self.row}-{self.fold}"

    @property
    def scores(self) -> Path:
        """Table `HELD_OUT` of this row and fold; it is written last, so where it exists the job is done."""
        return self.folder / HELD_OUT.file_name


def scores_in(out: Path) -> list[Path]:
    """Return the files of the tables `HELD_OUT` of all finished jobs of a comparison, those of earlier starts too."""
    return sorted(out.glob(f"{_FOLDS}/*/{HELD_OUT.file_name}"))


def run_fold(job: FoldJob, report: Callable[[int], None]) -> None:
    """Train and score one row on one fold; a job that an earlier start left half done begins again.

    A teacher that the row plain has trained already, with the same seed and images, is not trained again.

    Parameters
    ----------
    job
        The work.
    report
        Takes the iterations done, at every checkpoint.

    Raises
    ------
    DivergedError
        If the loss is no longer a finite number.
    DataError, StoreError
        If the data cannot be used, or the folder cannot be written.
    """
    with store_errors(job.folder, "cannot be written or read"):
        _train_and_score(job, report)


def _train_and_score(job: FoldJob, report: Callable[[int], None]) -> None:
    config = row_config(job.config, job.row)
    held_out = [item for item in job.images if item.name in FOLDS[job.fold - 1]]
    kept = torch.tensor([item not in held_out for item in job.images])
    try:
        data = load_prepared(job.data)
    except DataError as error:
        raise DataError(f"{error}; remove it and run the same command again") from error
    unseen = {file_sha256(item.image_path) for item in held_out}
    data = replace(
        data,
        labeled=data.labeled[kept],
        labels=data.labels[kept],
        labeled_images=tuple(image for image in data.labeled_images if image not in unseen),
    )
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    started = time.perf_counter()
    done = 0
    teachers = []
    plain = replace(job, row=BASELINE)
    plain_config = row_config(job.config, BASELINE)
    for number, teacher in enumerate(teacher_configs(job.config, job.row)):
        folder = job.folder / f"teacher-{number}"
        folder.mkdir()
        if teacher == plain_config and plain.scores.is_file():
            shutil.copy(plain.folder / MODEL, folder / MODEL)
        else:
            _train(teacher, data, folder, _after(done, report))
        done += teacher.planned_iterations
        teachers.append(load_model(folder / MODEL))
    if teachers:
        data = taught(data, teachers, silent)
    _train(config, data, job.folder, _after(done, report))
    facts = {"train_s": round(time.perf_counter() - started, 1)}
    models = {job.row: MODEL} | ({job.row + PHASE_1: PHASE_1_MODEL} if config.semi_supervised else {})
    scores = [
        score_images(item.case for item in predicted_cases(held_out, load_model(job.folder / name))).select(
            pl.lit(row).alias("row"), pl.lit(job.fold, pl.Int64).alias("fold"), pl.all()
        )
        for row, name in models.items()
    ]
    write_table(job.scores, pl.concat(scores), HELD_OUT, facts)


def _train(config: TrainConfig, data: PreparedData, folder: Path, report: Callable[[int], None]) -> None:
    """Train in this process alone."""
    train(
        config,
        data,
        folder,
        wrap=lambda module: module,
        sum_over_workers=lambda values: values,
        report=lambda metrics, _save: report(metrics["iteration"]),
        rank=0,
        world=1,
        device=find_device(),
        restore=None,
    )


def _after(done: int, report: Callable[[int], None]) -> Callable[[int], None]:
    """Return what reports the iterations of a training that follows others."""
    return lambda iteration: report(done + iteration)
