"""One series in; its masks on its own grid, its burden row and its picture out."""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cohortseg import qc
from cohortseg.burden import percent, series_burden, slice_areas
from cohortseg.config import InferConfig
from cohortseg.dicom.geometry import slice_normal
from cohortseg.dicom.series import SeriesRecord
from cohortseg.infer.commit import SeriesResult
from cohortseg.labels import LESIONS, is_opacity
from cohortseg.lungs import LUNG_METHOD, Lungs, segment_lungs, zone_thirds
from cohortseg.models.device import batch_size_for
from cohortseg.noise import NOISY_HU, soft_tissue_noise
from cohortseg.overlays import MOST_SLICES, overview, png_bytes
from cohortseg.preprocess import CropBox, canonical_batch, lung_boxes, orientation_from_affine, restore_crop
from cohortseg.store.masks import MaskFacts, SeriesMasks
from cohortseg.store.schemas import BURDEN
from cohortseg.volume import Volume, bounding_box
from cohortseg.weights import LoadedModel

_FROM_RECORD: Final = tuple(
    column for column in BURDEN.polars_schema if column in {item.name for item in fields(SeriesRecord)} - {"reason"}
)
"""Columns that a burden row takes from the manifest."""


MEASURES: Final = 7
"""Version of the measures. Raise it whenever the same files give other numbers or labels, so that every series is done
again; for a change of the lungs alone, raise `LUNG_METHOD` instead."""
_DIGITS: Final = 4
"""Decimals of means of the model's output; further ones depend on the order in which its threads add."""
_FINDING_LUNGS: Final = threading.Lock()
"""Lungs are found in one thread at a time: this takes many short steps under Python's global lock, in which two threads
get no more done than one. Parallel series thus fall out of step: lungs are found in one while another is segmented."""


def segment_series(
    record: SeriesRecord,
    volume: Volume,
    model: LoadedModel,
    config: InferConfig,
    between_steps: Callable[[], None] = lambda: None,
) -> SeriesResult:
    """Set a series upright, find its lungs, segment, measure and draw it; without lungs it is not evaluable.

    ``between_steps`` is called before each longer step; what it raises ends the work.

    Raises
    ------
    GeometryError
        If the slices are not axial.
    """
    orientation = orientation_from_affine(volume.affine)
    upright_hu = np.ascontiguousarray(orientation.to_upright(volume.volume_hu))  # no copy if it lies upright already
    upright_mm = orientation.upright_spacing(volume.spacing_mm)
    with _FINDING_LUNGS:
        between_steps()
        lungs = segment_lungs(upright_hu, upright_mm)
    row = series_row(record, model.sha256) | {"qc_flags": list(dict.fromkeys((*volume.qc_flags, *lungs.flags)))}
    row["n_slices"] = len(volume.volume_hu)  # of a resampled series not the number of its files
    if not lungs.mask.any():
        reason = "no lung was found in any slice"
        return SeriesResult(burden=row | {"status": "not_evaluable", "reason": reason, "n_lung_slices": 0})
    labels, doubt = segment_slices(upright_hu, lungs.mask, model, config, between_steps)
    row["noise_hu"] = noise_hu = soft_tissue_noise(upright_hu[bounding_box(lungs.mask)[0]], upright_mm[1:])
    if noise_hu is not None and noise_hu >= NOISY_HU:
        row["qc_flags"].append(qc.NOISY)
    row |= measure(upright_hu, labels, lungs.mask, volume.voxel_volume_ml)
    row |= doubt | ({} if model.has_trained_discriminator else {"confidence": None}) | {"status": "ok"}
    row |= {"device": model.device.type, "precision": "bfloat16" if model.bf16 else "float32"}
    masks = SeriesMasks(
        labels=np.ascontiguousarray(orientation.from_upright(labels)),
        lungs=np.ascontiguousarray(orientation.from_upright(lungs.mask)),
        facts=MaskFacts.of(
            volume,
            study_instance_uid=record.study_instance_uid,
            model_name=model.name,
            model_sha256=model.sha256,
            lung_method=LUNG_METHOD,
        ),
    )
    return SeriesResult(
        burden=row,
        slices=tuple(_slice_rows(record, volume, labels, lungs)),
        masks=masks,
        picture_png=_picture(upright_hu, labels, lungs, upright_mm[1:], row) if config.overlays else None,
    )


def segment_slices(
    upright_hu: NDArray[np.int16],
    lungs: NDArray[np.uint8],
    model: LoadedModel,
    config: InferConfig,
    between_steps: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.uint8], dict[str, float | None]]:
    """Return the label map of an upright volume, and measures of the model's doubt.

    Parameters
    ----------
    upright_hu : (Z, Y, X) HU
        Anterior up, the patient's right on the left.
    lungs : (Z, Y, X) uint8
        Anything above 0 is lung; slices without lung are skipped, labels outside are background.
    model
        Segments canonical slices.
    config
        ``batch_size`` and ``flips`` are used.
    between_steps
        Called before each batch; what it raises ends the work.

    Returns
    -------
    labels : (Z, Y, X) uint8
        0 background, 1 ground-glass opacity, 2 consolidation.
    doubt
        The columns ``confidence``, ``lung_entropy`` and ``flip_disagreement_pct`` of the burden table.
    """
    if lungs.shape != upright_hu.shape:
        raise ValueError(f"lungs must be of the shape of upright_hu, {upright_hu.shape}, got {lungs.shape}")
    labels = np.zeros(upright_hu.shape, np.uint8)
    sums = _DoubtSums()
    boxes = {z: box for z, box in enumerate(lung_boxes(lungs > 0, model.card.canonical)) if box is not None}
    for batch in _batches(boxes, config.batch_size or batch_size_for(model.device)):
        between_steps()
        chosen = list(batch)
        images = canonical_batch(upright_hu[chosen], lungs[chosen] > 0, list(batch.values()), model.card.canonical)
        prob, confidence, flip_change = model.predict(images, flips=config.flips)
        classes = prob.shape[1]
        entropy = torch.special.entr(prob).sum(dim=1, keepdim=True) / math.log(classes)
        # The maps of doubt are added as further channels, so that the same inverse restores them.
        channels = [prob, confidence, entropy] + ([] if flip_change is None else [flip_change])
        for z, maps in zip(batch, torch.cat(channels, dim=1), strict=True):
            box = batch[z].index  # all lung of the slice lies in it
            restored = restore_crop(maps, batch[z])
            inside, classes_there = lungs[z][box] > 0, restored[:classes].max(dim=0).indices.numpy()
            labels[z][box] = np.where(inside, classes_there, 0)
            sums.add(inside, is_opacity(labels[z][box]), restored[classes:].numpy())
    return labels, sums.columns()


def measure(
    upright_hu: NDArray[np.int16],
    labels: NDArray[np.uint8],
    lungs: NDArray[np.uint8],
    voxel_volume_ml: float | None,
) -> dict[str, float | int | None]:
    """Return the burden of an upright series by the names of the burden table's columns.

    Parameters
    ----------
    upright_hu : (Z, Y, X) HU
        Anterior up, the patient's right on the left.
    labels : (Z, Y, X) uint8
        0 background, 1 ground-glass opacity, 2 consolidation; labels outside the lungs do not count.
    lungs : (Z, Y, X) uint8
        0 none, 1 the right lung, 2 the left; not empty.
    voxel_volume_ml
        None for a single slice, which has percents and no volumes.
    """
    box = bounding_box(lungs)  # only the lungs are measured: a quarter of the volume, and of the memory
    zones = zone_thirds(lungs[:, *box[1:]])[box[0]]
    return series_burden(labels[box], lungs[box], zones, upright_hu[box], voxel_volume_ml)


@dataclass
class _DoubtSums:
    """Sums over the slices of a series, for the columns about the model's doubt."""

    num_lung: int = 0
    num_lesion: int = 0
    num_either: int = 0
    """Pixels that are lesion in the slice or in its mirror image; where both agree, their mean is lesion too."""
    num_changed: int = 0
    confidence: float = 0.0
    entropy: float = 0.0

    def add(self, inside: NDArray[np.bool_], lesion: NDArray[np.bool_], maps: NDArray[np.float32]) -> None:
        """Add a slice: (Y, X) masks; maps (2 or 3, Y, X) of confidence, entropy and, with flips, change."""
        self.num_lung += int(inside.sum())
        self.num_lesion += int(lesion.sum())
        self.confidence += float(maps[0][lesion].sum(dtype=np.float64))
        self.entropy += float(maps[1][inside].sum(dtype=np.float64))
        if len(maps) > 2:
            changed = inside & (maps[2] > 0.5)
            self.num_changed += int(changed.sum())
            self.num_either += int((lesion | changed).sum())

    def columns(self) -> dict[str, float | None]:
        """Return the columns; None where there are no pixels to measure over."""
        return {
            "confidence": round(self.confidence / self.num_lesion, _DIGITS) if self.num_lesion else None,
            "lung_entropy": round(self.entropy / self.num_lung, _DIGITS) if self.num_lung else None,
            "flip_disagreement_pct": percent(self.num_changed, self.num_either),
        }


def series_row(record: SeriesRecord, model_sha256: str) -> dict[str, Any]:
    """Return the part of a burden row that is known before segmentation; what is not measured yet is null."""
    row: dict[str, Any] = dict.fromkeys(BURDEN.polars_schema)
    row |= record_columns(record)
    return row | {"qc_flags": list(record.qc_flags), "lung_method": LUNG_METHOD, "model_sha256": model_sha256}


def record_columns(record: SeriesRecord) -> dict[str, Any]:
    """Return what a burden row takes from the manifest: identity, geometry and findings of the headers."""
    return {name: getattr(record, name) for name in _FROM_RECORD}


def _batches(boxes: dict[int, CropBox], size: int) -> Iterator[dict[int, CropBox]]:
    """Split the crops of slices into batches."""
    entries = list(boxes.items())
    return (dict(entries[start : start + size]) for start in range(0, len(entries), size))


def _slice_rows(
    record: SeriesRecord, volume: Volume, labels: NDArray[np.uint8], lungs: Lungs
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the slices table."""
    normal = slice_normal([*volume.affine[:3, 2], *volume.affine[:3, 1]])
    for area, uid in zip(slice_areas(labels, lungs.mask, volume.pixel_area_mm2), volume.sop_instance_uids, strict=True):
        origin = volume.affine[:3, 3] + area["slice_index"] * volume.affine[:3, 0]
        yield {
            "study_instance_uid": record.study_instance_uid,
            "series_instance_uid": record.series_instance_uid,
            "series_key": record.series_key,
            "sop_instance_uid": uid,
            "position_mm": float(normal @ origin),
            **area,
        }


def _picture(
    upright_hu: NDArray[np.int16],
    labels: NDArray[np.uint8],
    lungs: Lungs,
    pixel_spacing_mm: tuple[float, float],
    row: dict[str, Any],
) -> bytes:
    """Return the series' overview as PNG; its caption holds numbers and flags, and nothing that names a patient."""
    numbers = f"of the lung: GGO {row['ggo_pct']:.1f} %, consolidation {row['consolidation_pct']:.1f} %"
    if row["lung_volume_ml"] is not None:
        numbers += f"; lung {row['lung_volume_ml']:.0f} mL, opacity {row['opacity_volume_ml']:.0f} mL"
    colours = ", ".join(f"{label.title} {label.colour}" for label in LESIONS)
    shown = f"{MOST_SLICES} of {count} slices with lung. " if (count := row["n_lung_slices"]) > MOST_SLICES else ""
    caption = (
        f"series {row['series_key']}   {numbers}",
        f"flags: {', '.join(row['qc_flags']) or 'none'}",
        f"{colours}, lungs outlined blue. {shown}The patient's right is on the left. "
        "Research software, not a medical device.",
    )
    picture = overview(upright_hu, labels, lungs.mask, pixel_spacing_mm=pixel_spacing_mm, caption=caption)
    return png_bytes(picture)
