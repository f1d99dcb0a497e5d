"""Measure false alarms: what a model labels in slices that look free of lesions, in percent of the lung.

    python benchmarks/false_alarms.py --data COVID-SemiSeg [--model MODEL]

The same slices are also measured as other scanners would show them: noisy (white noise, and coarse noise as smooth
kernels leave it, in pixels of .75 mm), with edges enhanced as by sharp kernels, blurred, streaked, denser (breathed
out).

No labelled slice of COVID-SemiSeg is free of lesions; these are unlabelled ones, chosen by eye (lesion_free.json). They
may take part in training, with the labels of teachers, as they did for the packaged model: measure one that saw none
of their volumes.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg.config import InferConfig
from cohortseg.datasets import covid_semiseg
from cohortseg.datasets.slices import read_image
from cohortseg.infer.segmenter import segment_slices
from cohortseg.lungs import segment_lungs
from cohortseg.preprocess import hu_from_image, whole_hu
from cohortseg.weights import load_model

Image = NDArray[np.float64]


def _noisy(sigma_hu: float, grain: float) -> Callable[[Image], Image]:
    """Return what adds noise of this standard deviation, smoothed with a Gaussian of so many pixels."""

    def change(hu: Image) -> Image:
        noise = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(hu.shape), grain)
        noisy: Image = hu + sigma_hu * noise / noise.std()
        return noisy

    return change


CHANGES: Final[dict[str, Callable[[Image], Image]]] = {
    "as they are": lambda hu: hu,
    "white noise of 80 HU": _noisy(80, 0),
    "coarse noise of 40 HU": _noisy(40, 1),
    "coarse noise of 60 HU": _noisy(60, 1),
    "coarse noise of 80 HU": _noisy(80, 1),
    "edges enhanced": lambda hu: hu + 1.0 * (hu - ndimage.gaussian_filter(hu, 1.5)),
    "edges enhanced twice": lambda hu: hu + 2.0 * (hu - ndimage.gaussian_filter(hu, 1.5)),
    "blurred": lambda hu: ndimage.gaussian_filter(hu, 2),
    "streaks of 40 HU": lambda hu: hu + 40 * np.sin(np.arange(len(hu)) / 3)[:, None],
    "lung denser by 80 HU": lambda hu: np.where(hu < 0, hu + 80 * np.clip(-hu / 800, 0, 1), hu),
}


def main() -> None:
    """Print the percents of each kind of slices, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COVID-SemiSeg folder; default $COHORTSEG_DATA")
    parser.add_argument("--model", type=Path, help="default: the packaged model")
    options = parser.parse_args()
    names = set(json.loads((Path(__file__).parent / "lesion_free.json").read_text())["images"])
    model = load_model(options.model)
    slices = []
    for source in covid_semiseg.unlabeled_slices(covid_semiseg.find_data(options.data)):
        if source.name in names:
            hu = whole_hu(hu_from_image(read_image(source.image_path)))
            upright_hu = np.ascontiguousarray(source.orientation.to_upright(hu))
            slices.append((upright_hu, segment_lungs(upright_hu[None], (None, 0.75, 0.75)).mask))
    result = {}
    for name, change in CHANGES.items():
        percents = []
        for upright_hu, lungs in slices:
            changed = np.clip(change(upright_hu.astype(np.float64)), -1350, 3071).astype(np.int16)
            labels, *_ = segment_slices(changed[None], lungs, model, InferConfig())
            percents.append(100 * np.count_nonzero(labels) / np.count_nonzero(lungs))
        result[name] = {"mean_pct": round(np.mean(percents), 2), "worst_pct": round(np.max(percents), 2)}
        print(f"{name:24} mean {np.mean(percents):6.2f} %, worst {np.max(percents):6.2f} %", flush=True)
    print(json.dumps({"slices": len(slices), "changes": result}))


if __name__ == "__main__":
    main()
