"""A whole training run: which data, its folder, the prepared slices, and the loop on Ray."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cohortseg.cluster import check_here, cluster_address, cluster_with_room
from cohortseg.config import TrainConfig
from cohortseg.datasets import covid_semiseg, folders
from cohortseg.datasets.preparation import prepare
from cohortseg.datasets.prepared import write_prepared
from cohortseg.datasets.slices import DicomSlices, ImageSlice
from cohortseg.errors import CohortSegError, ConfigError
from cohortseg.preprocess import ORIENTATIONS
from cohortseg.progress import Progress, no_progress
from cohortseg.store.layout import DATA
from cohortseg.train.fit import fit, is_finished
from cohortseg.train.folder import (
    DataOptions,
    begin_run,
    changed_settings,
    check_resumable,
    claimed_run,
    discard_run,
    reopen_run,
)
from cohortseg.train.history import read_history
from cohortseg.train.loop import MODEL
from cohortseg.train.state import check_imagenet
from cohortseg.train.teachers import load_teachers, taught

_log: Final = logging.getLogger(__name__)

Sources = list[ImageSlice | DicomSlices]


def train_model(
    config: TrainConfig,
    run: Path,
    options: DataOptions,
    *,
    resume: bool = False,
    num_workers: int | None = None,
    cpus_per_worker: float | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Train both phases into a run folder and return the model file.

    Parameters
    ----------
    config
        The settings.
    run
        The run's folder: new or empty, or with ``resume`` that of a run that stopped.
    options
        The data. On ``resume``, options not given stay as they were.
    resume
        Resume the run in the folder; if it is finished, nothing is done.
    num_workers, cpus_per_worker, address
        As in `fit`.
    progress
        Shows the progress of preparing slices and of training.

    Raises
    ------
    ConfigError
        If options, settings, folder and workers do not fit together.
    DataError, DicomError, GeometryError
        If data cannot be used; a new run then leaves no folder behind.
    CohortSegError
        If training fails.
    """
    config, options = config.resolved(), options.resolved()
    if cluster_address(address) is None:
        check_here(num_workers, cpus_per_worker, cpus_flag=True)
    _check_options(options, config, resume=resume)
    if not resume:
        check_imagenet(config)
    elif is_finished(run):
        check_resumable(run, config, _with_data(options) if options.data is not None else options)
        changed = changed_settings(run, config)
        kept = f"; {', '.join(changed)} stay as they were" if changed else ""
        _log.warning("%s: the run is finished, nothing is done%s", run, kept)
        return run / MODEL
    ready = _reopened(run, config, options, progress) if resume else _begun(run, config, options, progress)
    room = cluster_with_room(address, num_workers, cpus_per_worker, cpus_flag=True)
    with room, ready, progress("Training") as report:
        return fit(
            config,
            run,
            num_workers=num_workers,
            cpus_per_worker=cpus_per_worker,
            address=address,
            on_history=lambda row: report(row["iteration"], row["total_iterations"], _line(row)),
        )


@contextmanager
def _begun(run: Path, config: TrainConfig, options: DataOptions, progress: Progress) -> Iterator[None]:
    """Lock the folder of a new run and prepare its data; if they prove unusable, leave nothing behind."""
    options = _with_data(options)
    found = _sources(options, semi=config.needs_unlabeled)
    with claimed_run(run, new=True):
        begin_run(run, config, options)
        try:
            _prepare(run, *found, options.teachers or (), config, progress)
        except CohortSegError:
            discard_run(run)
            raise
        yield


@contextmanager
def _reopened(run: Path, config: TrainConfig, options: DataOptions, progress: Progress) -> Iterator[None]:
    """Lock the folder of a run to resume; prepare its data again if it was killed while preparing them."""
    if options.data is not None:
        options = _with_data(options)
    with claimed_run(run, new=False):
        if not (run / DATA).is_file() and read_history(run):
            # Slices prepared now may differ from those that it has learned from.
            raise ConfigError(f"{run / DATA}: is missing, and training had begun; put it back, or begin a new run")
        options = reopen_run(run, config, options)
        if not (run / DATA).is_file():
            found = _sources(options, semi=config.needs_unlabeled)
            _prepare(run, *found, options.teachers or (), config, progress)
        yield


def _with_data(options: DataOptions) -> DataOptions:
    """Return the options with the folder of COVID-SemiSeg filled in, unless they name labelled images."""
    if options.labeled is not None:
        return options
    data = covid_semiseg.find_data(None if options.data is None else Path(options.data))
    return replace(options, data=str(data.resolve()))


def _check_options(options: DataOptions, config: TrainConfig, *, resume: bool) -> None:
    """Refuse options that exclude each other, or lack what a phase needs; on resume, omitted ones are as they were."""
    if not resume:
        _check_teachers(options, config)
    if config.needs_unlabeled and options.labeled is not None and options.unlabeled is None and not resume:
        if config.batch_pseudo:
            raise ConfigError("teachers label what --unlabeled holds: add it")
        raise ConfigError(
            "phase 2 needs --unlabeled; --preset labels learns from labels alone, and so does phase 1 by itself "
            "(semi_supervised = false in a --config file)"
        )
    if options.unlabeled is not None and not config.needs_unlabeled:
        raise ConfigError("--unlabeled is for phase 2: these settings (semi_supervised, weights) make no use of it")
    if options.unlabeled is not None and options.labeled is None and not resume:
        raise ConfigError("--unlabeled goes with --labeled")
    if options.data is not None and options.labeled is not None:
        raise ConfigError("--data and --labeled exclude each other")
    if options.labeled is not None and options.holdout is not None:
        raise ConfigError("--holdout is about COVID-SemiSeg; with --labeled keep images out by hand")
    if options.orientation is not None and options.labeled is None and (options.data is not None or not resume):
        raise ConfigError("--orientation goes with --labeled; how the images of COVID-SemiSeg lie is known")


def _check_teachers(options: DataOptions, config: TrainConfig) -> None:
    """Refuse teachers without slices to learn from them, and the other way round."""
    if options.teachers and not config.batch_pseudo:
        raise ConfigError("--teacher goes with --preset student, or batch_pseudo in a --config file")
    if config.batch_pseudo and not options.teachers:
        raise ConfigError(
            "--preset student (batch_pseudo) needs models that label the unlabelled slices: --teacher MODEL, one or "
            "several; --preset labels trains them"
        )


def _sources(options: DataOptions, *, semi: bool) -> tuple[Sources, Sources, str]:
    """Return labelled and unlabelled sources, and the terms of a model trained on them."""
    if options.labeled is None:
        root = covid_semiseg.find_data(None if options.data is None else Path(options.data))
        labelled = covid_semiseg.labeled_slices(root, "train" if options.meant("holdout") else "all")
        return list(labelled), list(covid_semiseg.unlabeled_slices(root)) if semi else [], covid_semiseg.TERMS
    lies = ORIENTATIONS[options.meant("orientation")]
    unlabelled: Sources = []
    if options.unlabeled is not None and semi:
        unlabelled = folders.unlabeled_folder(Path(options.unlabeled), lies)
    return list(folders.labeled_folder(Path(options.labeled), lies)), unlabelled, folders.TERMS


def _prepare(
    run: Path,
    labelled: Sources,
    unlabelled: Sources,
    terms: str,
    teachers: Sequence[str],
    config: TrainConfig,
    progress: Progress,
) -> None:
    models = load_teachers(teachers, config)
    with progress("Preparing slices") as report:
        data = prepare(labelled, unlabelled, config.canonical, terms, report)
        write_prepared(run / DATA, taught(data, models, report) if models else data)
    size = config.canonical.size
    _log.info("%d labelled and %d unlabelled sources, %d pixels square", len(labelled), len(unlabelled), size)


def _line(row: dict[str, Any]) -> str:
    """Return a short text with phase, losses and speed of a line of the history."""
    names: dict[str, Callable[[float], str]] = {
        "ce": "ce {:.3f}".format,
        "dice": "dice loss {:.3f}".format,
        "semi": "semi {:.3f}".format,
        "discriminator": "D {:.2f}".format,
        "trusted": "trusted {:.0%}".format,
        "images_per_s": "{:.1f} img/s".format,
    }
    parts = [show(row[name]) for name, show in names.items() if name in row]
    return f"phase {row['phase']}  {' '.join(parts)}"
