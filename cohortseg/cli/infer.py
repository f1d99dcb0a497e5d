"""``cohortseg infer``: from DICOM to masks, burden tables and a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from cohortseg.cli.console import name_of, number, progress, results, say
from cohortseg.cli.options import Address, Model, Prefer, Repair, Select, selection_options
from cohortseg.cli.scan import archives_message
from cohortseg.config import Engine, InferConfig, resolve_config
from cohortseg.errors import ConfigError

if TYPE_CHECKING:
    from cohortseg.pipeline import InferSummary

_MOST_ROWS: Final = 60
_NUMBERS: Final = ("lung_volume_ml", "ggo_pct", "consolidation_pct", "po_pct")
_STATUS: Final = {"ok": "ok", "not_evaluable": "not evaluable", "failed": "failed"}
_REMARKS: Final = "Remarks"
_COLUMNS: Final[dict[str, Literal["left", "right"]]] = {
    "Series": "left",
    "Date": "left",
    "Status": "left",
    "Lung mL": "right",
    "GGO %": "right",
    "Cons %": "right",
    "All %": "right",
    _REMARKS: "left",
}
_WIDE: Final = 72
_LEFT_OUT: Final = ("Date", "GGO %", "Cons %")
"""Columns left out in a narrower terminal, to make room for the remarks."""
_LEAST_REMARKS: Final = 16


def infer(
    cohort: Annotated[Path, typer.Argument(help="Folder of DICOM files, in any order or nesting.", show_default=False)],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", file_okay=False, help="Output folder.", show_default="./<cohort>-cohortseg"),
    ] = None,
    model: Model = None,
    select: Select = None,
    prefer: Prefer = None,
    repair: Repair = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Ray actors.", show_default="one per core, at most four per GPU, for large cohorts"),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Keep what an earlier run has finished.", show_default="resume"),
    ] = None,
    retry_failed: Annotated[
        bool | None,
        typer.Option("--retry-failed", help="Do series again that an earlier run failed at.", show_default=False),
    ] = None,
    engine: Annotated[
        Engine | None, typer.Option(help="This process, Ray Data, or whichever suits.", show_default=InferConfig.engine)
    ] = None,
    address: Address = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings (TOML); options win.", exists=True, dir_okay=False, show_default=False)
    ] = None,
) -> None:
    """Segment the CT of every study of a cohort, and write masks, burden tables and a report.

    Of several usable series of a study one is preferred (--prefer, --select); the command scan says which and why.
    The cohort is only read. The same command continues a killed run; repeated later, it does only what changed.
    Exit code 3: finished, but some chosen series failed or could not be evaluated, none could be chosen, or files could
    not be read. Rules that leave no series are refused (2).

    Example: [bold]cohortseg infer cohort/[/]
    """
    options = {
        "workers": workers,
        "resume": resume,
        "retry_failed": retry_failed,
        "engine": engine,
        **selection_options(select, prefer, repair),
    }
    settings = resolve_config(InferConfig, config, options)
    if address is not None and settings.engine == "local":
        raise ConfigError("--address names a Ray cluster, and engine local uses none: leave one of them out")
    from cohortseg.dicom.scan import require_folder

    require_folder(cohort)
    from cohortseg.pipeline import infer_cohort  # this import takes seconds

    target = output or Path(f"{name_of(cohort)}-cohortseg")
    summary = infer_cohort(cohort, target, config=settings, model_path=model, progress=progress, address=address)
    _show(summary, target)
    if not summary.complete:
        raise typer.Exit(3)


def _show(summary: "InferSummary", target: Path) -> None:
    """Print the series on standard output, and where everything lies on standard error."""
    title = f"{len(summary.burden)} of {summary.num_found} series were chosen; percents are of the lung"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [name for name in _COLUMNS if name not in _LEFT_OUT or results.width >= _WIDE]
    for name in shown:
        least = _LEAST_REMARKS if name == _REMARKS else None
        table.add_column(name, justify=_COLUMNS[name], no_wrap=name != _REMARKS, overflow="fold", min_width=least)
    for row in summary.burden.head(_MOST_ROWS).iter_rows(named=True):
        numbers = [number(row[name], 1) for name in _NUMBERS]
        remarks = escape(summary.reasons.get(row["series_key"]) or ", ".join(row["qc_flags"]))
        cells = [row["series_key"][:8], str(row["study_date"] or "-"), _STATUS[row["status"]], *numbers, remarks]
        table.add_row(*(cell for name, cell in zip(_COLUMNS, cells, strict=True) if name in shown))
    results.print(table)
    if len(summary.burden) > _MOST_ROWS:
        say(f"the first {_MOST_ROWS} of {len(summary.burden)} series are shown; all are in burden.parquet")
    if summary.num_done == 0 and len(summary.burden):
        say("nothing to do: every chosen series was finished by an earlier run (--no-resume does them again)")
    if summary.num_patients_left_out:
        say(f"patients none of whose series was chosen: {summary.num_patients_left_out} (manifest.parquet says why)")
    if summary.num_others:
        say(
            f"{summary.num_others} series of earlier runs are not chosen now: the tables leave them out, "
            "their masks, pictures and rows in .state stay, with PatientID and date, and onset dates of who has gone "
            "(--no-resume removes them)"
        )
    if summary.num_unreadable:
        say(
            f"{summary.num_unreadable} files or folders of the cohort could not be read: slices or patients may be "
            "missing; files.parquet names them"
        )
    if summary.num_archives:
        say(archives_message(summary.num_archives))
    if "failed" in summary.counts:
        say(
            "burden.parquet names the file of each failed series, in its column reason; once what it says is mended "
            "outside the files (a decoder, memory), --retry-failed does them again"
        )
    counts = (
        ", ".join(f"{count} {status}" for status, count in summary.counts.items())
        or "no series can be segmented (manifest.parquet says why)"
    )
    say(f"{counts}; tables, masks, pictures and report.html are in {target}")
