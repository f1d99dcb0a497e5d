"""``cohortseg compare``: the rows of the paper's table 2 side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from cohortseg.cli.console import number, progress, results, say
from cohortseg.cli.options import Address, Data, Seed, TrainSettings
from cohortseg.compare.rows import ROWS
from cohortseg.config import TrainConfig, preset_config, resolve_config
from cohortseg.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl


def compare(
    *,
    data: Data = None,
    rows: Annotated[str, typer.Option(help=f"Rows, with commas between: {', '.join(ROWS)}.")] = "plain,full",
    folds: Annotated[str, typer.Option(help="Folds of ten images, with commas between.")] = "1,2,3,4,5",
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Folder of the comparison.")] = Path(
        "runs/compare"
    ),
    preset: Annotated[
        Literal["paper", "cpu"], typer.Option(help="Recipe: the paper's settings, or a short one for two CPU cores.")
    ] = "paper",
    config: TrainSettings = None,
    seed: Seed = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trainings beside each other, on Ray.",
            show_default="one after the other; on a cluster one a GPU",
        ),
    ] = None,
    address: Address = None,
) -> None:
    """Train rows of the paper's table 2, or a student, on the same folds, and show their gains over a plain network.

    It can be interrupted at any time: the same command does what is left. Rows and folds can be added later.

    Example: [bold]cohortseg compare --preset cpu --rows plain,full --folds 1,2,3 -o runs/table2[/bold]
    """
    from cohortseg.compare.run import compare_rows
    from cohortseg.store.layout import PAGE

    settings = resolve_config(TrainConfig, config, {"seed": seed}, base=preset_config(preset))
    comparison = compare_rows(
        settings,
        output,
        data=data,
        rows=_names(rows),
        folds=_numbers(folds),
        num_workers=workers,
        address=address,
        progress=progress,
    )
    results.print(_table(comparison.table))
    if not comparison.num_done:
        say("every row and fold asked for was done before")
    say(f"every number: {output / PAGE}, comparison.parquet and held_out.parquet beside it")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except ValueError:
        raise ConfigError(f"--folds must be numbers with commas between, got {text!r}") from None


def _table(comparison: "pl.DataFrame") -> Table:
    table = Table(title="Dice, toolbox protocol on label maps; gain over plain (95 % interval)", title_justify="left")
    table.add_column("Row", no_wrap=True)
    for title in ("Images", "GGO", "Gain", "Consolidation", "Gain"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in comparison["row"].unique(maintain_order=True):
        lines = {line["class_name"]: line for line in comparison.iter_rows(named=True) if line["row"] == row}
        cells = [str(lines["ggo"]["n_images"])]
        for name in ("ggo", "consolidation"):
            cells += [number(lines[name]["dice"], 3), _gain(lines[name])]
        table.add_row(row, *cells)
    return table


def _gain(line: dict[str, float | None]) -> str:
    if line["dice_gain"] is None:
        return "-"
    interval = f" ({number(line['dice_gain_low'], 3)} to {number(line['dice_gain_high'], 3)})"
    paired = "" if line["n_paired"] == line["n_images"] else f" on {line['n_paired']} images"
    return f"{line['dice_gain']:+z.3f}{interval if line['dice_gain_low'] is not None else ''}{paired}"
