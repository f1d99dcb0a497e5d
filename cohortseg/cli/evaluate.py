"""``cohortseg evaluate``: how good a model is on labelled images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.table import Table

from cohortseg.cli.console import number, progress, results, say
from cohortseg.cli.options import Data, Model
from cohortseg.config import ImageOrientation
from cohortseg.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from cohortseg.evaluate.run import Evaluation

_TITLES: Final = {"ggo": "GGO", "consolidation": "Consolidation", "opacity": "Opacity"}
_TOOLBOX: Final = {
    "dice": "Dice",
    "sensitivity": "Sen.",
    "specificity": "Spe.",
    "s_measure": "S",
    "e_measure": "E",
    "mae": "MAE",
}
_OVERLAP: Final = {"dice": "Dice", "sensitivity": "Sen.", "specificity": "Spe.", "ppv": "PPV"}
_CLINICAL: Final = {"pooled": "all pixels", "per_image": "per image"}


def evaluate(
    *,
    data: Data = None,
    model: Model = None,
    split: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option(help="Which labelled images; needs only that split's folders.", show_default="val"),
    ] = None,
    labeled: Annotated[
        Path | None,
        typer.Option(
            help="Instead: a folder with images/ (8-bit, or DICOM) and masks/ of the same names.", show_default=False
        ),
    ] = None,
    orientation: Annotated[
        ImageOrientation | None,
        typer.Option(help="How the images of --labeled lie: docs/training.md tells.", show_default="upright"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", file_okay=False, help="Folder for tables, run.json and pictures.")
    ] = None,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Also write label and probability maps at the image's own size.")
    ] = False,
) -> None:
    """Measure a model on labelled images: the six metrics of the toolbox protocol, and overlap and area.

    Example: cohortseg evaluate --data COVID-SemiSeg --split val -o evaluation
    """
    if save_maps and output is None:
        raise ConfigError("--save-maps needs an output folder: add -o OUT")
    if labeled is not None and (data is not None or split is not None):
        raise ConfigError("--labeled goes without --data and --split")
    if labeled is None and orientation is not None:
        raise ConfigError("--orientation goes with --labeled; how the images of COVID-SemiSeg lie is known")
    from cohortseg.datasets.covid_semiseg import find_data, labeled_slices
    from cohortseg.datasets.folders import labeled_folder
    from cohortseg.evaluate.run import evaluate_images
    from cohortseg.preprocess import ORIENTATIONS

    common: dict[str, Any] = {"model_path": model, "output": output, "save_maps": save_maps}
    with progress("Evaluating") as report:
        if labeled is None:
            split, folder = split or "val", find_data(data)
            images = labeled_slices(folder, split)
            result = evaluate_images(images, data=folder, split=split, **common, report=report)
        else:
            sources = labeled_folder(labeled, ORIENTATIONS[orientation or "upright"])
            result = evaluate_images(sources, data=labeled.resolve(), **common, report=report)
    _warn(result)
    _print(result, f"split {split}" if labeled is None else os.fsencode(labeled).decode(errors="replace"))
    if output is not None:
        say(f"written to {output}")


def _warn(result: "Evaluation") -> None:
    if result.seen:
        total = result.images["image"].n_unique()
        say(
            f"warning: {len(result.seen)} of {total} images were among the model's training images; "
            "these numbers are optimistic and say nothing about new patients"
        )


def _print(result: "Evaluation", source: str) -> None:
    count = result.images["image"].n_unique()
    results.print(f"{result.model} on {count} images ({source})", markup=False)
    for table in (_toolbox_table(result.metrics), _overlap_table(result.metrics), _area_table(result.metrics)):
        results.print(table)


def _toolbox_table(metrics: "pl.DataFrame") -> Table:
    table = _table("Toolbox protocol (mean over 256 thresholds and all images)", "Maps", *_TOOLBOX.values())
    for row in _rows(metrics, "toolbox"):
        table.add_row(_TITLES[row["class_name"]], row["maps"], *(number(row[name], 3) for name in _TOOLBOX))
    return table


def _overlap_table(metrics: "pl.DataFrame") -> Table:
    table = _table(
        "Overlap of labels (per image: mean over images that have the class)", "Over", *_OVERLAP.values(), "Images"
    )
    for class_name in _TITLES:
        for protocol, title in _CLINICAL.items():
            for row in _rows(metrics, protocol, class_name):
                numbers = (number(row[name], 3) for name in _OVERLAP)
                table.add_row(_TITLES[class_name], title, *numbers, str(row["n_images"]))
    return table


def _area_table(metrics: "pl.DataFrame") -> Table:
    table = _table("Area, % of the image", "Truth", "Predicted", "Pearson r", "Bias", "95 % limits")
    for row in _rows(metrics, "area"):
        ends = [number(row[name], 2) for name in ("area_limit_low_pct", "area_limit_high_pct")]
        limits = number(None, 2) if row["area_limit_low_pct"] is None else " to ".join(ends)
        areas = (number(row[name], 2) for name in ("truth_area_pct", "predicted_area_pct"))
        bias = number(row["area_bias_pct"], 2)
        table.add_row(_TITLES[row["class_name"]], *areas, number(row["area_pearson_r"], 3), bias, limits)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("Class", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name in ("Maps", "Over") else "right", no_wrap=True)
    return table


def _rows(metrics: "pl.DataFrame", protocol: str, class_name: str | None = None) -> list[dict[str, Any]]:
    rows = metrics.rows(named=True)
    return [row for row in rows if row["protocol"] == protocol and class_name in (None, row["class_name"])]
