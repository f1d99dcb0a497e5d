"""Compare the model's opacity with a plain HU-band estimate of it: all pairs of an inference output, and their ranks.

    cohortseg infer COHORT -o OUT
    python benchmarks/hu_band.py COHORT OUT

The band is -750 to 50 HU inside the lung mask, with vessels removed: an opening with a disc of 3 mm radius takes off
everything thinner than 6 mm. It does not recognise lesions: crowded vessels, airway walls and breathing out count too,
and anything denser than 50 HU does not. Look at the pairs one by one; the rank correlation of eight slices proves
nothing.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr

from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.series import record_from_row
from cohortseg.store.masks import read_masks
from cohortseg.store.schemas import BURDEN, MANIFEST
from cohortseg.store.tables import read_table

BAND_HU = (-750, 50)
VESSEL_RADIUS_MM = 3.0


def band_pct(slices_hu: NDArray[np.int16], lungs: NDArray[np.uint8], pixel_mm: tuple[float, float]) -> float:
    """Return the percent of the lung inside the band, vessels removed slice by slice."""
    inside = lungs > 0
    band = inside & (slices_hu >= BAND_HU[0]) & (slices_hu <= BAND_HU[1])
    reach = [int(VESSEL_RADIUS_MM / step) for step in pixel_mm]
    rows, columns = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    disc = np.hypot(rows * pixel_mm[0], columns * pixel_mm[1]) <= VESSEL_RADIUS_MM
    opened = ndimage.binary_opening(band, disc[None])
    return float(100 * np.count_nonzero(opened) / np.count_nonzero(inside))


def main() -> None:
    """Print every pair, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("output", type=Path, help="of `cohortseg infer` over the cohort")
    options = parser.parse_args()
    burden = read_table(options.output / "burden.parquet", BURDEN).filter(pl.col("status") == "ok")
    opacity = dict(burden.select("series_key", "po_pct").iter_rows())
    pairs = []
    manifest = read_table(options.output / "manifest.parquet", MANIFEST)
    for record in map(record_from_row, manifest.iter_rows(named=True)):
        if record.series_key in opacity:
            volume = read_volume(record, options.cohort)
            lungs = read_masks(options.output / "masks.zarr", record.series_key).lungs
            estimate = band_pct(volume.volume_hu, lungs, volume.spacing_mm[1:])
            pairs.append((record.series_key, opacity[record.series_key], estimate))
    table = pl.DataFrame(pairs, ["series_key", "opacity_pct", "band_pct"], orient="row").sort("band_pct")
    table = table.with_columns(
        pl.col("opacity_pct").rank().alias("opacity_rank"), pl.col("band_pct").rank().alias("band_rank")
    )
    with pl.Config(tbl_rows=-1, tbl_width_chars=120, float_precision=1, tbl_hide_dataframe_shape=True):
        print(table)
    rank = spearmanr(table["opacity_pct"], table["band_pct"]).statistic if len(table) > 2 else None
    print(json.dumps({"series": len(table), "rank_correlation": None if rank is None else round(float(rank), 3)}))


if __name__ == "__main__":
    main()
