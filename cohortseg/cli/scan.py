"""``cohortseg scan``: what is in a folder, what will be segmented, and why the rest will not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortseg.cli.console import out, progress, say

if TYPE_CHECKING:
    from cohortseg.dicom.scan import CohortScan

MAX_LINES = 60
"""Series shown; the manifest holds all."""


def scan(
    cohort: Annotated[Path, typer.Argument(help="Folder of DICOM files, in any order and with any names.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the manifest (.parquet) here.")] = None,
    *,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read headers; default: as needed.")] = None,
    show_ids: Annotated[bool, typer.Option("--show-ids", help="Show patient identifiers.")] = False,
) -> None:
    """Find every series, say which will be segmented and why the others will not.

    Example: cohortseg scan cohort/ -o manifest.parquet
    """
    from cohortseg.dicom.scan import scan_cohort

    with progress("scan") as report:
        found = scan_cohort(cohort, report, workers)
    if output is not None:
        _write_manifest(output, found)
    _print_selected(found, show_ids=show_ids)
    _print_reasons(found)
    selected = sum(record.decision == "selected" for record in found.series)
    out.print(f"{len(found.series)} series, {selected} to be segmented; {len(found.skipped)} other files")
    if output is not None:
        say(f"manifest: {output}")


def _write_manifest(path: Path, found: "CohortScan") -> None:
    from dataclasses import asdict

    from cohortseg.store.schemas import MANIFEST
    from cohortseg.store.tables import table_from_rows, write_table

    rows = [asdict(record) for record in found.series]
    write_table(path, table_from_rows(rows, MANIFEST), MANIFEST, {"command": "scan"})


def _print_selected(found: "CohortScan", *, show_ids: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    selected = [record for record in found.series if record.decision == "selected"]
    table = Table(title="To be segmented", title_justify="left", box=box.SIMPLE)
    for name in (*(("patient",) if show_ids else ()), "series", "date"):
        table.add_column(name)
    table.add_column("slices", justify="right")
    table.add_column("spacing z, y, x mm", justify="right")
    table.add_column("findings")
    for record in selected[:MAX_LINES]:
        spacing = (record.spacing_z_mm, record.spacing_y_mm, record.spacing_x_mm)
        cells = [escape(record.patient_id or "-")] if show_ids else []
        cells += [record.series_key, str(record.study_date or "-"), str(record.n_slices)]
        cells += [" ".join("-" if value is None else f"{value:.2f}" for value in spacing), ", ".join(record.qc_flags)]
        table.add_row(*cells)
    if selected:
        out.print(table)
    if len(selected) > MAX_LINES:
        out.print(f"... and {len(selected) - MAX_LINES} more; --output writes them all")


def _print_reasons(found: "CohortScan") -> None:
    from collections import Counter

    from rich import box
    from rich.markup import escape
    from rich.table import Table

    series = Counter(record.reason or "" for record in found.series if record.decision == "skipped")
    files = Counter(file.reason for file in found.skipped)
    copies = sum(record.n_duplicates for record in found.series)
    table = Table(title="Not segmented", title_justify="left", box=box.SIMPLE)
    table.add_column("number", justify="right")
    table.add_column("reason")
    for reasons, noun in ((series, "series"), (files, "files")):
        for reason, count in reasons.most_common(MAX_LINES):
            table.add_row(f"{count} {noun}", escape(reason))
    if copies:
        table.add_row(f"{copies} files", "copies of a slice of the same series, with the same pixels")
    if table.row_count:
        out.print(table)
