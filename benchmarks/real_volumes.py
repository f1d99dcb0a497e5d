"""Segment whole chests of real CT: volumes rebuilt from the unlabelled slices of COVID-SemiSeg.

    python benchmarks/real_volumes.py OUT --data COVID-SemiSeg [--model MODEL]

The slices of 20 patients are separate images, each cropped to its own lungs. Here each is moved onto the one below
(template matching), brought to HU by the landmarks of its whole volume, and laid into a body of fat in air. Pixel size
is chosen so that the rib cage is 300 mm wide, slice spacing so that the lungs are 240 mm high: volumes are approximate,
percents are not. Nothing here has a known answer; OUT gets one picture of each volume.
"""

import argparse
import json
from itertools import groupby, pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cohortseg.config import InferConfig
from cohortseg.datasets import covid_semiseg
from cohortseg.datasets.slices import ImageSlice, read_image
from cohortseg.infer.segmenter import segment_slices
from cohortseg.lungs import segment_lungs
from cohortseg.overlays import overview
from cohortseg.preprocess import hu_from_image, whole_hu
from cohortseg.weights import load_model

WIDTH_MM, HEIGHT_MM = 300.0, 240.0
FAT_HU, AIR_HU = -90, -1000
HEAD_FIRST = frozenset({"Data-1_radiopaedia_org_covid-19-pneumonia-7_85703_0-dcm"})
"""Patients whose slices go down; all others' go up."""
SEARCH = 80
"""Pixels by which the crops of neighbouring slices may lie apart."""


def offset(lower: NDArray[np.uint8], upper: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return by how many (rows, columns) the upper image's corner lies from the lower one's."""
    inset = np.array(upper.shape) // 8
    inner = upper[inset[0] : -inset[0], inset[1] : -inset[1]]
    pad = SEARCH + max(0, *(np.array(upper.shape) - lower.shape))
    around = cv2.copyMakeBorder(lower, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    _, _, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(around, inner, cv2.TM_CCOEFF_NORMED))
    at: NDArray[np.intp] = np.array((y, x)) - pad - inset
    return at


def rebuilt(slices: list[ImageSlice]) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
    """Return a volume (Z, Y, X) in HU, upright, and its spacing (z, y, x) in mm."""
    images = [np.ascontiguousarray(item.orientation.to_upright(read_image(item.image_path))) for item in slices]
    hu = whole_hu(hu_from_image(np.concatenate([image.ravel() for image in images])[None]))[0]
    corners = np.cumsum([np.zeros(2, np.intp), *(offset(lower, upper) for lower, upper in pairwise(images))], axis=0)
    corners -= corners.min(axis=0)
    extent = (corners + [image.shape for image in images]).max(axis=0)
    side = int(1.6 * extent.max())
    corners += (side - extent) // 2
    rows, columns = np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    half = 1.2 * extent / side
    body = np.where((rows / half[0]) ** 2 + (columns / half[1]) ** 2 < 1, FAT_HU, AIR_HU).astype(np.int16)
    volume = np.repeat(body[None], len(images), axis=0)
    ends = np.cumsum([image.size for image in images])
    for plane, (y, x), image, end in zip(volume, corners, images, ends, strict=True):
        plane[y : y + image.shape[0], x : x + image.shape[1]] = hu[end - image.size : end].reshape(image.shape)
    pixel_mm = WIDTH_MM / extent[1]
    return volume, (HEIGHT_MM / len(images), pixel_mm, pixel_mm)


def main() -> None:
    """Print each patient's percents, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--data", type=Path, help="COVID-SemiSeg folder; default $COHORTSEG_DATA")
    parser.add_argument("--model", type=Path, help="default: the packaged model")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model)
    every = covid_semiseg.unlabeled_slices(covid_semiseg.find_data(options.data))
    opacity = []
    for name, group in groupby(every, key=lambda item: item.name.rpartition("_")[0]):
        volume, spacing_mm = rebuilt(list(group)[:: -1 if name in HEAD_FIRST else 1])
        lungs = segment_lungs(volume, spacing_mm)
        labels, _ = segment_slices(volume, lungs.mask, model, InferConfig())
        voxels = np.count_nonzero(lungs.mask)
        opacity.append(100 * np.count_nonzero(labels) / voxels)
        line = f"{opacity[-1]:5.1f} %  {voxels * np.prod(spacing_mm) / 1000:5.0f} mL  {name}  {', '.join(lungs.flags)}"
        print(line, flush=True)
        picture = overview(volume, labels, lungs.mask, pixel_spacing_mm=spacing_mm[1:], caption=[line])
        picture.save(options.out / f"{name}.png")
    print(json.dumps({"volumes": len(opacity), "opacity_pct": [round(float(value), 1) for value in opacity]}))


if __name__ == "__main__":
    main()
