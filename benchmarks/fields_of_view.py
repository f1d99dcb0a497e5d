"""Compare lungs and opacity in other fields of view with the whole one: the same slices, cut, padded and turned.

    python benchmarks/fields_of_view.py COHORT [--model MODEL]

Scanners reconstruct the field that is asked for: the whole body, or a field set to the lungs, in which the sides of the
chest are cut off and room and table lie in front of and behind it; some measure only the circle in the square. COHORT
is any folder of DICOM whose series show the whole body. Each series is cut to squares, and to circles in them, of
several multiples of the width of its lungs, and turned in its plane by several angles, as for a patient lying on one
side. The output is the error of the lung area, %, and the opacity, % of the lungs.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cohortseg.config import InferConfig
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.scan import scan_cohort
from cohortseg.infer.segmenter import segment_slices
from cohortseg.lungs import segment_lungs
from cohortseg.preprocess import orientation_from_affine
from cohortseg.volume import HU_MIN, bounding_box
from cohortseg.weights import load_model

WIDTHS = (0.85, 1.0, 1.1, 1.2, 1.3)
TURNS_DEG = (8, -8, 15, -15, 30, -30)


def fields(
    volume_hu: NDArray[np.int16], lungs: NDArray[np.bool_]
) -> Iterator[tuple[str, NDArray[np.int16], NDArray[np.bool_]]]:
    """Yield other fields of view of an upright volume (Z, Y, X), and the lungs in each."""
    for degrees in TURNS_DEG:
        turned = ndimage.rotate(volume_hu, degrees, axes=(1, 2), reshape=False, order=1, cval=HU_MIN)
        turned_lungs = ndimage.rotate(lungs.astype(np.uint8), degrees, axes=(1, 2), reshape=False, order=0)
        yield f"turned {degrees}", turned, turned_lungs > 0
    rows, columns = bounding_box(np.any(lungs, axis=0))
    for width in WIDTHS:
        side = int(width * (columns.stop - columns.start)) // 2 * 2
        if side > min(lungs.shape[1:]):
            continue
        low = [
            min(max(0, (held.start + held.stop - side) // 2), size - side)
            for held, size in zip((rows, columns), lungs.shape[1:], strict=True)
        ]
        seen = np.s_[:, low[0] : low[0] + side, low[1] : low[1] + side]
        yield f"square {width:g}", volume_hu[seen], lungs[seen]
        y, x = np.indices((side, side)) - (side - 1) / 2
        measured = np.hypot(y, x) <= side / 2
        yield f"circle {width:g}", np.where(measured, volume_hu[seen], np.int16(HU_MIN)), lungs[seen] & measured


def main() -> None:
    """Print each series' numbers, and one JSON object with the means of their sizes on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--model", type=Path, help="default: the packaged model")
    options = parser.parse_args()
    model = load_model(options.model)
    off: dict[str, list[tuple[float, float]]] = {}
    for record in scan_cohort(options.cohort).selected:
        volume = read_volume(record, options.cohort)
        orientation = orientation_from_affine(volume.affine)
        whole_hu = np.ascontiguousarray(orientation.to_upright(volume.volume_hu))
        spacing_mm = orientation.upright_spacing(volume.spacing_mm)

        def measured(
            hu: NDArray[np.int16], spacing_mm: tuple[float | None, float, float] = spacing_mm
        ) -> tuple[NDArray[np.bool_], float]:
            lungs = segment_lungs(hu, spacing_mm).mask
            labels, _ = segment_slices(hu, lungs, model, InferConfig())
            return lungs > 0, 100 * int(np.count_nonzero(labels)) / max(1, int(np.count_nonzero(lungs)))

        lungs, opacity_pct = measured(whole_hu)
        if not lungs.any():
            continue
        print(f"{record.series_key}  whole field: opacity {opacity_pct:.1f} %", flush=True)
        for name, hu, expected in fields(whole_hu, lungs):
            found, pct = measured(np.ascontiguousarray(hu))
            area_pct = 100 * (found.sum() / expected.sum() - 1)
            off.setdefault(name, []).append((abs(area_pct), abs(pct - opacity_pct)))
            print(f"    {name:12}  lungs {area_pct:+6.1f} %   opacity {pct:5.1f} %", flush=True)
    rounded = {name: [round(float(value), 2) for value in np.mean(pairs, axis=0)] for name, pairs in off.items()}
    print(json.dumps({"mean_off_lung_pct_and_opacity_points": rounded}))


if __name__ == "__main__":
    main()
