"""Compare headers per second of `scan` with one process that reads the same files with pydicom, up to the pixels.

    python benchmarks/scan_headers.py COHORT

Each is timed three times in turn, and the quickest counts; all files are read once before, so that both find them
cached. The last line is one JSON object.
"""

import argparse
import json
import time
from pathlib import Path

import pydicom

from cohortseg.dicom.scan import scan_cohort


def main() -> None:
    """Time both and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    cohort = parser.parse_args().cohort
    files = sorted(path for path in cohort.rglob("*") if path.is_file())
    if not files:
        raise SystemExit(f"{cohort}: no files")
    for path in files:
        path.read_bytes()
    scan_s, loop_s = [], []
    for _ in range(3):
        begin = time.perf_counter()
        scan_cohort(cohort, lambda *_: None)
        scan_s.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for path in files:
            pydicom.dcmread(path, stop_before_pixels=True, force=True)
        loop_s.append(time.perf_counter() - begin)
    scan, loop = len(files) / min(scan_s), len(files) / min(loop_s)
    figures = {"files": len(files), "scan_per_s": scan, "pydicom_per_s": loop, "ratio": scan / loop}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
