"""How an output folder of ``infer`` is recognised, and whether its last run has ended."""

import logging
from pathlib import Path
from typing import Final

from cohortseg.errors import ConfigError
from cohortseg.store.files import store_errors
from cohortseg.store.layout import STATE
from cohortseg.store.schemas import BURDEN

_UNFINISHED: Final = "unfinished"
"""Present while masks and pictures may be newer than the tables."""
_log: Final = logging.getLogger(__name__)


def note_unfinished(out: Path, *, unfinished: bool) -> None:
    """Record whether a run is at work or was interrupted, for `require_output`.

    Raises
    ------
    StoreError
        If it cannot be recorded.
    """
    path = out / STATE / _UNFINISHED
    with store_errors(path, "cannot be written"):
        if unfinished:
            path.touch()
        else:
            path.unlink(missing_ok=True)


def require_output(out: Path) -> None:
    """Refuse a folder that no finished run of ``infer`` has written; warn if the last run there was interrupted.

    Raises
    ------
    ConfigError
        If it holds no burden table.
    """
    broken_off = (out / STATE / _UNFINISHED).exists()
    if broken_off and not (out / BURDEN.file_name).is_file():
        raise ConfigError(f"{out}: the infer here has not ended; run the same command again")
    if not (out / BURDEN.file_name).is_file():
        raise ConfigError(f"{out}: no {BURDEN.file_name} here; give an output folder of 'cohortseg infer'")
    if broken_off:
        _log.warning(
            "%s: the last infer here was broken off, or is at work: masks and pictures may be newer than the tables; "
            "run the same command again first",
            out,
        )
