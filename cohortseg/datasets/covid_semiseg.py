"""The COVID-SemiSeg data set (Fan et al. 2020) in its official folder layout."""

import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Final, Literal

from cohortseg.datasets.slices import IMAGE_ENDINGS, ImageSlice
from cohortseg.errors import ConfigError
from cohortseg.preprocess import QUARTER_TURNED, TRANSPOSED, Orientation
from cohortseg.store.files import visible_files

Split = Literal["train", "val", "test", "all"]

DATA_VARIABLE: Final = "COHORTSEG_DATA"
"""Environment variable that names the data folder when no option does."""
TERMS: Final = (
    "Trained on COVID-SemiSeg (Fan et al. 2020): for non-commercial use only, work derived from it included. "
    "Research software, not a medical device."
)
"""Terms of a model trained on this data set."""
_log: Final = logging.getLogger(__name__)

VALIDATION: Final = frozenset({"2", "14", "24", "34", "52"})
"""Names of the 5 validation images; the other 45 train (the paper's sizes; it does not name its images).

None of them belongs to a group in `SAME_SCAN`."""
SAME_SCAN: Final = (
    frozenset({"4", "5", "16", "17", "44", "46", "56"}),
    frozenset({"13", "31", "45"}),
    frozenset({"25", "42", "57"}),
    frozenset({"10", "43"}),
    frozenset({"12", "28"}),
    frozenset({"35", "67"}),
)
"""Images that show slices of one scan, or what looks like one by eye (outline of the body, vessels, lesions, grey
levels, artefacts): a fold must keep a group together, or it holds out what it trains on."""

_TRAIN = Path("TrainingSet/MultiClassInfection-Train")
_NUM_LABELED = 50
_TEST = Path("TestingSet/MultiClassInfection-Test")
_UNLABELED = Path("TrainingSet/LungInfection-Train/Pseudo-label/Imgs")
_LAYOUT = (
    "it should hold TrainingSet/MultiClassInfection-Train/{Imgs,GT} (labelled), "
    "TrainingSet/LungInfection-Train/Pseudo-label/Imgs (unlabelled) and TestingSet/MultiClassInfection-Test/{Imgs,GT}"
)


def find_data(data: Path | None) -> Path:
    """Return the COVID-SemiSeg folder: the given one, else $COHORTSEG_DATA, else ./COVID-SemiSeg.

    A folder that contains ``COVID-SemiSeg`` may be given too.

    Raises
    ------
    ConfigError
        If there is none; the message names the layout.
    """
    named = data or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    folder = named or Path("COVID-SemiSeg")
    for candidate in (folder, folder / "COVID-SemiSeg"):
        if (candidate / "TrainingSet").is_dir() or (candidate / "TestingSet").is_dir():
            return candidate
    hint = "" if named else f"; name the folder with --data or ${DATA_VARIABLE}"
    raise ConfigError(f"{folder}: no COVID-SemiSeg data here: {_LAYOUT}{hint}")


def labeled_slices(data: Path, split: Split) -> list[ImageSlice]:
    """Return the labelled images of a split, in the order of their numbers.

    Parameters
    ----------
    data
        The COVID-SemiSeg folder; only the split's own folders must exist.
    split
        ``train`` (all labelled training images but `VALIDATION`), ``val``, ``all`` (both), or ``test``.

    Raises
    ------
    ConfigError
        If a folder or an image's label map is missing, or the split holds no image.
    """
    folder = data / (_TEST if split == "test" else _TRAIN)
    images = _images(folder / "Imgs")
    slices = []
    for path in images:
        mask = folder / "GT" / f"{path.stem}.png"
        if split in ("train", "val") and (path.stem in VALIDATION) != (split == "val"):
            continue
        if not mask.is_file():
            raise ConfigError(f"{mask}: the label map of {path.name} is missing")
        slices.append(ImageSlice(name=path.stem, image_path=path, mask_path=mask, orientation=TRANSPOSED))
    twice = [name for name, count in Counter(item.name for item in slices).items() if count > 1]
    if twice:
        raise ConfigError(f"{folder / 'Imgs'}: two images are named {twice[0]} and would share a label map; keep one")
    whole = {"train": _NUM_LABELED - len(VALIDATION), "all": _NUM_LABELED}.get(split, 0)
    if 0 < len(slices) < whole:
        _log.warning("%d of the %d labelled images are missing", whole - len(slices), whole)
    missing = sorted(VALIDATION - {item.name for item in slices}) if split == "val" else []
    if slices and missing:
        _log.warning("validation images %s are missing: scores over the others compare with none", ", ".join(missing))
    if not slices:
        names = f" (its names: {', '.join(sorted(VALIDATION))})" if split == "val" else ""
        raise ConfigError(f"{folder}: no image of the split {split!r}{names}")
    return slices


def unlabeled_slices(data: Path) -> list[ImageSlice]:
    """Return the unlabelled images, in order.

    Raises
    ------
    ConfigError
        If the folder is missing or empty.
    """
    return [
        ImageSlice(name=path.stem, image_path=path, orientation=_unlabelled_orientation(path.name))
        for path in _images(data / _UNLABELED)
    ]


def _unlabelled_orientation(name: str) -> Orientation:
    """Return the orientation of an image by its source, as seen from the sides of descending aorta and liver."""
    return QUARTER_TURNED if "coronacases" in name else TRANSPOSED


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: folder is missing; {_LAYOUT}")
    paths = [path for path in visible_files(folder) if path.suffix.lower() in IMAGE_ENDINGS]
    if not paths:
        raise ConfigError(f"{folder}: holds no .jpg or .png image")
    return sorted(
        paths, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
    )
