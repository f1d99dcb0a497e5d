"""Compare volumes with truth on synthetic cohorts: rank correlation, ratio of sums, and false alarms without lesions.

    python benchmarks/phantom_agreement.py --seeds 101-110

Phantom and model are both ours: a pass shows only that the plumbing is right.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
from scipy.stats import spearmanr

CLASSES = ("opacity", "ggo", "consolidation")


def cohort_table(seed: int, folder: Path) -> pl.DataFrame:
    """Return volumes found and true, one row a series, of one seed's default cohort."""
    for arguments in (
        ["sample", folder / "cohort", "--seed", str(seed)],
        ["infer", folder / "cohort" / "dicom", "-o", folder / "out", "--engine", "local"],
    ):
        subprocess.run(
            [sys.executable, "-m", "cohortseg", "-q", *map(str, arguments)], check=True, stdout=subprocess.PIPE
        )
    truth = pl.read_parquet(folder / "cohort" / "truth.parquet")
    found = pl.read_parquet(folder / "out" / "burden.parquet")
    return truth.join(found, on="series_instance_uid", suffix="_found").with_columns(seed=pl.lit(seed))


def main() -> None:
    """Run all seeds and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="101-110", help="first-last")
    first, last = map(int, parser.parse_args().seeds.split("-"))
    tables = []
    for seed in range(first, last + 1):
        with tempfile.TemporaryDirectory() as folder:
            tables.append(cohort_table(seed, Path(folder)))
        print(f"seed {seed}: {len(tables[-1])} series", flush=True)
    table = pl.concat(tables)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160, float_precision=1):
        columns = [f"{name}_volume_ml{suffix}" for name in CLASSES for suffix in ("", "_found")]
        print(table.select("seed", "patient_id", "timepoint", "status", *columns, "po_pct", "po_pct_found"))
    result: dict[str, float] = {"series": len(table), "not_ok": len(table.filter(pl.col("status") != "ok"))}
    measured = table.filter(pl.col("status") == "ok")
    for name in CLASSES:
        true, found = (measured[f"{name}_volume_ml{suffix}"].to_numpy() for suffix in ("", "_found"))
        result[f"{name}_rank_correlation"] = round(float(spearmanr(true, found).statistic), 3)
        result[f"{name}_sum_ratio"] = round(float(found.sum() / true.sum()), 3)
    healthy = measured.filter(pl.col("opacity_volume_ml") == 0)
    result["healthy_series"] = len(healthy)
    result["healthy_worst_po_pct"] = round(float(healthy["po_pct_found"].max()), 3)  # type: ignore[arg-type]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
