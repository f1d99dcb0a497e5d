"""How long work tells how far it is."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Report = Callable[[int, int | None, str], None]
"""Takes what is done, of how much (None: not known yet), and a short text."""
Progress = Callable[[str], AbstractContextManager[Report]]
"""Opens the progress display of one stage, named by its title."""


def silent(_done: int, _total: int | None, _text: str) -> None:
    """Report nothing."""
