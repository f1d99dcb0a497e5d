"""A model over a split of COVID-SemiSeg: predict, score, write."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from cohortseg.config import ImageOrientation, InferConfig
from cohortseg.datasets.covid_semiseg import Split, find_data, labeled_slices
from cohortseg.datasets.folders import labeled_folder
from cohortseg.datasets.slices import CanonicalSlice, ImageSlice, read_canonical, read_image, read_mask
from cohortseg.errors import ConfigError, DataError, StoreError
from cohortseg.evaluate.maps import remove_pictures, write_maps, write_picture
from cohortseg.evaluate.page import evaluation_html
from cohortseg.evaluate.score import Case, label_map, score_images, summarise
from cohortseg.evaluate.tables import IMAGES, METRICS
from cohortseg.overlays import Compared, compared
from cohortseg.preprocess import ORIENTATIONS, hu_from_image, whole_hu
from cohortseg.progress import Report, silent
from cohortseg.store.files import write_file
from cohortseg.store.layout import PICTURES
from cohortseg.store.provenance import read_run_json, write_run_json
from cohortseg.store.tables import write_table
from cohortseg.weights import LoadedModel, load_model

PAGE: Final = "page.html"
COMMAND: Final = "evaluate"
"""By which an evaluation's folder is known."""
_TABLES: Final = (IMAGES, METRICS)
_BATCH: Final = 8


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    metrics: pl.DataFrame
    """Table `METRICS`."""
    images: pl.DataFrame
    """Table `IMAGES`."""
    data: Path
    """The folder that was read."""
    model: str
    """Name of the model."""
    seen: tuple[str, ...]
    """Images of the split that the model was trained on: numbers that count them are optimistic."""


def evaluate_split(
    data: Path | None,
    split: Split,
    *,
    model_path: Path | None = None,
    output: Path | None = None,
    save_maps: bool = False,
    flips: bool = InferConfig.flips,
    report: Report = silent,
) -> Evaluation:
    """Run a model over a split and return its numbers; with an output folder, write them.

    Parameters
    ----------
    data
        The COVID-SemiSeg folder, or the folder that contains it; None: $COHORTSEG_DATA, else ./COVID-SemiSeg.
    split
        Which labelled images; only the split's own folders must exist.
    model_path
        A model file; None: the packaged model.
    output
        Folder for ``metrics.parquet``, ``images.parquet``, ``run.json``, ``pictures/`` and ``page.html``; None:
        nothing is written.
    save_maps
        Also write ``labels/`` and ``maps/``; needs ``output``.
    flips
        Average the probabilities over each slice and its mirror image, by default as ``infer`` does.
    report
        Called after each image.

    Raises
    ------
    ConfigError
        If the data are not there, or the output folder holds something else.
    DataError
        If an image or its label map cannot be used.
    ModelError
        If the model cannot be loaded.
    StoreError
        If the output cannot be written.
    """
    folder = find_data(data)
    return evaluate_images(
        labeled_slices(folder, split),
        data=folder,
        split=split,
        model_path=model_path,
        output=output,
        save_maps=save_maps,
        flips=flips,
        report=report,
    )


def own_images(folder: Path, orientation: ImageOrientation = "upright") -> list[ImageSlice]:
    """Return the labelled 8-bit images of a user's own folder, laid out as ``train --labeled`` wants it.

    Raises
    ------
    ConfigError
        If the folder holds nothing to use, or DICOM.
    DataError
        If an image has no label map, or a label map no image.
    """
    sources = labeled_folder(folder, ORIENTATIONS[orientation])
    images = [source for source in sources if isinstance(source, ImageSlice)]
    if len(images) < len(sources):
        raise ConfigError(f"{folder}: holds DICOM; evaluate reads 8-bit images (.png, .jpg)")
    return images


def evaluate_images(
    slices: Sequence[ImageSlice],
    *,
    data: Path,
    split: str | None = None,
    model_path: Path | None = None,
    output: Path | None = None,
    save_maps: bool = False,
    flips: bool = InferConfig.flips,
    report: Report = silent,
) -> Evaluation:
    """Do the same for any labelled images; ``data`` and ``split`` say in ``run.json`` where they are from.

    Raises
    ------
    ConfigError, DataError, ModelError, StoreError
        As `evaluate_split`.
    """
    started = time.perf_counter()
    model = load_model(model_path)
    if output is not None:
        _make_folder(output)
    cases = predicted_cases(slices, model, flips=flips, report=report)
    if output is not None:
        cases = _written(zip(slices, cases, strict=True), output, save_maps=save_maps)
    images = score_images(cases)
    seen = tuple(images.filter(pl.col("in_training"))["image"].unique(maintain_order=True).to_list())
    result = Evaluation(metrics=summarise(images), images=images, data=data, model=model.name, seen=seen)
    if output is not None:
        arguments = {"data": str(data), "split": split, "model": model.name, "save_maps": save_maps, "flips": flips}
        facts = {
            "arguments": arguments,
            "model": {"name": model.name, "sha256": model.sha256},
            "counts": {"images": len(slices), "images_in_training": len(seen)},
            "timings": {"total_s": round(time.perf_counter() - started, 3)},
        }
        _write(output, result, facts)
    return result


def predicted_cases(
    slices: Sequence[ImageSlice],
    model: LoadedModel,
    *,
    flips: bool = InferConfig.flips,
    report: Report = silent,
) -> Iterator[Case]:
    """Yield each labelled image with its prediction at the image's own size, a batch in memory at a time.

    Raises
    ------
    DataError
        If an image cannot be used, or has no label map.
    """
    done = 0
    for start in range(0, len(slices), _BATCH):
        sources = slices[start : start + _BATCH]
        inputs = [read_canonical(source, model.card.canonical) for source in sources]
        prob = model.predict(torch.stack([item.image for item in inputs]), flips=flips).prob
        for source, item, canonical_prob in zip(sources, inputs, prob, strict=True):
            yield _case(source, item, canonical_prob, model)
            done += 1
            report(done, len(slices), source.name)


def _case(source: ImageSlice, item: CanonicalSlice, canonical_prob: torch.Tensor, model: LoadedModel) -> Case:
    if source.mask_path is None:
        raise DataError(f"{source.image_path}: has no label map to compare with")
    return Case(
        name=source.name,
        prob=item.restore(canonical_prob),
        truth=read_mask(source.mask_path),
        in_training=item.sha256 in model.training_images,
    )


def _written(pairs: Iterable[tuple[ImageSlice, Case]], output: Path, *, save_maps: bool) -> Iterator[Case]:
    """Pass images on, writing each: the picture upright, as a radiologist reads it, the maps as the image is stored."""
    for source, case in pairs:
        if save_maps:
            write_maps(output, case.name, case.prob)
        slice_hu = whole_hu(hu_from_image(read_image(source.image_path)))
        upright_hu = source.orientation.to_upright(slice_hu).astype(np.int16)
        truth, labels = (
            source.orientation.to_upright(array).astype(np.uint8) for array in (case.truth, label_map(case.prob))
        )
        write_picture(output, case.name, compared([Compared(upright_hu, truth, labels)]))
        yield case


def _make_folder(folder: Path) -> None:
    """Make the output folder; of one that is not empty, only an earlier evaluation is replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and read_run_json(folder).get("command") != COMMAND:
            raise ConfigError(f"{folder}: holds other things than an evaluation; choose another folder with -o")
    except OSError as error:
        raise StoreError(f"{folder}: the output folder cannot be made: {error}") from error
    # At once, so that an evaluation that breaks off is known as one.
    write_run_json(folder, COMMAND, {})
    try:
        for name in (*(schema.file_name for schema in _TABLES), PAGE):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: what an earlier evaluation left cannot be removed: {error}") from error
    remove_pictures(folder)


def _write(output: Path, result: Evaluation, facts: dict[str, Any]) -> None:
    provenance = {"model_sha256": facts["model"]["sha256"], "arguments": facts["arguments"]}
    for schema, frame in zip(_TABLES, (result.images, result.metrics), strict=True):
        write_table(output / schema.file_name, frame, schema, provenance)
    split = facts["arguments"]["split"]
    title = result.model if split is None else f"{result.model}: split {split}"
    page = evaluation_html(title, result.metrics, result.images, output / PICTURES)
    write_file(output / PAGE, page.encode())
    write_run_json(output, COMMAND, facts)
