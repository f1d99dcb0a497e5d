"""Compare Dice on labelled slices and on changed copies of them, all through the canonical slice.

    python benchmarks/robustness.py --model runs/a/model.safetensors --data COVID-SemiSeg    # the validation images
    python benchmarks/robustness.py --model runs/compare/folds/full-1/model.safetensors --fold 1

Copies are turned and mirrored in storage (the reader is told their orientation, as DICOM states it), padded with body
and air (as in a whole field of view), and shown in other windows (of which the reader is not told). Numbers are the
mean Dice over the images that have the class. Aim: at most 0.02 lost. The model must not have been trained on the
images.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cohortseg.compare.rows import FOLDS
from cohortseg.config import CanonicalConfig
from cohortseg.datasets import covid_semiseg
from cohortseg.datasets.slices import ImageSlice, read_image, read_mask
from cohortseg.evaluate.run import predicted_cases
from cohortseg.evaluate.score import score_images, summarise
from cohortseg.hashes import file_sha256
from cohortseg.preprocess import UPRIGHT, Orientation, hu_from_image
from cohortseg.weights import LoadedModel, load_model

Gray = NDArray[np.uint8]

_TISSUE_HU: Final = 40.0
_SOURCE_WINDOW_HU: Final = CanonicalConfig.window_hu
_BORDER: Final = 0.35
"""Body and air on each side, as a part of the image."""


class Copy(NamedTuple):
    """How one kind of changed copy is made of an upright slice in HU and its labels."""

    change: Callable[[NDArray[np.float32], Gray], tuple[NDArray[np.float32], Gray]]
    window_hu: tuple[float, float]
    orientation: Orientation


def _same(slice_hu: NDArray[np.float32], labels: Gray) -> tuple[NDArray[np.float32], Gray]:
    return slice_hu, labels


def _padded(slice_hu: NDArray[np.float32], labels: Gray) -> tuple[NDArray[np.float32], Gray]:
    """Put the slice into an ellipse of soft tissue, and that into air."""
    rows, columns = slice_hu.shape
    border = ((round(_BORDER * rows),) * 2, (round(_BORDER * columns),) * 2)
    labels = np.pad(labels, border)
    y, x = (np.linspace(-1, 1, length) for length in labels.shape)
    body = np.hypot(y[:, None], x[None]) < 0.97
    frame = np.where(body, _TISSUE_HU, -1000.0).astype(np.float32)
    inside = tuple(slice(before, before + length) for (before, _), length in zip(border, slice_hu.shape, strict=True))
    frame[inside] = slice_hu
    return frame, labels


COPIES: Final = {
    "unchanged": Copy(_same, _SOURCE_WINDOW_HU, UPRIGHT),
    "turned": Copy(_same, _SOURCE_WINDOW_HU, Orientation(transpose=True, flip_x=True)),
    "upside down": Copy(_same, _SOURCE_WINDOW_HU, Orientation(flip_y=True, flip_x=True)),
    "mirrored": Copy(_same, _SOURCE_WINDOW_HU, Orientation(flip_x=True)),
    "padded": Copy(_padded, _SOURCE_WINDOW_HU, UPRIGHT),
    "window -1000..400": Copy(_same, (-1000.0, 400.0), UPRIGHT),
    "window -1150..350": Copy(_same, (-1150.0, 350.0), UPRIGHT),
    "window -1024..1500": Copy(_same, (-1024.0, 1500.0), UPRIGHT),
    "all at once": Copy(_padded, (-1150.0, 350.0), Orientation(transpose=True, flip_x=True)),
}


def changed(source: ImageSlice, copy: Copy, folder: Path) -> ImageSlice:
    """Write a changed copy of an image and its label map, and return it."""
    if source.mask_path is None:
        raise ValueError(f"{source.name} has no label map")
    slice_hu = source.orientation.to_upright(hu_from_image(read_image(source.image_path)))
    slice_hu, labels = copy.change(slice_hu, source.orientation.to_upright(read_mask(source.mask_path)))
    low, high = copy.window_hu
    gray = np.rint(255 * np.clip((slice_hu - low) / (high - low), 0, 1)).astype(np.uint8)
    paths = folder / f"{source.name}.png", folder / f"{source.name}-labels.png"
    for path, array in zip(paths, (gray, labels), strict=True):
        Image.fromarray(np.ascontiguousarray(copy.orientation.from_upright(array))).save(path)
    return ImageSlice(name=source.name, image_path=paths[0], mask_path=paths[1], orientation=copy.orientation)


def mean_dice(slices: list[ImageSlice], model: LoadedModel) -> dict[str, float]:
    """Return each class's mean Dice over the images that have it."""
    metrics = summarise(score_images(item.case for item in predicted_cases(slices, model)))
    rows = metrics.filter(protocol="per_image").iter_rows(named=True)
    return {row["class_name"]: round(row["dice"], 3) for row in rows if row["dice"] is not None}


def main() -> None:
    """Score every kind of copy and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="COVID-SemiSeg folder; default $COHORTSEG_DATA")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--names", help="images, as in 2,14,24; default: the validation images")
    chosen.add_argument("--fold", type=int, help="of cohortseg compare, counted from 1")
    options = parser.parse_args()
    names = frozenset(options.names.split(",") if options.names else covid_semiseg.VALIDATION)
    if options.fold:
        names = FOLDS[options.fold - 1]
    model = load_model(options.model)
    slices = [
        item
        for item in covid_semiseg.labeled_slices(covid_semiseg.find_data(options.data), "all")
        if item.name in names
    ]
    if not slices:
        parser.error(f"no labelled image is named {', '.join(sorted(names))}")
    if seen := [item.name for item in slices if file_sha256(item.image_path) in model.training_images]:
        print(f"the model was trained on {', '.join(seen)}: these numbers say little of other images", file=sys.stderr)
    result: dict[str, dict[str, float]] = {}
    worst = 0.0
    for name, copy in COPIES.items():
        with tempfile.TemporaryDirectory() as folder:
            result[name] = mean_dice([changed(item, copy, Path(folder)) for item in slices], model)
        lost = {key: round(result["unchanged"][key] - value, 3) for key, value in result[name].items()}
        worst = max(worst, *lost.values())
        print(f"{name:20} {result[name]}  lost {lost}", flush=True)
    print(json.dumps({"images": len(slices), "dice": result, "most_lost": worst}))


if __name__ == "__main__":
    main()
