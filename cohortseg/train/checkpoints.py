"""The checkpoints in a run's folder: which one to resume from, and what is said of those that are damaged."""

import logging
import shutil
from pathlib import Path
from typing import Final

from cohortseg.store.files import store_errors
from cohortseg.train.history import read_history
from cohortseg.train.state import is_whole

CHECKPOINTS: Final = "checkpoints"
_log: Final = logging.getLogger(__name__)


def checkpoint_name(iteration: int) -> str:
    """Return the name of the folder of a checkpoint; names are in the order of their iterations."""
    return f"checkpoint_{iteration:08d}"


def newest_whole(run: Path) -> Path | None:
    """Return the folder of the newest checkpoint that is whole; None if none is.

    Raises
    ------
    StoreError
        If storage does not let a checkpoint be read.
    """
    return next(filter(is_whole, reversed(_checkpoints_of(run))), None)


def tidy_checkpoints(run: Path, num_kept: int) -> None:
    """Keep the newest whole checkpoints, remove all before them, and warn of damaged ones and of lost work.

    Workers see what is damaged too, but have no terminal. What cannot be removed stays.

    Raises
    ------
    StoreError
        If storage does not let a checkpoint be read.
    """
    num_whole = 0
    for folder in reversed(_checkpoints_of(run)):
        if num_whole == num_kept:
            shutil.rmtree(folder, ignore_errors=True)
        elif is_whole(folder):
            num_whole += 1
        else:
            _log.warning("%s is damaged: it is passed over", folder)
    if not num_whole and read_history(run):
        _log.warning("%s holds no whole checkpoint: training begins again", run / CHECKPOINTS)


def _checkpoints_of(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the newest last."""
    folder = run / CHECKPOINTS
    with store_errors(folder, "cannot be read"):
        try:
            return sorted(path for path in folder.iterdir() if path.name.startswith("checkpoint_") and path.is_dir())
        except FileNotFoundError:
            return []
