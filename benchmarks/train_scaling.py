"""Measure the training speed of two Ray Train workers against one, with one thread each.

    python benchmarks/train_scaling.py                    # about two minutes on two cores
    python benchmarks/train_scaling.py --size 256 --batch 8   # the recipe's step: eight minutes

Slices are random. Batches per worker are the same, so two workers do twice the work per iteration. Speed is taken from
the history, without start-up and the first lines of each phase. Aim: >= 1.6.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from cohortseg.cluster import connected
from cohortseg.config import CanonicalConfig, TrainConfig, preset_config
from cohortseg.datasets.prepared import PreparedData, write_prepared
from cohortseg.store.layout import DATA
from cohortseg.train.fit import fit
from cohortseg.train.folder import begin_run
from cohortseg.train.history import read_history

_SLICES = 32


def speeds(config: TrainConfig, workers: int, run: Path) -> dict[int, float]:
    """Train with so many workers and return images a second in each phase."""
    begin_run(run, config)
    size = config.canonical.size
    data = PreparedData(
        labeled=torch.rand(_SLICES, 1, size, size).half(),
        labels=torch.randint(0, 3, (_SLICES, size, size), dtype=torch.uint8),
        unlabeled=torch.rand(_SLICES, 1, size, size).half(),
        labeled_images=(),
        unlabeled_images=(),
        terms="random",
    )
    write_prepared(run / DATA, data)
    fit(config, run, num_workers=workers, cpus_per_worker=1)
    rows = read_history(run)
    return {phase: median([row["images_per_s"] for row in rows if row["phase"] == phase][1:]) for phase in (1, 2)}


def main() -> None:
    """Measure one and two workers and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--size", type=int, default=128, help="of the canonical slice")
    parser.add_argument("--batch", type=int, default=4, help="labelled slices, and as many unlabelled ones, a worker")
    parser.add_argument("--iterations", type=int, default=30, help="of each phase; a multiple of 10, at least 20")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    config = replace(
        preset_config(options.preset),
        canonical=CanonicalConfig(size=options.size),
        predict_size=0,
        batch_labeled=options.batch,
        batch_unlabeled=options.batch,
        supervised_iterations=options.iterations,
        adversarial_iterations=options.iterations,
        warmup_iterations=options.iterations // 2,
        checkpoint_every=10 * options.iterations,
    )
    found: dict[int, dict[int, float]] = {}
    with connected():
        for workers in (1, options.workers):
            with tempfile.TemporaryDirectory() as folder:
                found[workers] = speeds(config, workers, Path(folder) / "run")
            print(f"{workers} worker(s): {found[workers]} images a second in phase 1 and 2", flush=True)
    result: dict[str, float] = {"workers": options.workers, "size": options.size, "batch": options.batch}
    for phase in (1, 2):
        result[f"phase{phase}_images_per_s"] = round(found[options.workers][phase], 2)
        result[f"phase{phase}_speedup"] = round(found[options.workers][phase] / found[1][phase], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
