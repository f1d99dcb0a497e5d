"""``cohortseg scan``: what is in a folder, what will be segmented, and why the rest will not."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortseg.cli.console import number, progress, results, say
from cohortseg.cli.options import Prefer, Repair, Select, selection_options
from cohortseg.config import InferConfig, ScanConfig, resolve_config
from cohortseg.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from cohortseg.dicom.scan import CohortScan
    from cohortseg.dicom.series import Decision, SeriesRecord

_RULES = tuple(item.name for item in fields(ScanConfig))
"""Settings that a scan uses."""
MAX_LINES = 60
"""Series shown; the manifest holds all."""
_WIDE = 80
"""A narrower terminal shows neither spacing nor kernel, so that the findings can be read."""
_LEAST_FINDINGS = 16
_TEXT_SHOWN = 40


def archives_message(count: int) -> str:
    """Return the message about archives in a cohort."""
    return f"{count} archives were not looked into; unpack those that hold scans"


def scan(
    cohort: Annotated[Path, typer.Argument(help="Folder of DICOM files, in any order and with any names.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the manifest (.parquet) here.")] = None,
    *,
    files: Annotated[Path | None, typer.Option(help="Write where every file went (.parquet) here.")] = None,
    select: Select = None,
    prefer: Prefer = None,
    repair: Repair = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read headers; default: as needed.")] = None,
    show_ids: Annotated[bool, typer.Option("--show-ids", help="Show patient identifiers.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings of infer (TOML), of which select, prefer and repair count; options win.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find every series, and show which will be segmented and why the others will not.

    Exit code 3: no series will be segmented, or files could not be read.

    Example: cohortseg scan cohort/ -o manifest.parquet --select 'kernel~B30|STANDARD'
    """
    from cohortseg.dicom.scan import scan_cohort

    settings = resolve_config(InferConfig, config, selection_options(select, prefer, repair))
    if output is not None and files is not None and output.resolve() == files.resolve():
        raise ConfigError(f"{output}: is named for the manifest and for --files; give each a name of its own")
    for target, table in ((output, "manifest"), (files, "files")):
        if target is not None:
            _check_target(target, cohort, table)
    with progress("Scanning") as report:
        found = scan_cohort(cohort, report, workers, settings)
    if output is not None or files is not None:
        from cohortseg.report.scan_tables import write_scan

        rules = {name: value for name, value in asdict(settings).items() if name in _RULES}
        write_scan(found, {"command": "scan", "config": rules}, manifest=output, files=files)
    _print_series(found, "selected", "To be segmented", show_ids=show_ids)
    _print_series(found, "alternative", "Alternatives: another of their study is preferred", show_ids=show_ids)
    _print_reasons(found)
    selected = len(found.selected)
    results.print(f"{len(found.series)} series, {selected} to be segmented; {len(found.skipped)} other files")
    for title, path in (("manifest", output), ("files", files)):
        if path is not None:
            say(f"{title}: {path}")
    if found.num_unreadable:
        say(f"{found.num_unreadable} files or folders of the cohort could not be read: --files FILE names them")
    if found.num_archives:
        say(archives_message(found.num_archives))
    if found.num_unreadable or not selected:
        raise typer.Exit(3)


def _check_target(target: Path, cohort: Path, table: str) -> None:
    """Refuse a target in the cohort or an output of infer, of another format, without a folder, or no such table."""
    from cohortseg.store.layout import STATE
    from cohortseg.store.schemas import BURDEN
    from cohortseg.store.tables import table_name

    if target.resolve().is_relative_to(cohort.resolve()):
        raise ConfigError(f"{target}: lies inside the cohort, which is only read; choose another place")
    if target.suffix.lower() in (".csv", ".tsv", ".json", ".xlsx"):
        raise ConfigError(f"{target}: tables are written as .parquet; polars or DuckDB make other files of them")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: no such folder as {target.parent}")
    if (target.parent / STATE).is_dir() or (target.parent / BURDEN.file_name).is_file():
        raise ConfigError(f"{target}: its folder is an output of infer, which has tables of its own; choose another")
    if target.exists() and table_name(target) != table:
        raise ConfigError(f"{target}: exists and is no {table} table of cohortseg's; choose another name")


def _print_series(found: "CohortScan", decision: "Decision", title: str, *, show_ids: bool) -> None:
    """Print the series of one decision: what they are, and what was found or why they are not segmented."""
    records = [record for record in found.series if record.decision == decision]
    table = _series_table(title, "findings" if decision == "selected" else "why", show_ids=show_ids)
    for record in records[:MAX_LINES]:
        table.add_row(*_cells(record, show_ids=show_ids))
    if records:
        results.print(table)
    if len(records) > MAX_LINES:
        results.print(f"... and {len(records) - MAX_LINES} more; --output writes them all")


def _series_table(title: str, last: str, *, show_ids: bool) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in (*(("patient",) if show_ids else ()), "series", "date"):
        table.add_column(name, no_wrap=name != "patient", overflow="fold")
    table.add_column("slices", justify="right", overflow="fold")
    if results.width >= _WIDE:
        table.add_column("spacing z, y, x mm", justify="right", overflow="fold")
        table.add_column("kernel", overflow="fold")
    table.add_column(last, overflow="fold", min_width=_LEAST_FINDINGS)
    return table


def _cells(record: "SeriesRecord", *, show_ids: bool) -> list[str]:
    from rich.markup import escape

    spacing = (record.spacing_z_mm, record.spacing_y_mm, record.spacing_x_mm)
    cells = [escape((record.patient_id or "-")[:_TEXT_SHOWN])] if show_ids else []
    cells += [record.series_key, str(record.study_date or "-"), str(record.n_slices)]
    if results.width >= _WIDE:
        cells += [" ".join(number(value, 2) for value in spacing)]
        cells += [escape((record.convolution_kernel or "-")[:_TEXT_SHOWN])]
    return [*cells, escape(record.reason or ", ".join(record.qc_flags))]


def _print_reasons(found: "CohortScan") -> None:
    from collections import Counter

    from rich import box
    from rich.markup import escape
    from rich.table import Table

    series = Counter(record.reason or "" for record in found.series if record.decision in ("skipped", "excluded"))
    files = Counter(file.reason for file in found.skipped)
    copies = sum(record.n_duplicates for record in found.series)
    table = Table(title="Not segmented", title_justify="left", box=box.SIMPLE)
    table.add_column("number", justify="right", overflow="fold")
    table.add_column("reason", overflow="fold")
    for reasons, noun in ((series, "series"), (files, "files")):
        for reason, count in reasons.most_common(MAX_LINES):
            table.add_row(f"{count} {noun}", escape(reason))
    if copies:
        table.add_row(f"{copies} files", "copies of a slice of the same series, with the same pixels or damaged")
    if table.row_count:
        results.print(table)
