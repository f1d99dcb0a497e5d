"""The checkpoints in a run's folder: which one to resume from, and what is said of those that are damaged."""

import logging
import shutil
from pathlib import Path
from typing import Final

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


def warn_of_lost_work(run: Path) -> None:
    """Warn of checkpoints of an earlier start that are damaged or gone; workers see it too, but have no terminal.

    Raises
    ------
    StoreError
        If storage does not let a checkpoint be read.
    """
    folders = _checkpoints_of(run)
    damaged = [folder for folder in folders if not is_whole(folder)]
    for folder in damaged:
        _log.warning("%s is damaged: it is passed over", folder)
    if len(damaged) == len(folders) and read_history(run):
        _log.warning("%s holds no whole checkpoint: training begins again", run / CHECKPOINTS)


def remove_older(run: Path, num_kept: int) -> None:
    """Remove all checkpoints but the newest ones; what cannot be removed stays."""
    for folder in _checkpoints_of(run)[:-num_kept]:
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints_of(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the newest last."""
    return sorted(path for path in (run / CHECKPOINTS).glob("checkpoint_*") if path.is_dir())
