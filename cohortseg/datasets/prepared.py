"""Training data decoded once: all canonical slices of a run in one safetensors file that every worker maps."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cohortseg.config import CanonicalConfig
from cohortseg.datasets.slices import CanonicalSlice, DicomSlices, ImageSlice, read_slices
from cohortseg.errors import CohortSegError, DataError, StoreError
from cohortseg.labels import BACKGROUND, LESIONS
from cohortseg.progress import Report
from cohortseg.store.documents import parse_json
from cohortseg.store.files import replacing_by_name

log = logging.getLogger(__name__)

_IMAGE_THREADS = 4
_TENSORS = ("labeled", "labels", "unlabeled", "pseudo_labels")
_HASHES = ("labeled_images", "unlabeled_images", "teachers")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Canonical slices in memory."""

    labeled: torch.Tensor
    """(N, 1, size, size) float16 in [0, 1]."""
    labels: torch.Tensor
    """(N, size, size) uint8: 0, 1, 2."""
    unlabeled: torch.Tensor
    """(M, 1, size, size) float16; M may be 0."""
    labeled_images: tuple[str, ...]
    """SHA-256 of the labelled image files, and of all that teachers were trained on, sorted."""
    unlabeled_images: tuple[str, ...]
    """The same for the unlabelled ones."""
    pseudo_labels: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    """(M, size, size) uint8: what teachers say of the unlabelled slices; empty without teachers."""
    teachers: tuple[str, ...] = ()
    """SHA-256 of their model files."""
    terms: str
    """Terms of use of the slices, and so of a model trained on them."""


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
    for kind, sources, count in (
        ("labelled", labeled, num_labeled),
        ("unlabelled", unlabeled, len(slices) - num_labeled),
    ):
        if sources and not count:
            raise DataError(f"none of the {len(sources)} {kind} series holds a slice that can be used")
    frames = sum(not item.lungs_found for item in slices)
    if frames:
        log.info("%d of %d training images show no lung by themselves and are used uncropped", frames, len(slices))
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


def write_prepared(path: Path, data: PreparedData) -> None:
    """Write what `load_prepared` reads.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    tensors = {name: getattr(data, name) for name in _TENSORS}
    metadata = {name: json.dumps(getattr(data, name)) for name in _HASHES}
    metadata |= {"sha256": _digest(tensors), "terms": data.terms}
    with replacing_by_name(path) as file:  # as bytes they would be in memory a second time
        try:
            save_file(tensors, file, metadata)
        except SafetensorError as error:  # also on a full disk
            raise StoreError(f"{path}: cannot be written: {error}") from error


def load_prepared(path: Path) -> PreparedData:
    """Load what `write_prepared` wrote.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    with _opened(path) as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in _TENSORS}
        hashes: dict[str, Any] = {name: tuple(parse_json(metadata[name])) for name in _HASHES}
        data = PreparedData(**tensors, **hashes, terms=metadata["terms"])
        damaged = metadata["sha256"] != _digest(tensors)
    if damaged:
        raise DataError(f"{path}: damaged: its slices are not those that were written")
    return data


def teachers_of(path: Path) -> tuple[str, ...]:
    """Return the SHA-256 of the teachers' model files, from what `write_prepared` wrote, without its slices.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    with _opened(path) as file:
        return tuple(parse_json(file.metadata()["teachers"]))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open prepared data; what is wrong with them in the block is told as the fault of this file."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the prepared data of a training run: {error}") from error


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _TENSORS:
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _check_classes(labels: Sequence[NDArray[np.uint8]]) -> None:
    """Log how many labelled slices hold each lesion class; refuse labels without any lesion, or without background."""
    counts = {label.title: sum(bool((item == label.value).any()) for item in labels) for label in LESIONS}
    if labels and not any(counts.values()):
        raise DataError(
            f"none of the {len(labels)} labelled slices holds a lesion: the label maps must hold 1 for ground-glass "
            "opacity and 2 for consolidation; look at how they were saved"
        )
    if labels and not any((item == BACKGROUND.value).any() for item in labels):
        raise DataError(
            f"none of the {len(labels)} labelled slices holds background: the label maps must hold 0 where there is no "
            "lesion, 1 for ground-glass opacity and 2 for consolidation; look at how they were saved"
        )
    log.info("of %d labelled slices, %s", len(labels), ", ".join(f"{n} hold {name}" for name, n in counts.items()))
    for name, count in counts.items():
        if labels and not count:
            log.warning("no labelled slice holds %s: the model will not learn it", name)


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
        log.warning("unlabelled series %s is left out: %s", source.record.series_key, type(error).__name__)
        return []


def _labels(item: CanonicalSlice) -> NDArray[np.uint8]:
    if item.labels is None:
        raise DataError(f"slice {item.name} among the labelled ones has no label map")
    return item.labels


def _stack(slices: Sequence[CanonicalSlice], config: CanonicalConfig) -> torch.Tensor:
    if not slices:
        return torch.empty(0, 1, config.size, config.size, dtype=torch.float16)
    return torch.stack([item.image for item in slices])
