"""How long-running work reports its progress."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Report = Callable[[int, int, str], None]
"""Takes the amount done, the total, and a short text."""
Progress = Callable[[str], AbstractContextManager[Report]]
"""Opens the progress display of one stage, named by its title."""


def silent(_done: int, _total: int, _text: str) -> None:
    """Report nothing."""


@contextmanager
def no_progress(_title: str) -> Iterator[Report]:
    """Show no progress of a stage."""
    yield silent
