"""Measure the cost of `infer` beyond the network: its slices per second against bare forward passes on the same slices.

    python benchmarks/infer_overhead.py                  # generates six series of 60 slices, 4.2 mm apart
    python benchmarks/infer_overhead.py --slices 240     # thin slices
    python benchmarks/infer_overhead.py --cohort DIR --engines local,ray

Both use the same network, device, precision, batches and threads. Only slices that went through the network count. The
bare passes are timed before and after, and the quicker time is kept. Start-up (Ray, until the first series begins) is
reported separately; scan, tables and report are part of the work. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from cohortseg.config import InferConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.scan import scan_cohort
from cohortseg.models.device import batch_size_for
from cohortseg.pipeline import infer_cohort
from cohortseg.preprocess import canonical_batch, lung_boxes, orientation_from_affine
from cohortseg.store.masks import read_masks
from cohortseg.weights import LoadedModel, load_model


def watch_first_attempt(out: Path) -> list[float]:
    """Return a list that a thread gives the moment at which the first series of a run into ``out`` begins."""
    begun: list[float] = []

    def watch() -> None:
        while not begun:
            if any((out / ".state/attempts").glob("*/*")):
                begun.append(time.perf_counter())
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    return begun


def timed_infer(cohort: Path, out: Path, engine: str) -> dict[str, float]:
    """Run inference; return seconds of work and of start-up, this process's CPU seconds, and slices by fate."""
    first_attempt = watch_first_attempt(out)
    opened = {}

    @contextmanager
    def progress(title: str) -> Iterator[object]:
        opened[title] = time.perf_counter()
        yield lambda *_: None

    cpu = time.process_time()
    summary = infer_cohort(cohort, out, config=InferConfig(engine=engine), model_path=None, progress=progress)  # type: ignore[arg-type]
    end, cpu = time.perf_counter(), time.process_time() - cpu
    ray_s = first_attempt[0] - opened["Segmenting"] if engine == "ray" else 0.0
    burden = summary.burden
    if set(burden["status"]) != {"ok"}:
        raise SystemExit(f"every series must be measured, got {dict(summary.counts)}")
    return {
        "work_s": end - opened["Scanning"] - ray_s,
        "start_up_s": ray_s,
        "cpu_s": cpu,
        "forward_slices": float(burden["n_lung_slices"].sum()),
        "slices": float(burden["n_slices"].sum()),
    }


def network_batches(cohort: Path, out: Path, model: LoadedModel, size: int) -> list[torch.Tensor]:
    """Return the batches that the network saw, made again from the lung masks that inference wrote."""
    batches = []
    for record in scan_cohort(cohort).selected:
        volume = read_volume(record, cohort)
        upright = orientation_from_affine(volume.affine).to_upright
        hu, lungs = upright(volume.volume_hu), upright(read_masks(out / "masks.zarr", record.series_key).lungs)
        boxes = lung_boxes(lungs > 0, model.card.canonical)
        with_lung = [index for index, box in enumerate(boxes) if box is not None]
        for start in range(0, len(with_lung), size):
            chosen = with_lung[start : start + size]
            held = [box for index in chosen if (box := boxes[index]) is not None]
            there = np.ascontiguousarray(lungs[chosen]) > 0
            batches.append(canonical_batch(np.ascontiguousarray(hu[chosen]), there, held, model.card.canonical))
    return batches


def timed_passes(model: LoadedModel, batches: list[torch.Tensor]) -> tuple[float, float]:
    """Return wall and CPU seconds of the bare forward passes."""
    model.predict(batches[0], flips=InferConfig.flips)
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        model.predict(batch, flips=InferConfig.flips)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Time all and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, help="folder of DICOM files; default: generated")
    parser.add_argument("--series", type=int, default=6)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--engines", default="local,ray")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, cohort = Path(name), arguments.cohort
        if cohort is None:
            options = ["--patients", str(arguments.series), "--timepoints", "1", "--slices", str(arguments.slices)]
            command = [sys.executable, "-m", "cohortseg", "-q", "sample", str(folder / "sample"), *options]
            subprocess.run(command, check=True)
            cohort = folder / "sample/dicom"
        model = load_model()
        result: dict[str, object] = {"threads": torch.get_num_threads(), "bf16": model.bf16, "load": os.getloadavg()[0]}
        bare: list[tuple[float, float]] = []
        for engine in arguments.engines.split(","):
            figures = timed_infer(cohort, folder / engine, engine)
            if not bare:
                batches = network_batches(cohort, folder / engine, model, batch_size_for(model.device))
                if sum(map(len, batches)) != figures["forward_slices"]:
                    raise SystemExit("the bare passes are not over the slices that went through the network")
            bare.append(timed_passes(model, batches))
            figures["slices_per_s"] = figures["forward_slices"] / figures["work_s"]
            result[engine] = figures
        bare.append(timed_passes(model, batches))
        best = min(bare)
        result["bare"] = {"wall_s": best[0], "cpu_s": best[1], "slices_per_s": sum(map(len, batches)) / best[0]}
        for engine in arguments.engines.split(","):
            result[f"ratio_{engine}"] = best[0] / result[engine]["work_s"]  # type: ignore[index]
        if isinstance(result.get("local"), dict):
            result["cpu_ratio_local"] = best[1] / result["local"]["cpu_s"]  # type: ignore[index]
        print(json.dumps(_rounded(result)))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
