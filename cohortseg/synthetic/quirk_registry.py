"""The list of quirks, and how a quirk states what must become of its files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cohortseg.synthetic.quirk_files import SHAPE, SPACING_MM, chest_hu, lung_ml

VOXEL_ML: Final = SPACING_MM[0] * SPACING_MM[1] * SPACING_MM[2] / 1000.0
CHEST_ML: Final = lung_ml(chest_hu(), VOXEL_ML)
"""Lung of the whole chest."""


_Write = Callable[[Path], "list[Expected]"]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a group of files must become; the fields are explained in the table's schema."""

    files: Sequence[Path]
    decision: str = "selected"
    reason: str | None = None
    status: str | None = None
    qc_flags: Sequence[str] = ()
    n_slices: int | None = None
    lung_volume_ml: float | None = None
    tolerance_pct: float = 0.0
    repair: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Quirk:
    """One oddity: its name, what it is, and what writes its files into a folder."""

    name: str
    meaning: str
    write: _Write


QUIRKS_KNOWN: Final[list[Quirk]] = []
"""Filled by `quirk`, in the order of the modules that define them."""


def quirk(meaning: str, name: str | None = None) -> Callable[[_Write], _Write]:
    """Register a quirk, named like its function unless ``name`` is given."""

    def register(function: _Write) -> _Write:
        QUIRKS_KNOWN.append(Quirk(name=name or function.__name__.strip("_"), meaning=meaning, write=function))
        return function

    return register


def measured(
    files: Sequence[Path], *flags: str, ml: float | None = CHEST_ML, n: int = SHAPE[0], **more: Any
) -> Expected:
    """Expect a volume with these flags and this much lung."""
    return Expected(files=files, status="ok", qc_flags=flags, n_slices=n, lung_volume_ml=ml, **more)


def skipped(files: Sequence[Path], reason: str, *flags: str) -> Expected:
    """Expect a skipped series, for this reason."""
    return Expected(files=files, decision="skipped", reason=reason, qc_flags=flags)
