"""``cohortseg sample``."""

from pathlib import Path
from typing import Annotated

import typer

from cohortseg.cli.console import progress, say
from cohortseg.config import SampleConfig


def sample(
    out: Annotated[Path, typer.Argument(help="Folder to fill; new or empty.", show_default=False)],
    *,
    patients: Annotated[int, typer.Option(help="Patients; every third is free of lesions.")] = SampleConfig.patients,
    timepoints: Annotated[
        int, typer.Option(help="Study dates a patient; the first patient has one fewer.")
    ] = SampleConfig.timepoints,
    slices: Annotated[int, typer.Option(help="Slices a series, spread over the lungs.")] = SampleConfig.slices,
    size: Annotated[int, typer.Option(help="Rows and columns of a slice.")] = SampleConfig.size,
    quirks: Annotated[
        bool, typer.Option("--quirks", help="Instead: odd DICOM of every kind, with what must become of it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Same seed and versions, same bytes.")] = SampleConfig.seed,
) -> None:
    """Write a synthetic chest-CT cohort as DICOM, with its true lesion volumes.

    Example: [bold]cohortseg sample cohort/ --patients 6 --seed 1[/]
    """
    if quirks:
        from cohortseg.synthetic.quirks import write_quirks

        with progress("Drawing") as report:
            table = write_quirks(out, report)
        say(f"DICOM in {out / 'dicom'}, what must become of it in {table}")
        return
    from cohortseg.synthetic.cohort import write_cohort

    config = SampleConfig(patients=patients, timepoints=timepoints, slices=slices, size=size, seed=seed)
    with progress("Drawing") as report:
        truth = write_cohort(out, config, report)
    say(f"DICOM in {out / 'dicom'}, truth in {truth} and {out / 'truth'}")
