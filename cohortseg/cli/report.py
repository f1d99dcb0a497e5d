"""``cohortseg report``: trajectories of patients from an output folder of ``infer``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cohortseg.cli.console import results, say


def report(
    out: Annotated[Path, typer.Argument(help="Output folder of infer.", show_default=False)],
    *,
    clinical: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Table of text with columns patient_id and onset_date (2020-03-31); the folder keeps it.",
            show_default="the one given last",
        ),
    ] = None,
) -> None:
    """Write timeline, patients and report.html again from the burden table; nothing is segmented or measured again.

    Example: [bold]cohortseg report cohort-cohortseg/ --clinical patients.csv[/]
    """
    from cohortseg.pipeline import report_cohort

    written = report_cohort(out, clinical)
    patients = written.patients["patient_id"]
    unnamed = patients.null_count()
    counts = {
        "Patients": patients.count(),  # without nulls, like those below
        "With onset": written.patients["onset_date"].count(),
        **({"Studies without identifier": unnamed} if unnamed else {}),
        "Time points": written.timeline["study_date"].count(),  # a series without a date is none
        "Series": len(written.burden),
    }
    table = Table(*counts, title="Report", title_justify="left")
    table.add_row(*map(str, counts.values()))
    results.print(table)
    say(f"timeline.parquet, patients.parquet and {written.page.name} are in {out}")
