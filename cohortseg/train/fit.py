"""Ray Train around the loop: workers, checkpoints, restarts. The only place in training that knows Ray."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed

from cohortseg.cluster import Resources, connected, followed, local_resources, require_workers
from cohortseg.config import ImageOrientation, TrainConfig, config_from_mapping
from cohortseg.datasets.prepared import load_prepared
from cohortseg.errors import CohortSegError, ConfigError, DivergedError, StoreError
from cohortseg.store.files import locked, sweep_temporaries, write_file
from cohortseg.store.provenance import write_run_json
from cohortseg.train.history import read_history
from cohortseg.train.loop import MODEL, train
from cohortseg.train.state import check_same_settings, is_whole, newest_whole

_log: Final = logging.getLogger(__name__)

DATA = "data.safetensors"
SETTINGS = "settings.json"
_DATA_OPTIONS = "data-options.json"
_LOCK = ".lock"

_RAY_FOLDER = "checkpoints"
_MAX_FAILURES = 3
_MAX_CONTROLLER_FAILURES = 2
_KEPT_CHECKPOINTS = 2
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerRequest:
    """How many workers, and what each needs."""

    num_workers: int
    cpus_per_worker: float
    """Also, rounded down, the number of threads of each."""
    gpus_per_worker: float

    def check(self, resources: Resources) -> None:
        """Refuse workers that do not fit.

        Raises
        ------
        ConfigError
            Saying what is missing and which flags would fit.
        """
        require_workers(self.num_workers, self.cpus_per_worker, self.gpus_per_worker, resources)


def worker_request(num_workers: int | None, cpus_per_worker: float | None, resources: Resources) -> WorkerRequest:
    """Return the request of a user who may have left things open: one worker a GPU, or one with the cores of a node."""
    gpus = int(resources.num_gpus)
    count = num_workers or max(gpus, 1)
    gpus_per_worker = 1.0 if gpus else 0.0
    cpus = cpus_per_worker or max(1.0, float(int(resources.largest_share(count, gpus_per_worker))))
    return WorkerRequest(num_workers=count, cpus_per_worker=cpus, gpus_per_worker=gpus_per_worker)


def check_local(num_workers: int | None, cpus_per_worker: float | None) -> None:
    """Refuse, before any other work, workers that this machine cannot hold.

    Raises
    ------
    ConfigError
        Saying what is missing and which flags would fit.
    """
    resources = local_resources()
    worker_request(num_workers, cpus_per_worker, resources).check(resources)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which slices a run is asked to train on; None means "not said"."""

    data: str | None = None
    """COVID-SemiSeg folder, absolute."""
    labeled: str | None = None
    """Folder of labelled images of the user's own, absolute."""
    unlabeled: str | None = None
    """Folder of unlabelled ones, absolute."""
    orientation: ImageOrientation | None = None
    """How 8-bit images of the user's own lie; not said: upright."""
    holdout: bool | None = None
    """Whether the validation images of COVID-SemiSeg are kept out; not said: they are."""


def open_run(run: Path, config: TrainConfig, options: DataOptions | None = None, *, resume: bool) -> DataOptions:
    """Make a run's folder and note its settings there; refuse one with other content, or one that cannot be gone on in.

    Returns
    -------
    DataOptions
        Those that the run began with: what is not said on resume is as it was.

    Raises
    ------
    ConfigError
        If the folder holds a run and ``resume`` is false, or holds none, or one with other settings or data, and it is
        true.
    StoreError
        If it cannot be written.
    """
    settings, sources = run / SETTINGS, run / _DATA_OPTIONS
    options = options or DataOptions()
    if not resume:
        if run.exists() and (not run.is_dir() or _holds_anything(run)):
            raise ConfigError(f"{run}: is not empty; go on with --resume, or choose another folder with -o")
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{run}: cannot be made: {error}") from error
        _write_json(sources, options)
        _write_json(settings, config)
        return options
    check_same_settings(asdict(saved_settings(run)), config)
    if not sources.is_file():  # a run that an earlier version began
        _write_json(sources, options)
    before = config_from_mapping(DataOptions, _read_json(sources))
    differing = [
        f"{item.name} was {getattr(before, item.name)!r}, is {value!r}"
        for item in fields(DataOptions)
        if (value := getattr(options, item.name)) not in (None, getattr(before, item.name))
    ]
    if differing:
        raise ConfigError(f"cannot resume on other data: {'; '.join(differing)}; use a new run folder")
    _write_json(settings, config)  # what may differ holds from now on
    return before


def _holds_anything(run: Path) -> bool:
    """Return whether a folder holds more than a start leaves that was killed before it noted its settings."""
    sweep_temporaries(run)
    return any(path.name != _DATA_OPTIONS for path in run.iterdir())


def discard_run(run: Path) -> None:
    """Take back `open_run` of a new run whose data proved unusable: once they are mended, the same command works."""
    with suppress(OSError):
        for name in (SETTINGS, _DATA_OPTIONS):
            (run / name).unlink(missing_ok=True)
        run.rmdir()


def saved_settings(run: Path) -> TrainConfig:
    """Return the settings that a run was begun with.

    Raises
    ------
    ConfigError
        If the folder holds no run, or its settings cannot be read.
    """
    if not (run / SETTINGS).is_file():
        raise ConfigError(f"{run}: holds no run to resume")
    return config_from_mapping(TrainConfig, _read_json(run / SETTINGS))


def _write_json(path: Path, record: DataOptions | TrainConfig) -> None:
    write_file(path, json.dumps(asdict(record), indent=1).encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds no settings")
    return document


def fit(
    config: TrainConfig,
    run: Path,
    *,
    num_workers: int | None = None,
    cpus_per_worker: float | None = None,
    address: str | None = None,
    on_history: Callable[[dict[str, Any]], None] = lambda _row: None,
) -> Path:
    """Train on Ray workers and return the model file.

    Parameters
    ----------
    config
        The settings.
    run
        The run's folder from `open_run`, which holds the prepared data. All nodes must see it under the same path.
        Checkpoints of an earlier start in it are gone on from.
    num_workers, cpus_per_worker
        None: found from what there is.
    address
        A running Ray cluster; None: this machine.
    on_history
        Takes each new line of the history, from another thread.

    Raises
    ------
    ConfigError
        If the workers do not fit.
    StoreError
        If another process trains in the folder.
    CohortSegError
        If training fails.
    """
    start = time.perf_counter()
    run = run.resolve()
    with _claimed(run), connected(address) as resources:
        request = worker_request(num_workers, cpus_per_worker, resources)
        request.check(resources)
        _warn_of_damage(run / _RAY_FOLDER)
        with _following(run, on_history):
            counts = _run_trainer(config, run, request)
    if not (run / MODEL).is_file():
        raise StoreError(f"{run}: the workers left no {MODEL} here; the folder must be on storage that all nodes share")
    facts = {
        "config": asdict(config),
        "data": _read_json(run / _DATA_OPTIONS),
        "counts": counts,
        "workers": asdict(request),
        "model": {"sha256": hashlib.sha256((run / MODEL).read_bytes()).hexdigest()},
        "timings": {"total_s": round(time.perf_counter() - start, 1)},
    }
    write_run_json(run, "train", facts)
    return run / MODEL


def _claimed(run: Path) -> AbstractContextManager[None]:
    """Hold the run's folder, so that no second training writes into it."""
    busy = f"{run}: another cohortseg train is at work here; wait for it, or choose another -o"
    return locked(run, run / _LOCK, use="a run folder", busy=lambda: busy)


def _warn_of_damage(checkpoints: Path) -> None:
    """Say which checkpoints of an earlier start are damaged; the workers, which pass over them, have no terminal."""
    for folder in sorted(checkpoints.iterdir() if checkpoints.is_dir() else ()):
        if folder.is_dir() and not is_whole(folder):
            _log.warning("%s is damaged: training goes on from the checkpoint before", folder)


def _run_trainer(config: TrainConfig, run: Path, request: WorkerRequest) -> dict[str, int]:
    """Train on Ray's workers and return the numbers of slices that took part."""
    import ray.exceptions
    import ray.train
    import ray.train.torch
    from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError

    trainer = ray.train.torch.TorchTrainer(
        _train_worker,  # type: ignore[arg-type]  # the stub is of Train V1, where workers return nothing
        train_loop_config={"config": asdict(config), "run": str(run), "threads": max(1, int(request.cpus_per_worker))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=request.num_workers,
            use_gpu=request.gpus_per_worker > 0,
            resources_per_worker={"CPU": request.cpus_per_worker}
            | ({"GPU": request.gpus_per_worker} if request.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            name=_RAY_FOLDER,
            storage_path=str(run),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]  # the stub is of Train V1
                max_failures=_MAX_FAILURES, controller_failure_limit=_MAX_CONTROLLER_FAILURES
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
        ),
    )
    try:
        outcome: dict[str, int] | str = trainer.fit().return_value  # type: ignore[attr-defined]
    except ray.train.WorkerGroupError as error:
        causes = {str(cause) for cause in error.worker_failures.values()}
        for cause in error.worker_failures.values():
            if isinstance(cause, CohortSegError):
                raise cause from error
        raise CohortSegError(f"training failed on a worker: {'; '.join(sorted(causes))}") from error
    except SystemExit as error:  # Ray's answer to Ctrl-C
        raise KeyboardInterrupt from error
    except (CheckpointManagerInitializationError, ray.exceptions.RayActorError) as error:
        # Raised in the controller's constructor, it comes as the death of an actor.
        if CheckpointManagerInitializationError.__name__ not in f"{type(error)}{error}":
            raise CohortSegError(f"training ended with one of Ray's own processes: {type(error).__name__}") from error
        raise StoreError(
            f"{run / _RAY_FOLDER}: its checkpoints are not those that its list names; start again in a new folder"
        ) from error
    except ray.train.ControllerError as error:
        raise CohortSegError(f"training could not be started: {error}") from error
    if isinstance(outcome, str):
        raise DivergedError(outcome)
    return outcome


def _train_worker(settings: dict[str, Any]) -> dict[str, int] | str:
    """Run in each Ray worker: set up the process, then the loop.

    Returns
    -------
    dict or str
        The numbers of slices, or why training diverged: what a worker raises, Ray tries again.
    """
    import ray.train
    import ray.train.torch

    torch.set_num_threads(settings["threads"])
    config = config_from_mapping(TrainConfig, settings["config"])
    run = Path(settings["run"])
    context = ray.train.get_context()

    data = load_prepared(run / DATA)

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report(metrics, checkpoint=checkpoint)

    def train_from(restore: Path | None) -> None:
        train(
            config,
            data,
            run,
            wrap=lambda module: ray.train.torch.prepare_model(module, move_to_device=False),
            sum_over_workers=_sum_over_workers,
            report=report,
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            device=ray.train.torch.get_device(),
            restore=restore,
        )

    checkpoint = ray.train.get_checkpoint()
    try:
        if checkpoint is None:
            train_from(None)
        else:
            with checkpoint.as_directory() as folder:
                train_from(newest_whole(Path(folder)))
    except DivergedError as error:
        return str(error)
    return {"labeled_slices": len(data.labeled), "unlabeled_slices": len(data.unlabeled)}


def _sum_over_workers(values: torch.Tensor) -> torch.Tensor:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


@contextmanager
def _following(run: Path, on_history: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Read the growing history in a thread and hand each new line on, until the block ends."""

    def follow(stop: threading.Event) -> None:
        seen = max((row["iteration"] for row in read_history(run)), default=0)
        stopping = False
        while not stopping:
            stopping = stop.wait(_POLL_S)
            for row in read_history(run):
                if row["iteration"] > seen:
                    seen = row["iteration"]
                    on_history(row)

    with followed(follow):
        yield
