"""What an evaluation draws and saves for each image: overlays, label maps and 8-bit probability maps."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cohortseg.errors import StoreError
from cohortseg.evaluate.score import eight_bit, label_map
from cohortseg.labels import LESIONS
from cohortseg.overlays import overlay_slice

_CAPTION_PX: Final = 16
_GAP_PX: Final = 4
_INK: Final = (235, 235, 235)


def overlay_pair(slice_hu: NDArray[np.int16], truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> Image.Image:
    """Return truth (left) and prediction (right) over the CT.

    Parameters
    ----------
    slice_hu : (H, W) HU
        The CT, upright.
    truth, predicted : (H, W), uint8
        Label maps, upright: 0, 1, 2.
    """
    height, width = slice_hu.shape
    sheet = Image.new("RGB", (2 * width + _GAP_PX, height + _CAPTION_PX))
    draw = ImageDraw.Draw(sheet)
    for left, caption, labels in ((0, "truth", truth), (width + _GAP_PX, "prediction", predicted)):
        draw.text((left + 3, 2), caption, fill=_INK)
        sheet.paste(Image.fromarray(overlay_slice(slice_hu, labels)), (left, _CAPTION_PX))
    return sheet


def write_picture(folder: Path, name: str, picture: Image.Image) -> None:
    """Write ``folder/pictures/<name>.png``.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    _save(folder / "pictures" / f"{name}.png", picture)


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
    _save(folder / "labels" / f"{name}.png", Image.fromarray(label_map(prob)))
    for label in LESIONS:
        _save(folder / "maps" / label.name / f"{name}.png", Image.fromarray(eight_bit(prob[label.value])))


def _save(path: Path, picture: Image.Image) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
