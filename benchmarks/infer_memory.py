"""Measure the peak memory of one actor: on a series of 300 slices of 512 x 512, and on 8 against 64 smaller series.

    python benchmarks/infer_memory.py

Memory is the highest resident set (VmHWM) of any Ray worker, sampled while `infer --engine ray --workers 1` runs.
The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from numpy.typing import NDArray
from phantoms import body_hu, write_series


def peak_mb(cohort: Path, out: Path) -> float:
    """Run inference on Ray with one actor and return the highest memory of its workers, MB."""
    command = [sys.executable, "-m", "cohortseg", "-q", "infer", cohort, "-o", out, "--engine", "ray", "--workers", "1"]
    run = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    highest_kb = 0
    while run.poll() is None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if not (folder / "cmdline").read_bytes().startswith(b"ray::"):
                    continue
                status = (folder / "status").read_text()
            except OSError:  # it has ended meanwhile
                continue
            highest_kb = max(highest_kb, int(status.partition("VmHWM:")[2].split()[0]))
        time.sleep(0.2)
    if run.returncode not in (0, 3) or not highest_kb:
        raise SystemExit(f"inference failed with exit code {run.returncode}, or no worker was seen")
    return highest_kb / 1024


def main() -> None:
    """Measure and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300, help="of the large series")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--counts", default="8,64", help="of smaller series")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(
            folder / "large/0",
            shape=(arguments.slices, arguments.size, arguments.size),
            spacing_mm=(1.0, 360 / arguments.size, 360 / arguments.size),
            hu=_lungs,
        )
        figures["large_mb"] = peak_mb(folder / "large", folder / "large-out")
        for count in map(int, arguments.counts.split(",")):
            cohort = folder / f"of{count}"
            for index in range(count):
                write_series(
                    cohort / str(index),
                    shape=(20, 256, 256),
                    spacing_mm=(5.0, 1.4, 1.4),
                    hu=_lungs,
                    patient_id=f"P{index}",
                )
            figures[f"of_{count}_series_mb"] = peak_mb(cohort, folder / f"out{count}")
    print(json.dumps({name: round(value) for name, value in figures.items()}))


def _lungs(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return the same body on every slice: the phantom's own slices brighten with their number."""
    slice_hu: NDArray[np.int16] = body_hu((1, *shape[1:]))
    return slice_hu.repeat(shape[0], axis=0)


if __name__ == "__main__":
    main()
