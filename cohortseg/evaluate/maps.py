"""What an evaluation saves for each image: its picture, label maps and 8-bit probability maps."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cohortseg.evaluate.score import eight_bit, label_map
from cohortseg.labels import LESIONS
from cohortseg.overlays import png_bytes
from cohortseg.store.files import store_errors
from cohortseg.store.layout import PICTURES

_LABELS: Final = "labels"
_MAPS: Final = "maps"


def write_picture(folder: Path, name: str, picture: Image.Image) -> None:
    """Write ``folder/pictures/<name>.png``.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    _save(folder / PICTURES / f"{name}.png", picture)


def write_maps(folder: Path, name: str, prob: NDArray[np.float32]) -> None:
    """Write ``labels/<name>.png`` (0, 1, 2) and ``maps/{ggo,consolidation}/<name>.png`` (8-bit probability).

    These are the very maps that are scored, in the sizes, orientation and folders that the toolbox reads.

    Parameters
    ----------
    folder
        Output folder.
    name
        Name of the image.
    prob : (3, H, W), float32, [0, 1]
        Probability of each class at the image's own size and orientation.

    Raises
    ------
    StoreError
        If a file cannot be written.
    """
    _save(folder / _LABELS / f"{name}.png", Image.fromarray(label_map(prob)))
    for label in LESIONS:
        _save(folder / _MAPS / label.name / f"{name}.png", Image.fromarray(eight_bit(prob[label.value])))


def remove_pictures(folder: Path, names: Iterable[str]) -> None:
    """Remove the pictures and maps of some images, so that a toolbox finds those of one evaluation only.

    Raises
    ------
    StoreError
        If one cannot be removed.
    """
    with store_errors(folder, "what an earlier evaluation left cannot be removed"):
        for name in names:
            for place in (PICTURES, _LABELS, *(f"{_MAPS}/{label.name}" for label in LESIONS)):
                (folder / place / f"{name}.png").unlink(missing_ok=True)


def _save(path: Path, picture: Image.Image) -> None:
    with store_errors(path, "cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(picture))
