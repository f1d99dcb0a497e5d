"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from cohortseg.config import PREFERENCES, REPAIRS, ScanConfig

Data = Annotated[
    Path | None, typer.Option(help="COVID-SemiSeg folder.", show_default="$COHORTSEG_DATA, else ./COVID-SemiSeg")
]
Model = Annotated[
    Path | None, typer.Option(help="Model file.", exists=True, dir_okay=False, show_default="the packaged model")
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster.", show_default="$RAY_ADDRESS, else this machine")
]
TrainSettings = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="TOML file with settings (see docs/settings.md).")
]
Seed = Annotated[int | None, typer.Option(help="Of weights, order and augmentation.")]
Select = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        help="preferred (one series a study), all, or a rule like 'kernel~B30|B31', 'spacing_z_mm<=2'; repeatable.",
        show_default=", ".join(ScanConfig.select),
    ),
]
Prefer = Annotated[
    str | None,
    typer.Option(
        help=f"What decides between series of one study, in order: of {', '.join(PREFERENCES)}.",
        show_default=",".join(ScanConfig.prefer),
    ),
]
Repair = Annotated[
    list[str] | None,
    typer.Option(help=f"Resample instead of skipping: {' or '.join(REPAIRS)}; repeatable.", show_default="none"),
]


def selection_options(select: list[str] | None, prefer: str | None, repair: list[str] | None) -> dict[str, object]:
    """Return the settings that --select, --prefer and --repair set; None: not given."""
    preferences = None if prefer is None else tuple(name.strip() for name in prefer.split(","))
    return {"select": select or None, "prefer": preferences, "repair": repair or None}
