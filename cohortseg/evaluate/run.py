"""A model over labelled slices, of COVID-SemiSeg or a user's own: predict, score, write."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import torch

from cohortseg.config import InferConfig
from cohortseg.datasets.slices import (
    DicomSlices,
    ImageSlice,
    SourceSlice,
    check_source,
    read_slices,
    slice_names,
)
from cohortseg.errors import ConfigError, DataError
from cohortseg.evaluate.maps import remove_pictures, write_maps, write_picture
from cohortseg.evaluate.page import evaluation_html
from cohortseg.evaluate.pictures import notes, slice_picture, trust_threshold
from cohortseg.evaluate.score import Case, score_images, summarise
from cohortseg.evaluate.tables import IMAGES, METRICS
from cohortseg.figures import codebook_png
from cohortseg.labels import BACKGROUND, LESIONS, NUM_CLASSES
from cohortseg.models.device import batch_size_for
from cohortseg.progress import Report, silent
from cohortseg.store.files import held, store_errors, visible_files, write_file
from cohortseg.store.layout import PAGE, PICTURES
from cohortseg.store.provenance import read_run_json, write_run_json
from cohortseg.store.tables import write_table
from cohortseg.weights import Inspection, LoadedModel, load_model

_log: Final = logging.getLogger(__name__)

COMMAND: Final = "evaluate"
"""Command in ``run.json`` that marks an evaluation's folder."""
_TABLES: Final = (IMAGES, METRICS)
_CODEBOOK: Final = "codebook.png"
_IMAGE_NAMES: Final = "image_names"
"""Key in ``run.json`` of the images whose pictures and maps lie in the folder."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    metrics: pl.DataFrame
    """Table `METRICS`."""
    images: pl.DataFrame
    """Table `IMAGES`."""
    model: str
    """Name of the model."""
    seen: tuple[str, ...]
    """Images of the split that the model was trained on: numbers that include them are optimistic."""


def evaluate_images(
    sources: Sequence[ImageSlice | DicomSlices],
    *,
    data: Path,
    split: str | None = None,
    model_path: Path | None = None,
    output: Path | None = None,
    save_maps: bool = False,
    report: Report = silent,
) -> Evaluation:
    """Run a model over labelled slices and return its numbers; with an output folder, write them.

    Parameters
    ----------
    sources
        The slices: `labeled_slices` of COVID-SemiSeg, or `labeled_folder`.
    data
        Where they come from, for ``run.json``.
    split
        Name of the split, also for ``run.json``.
    model_path
        A model file; None: the packaged model.
    output
        Folder for ``metrics.parquet``, ``images.parquet``, ``run.json``, ``pictures/``, ``page.html`` and, of a model
        with a VQ-VAE branch, ``codebook.png``; None: nothing is written.
    save_maps
        Also write ``labels/`` and ``maps/``; needs ``output``.
    report
        Called after each image.

    Raises
    ------
    ConfigError
        If the output folder holds something else.
    DataError
        If an image or its label map cannot be used.
    DicomError, GeometryError
        If a series cannot be used.
    ModelError
        If the model cannot be loaded.
    StoreError
        If the output cannot be written.
    """
    model = load_model(model_path)
    _check_labels(set().union(*map(check_source, sources)))  # before an earlier evaluation is replaced
    with _held(output, [name for source in sources for name in slice_names(source)]):
        started = time.perf_counter()
        predicted = predicted_cases(sources, model, inspect=output is not None, report=report)
        code_counts = torch.zeros(2, model.card.model.codebook_size, dtype=torch.int64)
        if output is not None:
            predicted = _written(predicted, output, model, code_counts, save_maps=save_maps)
        images = score_images(item.case for item in predicted)
        seen = tuple(images.filter(pl.col("in_training"))["image"].unique(maintain_order=True).to_list())
        result = Evaluation(metrics=summarise(images), images=images, model=model.name, seen=seen)
        if output is not None:
            lying = dict.fromkeys(source.orientation for source in sources if isinstance(source, ImageSlice))
            arguments: dict[str, Any] = {"data": str(data), "split": split, "model": model.name}
            arguments |= {"save_maps": save_maps, "flips": InferConfig.flips}
            arguments |= {"orientation": [asdict(item) for item in lying]}
            facts = {
                "arguments": arguments,
                "model": {"name": model.name, "sha256": model.sha256},
                "counts": {"images": images["image"].n_unique(), "images_in_training": len(seen)},
                "timings": {"total_s": round(time.perf_counter() - started, 3)},
                _IMAGE_NAMES: images["image"].unique(maintain_order=True).to_list(),
            }
            vq = model.segmenter.vq
            codebook = None if vq is None else codebook_png(vq.quantizer.usage, code_counts, "all images")
            _write(output, result, facts, notes(model), codebook)
    return result


class Predicted(NamedTuple):
    """One slice with its prediction."""

    source: SourceSlice
    case: Case
    inside: Inspection | None
    """None: not asked for, or a slice without lung, which the networks do not see."""


def predicted_cases(
    sources: Sequence[ImageSlice | DicomSlices],
    model: LoadedModel,
    *,
    inspect: bool = False,
    report: Report = silent,
) -> Iterator[Predicted]:
    """Yield each labelled slice and its prediction on its own grid, with one batch in memory at a time.

    Slices of a series are predicted as by ``infer``: slices without lung, and pixels outside it, hold no lesion. With
    ``inspect``, what the same passes of the networks tell of their inside comes with it.

    Raises
    ------
    DataError
        If an image cannot be used, or has no label map.
    DicomError, GeometryError
        If a series cannot be used.
    """
    total = sum(source.record.n_slices if isinstance(source, DicomSlices) else 1 for source in sources)
    slices = (item for source in sources for item in read_slices(source, model.card.canonical))
    done, uncropped, size = 0, 0, batch_size_for(model.device)
    while batch := list(islice(slices, size)):
        inputs = [item.canonical.image for item in batch if item.canonical is not None]
        outputs = iter(_outputs(torch.stack(inputs), model, inspect=inspect) if inputs else ())
        for item in batch:
            prob, inside = (None, None) if item.canonical is None else next(outputs)
            yield Predicted(item, _case(item, prob, model), inside)
            done += 1
            uncropped += item.canonical is not None and not item.canonical.lungs_found
            report(done, total, item.name)
    if uncropped:
        _log.info(
            "%d of %d images show no lung by themselves and were segmented uncropped; give slices of a full field of "
            "view as DICOM",
            uncropped,
            total,
        )


def _outputs(
    images: torch.Tensor, model: LoadedModel, *, inspect: bool
) -> Iterator[tuple[torch.Tensor, Inspection | None]]:
    """Yield the canonical probabilities of each image, and what else the networks tell of it if that is asked for."""
    if not inspect:
        for prob in model.probabilities(images, flips=InferConfig.flips):
            yield prob, None
        return
    output = model.inspect(images, flips=InferConfig.flips)
    for index, prob in enumerate(output.prob):
        yield prob, Inspection(prob, *(None if maps is None else maps[index] for maps in output[1:]))


def _case(item: SourceSlice, canonical_prob: torch.Tensor | None, model: LoadedModel) -> Case:
    if item.stored_labels is None:
        raise DataError(f"{item.name}: has no label map to compare with")
    prob = np.zeros((NUM_CLASSES, *item.stored_labels.shape), np.float32)
    prob[BACKGROUND.value] = 1
    seen = False
    if item.canonical is not None and canonical_prob is not None:
        restored = item.canonical.restore(canonical_prob)
        inside = np.True_ if item.lungs is None else item.orientation.from_upright(item.lungs)
        prob = np.where(inside, restored, prob)
        seen = item.canonical.sha256 in model.training_images
    return Case(name=item.name, prob=prob, truth=item.stored_labels, in_training=seen, file=item.file)


def _check_labels(present: set[int]) -> None:
    """Refuse label maps without background, and tell of classes that none of them holds."""
    if BACKGROUND.value not in present:
        raise DataError(
            "no label map holds background: they must hold 0 where there is no lesion, 1 for ground-glass opacity and "
            "2 for consolidation; look at how they were saved"
        )
    missing = [label.title for label in LESIONS if label.value not in present]
    if len(missing) == len(LESIONS):
        _log.warning("no label map holds a lesion: the numbers are about false alarms alone")
    elif missing:
        _log.warning(
            "no label map holds %s; if one label stands for all opacity, only the rows 'opacity' say how good the "
            "model is",
            missing[0],
        )


def _written(
    predicted: Iterable[Predicted], output: Path, model: LoadedModel, code_counts: torch.Tensor, *, save_maps: bool
) -> Iterator[Predicted]:
    """Write each slice and yield it: the picture upright, the maps as stored; the use of each code is added up."""
    config, threshold = model.card.canonical, trust_threshold(model)
    for item in predicted:
        source, case, inside = item
        if save_maps:
            write_maps(output, case.name, case.prob)
        write_picture(output, case.name, slice_picture(source, case, inside, config, threshold))
        if inside is not None and inside.code_counts is not None:
            code_counts += inside.code_counts
        yield item


@contextmanager
def _held(folder: Path | None, names: Sequence[str]) -> Iterator[None]:
    """Create and lock the output folder; if it is not empty, only an earlier evaluation is replaced."""
    if folder is None:
        yield
        return
    with store_errors(folder, "cannot be used as an output folder"):
        others = folder.exists() and bool(visible_files(folder))
    if others and read_run_json(folder).get("command") != COMMAND:
        raise ConfigError(f"{folder}: holds other things than an evaluation; choose another folder with -o")
    with held(folder, "evaluate"):
        _clear(folder, names)
        yield


def _clear(folder: Path, names: Sequence[str]) -> None:
    """Remove what an earlier evaluation left, and note the names of the images of this one."""
    noted = read_run_json(folder).get(_IMAGE_NAMES)
    names_only = (name for name in noted or () if Path(name).name == name)  # nothing outside is removed
    earlier = set(names_only)
    # First, so that the folder of an interrupted evaluation is known as one.
    write_run_json(folder, COMMAND, {_IMAGE_NAMES: sorted(earlier.union(names))}, finished=False)
    with store_errors(folder, "what an earlier evaluation left cannot be removed"):
        for name in (*(schema.file_name for schema in _TABLES), PAGE, _CODEBOOK):
            (folder / name).unlink(missing_ok=True)
    remove_pictures(folder, earlier)


def _write(
    output: Path, result: Evaluation, facts: dict[str, Any], notes: Sequence[str], codebook: bytes | None
) -> None:
    provenance = {"model_sha256": facts["model"]["sha256"], "arguments": facts["arguments"]}
    for schema, frame in zip(_TABLES, (result.images, result.metrics), strict=True):
        write_table(output / schema.file_name, frame, schema, provenance)
    split = facts["arguments"]["split"]
    title = result.model if split is None else f"{result.model}: split {split}"
    page = evaluation_html(
        title,
        facts["model"]["sha256"],
        result.metrics,
        result.images,
        output / PICTURES,
        notes=notes,
        codebook=codebook,
    )
    if codebook is not None:
        write_file(output / _CODEBOOK, codebook)
    write_file(output / PAGE, page.encode())
    write_run_json(output, COMMAND, facts)
