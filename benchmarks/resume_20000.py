"""Resume a run of 20,000 series of which ten are left: time until the first begins, time and memory for the tables.

    python benchmarks/resume_20000.py

The scan of the cohort is not included. Markers are real, written by the commit protocol without its waits for the disk;
the masks of all series are those of one (300 slices of 512 x 512, lung in all), as links to its files.
"""

import argparse
import gc
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

from cohortseg.config import InferConfig
from cohortseg.dicom.scan import CohortScan
from cohortseg.dicom.series import SeriesRecord
from cohortseg.infer.claim import claimed
from cohortseg.infer.commit import SeriesResult, commit, committed_slices, read_committed, sweep
from cohortseg.infer.job import Job, pending_series
from cohortseg.infer.segmenter import series_row
from cohortseg.longitudinal import with_time
from cohortseg.report.scan_tables import file_rows
from cohortseg.store.layout import MASKS
from cohortseg.store.masks import MaskFacts, SeriesMasks, create_mask_store, write_masks
from cohortseg.store.schemas import BURDEN, FILES, MANIFEST, SLICES
from cohortseg.store.tables import tables_from_rows, write_table

LEFT = 10


def records_of(count: int, num_slices: int) -> list[SeriesRecord]:
    """Return manifest rows of as many series, with one file a slice."""
    plain = dict.fromkeys(SeriesRecord.__dataclass_fields__)
    first = SeriesRecord(
        **plain | {"image_type": (), "qc_flags": (), "files": (), "n_slices": num_slices, "decision": "selected"}  # type: ignore[arg-type]
    )
    return [
        replace(
            first,
            patient_id=f"P{index // 2:05}",
            series_instance_uid=f"1.2.826.0.1.3680043.10.1.{index}",
            series_key=f"{index:016x}",
            fingerprint=f"{index:064x}",
            files=tuple(f"P{index // 2:05}/study/series{index}/slice{number:04}.dcm" for number in range(num_slices)),
        )
        for index in range(count)
    ]


def masks_of(num_slices: int) -> SeriesMasks:
    """Return masks with lung in the middle of each slice."""
    lungs = np.zeros((num_slices, 512, 512), np.uint8)
    lungs[:, 100:400, 100:240], lungs[:, 100:400, 270:410] = 1, 2
    facts = MaskFacts(
        affine=tuple(map(tuple, np.eye(4).tolist())),
        spacing_mm=(1.0, 0.7, 0.7),
        study_instance_uid="1.2",
        series_instance_uid="1.2.3",
        frame_of_reference_uid=None,
        sop_instance_uids=tuple(f"1.2.3.{number}" for number in range(num_slices)),
        model_name="none",
        model_sha256="0" * 64,
        lung_method="none",
    )
    return SeriesMasks(labels=(lungs > 0).astype(np.uint8), lungs=lungs, facts=facts)


def main() -> None:
    """Write the state, resume, and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=20_000)
    parser.add_argument("--slices", type=int, default=300, help="of each series")
    arguments = parser.parse_args()
    records = records_of(arguments.series, arguments.slices)
    sync, os.fsync = os.fsync, lambda fd: None
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        job = Job(root=Path(name), out=out, model_path=None, model_sha256="0" * 64, config=InferConfig())
        row = dict.fromkeys(SLICES.polars_schema) | {"lung_area_mm2": 20_000.0}
        masks = masks_of(arguments.slices)
        with claimed(out):
            create_mask_store(out / MASKS)
            write_masks(Path(name), "one", masks)
            link = partial(shutil.copytree, Path(name) / "one", copy_function=os.link)
            patch("cohortseg.infer.commit.write_masks", lambda store, key, _masks: link(store / key)).start()
            for record in records[:-LEFT]:
                slices = tuple(
                    row | {"series_instance_uid": record.series_instance_uid, "slice_index": index}
                    for index in range(arguments.slices)
                )
                burden = series_row(record, job.model_sha256) | {"status": "ok"}
                commit(
                    out,
                    record.series_key,
                    job.token(record),
                    SeriesResult(burden=burden, slices=slices, masks=masks, picture_png=b"png"),
                )
        os.fsync = sync
        gc.collect()
        held_mb = _memory_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        begin = time.perf_counter()
        with claimed(out):
            create_mask_store(out / MASKS)
            sweep(out)
            pending = pending_series(job, records)
            start_s = time.perf_counter() - begin
            keys = [record.series_key for record in records[:-LEFT]]
            scan = CohortScan(series=tuple(records), skipped=(), copies=())
            write_table(out / MANIFEST.file_name, tables_from_rows(map(asdict, records), MANIFEST), MANIFEST, {})
            write_table(out / FILES.file_name, tables_from_rows(file_rows(scan), FILES), FILES, {})
            write_table(out / SLICES.file_name, committed_slices(out, keys), SLICES, {})
            committed = read_committed(out, job.tokens(records[:-LEFT]))
            write_table(out / BURDEN.file_name, with_time(committed), BURDEN, {})
        tables_s = time.perf_counter() - begin - start_s
    if len(pending) != LEFT:
        raise SystemExit(f"{LEFT} series were left, {len(pending)} were found")
    print(
        json.dumps(
            {
                "series": arguments.series,
                "resume_start_s": round(start_s, 2),
                "tables_s": round(tables_s, 2),
                "before_with_manifest_rows_mb": round(held_mb),
                "added_by_resume_and_tables_mb": round(_memory_mb("VmHWM") - held_mb),
            }
        )
    )


def _memory_mb(name: str) -> float:
    """Return the memory that this process holds (VmRSS), or has held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


if __name__ == "__main__":
    main()
