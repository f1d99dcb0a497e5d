"""``cohortseg train``."""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohortseg.cli.console import out, progress, say
from cohortseg.config import TrainConfig, preset_config, resolve_config
from cohortseg.errors import CohortSegError, ConfigError

if TYPE_CHECKING:
    from cohortseg.datasets.slices import DicomSlices, ImageSlice
    from cohortseg.train.fit import DataOptions


class Preset(StrEnum):
    """Named recipes; a test keeps them equal to those of config.py."""

    paper = "paper"
    cpu = "cpu"


class ImageOrientation(StrEnum):
    """How 8-bit images of one's own lie; DICOM says so itself."""

    upright = "upright"
    transposed = "transposed"
    quarter_turned = "quarter-turned"


def train(
    *,
    data: Annotated[
        Path | None, typer.Option(help="COVID-SemiSeg folder. Default: $COHORTSEG_DATA, else ./COVID-SemiSeg.")
    ] = None,
    labeled: Annotated[
        Path | None, typer.Option(help="Instead: a folder with images/ (or DICOM) and masks/ of the same names.")
    ] = None,
    unlabeled: Annotated[Path | None, typer.Option(help="With --labeled: images or DICOM without masks.")] = None,
    orientation: Annotated[
        ImageOrientation, typer.Option(help="How the 8-bit images of --labeled and --unlabeled lie.")
    ] = ImageOrientation.upright,
    holdout: Annotated[
        bool, typer.Option(help="Keep the 5 validation images of COVID-SemiSeg out; otherwise train on all 50.")
    ] = True,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path("runs/train"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers. Default: one per GPU, else one with all cores.")
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(min=0.01, help="CPUs each worker reserves. Default: an equal share, at least 1.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster. Default: $RAY_ADDRESS, else this machine.")
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Recipe: the paper's settings, or a short one for two CPU cores.",
            show_default="paper; with --resume, the run's own settings",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="TOML file with settings (see docs/training.md).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
) -> None:
    """Train a model in two phases: supervised, then semi-supervised adversarial.

    Example: [bold]cohortseg train --data COVID-SemiSeg --preset cpu -o runs/a[/bold]
    """
    from cohortseg.datasets.covid_semiseg import find_data
    from cohortseg.train.fit import DATA, DataOptions, discard_run, fit, open_run, saved_settings
    from cohortseg.train.loop import PHASE_1_MODEL
    from cohortseg.train.page import PAGE
    from cohortseg.train.state import check_imagenet

    _check_workers(workers, cpus_per_worker, address)
    base = saved_settings(output) if resume and preset is None else preset_config((preset or Preset.paper).value)
    settings = resolve_config(TrainConfig, config, {"seed": seed}, base=base)
    if settings.preset != base.preset:
        raise ConfigError(f"{config}: preset is no setting of a file; give it as --preset {settings.preset}")
    if settings.imagenet_file:  # workers have other working folders
        settings = replace(settings, imagenet_file=str(Path(settings.imagenet_file).resolve()))
    if settings.semi_supervised and labeled is not None and unlabeled is None:
        raise ConfigError(
            "phase 2 needs --unlabeled; for phase 1 alone, set semi_supervised = false in a --config file"
        )
    if unlabeled is not None and labeled is None:
        raise ConfigError("--unlabeled goes with --labeled")
    if data is not None and labeled is not None:
        raise ConfigError("--data and --labeled exclude each other")
    if not resume:
        check_imagenet(settings)
    if labeled is None and (data is not None or not resume):
        data = find_data(data)
    options = DataOptions(
        data=_absolute(data),
        labeled=_absolute(labeled),
        unlabeled=_absolute(unlabeled),
        orientation=orientation.value,
        holdout=holdout,
    )
    if resume:
        options = open_run(output, settings, options, resume=True)
    found = None  # a run that is resumed may have its data already
    if not (output / DATA).is_file():
        found = _sources(options, semi=settings.semi_supervised)
    if not resume:
        open_run(output, settings, options, resume=False)
    try:
        if found is not None:
            _prepare(output, *found, settings)
    except CohortSegError:
        if not resume:
            discard_run(output)
        raise
    with progress("training") as report:
        model = fit(
            settings,
            output,
            num_workers=workers,
            cpus_per_worker=cpus_per_worker,
            address=address,
            on_history=lambda row: report(row["iteration"], row["total_iterations"], _line(row)),
        )
    if settings.semi_supervised:
        say(f"phase 1 alone: {output / PHASE_1_MODEL}")
    say(f"page: {output / PAGE}; for TensorBoard: {output / 'tensorboard'}")
    out.print(str(model), soft_wrap=True)


def _check_workers(workers: int | None, cpus_per_worker: float | None, address: str | None) -> None:
    """Workers are checked before data; those of a cluster once it answers."""
    from cohortseg.cluster import cluster_address
    from cohortseg.train.fit import check_local

    if cluster_address(address) is None:
        check_local(workers, cpus_per_worker)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


Sources = tuple[list["ImageSlice | DicomSlices"], list["ImageSlice | DicomSlices"]]


def _sources(options: "DataOptions", *, semi: bool) -> tuple[Sources, str]:
    from cohortseg.datasets import covid_semiseg, folders
    from cohortseg.preprocess import QUARTER_TURNED, TRANSPOSED, UPRIGHT

    if options.labeled is None:
        root = covid_semiseg.find_data(None if options.data is None else Path(options.data))
        return (
            list(covid_semiseg.labelled_slices(root, "train" if options.holdout else "all")),
            list(covid_semiseg.unlabelled_slices(root)) if semi else [],
        ), covid_semiseg.TERMS
    lies = {"upright": UPRIGHT, "transposed": TRANSPOSED, "quarter-turned": QUARTER_TURNED}[options.orientation]
    return (
        folders.labelled_folder(Path(options.labeled), lies),
        folders.unlabelled_folder(Path(options.unlabeled), lies) if options.unlabeled is not None and semi else [],
    ), folders.TERMS


def _prepare(output: Path, sources: Sources, terms: str, settings: TrainConfig) -> None:
    from cohortseg.datasets.prepared import prepare
    from cohortseg.train.fit import DATA

    with progress("preparing slices") as report:
        prepare(output / DATA, *sources, settings.canonical, terms, report)
    say(f"{len(sources[0])} labelled and {len(sources[1])} unlabelled sources, {settings.canonical.size} pixels square")


def _line(row: dict[str, Any]) -> str:
    """Phase, losses and speed in a few words."""
    names: dict[str, Callable[[float], str]] = {
        "ce": "ce {:.3f}".format,
        "dice": "dice {:.3f}".format,
        "semi": "semi {:.3f}".format,
        "discriminator": "D {:.2f}".format,
        "trusted": "trusted {:.0%}".format,
        "images_per_s": "{:.1f} img/s".format,
    }
    parts = [show(row[name]) for name, show in names.items() if name in row]
    return f"phase {row['phase']}  {' '.join(parts)}"
