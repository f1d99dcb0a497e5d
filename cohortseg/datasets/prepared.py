"""All canonical slices of a run in one safetensors file, which every worker maps."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cohortseg.errors import DataError, StoreError
from cohortseg.store.documents import parse_json
from cohortseg.store.files import replacing_by_name

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
