"""Labels for unlabelled slices, from finished models: the network that learns from them is their student.

Xie et al. 2020, "Self-training with Noisy Student": the student sees the slices augmented, its teachers did not.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch.nn import functional

from cohortseg.config import InferConfig, TrainConfig
from cohortseg.datasets.prepared import PreparedData
from cohortseg.errors import ConfigError, DataError
from cohortseg.labels import BACKGROUND, LESIONS
from cohortseg.models.device import batch_size_for
from cohortseg.progress import Report
from cohortseg.weights import LoadedModel, load_model

_log: Final = logging.getLogger(__name__)

_OFFSET_SHARE: Final = 0.5
"""Of the class offsets of a finished model. With all of them, which gain it Dice, its student would learn to see too
much, and gets offsets of its own on top; with none, too little. Chosen once, not tuned."""


def load_teachers(paths: Sequence[str], config: TrainConfig) -> list[LoadedModel]:
    """Load models that are to label slices for a training.

    Raises
    ------
    ConfigError
        If one is missing, or sees slices in another canonical form (size apart) than the training.
    ModelError
        If one cannot be loaded.
    """
    for path in paths:
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such model file; a run needs its teachers until its slices are prepared")
    teachers = [load_model(Path(path)) for path in paths]
    if len({teacher.sha256 for teacher in teachers}) < len(teachers):
        _log.warning("a teacher is given more than once: it counts as often")
    for path, teacher in zip(paths, teachers, strict=True):
        if replace(teacher.card.canonical, size=config.canonical.size) != config.canonical:
            raise ConfigError(f"{path}: was trained on other windows or margins than [canonical] of this training says")
    return teachers


def taught(data: PreparedData, teachers: Sequence[LoadedModel], report: Report) -> PreparedData:
    """Return the data with labels for the unlabelled slices, and with what the teachers bring along.

    A student has seen what its teachers have seen, and their terms hold for it.

    Parameters
    ----------
    data
        Prepared slices, some of them unlabelled.
    teachers
        One at least.
    report
        Called with the slices labelled so far.

    Raises
    ------
    DataError
        If there is no unlabelled slice.
    """
    if not len(data.unlabeled):
        raise DataError("there is no unlabelled slice for the teachers to label")
    size = batch_size_for(teachers[0].device)
    slices = torch.split(data.unlabeled, size)
    labels = []
    for done, images in enumerate(slices):
        report(done * size, len(data.unlabeled), "labels of teachers")
        labels.append(_labels(images.float(), teachers))
    report(len(data.unlabeled), len(data.unlabeled), "labels of teachers")
    pseudo_labels = torch.cat(labels)
    _tell_classes(pseudo_labels)
    if twice := len({*data.labeled_images} & {*data.unlabeled_images}):
        _log.warning("%d images are learned from twice: with a reader's label, and as unlabelled ones", twice)
    seen = {image for teacher in teachers for image in teacher.training_images}
    terms = data.terms
    for teacher in teachers:
        licence = teacher.card.licence
        terms = licence if terms in licence else terms if licence in terms else f"{terms} {licence}"
    return replace(
        data,
        pseudo_labels=pseudo_labels,
        teachers=tuple(teacher.sha256 for teacher in teachers),
        labeled_images=tuple(sorted(seen.union(data.labeled_images))),
        terms=terms,
    )


def _tell_classes(labels: torch.Tensor) -> None:
    """Log in how many slices teachers see each lesion class; warn of labels without any lesion, or any background."""
    counts = {label.title: int((labels == label.value).flatten(1).any(dim=1).sum()) for label in LESIONS}
    share = int(torch.count_nonzero(labels == BACKGROUND.value)) / labels.numel()
    found = ", ".join(f"{name} in {count}" for name, count in counts.items())
    _log.info("of %d unlabelled slices, teachers see %s; %.1f %% is background", len(labels), found, 100 * share)
    if not any(counts.values()) or not share:
        what = "background" if any(counts.values()) else "lesion"
        _log.warning(
            "the teachers see no %s in any unlabelled slice, and the student will learn that: look at them", what
        )


def _labels(images: torch.Tensor, teachers: Sequence[LoadedModel]) -> torch.Tensor:
    """Return the classes (B, size, size) uint8 of slices (B, 1, size, size), by the teachers' mean probability."""
    total, offsets = torch.zeros(()), torch.zeros(())
    for teacher in teachers:
        size = teacher.card.canonical.size
        seen = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        prob = teacher.probabilities(seen, flips=InferConfig.flips)
        added = torch.tensor(teacher.card.recipe.get("class_offsets", (0.0, 0.0, 0.0)))[:, None, None]
        without = (prob.clamp_min(1e-6).log() - added).softmax(dim=1)
        total = total + functional.interpolate(without, size=images.shape[-2:], mode="bilinear", align_corners=False)
        offsets = offsets + added
    logits = total.clamp_min(1e-6).log() + _OFFSET_SHARE * offsets / len(teachers)
    return logits.argmax(dim=1).to(torch.uint8)
