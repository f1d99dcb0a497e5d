"""Show which of a model's measures of doubt tell its errors: on images held out by `cohortseg compare`.

    python benchmarks/doubt.py runs/compare                # of `compare --rows student`, with its models of all folds

For each image that a fold held out, the measures of `infer` are taken over the canonical slice (there over the lungs)
and compared with the Dice of all opacity by rank correlation: a measure of doubt is useful if it is far below 0. The
last line is one JSON object.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from cohortseg.compare.rows import FOLDS
from cohortseg.datasets.covid_semiseg import find_data, labeled_slices
from cohortseg.datasets.prepared import load_prepared
from cohortseg.models.device import find_device
from cohortseg.weights import LoadedModel, load_model

_MEASURES = ("flip_disagreement", "1 - confidence", "entropy", "share of lesion")


def measures(model: LoadedModel, image: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Return the Dice of opacity, then `_MEASURES`, of a slice (size, size) in [0, 1] with its labels (size, size)."""
    size = (model.card.canonical.size,) * 2
    seen = functional.interpolate(image.float()[None, None], size=size, mode="bilinear").clamp(0, 1)
    lesion = functional.interpolate(truth.float()[None, None], size=size, mode="nearest-exact")[0, 0] > 0
    prediction = model.predict(seen, flips=True)
    found = prediction.prob[0].argmax(dim=0) > 0
    assert prediction.flip_change is not None, "asked for with flips"
    changed = prediction.flip_change[0, 0] > 0
    return [
        float(2 * (found & lesion).sum() / (found.sum() + lesion.sum()).clamp_min(1)),
        float(changed.sum() / (found | changed).sum().clamp_min(1)),
        float(1 - prediction.confidence[0, 0][found].mean()),
        float(torch.special.entr(prediction.prob[0]).sum(dim=0).mean() / math.log(prediction.prob.shape[1])),
        float(found.float().mean()),
    ]


def correlation(rows: np.ndarray, column: int) -> float:
    """Return the rank correlation of a column with the Dice, over the images in which a lesion was found."""
    measured = rows[~np.isnan(rows).any(axis=1)]
    return round(float(spearmanr(measured[:, 0], measured[:, column])[0]), 2)


def main() -> None:
    """Measure all folds that are there and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, nargs="+", help="output folder of cohortseg compare")
    parser.add_argument("--row", default="student")
    parser.add_argument("--data", type=Path, help="folder of COVID-SemiSeg")
    arguments = parser.parse_args()
    names = [item.name for item in labeled_slices(find_data(arguments.data), "all")]
    by_fold: dict[int, np.ndarray] = {}
    for folder in arguments.comparison:
        data = None
        for fold, held_out in enumerate(FOLDS, 1):
            path = folder / f"folds/{arguments.row}-{fold}/model.safetensors"
            if path.is_file():
                data = data or load_prepared(next(folder.glob("*.safetensors")))
                model = load_model(path, device=find_device())
                rows = [
                    measures(model, data.labeled[index, 0], data.labels[index])
                    for index, name in enumerate(names)
                    if name in held_out
                ]
                by_fold[fold] = np.array(rows)
    if not by_fold:
        raise SystemExit(f"no model of row {arguments.row} in {', '.join(map(str, arguments.comparison))}")
    result: dict[str, object] = {"images": sum(map(len, by_fold.values()))}
    for column, name in enumerate(_MEASURES, 1):
        result[name] = {
            "all": correlation(np.concatenate([*by_fold.values()]), column),
            "by fold": {fold: correlation(rows, column) for fold, rows in sorted(by_fold.items())},
        }
        print(name, result[name])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
