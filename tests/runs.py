"""Progress reports for runs in tests: silent ones, and one that takes a file away meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

Progress = Callable[[str], AbstractContextManager[Callable[..., None]]]


@contextmanager
def silent(_title: str) -> Iterator[Callable[..., None]]:
    yield lambda _done, _total, _text: None


def hiding(path: Path, away: Path) -> Progress:
    """Return a report that moves a file or folder away once segmentation begins, and back when it has ended well."""

    @contextmanager
    def progress(title: str) -> Iterator[Callable[..., None]]:
        if title == "Segmenting":
            path.rename(away)
        yield lambda *_: None
        if title == "Segmenting":
            away.rename(path)

    return progress
