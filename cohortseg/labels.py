"""The three classes: codes, names, colours and terminology, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class of a label map."""

    value: int
    """Pixel value in label maps."""
    name: str
    """Name as used in columns, folders and Zarr attributes."""
    title: str
    """Name for people."""
    rgb: tuple[int, int, int]
    """Overlay colour, as in the paper's figures 2 and 3."""
    colour: str
    """Name of the colour, for people."""


@dataclass(frozen=True, kw_only=True)
class Lesion(Label):
    """A class of lesion."""

    snomed_code: str
    """SNOMED CT concept identifier."""
    snomed_meaning: str
    """SNOMED CT preferred term."""


BACKGROUND: Final = Label(value=0, name="background", title="Background", rgb=(0, 0, 0), colour="black")
GGO: Final = Lesion(
    value=1,
    name="ggo",
    title="Ground-glass opacity",
    rgb=(230, 40, 40),
    colour="red",
    snomed_code="1217294009",
    snomed_meaning="Ground glass lung opacity",
)
CONSOLIDATION: Final = Lesion(
    value=2,
    name="consolidation",
    title="Consolidation",
    rgb=(40, 200, 60),
    colour="green",
    snomed_code="95436008",
    snomed_meaning="Lung consolidation",
)

LABELS: Final = (BACKGROUND, GGO, CONSOLIDATION)
"""All classes, in the order of their values."""
LESIONS: Final = (GGO, CONSOLIDATION)
"""The lesion classes; together they are called opacity."""
NUM_CLASSES: Final = len(LABELS)


def is_opacity(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where a label map holds a lesion of any class."""
    opacity: NDArray[np.bool_] = labels != BACKGROUND.value
    return opacity


RIGHT, LEFT = 1, 2
"""Values of lung masks: the patient's right and left lung; 0 is no lung."""
SIDES: Final = {"right": RIGHT, "left": LEFT}
UPPER, MIDDLE, LOWER = 3, 2, 1
"""Values of zone maps: thirds of each lung by height; 0 is no lung, or a height that is not known."""
ZONES: Final = {"upper": UPPER, "middle": MIDDLE, "lower": LOWER}
