"""Decode training data once: sources to canonical slices."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from cohortseg.config import CanonicalConfig
from cohortseg.datasets.prepared import PreparedData
from cohortseg.datasets.slices import CanonicalSlice, DicomSlices, ImageSlice, read_slices
from cohortseg.errors import CohortSegError, DataError
from cohortseg.labels import BACKGROUND, LESIONS
from cohortseg.progress import Report

_log: Final = logging.getLogger(__name__)

_IMAGE_THREADS: Final = 4


def prepare(
    labeled: Sequence[ImageSlice | DicomSlices],
    unlabeled: Sequence[ImageSlice | DicomSlices],
    config: CanonicalConfig,
    terms: str,
    report: Report,
) -> PreparedData:
    """Bring all sources to canonical form.

    Raises
    ------
    DataError
        If a labelled source or an unlabelled image cannot be used (the message names its file), or no slice is left.
        An unlabelled DICOM series that cannot be used is left out and logged: a tree of them is never clean.
    """
    total = len(labeled) + len(unlabeled)
    slices: list[CanonicalSlice] = []
    num_labeled = 0
    with ThreadPoolExecutor(_IMAGE_THREADS) as pool:
        readers = [(_read, source) for source in labeled] + [(_read_if_usable, source) for source in unlabeled]
        for done, group in enumerate(pool.map(lambda item: item[0](item[1], config), readers), start=1):
            slices += group
            num_labeled += len(group) if done <= len(labeled) else 0
            report(done, total, "")
    if not num_labeled:
        raise DataError(f"none of the {len(labeled)} labelled series holds a slice that can be used")
    if unlabeled and num_labeled == len(slices):
        raise DataError(f"none of the {len(unlabeled)} unlabelled series holds a slice that can be used")
    frames = sum(not item.lungs_found for item in slices)
    if frames:
        _log.info("%d of %d training images show no lung by themselves and are used uncropped", frames, len(slices))
    labels = [_labels(item) for item in slices[:num_labeled]]
    _check_classes(labels)
    return PreparedData(
        labeled=_stack(slices[:num_labeled], config),
        labels=torch.from_numpy(np.stack(labels)),
        unlabeled=_stack(slices[num_labeled:], config),
        labeled_images=tuple(sorted({item.sha256 for item in slices[:num_labeled]})),
        unlabeled_images=tuple(sorted({item.sha256 for item in slices[num_labeled:]})),
        terms=terms,
    )


def _check_classes(labels: Sequence[NDArray[np.uint8]]) -> None:
    """Log how many labelled slices hold each lesion class; refuse labels without any lesion, or without background."""
    counts = {label.title: sum(bool((item == label.value).any()) for item in labels) for label in LESIONS}
    if not any(counts.values()):
        raise DataError(
            f"none of the {len(labels)} labelled slices holds a lesion: the label maps must hold 1 for ground-glass "
            "opacity and 2 for consolidation; look at how they were saved"
        )
    if not any((item == BACKGROUND.value).any() for item in labels):
        raise DataError(
            f"none of the {len(labels)} labelled slices holds background: the label maps must hold 0 where there is no "
            "lesion, 1 for ground-glass opacity and 2 for consolidation; look at how they were saved"
        )
    _log.info("of %d labelled slices, %s", len(labels), ", ".join(f"{n} hold {name}" for name, n in counts.items()))
    for name, count in counts.items():
        if not count:
            _log.warning(
                "no labelled slice holds %s: the model will not learn it, but for solid foci if the recipe paints any "
                "(painted_foci)",
                name,
            )


def _read(source: ImageSlice | DicomSlices, config: CanonicalConfig) -> list[CanonicalSlice]:
    found = (item.canonical for item in read_slices(source, config))
    # in half precision: all of them are held until they are written
    return [replace(item, image=item.image.half()) for item in found if item is not None]


def _read_if_usable(source: ImageSlice | DicomSlices, config: CanonicalConfig) -> list[CanonicalSlice]:
    """Read a source as `_read` does, but leave out a DICOM series that cannot be used."""
    try:
        return _read(source, config)
    except CohortSegError as error:
        if isinstance(source, ImageSlice):
            raise
        _log.warning("unlabelled series %s is left out: %s", source.record.series_key, type(error).__name__)
        return []


def _labels(item: CanonicalSlice) -> NDArray[np.uint8]:
    if item.labels is None:
        raise DataError(f"slice {item.name} among the labelled ones has no label map")
    return item.labels


def _stack(slices: Sequence[CanonicalSlice], config: CanonicalConfig) -> torch.Tensor:
    if not slices:
        return torch.empty(0, 1, config.size, config.size, dtype=torch.float16)
    return torch.stack([item.image for item in slices])
