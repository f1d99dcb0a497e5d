"""Write docs/tables.md from the schemas: run this after changing one; a test compares them."""

from pathlib import Path

from cohortseg import qc
from cohortseg.compare.tables import COMPARISON
from cohortseg.evaluate.tables import IMAGES, METRICS
from cohortseg.labels import LABELS
from cohortseg.store.schemas import TABLES, TableSchema
from cohortseg.volume import HU_MAX, HU_MIN

_INTRO = """# The tables and masks

Made from `cohortseg/store/schemas.py` by `docs/make_tables.py`; do not edit.

**Null means not measured or not known, never 0.** Units are in the names: `_ml`, `_mm`, `_mm2`, `_hu`, `_pct`, `_s`.
Each Parquet file carries its schema version and provenance as JSON under the metadata key `cohortseg`, and what each
column means as `description` in the metadata of its field (pyarrow: `pq.read_schema(path).field("po_pct").metadata`).
HU are rounded to whole numbers and cut off at {low} and {high}: where noise goes below, as in lungs at a low dose,
means come out some HU too high (10 at a noise of 150 HU), so compare `lung_mean_hu` of scans of like `noise_hu` only.

## Which series stands for a date

Days are counted from the earliest study date among a patient's chosen series, measured or not. Where several series
have one date, one of them stands for it in `timeline.parquet`: the first in the order status ok before any other, a
plausible lung volume before an implausible one, all of the lungs (at least 80 % of the most lung found that day) before
part of them, what is neither computed from several energies, called a projection, called an expiration nor noisy
(`spectral_image`, `maybe_projection`, `expiration`, `noisy`) before what is, lungs that end within slices and field of
view before those that go on beyond (`lung_cut_at_end_slice`, `lung_cut_by_field_of_view`), most slices with lung (where
none was looked for: most slices), smallest slice spacing, a soft kernel before one that is not known before a sharp
one, series UID. A series
without a study date is a row of its own, with null in all columns that count days and in all changes; it counts as no
time point. Series without a patient identifier are never put together: each study counts as one patient, and where no
study is named either, each series; their days and time points are null. `delta_*` is the value minus that of the first
evaluable date.

A single slice has percents (of area), but no volumes and no zones; where a patient has volumes at another date, it has
no part in `delta_*`, first, last and peak. Nor has a part of the lungs, as an abdomen shows it (less than .8 L and than
half of the patient's largest plausible lung volume; or flagged `lung_cut_at_end_slice`, and either with less than one
of the two, or flagged `other_body_part`, or `partial_coverage` with less than 65 % of it), where the patient has whole
lungs at another date. A date with much less lung than another one is flagged `less_lung_than_other_dates`. A series
without lung in view is `not_evaluable`.

## Masks

`masks.zarr/<series_key>` (Zarr v3) holds `labels` and `lungs`, uint8 (z, y, x): slices ordered along their normal
towards the head, rows and columns as in the DICOM files. `labels`: {labels}.
`lungs`: 0 none, 1 the patient's right lung, 2 the left lung. The group's attributes are `ome` (as NGFF 0.5 says
of image labels, but for the array's name, `labels`, which it reserves: strict readers refuse it; a z scale of 1 without
unit is that of a single slice, whose extent is not known)
and `cohortseg`: `affine_zyx_to_lps_mm` (4 x 4, array index to patient space, LPS; the first column of a single slice is
the unit normal), `spacing_zyx_mm`, UIDs of study, series, frame of reference and of each slice, classes with colours
and SNOMED CT codes, the model's name and hash, and `nonzero_voxels` of each array (Zarr reads zeros where a file is
lost: `read_masks` compares). Groups of series that an earlier run chose and the last did not stay
until a run with `--no-resume`: go by `burden.parquet`.
"""

_FLAGS_INTRO = """`--select` and `manifest.parquet` know those of headers only (the manifest also those of the choice);
rows of the others are filtered in `burden.parquet`."""


def tables_markdown() -> str:
    """Return the whole page."""
    labels = ", ".join(f"{label.value} {label.title.lower()}" for label in LABELS)
    parts = [_INTRO.format(labels=labels, low=HU_MIN, high=HU_MAX)]
    parts += [_table(schema) for schema in (*TABLES, IMAGES, METRICS, COMPARISON)]
    found_in = {
        "headers": qc.HEADER_FLAGS,
        "the choice of series": qc.CHOICE_FLAGS,
        "pixels": qc.PIXEL_FLAGS,
        "other dates": qc.TIMELINE_FLAGS,
    }
    lines = "\n".join(
        f"| `{name}` | {where} | {meaning} |" for where, flags in found_in.items() for name, meaning in flags.items()
    )
    parts.append(f"## Flags in `qc_flags`\n\n{_FLAGS_INTRO}\n\n| flag | found in | meaning |\n|---|---|---|\n{lines}\n")
    return "\n".join(parts)


def _table(schema: TableSchema) -> str:
    rows = "\n".join(f"| `{column.name}` | {column.dtype} | {column.meaning} |" for column in schema.columns)
    head = f"## {schema.name}.parquet\n\nOne row: {schema.row}. Version {schema.version}."
    return f"{head}\n\n| column | type | meaning |\n|---|---|---|\n{rows}\n"


if __name__ == "__main__":
    Path(__file__).with_name("tables.md").write_text(tables_markdown(), encoding="utf-8")
