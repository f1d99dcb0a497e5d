"""Interruption: SIGTERM (from `timeout`, Slurm or Kubernetes) and a lost terminal end a command as Ctrl-C does."""

import atexit
import os
import signal
import threading
from types import FrameType
from typing import Final

EXIT_CODE: Final = 1
"""Exit code of a command that was interrupted."""
_DEFAULTS: Final = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
_received: Final[list[int]] = []
_leaving: Final = threading.Event()


def listen() -> None:
    """Make the signals that ask a command to end interrupt it, unless they are ignored, as under ``nohup``."""
    _received.clear()
    for number, default in _DEFAULTS.items():
        if signal.getsignal(number) is default:
            signal.signal(number, _interrupt)
    atexit.register(_ignore)  # among the last functions: soon after it Python calls no handler any more


def heed() -> None:
    """Interrupt the main thread again if it was asked to end but is still running.

    Python drops an exception that a signal handler raises within a destructor or a callback of the import system, and
    some libraries catch it.

    Raises
    ------
    KeyboardInterrupt
        If it was asked to end.
    """
    if _received and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def leave() -> None:
    """Say that the command is over: once Python ends, which may take a second, a signal ends the process at once."""
    atexit.register(_leaving.set)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if _leaving.is_set():
        os._exit(EXIT_CODE)
    _received.append(number)
    raise KeyboardInterrupt


def _ignore() -> None:
    for number in _DEFAULTS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)
