"""Scans and runs in tests: the only series of a folder, and reports of progress, one of which takes a file away."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from cohortseg.config import InferConfig
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.pipeline import InferSummary, infer_cohort

Progress = Callable[[str], AbstractContextManager[Callable[..., None]]]


def only_series(root: Path) -> SeriesRecord:
    """Return the one series of a folder."""
    (record,) = scan_cohort(root).series
    return record


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


def run(cohort: Path, out: Path, model_path: Path, **settings: object) -> InferSummary:
    """Infer in this process."""
    config = InferConfig(engine="local", **settings)
    return infer_cohort(cohort, out, config=config, model_path=model_path, progress=silent)
