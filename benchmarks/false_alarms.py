"""False alarms: what a model labels in slices that look free of lesions, in percent of the lung.

    python benchmarks/false_alarms.py --data COVID-SemiSeg [--model MODEL]

No labelled slice of COVID-SemiSeg is free of lesions; these are unlabelled ones, chosen by eye (lesion_free.json). They
take part in phase 2 of training, without labels.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from cohortseg.config import InferConfig
from cohortseg.datasets import covid_semiseg
from cohortseg.datasets.slices import read_image
from cohortseg.infer.segmenter import segment_slices
from cohortseg.lungs import segment_lungs
from cohortseg.preprocess import hu_from_image, whole_hu
from cohortseg.weights import load_model


def main() -> None:
    """Print each slice's percent, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COVID-SemiSeg folder; default $COHORTSEG_DATA")
    parser.add_argument("--model", type=Path, help="default: the packaged model")
    options = parser.parse_args()
    names = set(json.loads((Path(__file__).parent / "lesion_free.json").read_text())["images"])
    model = load_model(options.model)
    percents = []
    for source in covid_semiseg.unlabeled_slices(covid_semiseg.find_data(options.data)):
        if source.name not in names:
            continue
        hu = whole_hu(hu_from_image(read_image(source.image_path)))
        upright_hu = np.ascontiguousarray(source.orientation.to_upright(hu))[None]
        lungs = segment_lungs(upright_hu, (None, 0.75, 0.75)).mask
        labels, *_ = segment_slices(upright_hu, lungs, model, InferConfig())
        percents.append(100 * np.count_nonzero(labels) / np.count_nonzero(lungs))
        print(f"{percents[-1]:5.2f} %  {source.name}")
    print(json.dumps({"slices": len(percents), "mean_pct": np.mean(percents), "worst_pct": np.max(percents)}))


if __name__ == "__main__":
    main()
