"""The checkpoints in a run's folder, as Ray Train keeps them, and what to do about damaged ones and a damaged list."""

import logging
from pathlib import Path
from typing import Any, Final

from cohortseg.config import TrainConfig
from cohortseg.store.documents import parse_json
from cohortseg.store.files import store_errors
from cohortseg.train.history import read_history
from cohortseg.train.state import is_whole

CHECKPOINTS: Final = "checkpoints"
_LIST: Final = "checkpoint_manager_snapshot.json"
_log: Final = logging.getLogger(__name__)


def checkpoints_of(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the newest last: their names are in order of time."""
    return sorted(path for path in (run / CHECKPOINTS).glob("checkpoint_*") if path.is_dir())


def newest_whole(run: Path, listed: Path | None) -> Path | None:
    """Return the checkpoint to resume from: the newest on Ray's list or, if its file is damaged, the newest whole one.

    Parameters
    ----------
    run
        The run's folder.
    listed
        The newest checkpoint on Ray's list; None if it lists none.

    Returns
    -------
    Path or None
        The checkpoint's folder; None where none is whole.
    """
    candidates = [*([listed] if listed is not None else []), *reversed(checkpoints_of(run))]
    return next(filter(is_whole, candidates), None)


def mend_list(run: Path) -> None:
    """Move Ray's checkpoint list, which it writes in place, away where Ray cannot start with it.

    It is cut off, or names a checkpoint that is gone.

    Raises
    ------
    StoreError
        If it cannot be read or moved.
    """
    path = run / CHECKPOINTS / _LIST
    with store_errors(run):
        if not path.is_file():
            return
        try:
            named = _named_checkpoints(parse_json(path.read_bytes()))
        except ValueError:
            what = "is damaged"
        else:
            if all((path.parent / name).is_dir() for name in named):
                return
            what = "names checkpoints that are gone"
        path.replace(path.with_name(f"{path.name}.damaged"))
        _log.warning("%s %s: it is passed over", path, what)


def _named_checkpoints(document: Any) -> set[str]:
    """Return the names of all checkpoint folders in Ray's list, wherever in it they stand."""
    if isinstance(document, list):
        return set().union(*map(_named_checkpoints, document))
    if not isinstance(document, dict):
        return set()
    name = document.get("checkpoint_dir_name")
    return _named_checkpoints([*document.values()]) | ({name} if isinstance(name, str) else set())


def warn_of_lost_work(run: Path, config: TrainConfig) -> None:
    """Warn of checkpoints of an earlier start that are damaged or gone; workers see it too, but have no terminal."""
    folders = checkpoints_of(run)
    damaged = [folder for folder in folders if not is_whole(folder)]
    for folder in damaged:
        _log.warning("%s is damaged: it is passed over", folder)
    begun = any(row["iteration"] >= config.checkpoint_every for row in read_history(run))
    if begun and len(damaged) == len(folders):
        _log.warning("%s holds no whole checkpoint any more: training begins again", run / CHECKPOINTS)
