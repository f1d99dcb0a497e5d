"""``cohortseg train``."""

from pathlib import Path
from typing import Annotated

import typer

from cohortseg.cli.console import progress, results, say
from cohortseg.cli.options import Address, Data, Seed, TrainSettings
from cohortseg.config import ImageOrientation, Preset, TrainConfig, preset_config, resolve_config
from cohortseg.errors import ConfigError


def train(
    *,
    data: Data = None,
    labeled: Annotated[
        Path | None, typer.Option(help="Instead: a folder with images/ (8-bit, or DICOM) and masks/ of the same names.")
    ] = None,
    unlabeled: Annotated[Path | None, typer.Option(help="With --labeled: images or DICOM without masks.")] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="A model that labels the unlabelled images (--preset student); may be repeated."),
    ] = None,
    orientation: Annotated[
        ImageOrientation | None,
        typer.Option(
            help="How the 8-bit images of --labeled and --unlabeled lie: docs/training.md tells.",
            show_default="upright",
        ),
    ] = None,
    holdout: Annotated[
        bool | None,
        typer.Option(
            help="Keep the 5 validation images of COVID-SemiSeg out; otherwise train on all 50.", show_default="holdout"
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path("runs/train"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers. Default: one per GPU, else one with all cores.")
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(min=0.01, help="CPUs each worker reserves. Default: an equal share, at least 1.")
    ] = None,
    address: Address = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Recipe: the paper's; a short one for two CPU cores; from labels alone; or the packaged model's, with "
            "--teacher.",
            show_default="paper; with --resume, the run's own settings",
        ),
    ] = None,
    config: TrainSettings = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
) -> None:
    """Train a model in two phases: supervised, then semi-supervised adversarial.

    Example: [bold]cohortseg train --data COVID-SemiSeg --preset cpu -o runs/a[/bold]
    """
    from cohortseg.store.layout import PAGE
    from cohortseg.train.folder import DataOptions, saved_settings
    from cohortseg.train.loop import PHASE_1_MODEL
    from cohortseg.train.run import train_model

    base = saved_settings(output) if resume else preset_config(preset or "paper")
    if preset not in (None, base.preset):
        raise ConfigError(f"{output}: was begun with --preset {base.preset}; go on with it, or use a new run folder")
    settings = resolve_config(TrainConfig, config, {"seed": seed}, base=base)
    model = train_model(
        settings,
        output,
        DataOptions(
            data=None if data is None else str(data),
            labeled=None if labeled is None else str(labeled),
            unlabeled=None if unlabeled is None else str(unlabeled),
            teachers=tuple(map(str, teacher)) if teacher else None,
            orientation=orientation,
            holdout=holdout,
        ),
        resume=resume,
        num_workers=workers,
        cpus_per_worker=cpus_per_worker,
        address=address,
        progress=progress,
    )
    if settings.semi_supervised:
        say(f"phase 1 alone: {output / PHASE_1_MODEL}")
    say(f"page: {output / PAGE}; for TensorBoard: {output / 'tensorboard'}")
    results.print(str(model), soft_wrap=True, markup=False)
