"""``cohortseg report``: trajectories of patients from an output folder of ``infer``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cohortseg.cli.console import out as console
from cohortseg.cli.console import say


def report(
    out: Annotated[Path, typer.Argument(help="Output folder of infer.", show_default=False)],
) -> None:
    """Write timeline, patients and report.html again from the burden table; nothing is segmented or measured again.

    Example: [bold]cohortseg report cohort-cohortseg/[/]
    """
    from cohortseg.pipeline import report_cohort

    written = report_cohort(out)
    table = Table("Patients", "Time points", "Series", title="Report", title_justify="left")
    table.add_row(*(str(len(frame)) for frame in (written.patients, written.timeline, written.burden)))
    console.print(table)
    say(f"timeline.parquet, patients.parquet and {written.page.name} are in {out}")
