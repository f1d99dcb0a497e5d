"""Interruption: SIGTERM (from `timeout`, Slurm or Kubernetes) and a lost terminal end a command as Ctrl-C does."""

import signal
import threading
from types import FrameType
from typing import Final, NoReturn

_received: Final[list[int]] = []


def listen() -> None:
    """Make the signals that ask a command to end interrupt it, unless they are ignored, as under ``nohup``."""
    for number, default in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is default:
            signal.signal(number, _interrupt)


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


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt
