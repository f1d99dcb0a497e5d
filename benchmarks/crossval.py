"""Cross-validation on the 50 labelled images of COVID-SemiSeg: the rows of the paper's table 2, fold by fold.

    python benchmarks/crossval.py --data COVID-SemiSeg -o runs/crossval --rows plain,full --folds 1,2,3
    python benchmarks/crossval.py -o runs/crossval --table

Folds and seeds are fixed in folds.json. A row and fold that is done is not done again, so that a stopped run goes on
where it was; several processes may share one output folder if their folds or rows differ. The table gives the mean of
each row over its images, and the paired gain over the row `plain` on the images that both have, with a 95 % interval
(bootstrap over images).
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from cohortseg.config import TrainConfig, preset_config, resolve_config
from cohortseg.datasets import covid_semiseg
from cohortseg.datasets.prepared import PreparedData, load_prepared, prepare
from cohortseg.evaluate.score import score_images
from cohortseg.evaluate.split import predicted_cases
from cohortseg.evaluate.tables import IMAGES
from cohortseg.models.device import find_device
from cohortseg.store.tables import write_table
from cohortseg.train.loop import MODEL, PHASE_1_MODEL, train
from cohortseg.weights import load_model

FOLDS: Final[list[list[str]]] = json.loads((Path(__file__).parent / "folds.json").read_text())["folds"]
ROWS: Final = {
    # vq_branch, proportion loss, phase 2
    "plain": (False, False, False),
    "vvm": (True, False, False),
    "prop": (False, True, False),
    "ssa": (False, False, True),
    "vvm+prop": (True, True, False),
    "ssa+prop": (False, True, True),
    "full": (True, True, True),
}
"""The rows of table 2."""
_CLASSES: Final = ("ggo", "consolidation")
_DICE: Final = "toolbox_labels_dice"
_BOOTSTRAPS: Final = 10_000


def row_config(base: TrainConfig, row: str) -> TrainConfig:
    """Return the settings of a row; without phase 2 its iterations are added to phase 1, so that no row learns less."""
    vq_branch, proportion, semi = ROWS[row]
    return replace(
        base,
        model=replace(base.model, vq_branch=vq_branch),
        proportion_weight=base.proportion_weight if proportion else 0.0,
        semi_supervised=semi,
        supervised_iterations=base.supervised_iterations + (0 if semi else base.adversarial_iterations),
    )


def run_fold(config: TrainConfig, data: PreparedData, root: Path, fold: int, folder: Path) -> None:
    """Train on all folds but one and score that one; with phase 2, also the model before it."""
    slices = covid_semiseg.labeled_slices(root, "all")
    held_out = set(FOLDS[fold - 1])
    kept = torch.tensor([item.name not in held_out for item in slices])
    part = replace(data, labeled=data.labeled[kept], labels=data.labels[kept])
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    train(
        config,
        part,
        folder,
        wrap=lambda module: module,
        sum_over_workers=lambda values: values,
        report=lambda _metrics, _checkpoint: None,
        rank=0,
        world=1,
        device=find_device(),
        restore=None,
    )
    seconds = round(time.perf_counter() - started)
    names = {"": MODEL} | ({"-phase1": PHASE_1_MODEL} if config.semi_supervised else {})
    for suffix, name in names.items():
        images = score_images(
            predicted_cases([item for item in slices if item.name in held_out], load_model(folder / name))
        )
        target = folder.with_name(f"{folder.name}{suffix}.parquet")
        write_table(target, images, IMAGES, {"train_seconds": seconds})
        print(folder.name + suffix, _means(images), f"{seconds} s", flush=True)


def _means(images: pl.DataFrame) -> dict[str, float]:
    means = dict(images.group_by("class_name").agg(pl.col(_DICE).mean()).iter_rows())
    return {name: round(means[name], 3) for name in _CLASSES}


def print_table(output: Path) -> None:
    """Print every row's means and its paired gain over `plain`."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(output.glob("*/fold*.parquet")):
        name = path.parent.name + ("-phase1" if path.stem.endswith("-phase1") else "")
        images = pl.read_parquet(path).select("class_name", "image", _DICE)
        for class_name, image, dice in images.iter_rows():
            rows.setdefault(name, {}).setdefault(class_name, {})[image] = dice
    result: dict[str, Any] = {}
    for name, classes in rows.items():
        entry: dict[str, Any] = {"images": len(classes[_CLASSES[0]])}
        for class_name in _CLASSES:
            scores = classes[class_name]
            entry[class_name] = round(float(np.mean(list(scores.values()))), 3)
            baseline = rows.get("plain", {}).get(class_name, {})
            shared = sorted(set(scores) & set(baseline))
            if name != "plain" and shared:
                gain = np.array([scores[image] - baseline[image] for image in shared])
                entry[f"{class_name}_gain"] = [round(float(value), 3) for value in (gain.mean(), *_interval(gain))]
        result[name] = entry
        print(f"{name:20}", entry)
    print(json.dumps(result))


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean by resampling images."""
    draws = np.random.default_rng(0).choice(values, (_BOOTSTRAPS, len(values))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    """Run what is asked for, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COVID-SemiSeg folder; default $COHORTSEG_DATA")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rows", default="plain,full", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--folds", default="1,2,3,4,5")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--config", type=Path, help="TOML file with settings over the preset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--table", action="store_true", help="only print the table of what is done")
    options = parser.parse_args()
    if options.table:
        print_table(options.output)
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    base = resolve_config(TrainConfig, options.config, {"seed": options.seed}, base=preset_config(options.preset))
    root = covid_semiseg.find_data(options.data)
    prepared = options.output / "data.safetensors"
    if not prepared.is_file():
        options.output.mkdir(parents=True, exist_ok=True)
        sources = covid_semiseg.labeled_slices(root, "all"), covid_semiseg.unlabeled_slices(root)
        prepare(prepared, *sources, base.canonical, covid_semiseg.TERMS, lambda _done, _total, _text: None)
    data = load_prepared(prepared)
    for fold in map(int, options.folds.split(",")):
        for row in options.rows.split(","):
            folder = options.output / row / f"fold{fold}"
            if not folder.with_suffix(".parquet").is_file():
                run_fold(row_config(base, row), data, root, fold, folder)


if __name__ == "__main__":
    main()
