"""Ray Train around the loop: workers, checkpoints, restarts. The only place in training that knows Ray."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed

from cohortseg.cluster import (
    PACKAGE_SHA256,
    WorkerRequest,
    advice,
    connected,
    followed,
    one_line,
    require_same_package,
    worker_request,
)
from cohortseg.config import TrainConfig, config_from_mapping
from cohortseg.datasets.prepared import load_prepared, teachers_of
from cohortseg.errors import CohortSegError, DataError, DivergedError, ModelError, StoreError, WorkerError
from cohortseg.hashes import file_sha256
from cohortseg.store.files import scratch_folder, store_errors
from cohortseg.store.layout import DATA
from cohortseg.store.provenance import read_run_json, write_run_json
from cohortseg.train.checkpoints import CHECKPOINTS, checkpoint_name, newest_whole, tidy_checkpoints
from cohortseg.train.folder import saved_options
from cohortseg.train.history import HISTORY, read_history
from cohortseg.train.loop import MODEL, train

_COMMAND: Final = "train"
_MAX_FAILURES: Final = 3
_MAX_CONTROLLER_FAILURES: Final = 2
_KEPT_CHECKPOINTS: Final = 2
_POLL_S: Final = 0.5
_RAY_LIST: Final = "checkpoint_manager_snapshot.json"
"""File in which Ray Train lists the checkpoints; it writes it in place."""


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
        The run's folder, held by `claimed_run`, with settings and prepared data in it. All nodes must see it under the
        same path. Training resumes from checkpoints of an earlier start in it.
    num_workers, cpus_per_worker
        None: chosen from the resources there are.
    address
        A running Ray cluster; None: this machine.
    on_history
        Takes each new line of the history, from another thread.

    Raises
    ------
    ConfigError
        If the workers do not fit.
    StoreError
        If checkpoints or model cannot be written or read.
    DataError, ModelError
        If the prepared slices or the ImageNet weights cannot be used.
    DivergedError
        If a loss is no longer a finite number.
    WorkerError
        If Ray or a worker fails.
    """
    start = time.perf_counter()
    run = run.resolve()
    with connected(address) as resources:
        request = worker_request(num_workers, cpus_per_worker, resources)
        request.check(resources, cpus_flag=True)
        tidy_checkpoints(run, _KEPT_CHECKPOINTS)
        with store_errors(run / CHECKPOINTS):  # a list that is cut off or names what is gone keeps Ray from starting
            (run / CHECKPOINTS / _RAY_LIST).unlink(missing_ok=True)
        with _following(run, on_history):
            counts = _run_trainer(config, run, request)
    if not (run / MODEL).is_file():
        raise StoreError(f"{run}: the workers left no {MODEL} here; the folder must be on storage that all nodes share")
    facts = {
        "config": asdict(config),
        "data": asdict(saved_options(run)) | {"teachers_sha256": teachers_of(run / DATA)},
        "counts": counts,
        "workers": asdict(request),
        "model": {"sha256": file_sha256(run / MODEL)},
        "timings": {"total_s": round(time.perf_counter() - start, 1)},
    }
    write_run_json(run, _COMMAND, facts)
    with suppress(StoreError):  # Ray does not know of those that earlier starts left; the model is there
        tidy_checkpoints(run, _KEPT_CHECKPOINTS)
    return run / MODEL


def is_finished(run: Path) -> bool:
    """Return whether a run's folder holds the model of its last iteration."""
    return (run / MODEL).is_file() and read_run_json(run).get("command") == _COMMAND


def _run_trainer(config: TrainConfig, run: Path, request: WorkerRequest) -> dict[str, int]:
    """Train on Ray's workers and return the numbers of slices used."""
    import ray.exceptions
    import ray.train
    import ray.train.torch

    trainer = ray.train.torch.TorchTrainer(
        _train_worker,  # type: ignore[arg-type]  # the stub is of Train V1, where workers return nothing
        train_loop_config={
            "config": asdict(config),
            "run": str(run),
            "threads": request.num_threads,
            "package_sha256": PACKAGE_SHA256,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=request.num_workers,
            use_gpu=request.gpus_per_worker > 0,
            resources_per_worker={"CPU": request.cpus_per_worker}
            | ({"GPU": request.gpus_per_worker} if request.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=str(run),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]  # the stub is of Train V1
                max_failures=_MAX_FAILURES, controller_failure_limit=_MAX_CONTROLLER_FAILURES
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
        ),
    )
    try:
        outcome: dict[str, int] | CohortSegError = trainer.fit().return_value  # type: ignore[attr-defined]
    except ray.train.WorkerGroupError as error:
        causes = {str(cause) for cause in error.worker_failures.values()}
        for cause in error.worker_failures.values():
            if isinstance(cause, CohortSegError):
                raise cause from error
        raise WorkerError(f"training failed on a worker: {'; '.join(sorted(causes))}; go on with --resume") from error
    except SystemExit as error:  # Ray's answer to Ctrl-C
        raise KeyboardInterrupt from error
    except ray.train.ControllerError as error:
        failure = error.controller_failure
        starts = type(failure).__name__.startswith("WorkerGroupStartup")
        what = "Ray could not start the workers" if starts else "Ray ended the training"
        said = one_line(str(failure))
        raise WorkerError(f"{what}: {said}; {advice(said, 'go on with --resume')}") from error
    except ray.exceptions.RayActorError as error:
        what = f"training ended with one of Ray's own processes: {type(error).__name__}; go on with --resume"
        raise WorkerError(what) from error
    if isinstance(outcome, CohortSegError):
        raise outcome
    return outcome


def _train_worker(settings: dict[str, Any]) -> dict[str, int] | CohortSegError:
    """Set up the process of a Ray worker, and run the training loop in it.

    Returns
    -------
    dict or CohortSegError
        The numbers of slices, or an error that would recur: after an error that a worker raises, Ray tries again. Only
        errors that all workers meet are returned: Ray takes a return for a good end, and other workers would wait for
        this one forever.
    """
    require_same_package(settings["package_sha256"])
    import ray.train
    import ray.train.collective
    import ray.train.torch

    torch.set_num_threads(settings["threads"])
    config = config_from_mapping(TrainConfig, settings["config"])
    run = Path(settings["run"])
    context = ray.train.get_context()

    def report(metrics: dict[str, Any], save: Callable[[Path], None] | None) -> None:
        if save is None:
            ray.train.report(metrics)
            return
        with scratch_folder(run / "checkpoint") as folder:
            save(folder)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=checkpoint_name(metrics["iteration"]))

    def train_from(restore: Path | None) -> dict[str, int]:
        data = load_prepared(run / DATA)
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
        return {"labeled_slices": len(data.labeled), "unlabeled_slices": len(data.unlabeled)}

    # One worker looks and tells the others: at one moment not all nodes may see the same on shared storage.
    restore = newest_whole(run) if context.get_world_rank() == 0 else None
    try:
        return train_from(ray.train.collective.broadcast_from_rank_zero(restore))
    except (DivergedError, DataError, ModelError) as error:
        if isinstance(error, DivergedError) or context.get_world_size() == 1:
            return error
        raise


def _sum_over_workers(values: torch.Tensor) -> torch.Tensor:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


@contextmanager
def _following(run: Path, on_history: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Read the growing history in a thread, and pass each new line to a function, until the block ends."""
    path = run / HISTORY

    def follow(stop: threading.Event) -> None:
        seen = max((row["iteration"] for row in read_history(run)), default=0)
        stopping, size = False, 0
        while not stopping:
            stopping = stop.wait(_POLL_S)
            before, size = size, path.stat().st_size if path.is_file() else 0
            if size == before:  # reading all of a long history takes a while
                continue
            rows = read_history(run)
            seen = min(seen, rows[-1]["iteration"] if rows else 0)  # training resumes before a killed run's last line
            for row in rows:
                if row["iteration"] > seen:
                    seen = row["iteration"]
                    on_history(row)

    with followed(follow):
        yield
