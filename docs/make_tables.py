"""Write docs/tables.md from the schemas, docs/quirks.md from the quirks: run this after changing one; tests compare."""

import tempfile
from pathlib import Path

import polars as pl

from cohortseg import qc
from cohortseg.compare.tables import COMPARISON
from cohortseg.evaluate.tables import IMAGES, METRICS
from cohortseg.labels import LABELS
from cohortseg.progress import silent
from cohortseg.store.schemas import QUIRKS, TABLES, TableSchema
from cohortseg.store.tables import read_table
from cohortseg.synthetic.quirks import write_quirks
from cohortseg.volume import HU_MAX, HU_MIN

_INTRO = """# The tables and masks

Made from `cohortseg/store/schemas.py` by `docs/make_tables.py`; do not edit.

**Null means not measured or not known, never 0.** Units are in the names: `_ml`, `_mm`, `_mm2`, `_hu`, `_pct`, `_s`.
Each Parquet file carries its schema version and provenance as JSON under the metadata key `cohortseg`. The meaning of a
column is the `description` in the metadata of its field (pyarrow:
`pq.read_schema(path).field("po_pct").metadata`).

HU are rounded to whole numbers and clipped to {low} and {high}. Where noise goes below that range, as in lungs at a low
dose, means come out some HU too high (10 at a noise of 150 HU), so compare `lung_mean_hu` only between scans of similar
`noise_hu`.

## Which series represents a date

Days are counted from the earliest study date among a patient's chosen series, measured or not. Where several series
have the same date, one of them represents it in `timeline.parquet`. The first of these rules on which they differ
decides:

1. status `ok` before any other status,
2. a plausible lung volume before an implausible one, and that before none (a single slice has none),
3. all of the lungs (at least 80 % of the largest lung volume found that day; implausible ones are compared with each
   other) before part of them,
4. plain scans before series computed from several energies, called a projection, called an expiration, or noisy
   (`spectral_image`, `maybe_projection`, `expiration`, `noisy`),
5. lungs that end within the slices and the field of view before lungs that extend beyond one of them, and these before
   both (`lung_cut_at_end_slice`, `lung_cut_by_field_of_view`),
6. more slices with lung (where lung was not looked for: more slices),
7. smaller slice spacing,
8. a soft kernel before an unknown one before a sharp one,
9. series UID.

A series without a study date is a row of its own, with null in all columns that count days and in all changes; it is
not counted as a time point. Series without a patient identifier are never combined: each study counts as one patient
(each series, if there is no study UID either), and their days and time points are null.

`delta_*` is the value minus that on the first evaluable date. Two kinds of rows are not evaluable if the patient has
something better at another date; they do not count for `delta_*`, first, last and peak:

* A single slice, which has percents (of area) but no volumes and no zones, if the patient has volumes at another date.
* A part of the lungs, such as the bases on a CT of the abdomen, if the patient has whole lungs at another date. A row
  counts as part of the lungs if it has less than .8 L and less than half of the patient's largest plausible lung
  volume. It also does if it is flagged `lung_cut_at_end_slice` and, in addition, has less than .8 L, or less than half
  of that largest volume, or is flagged `other_body_part`, or is flagged `partial_coverage` with less than 65 % of it.

A date with much less lung than another one is flagged `less_lung_than_other_dates`. A series without lung in view is
`not_evaluable`.

## Masks

`masks.zarr/<series_key>` (Zarr v3) holds two arrays, uint8 (z, y, x). Slices are ordered along their normal towards the
head; rows and columns are as in the DICOM files.

* `labels`: {labels}.
* `lungs`: 0 none, 1 the patient's right lung, 2 the left lung.

The attributes of the group are:

* `ome`: NGFF 0.5 image-label metadata. The array's name, `labels`, is reserved in NGFF, so strict readers refuse it. A
  single slice, whose extent is not known, has a z scale of 1 without unit.
* `cohortseg`: `affine_zyx_to_lps_mm` (4 x 4, array index to patient space, LPS; the first column of a single slice is
  the unit normal), `spacing_zyx_mm`, UIDs of study, series, frame of reference and each slice, classes with colours and
  SNOMED CT codes, the model's name and hash, and `nonzero_voxels` of each array (Zarr reads zeros where a file is lost;
  `read_masks` compares the counts).

If an earlier run chose a series that the last run did not choose, its group stays until a run with `--no-resume`;
`burden.parquet` lists the current series.
"""

_FLAGS_INTRO = """`--select` can use only flags found in headers. `manifest.parquet` has these and the flags of the
choice of series. Filter by flags found in pixels in `burden.parquet`."""


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
    head = f"## {schema.name}.parquet\n\nEach row is {schema.row}. Version {schema.version}."
    return f"{head}\n\n| column | type | meaning |\n|---|---|---|\n{rows}\n"


_QUIRKS_INTRO = """# Odd DICOM, and what becomes of it

Made by `docs/make_tables.py` from the table that `cohortseg sample OUT --quirks` writes, `OUT/quirks.parquet`; do not
edit. The files of a quirk are in `OUT/dicom/<quirk>`. `tests/test_dicom_quirks.py` checks that each becomes what stands
here.

A row is a volume, or a group of other files; one without a name belongs to the quirk above it. "Becomes" is its
decision in `manifest.parquet` ([selection.md](selection.md) has the rules), or where its files went to in
`files.parquet`, and after a colon the status of a selected series once its pixels were read. The reason is a part of
the text in the column `reason`; the flags are those in `qc_flags` ([tables.md](tables.md#flags-in-qc_flags) explains
them). A row with a repair holds for `--repair` with that value, any other without.

| quirk | what is odd | repair | becomes | reason | flags |
|---|---|---|---|---|---|
"""


def quirks_markdown(quirks: pl.DataFrame) -> str:
    """Return the whole page from the table ``quirks.parquet``."""
    lines, before = [], None
    for row in quirks.iter_rows(named=True):
        is_new, before = row["quirk"] != before, row["quirk"]
        cells = (
            f"`{row['quirk']}`" if is_new else "",
            row["meaning"][0].upper() + row["meaning"][1:] if is_new else "",
            ", ".join(row["repair"]),
            ": ".join(filter(None, (row["decision"], row["status"]))),
            row["reason"] or "",
            ", ".join(f"`{flag}`" for flag in row["qc_flags"]),
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    return _QUIRKS_INTRO + "".join(lines)


def _written_quirks() -> pl.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        return read_table(write_quirks(Path(folder), silent), QUIRKS)


if __name__ == "__main__":
    Path(__file__).with_name("tables.md").write_text(tables_markdown(), encoding="utf-8")
    Path(__file__).with_name("quirks.md").write_text(quirks_markdown(_written_quirks()), encoding="utf-8")
