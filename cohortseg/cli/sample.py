"""``cohortseg sample``."""

from pathlib import Path
from typing import Annotated

import typer

from cohortseg.cli.console import progress, say
from cohortseg.config import SampleConfig
from cohortseg.errors import ConfigError


def sample(
    out: Annotated[Path, typer.Argument(help="Folder to fill; new or empty.", show_default=False)],
    *,
    patients: Annotated[
        int | None,
        typer.Option(help="Patients; every third is free of lesions.", show_default=str(SampleConfig.patients)),
    ] = None,
    timepoints: Annotated[
        int | None,
        typer.Option(
            help="Study dates a patient; the first patient has one fewer.", show_default=str(SampleConfig.timepoints)
        ),
    ] = None,
    slices: Annotated[
        int | None, typer.Option(help="Slices a series, spread over the lungs.", show_default=str(SampleConfig.slices))
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Rows and columns of a slice.", show_default=str(SampleConfig.size))
    ] = None,
    quirks: Annotated[
        bool, typer.Option("--quirks", help="Instead: odd DICOM of every kind, with what must become of it.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Same seed and versions, same bytes.", show_default=str(SampleConfig.seed))
    ] = None,
) -> None:
    """Write a synthetic chest-CT cohort as DICOM, with its true lesion volumes.

    Example: [bold]cohortseg sample cohort/ --patients 6 --seed 1[/]
    """
    options = {"patients": patients, "timepoints": timepoints, "slices": slices, "size": size, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    if quirks:
        if given:
            raise ConfigError(f"--quirks always writes the same files: leave --{', --'.join(given)} out")
        from cohortseg.synthetic.quirks import write_quirks

        with progress("Drawing") as report:
            table = write_quirks(out, report)
        say(f"DICOM in {out / 'dicom'}, what must become of it in {table}")
        return
    from cohortseg.synthetic.cohort import write_cohort

    config = SampleConfig(**given)
    with progress("Drawing") as report:
        truth = write_cohort(out, config, report)
    say(f"DICOM in {out / 'dicom'}, truth in {truth} and {out / 'truth'}")
