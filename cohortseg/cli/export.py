"""``cohortseg export``: masks of a finished run in the formats of viewers."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cohortseg.cli.console import name_of, progress, results, say
from cohortseg.config import ExportFormat


def export(
    out: Annotated[Path, typer.Argument(help="Output folder of infer.", show_default=False)],
    *,
    form: Annotated[
        ExportFormat,
        typer.Option("--format", help="What to write of each series.", show_default=False),
    ],
    cohort: Annotated[
        Path | None,
        typer.Option(
            help="The folder that was segmented: dicom-seg and png need it, nifti then holds the CT too.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", file_okay=False, help="Output folder.", show_default="./<out>-<format>"),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(help="Only this one, by SeriesInstanceUID or series_key (repeat for more).", show_default="all"),
    ] = None,
) -> None:
    """Write masks as DICOM SEG, NIfTI (labels and lungs) or PNG (each slice with lung, drawn over the CT).

    A DICOM SEG is written for each series with a lesion. It holds the patient's identity, as its source does; file
    names do not. The number of a segment depends on the classes present, so identify segments by SegmentLabel.

    Example: [bold]cohortseg export cohort-cohortseg/ --format dicom-seg --cohort cohort/[/]
    """
    from cohortseg.export.run import export_masks

    target = output or Path(f"{name_of(out)}-{form}")
    summary = export_masks(out, target, form=form, cohort=cohort, only=series or (), progress=progress)
    table = Table("Series", "Number", title="Export", title_justify="left")
    table.columns[1].justify = "right"
    for fate, count in summary.fates.items():
        table.add_row(fate, str(count))
    results.print(table)
    for key, reason in summary.failures.items():
        say(f"series {key}: {reason.removeprefix(f'series {key}: ')}")
    if summary.left_over:
        keys = ", ".join(summary.left_over)
        say(f"warning: {target} also holds files of series that {out} does not measure (any more): {keys}")
    if not summary.fates:
        say("no series was measured: there is nothing to export")
    elif set(summary.fates) & {"written", "up to date"}:
        say(f"{form} files are in {target}")
        if form == "dicom-seg" and summary.repaired:
            say(
                f"{summary.repaired} of them are of repaired series (column repairs of manifest.parquet): viewers that "
                "draw on the original slices show those in part or not at all; --format nifti does without the slices"
            )
    if not summary.complete:
        raise typer.Exit(3)
