"""Send damaged and hostile files through all of infer's reading: each must end in a row or a reason, and fast.

    python benchmarks/hostile_input.py --files 1000 --seed 0

The script takes the quirks of ``cohortseg sample --quirks``, damages copies of their files (bytes, lengths, cuts,
claimed sizes, swapped halves), and scans and decodes each on its own, in a process with limited memory.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from cohortseg.config import ScanConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.scan import scan_cohort
from cohortseg.errors import CohortSegError, ConfigError
from cohortseg.synthetic.quirks import write_quirks

HUGE = (b"\xff\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00", b"\xfe\xff\xff\xff")


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a damaged copy: a few times one of bytes, lengths, a cut, a doubled or a moved part."""
    data = bytearray(content)
    header = min(len(data), 2500)  # most of what can be claimed stands there
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, header if rng.random() < 0.8 else len(data)))
        match rng.integers(0, 6):
            case 0:
                data[at] = int(rng.integers(0, 256))
            case 1:
                huge = HUGE[rng.integers(0, len(HUGE))]
                data[at : at + len(huge)] = huge
            case 2:
                del data[at : at + int(rng.integers(1, 64))]
            case 3:
                data[at:at] = data[at : at + int(rng.integers(1, 256))]
            case 4:
                data[at : at + 16] = rng.bytes(16)
            case _:
                if rng.random() < 0.3:
                    del data[max(at, 140) :]
        header = max(1, min(header, len(data)))
        if not data:
            break
    return bytes(data)


def outcome(folder: Path) -> str:
    """Return what became of a folder of one file: skipped, a decision, or what decoding said; crashes raise."""
    try:
        scan = scan_cohort(folder, config=ScanConfig(repair=("resample", "untilt")))
    except ConfigError:
        return "no series: file skipped with a reason"
    selected = scan.selected
    if not selected:
        return "series skipped with a reason"
    try:
        for record in selected:
            read_volume(record, folder)
    except CohortSegError as error:
        return f"decoding refused: {type(error).__name__}"
    return "volume"


def run(num_files: int, seed: int, work: Path) -> dict[str, object]:
    """Return counts by outcome, the crashes, and the slowest file."""
    write_quirks(work / "quirks", lambda *_: None)
    sources = sorted(path for path in (work / "quirks" / "dicom").rglob("*") if path.is_file())
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    crashes: list[str] = []
    slowest, slowest_file = 0.0, ""
    (work / "one").mkdir()
    for index in range(num_files):
        source = sources[rng.integers(0, len(sources))]
        (work / "one" / "file").write_bytes(mutated(source.read_bytes(), rng))
        begin = time.perf_counter()
        try:
            outcomes[outcome(work / "one")] += 1
        except Exception as error:  # noqa: BLE001 - a crash is what is looked for
            crashes.append(f"file {index} from {source.parent.name}: {type(error).__name__}: {error}")
        seconds = time.perf_counter() - begin
        if seconds > slowest:
            slowest, slowest_file = seconds, f"file {index} from {source.parent.name}"
    return {
        "files": num_files,
        "seed": seed,
        "outcomes": dict(outcomes.most_common()),
        "crashes": crashes,
        "slowest_s": round(slowest, 3),
        "slowest": slowest_file,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Run, print one JSON object, and fail if anything crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-gb", type=float, default=4.0, help="address space this process may take")
    arguments = parser.parse_args()
    limit = int(arguments.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments.files, arguments.seed, Path(folder))
    print(json.dumps(result, indent=1))
    if result["crashes"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
