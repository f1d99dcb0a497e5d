"""The picture of an evaluated slice: input, truth, prediction, and what VQ-VAE branch and discriminator make of it."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cohortseg.config import CanonicalConfig, TrainConfig
from cohortseg.datasets.slices import SourceSlice
from cohortseg.evaluate.score import Case, label_map
from cohortseg.figures import (
    CONFIDENCE,
    PSEUDO_LABEL,
    RECONSTRUCTION,
    confidence_rgb,
    hu_from_canonical,
    pseudo_label_rgb,
)
from cohortseg.losses import refined_pseudo_labels
from cohortseg.overlays import Compared, compared_tiles, gray_slice, wrapped_sheet
from cohortseg.preprocess import CropBox, restore_crop
from cohortseg.weights import Inspection, LoadedModel

_MOST_IN_A_ROW: Final = 4
_A_ROW: Final = 3
"""Pictures in each row if there are more than four, as a page shows a row at most 1320 pixels wide."""


def trust_threshold(model: LoadedModel) -> float | None:
    """Return T of equation (13), the confidence above which training trusted a pixel of a refined pseudo label.

    None for a model whose discriminator was not trained, or that learned from no such labels.
    """
    recipe = model.card.recipe
    if not model.has_trained_discriminator or not recipe.get("semi_weight", TrainConfig.semi_weight):
        return None
    return float(recipe.get("confidence_threshold", TrainConfig.confidence_threshold))


def notes(model: LoadedModel) -> list[str]:
    """Return what a page says of a model's pictures: what they show, and in one line what is left out and why."""
    threshold = trust_threshold(model)
    shown: list[str] = []
    left_out: list[str] = []
    if model.segmenter.vq is None:
        left_out.append(f"{RECONSTRUCTION} and use of the codebook (the model has no VQ-VAE branch)")
    else:
        shown.append("The reconstruction is that of the VQ-VAE branch.")
    if model.has_trained_discriminator:
        shown.append("Confidence is the discriminator's probability that a pixel is ground truth, dark 0, bright 1.")
    else:
        left_out.append(f"confidence map and {PSEUDO_LABEL} (the discriminator was not trained)")
    if threshold is not None:
        shown.append(
            f"The {PSEUDO_LABEL} is the prediction, gray where the confidence is not above {threshold:g}, the "
            "threshold of training."
        )
    elif model.has_trained_discriminator:
        left_out.append(f"{PSEUDO_LABEL} (the model learned from none)")
    if shown:
        shown.append("What the networks do not see is black.")
    lines = [" ".join(shown), f"Left out: {'; '.join(left_out)}."]
    return [line for line, parts in zip(lines, (shown, left_out), strict=True) if parts]


def slice_picture(
    item: SourceSlice, case: Case, inside: Inspection | None, config: CanonicalConfig, threshold: float | None
) -> Image.Image:
    """Return the picture of a slice, upright, as a radiologist reads it.

    Parameters
    ----------
    item, case
        The slice and its prediction.
    inside
        What the networks make of it; None for a slice that they have not seen.
    config
        The networks' input.
    threshold
        Confidence above which a pixel of the refined pseudo label is trusted; None: there is no such label.
    """
    truth, labels = (
        item.orientation.to_upright(array).astype(np.uint8) for array in (case.truth, label_map(case.prob))
    )
    tiles = compared_tiles(Compared(item.upright_hu, truth, labels))
    if inside is not None and item.canonical is not None:
        box = item.canonical.box
        prob = item.orientation.to_upright(case.prob)[:, *box.index]
        for caption, tile in _inner_tiles(inside, box, prob, config, threshold):
            tiles[caption] = np.zeros((*truth.shape, *tile.shape[2:]), np.uint8)
            tiles[caption][box.index] = tile
    return wrapped_sheet(tiles, len(tiles) if len(tiles) <= _MOST_IN_A_ROW else _A_ROW)


def _inner_tiles(
    inside: Inspection, box: CropBox, prob: NDArray[np.float32], config: CanonicalConfig, threshold: float | None
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield captions and tiles on the pixels of the crop, on which the probabilities (3, Y, X) lie too."""
    if inside.reconstruction is not None:
        reconstruction = restore_crop(inside.reconstruction, box)[0].numpy()
        yield RECONSTRUCTION, gray_slice(hu_from_canonical(reconstruction, config))
    if inside.confidence is not None:
        confidence = restore_crop(inside.confidence, box).clamp(0, 1)  # resizing rounds
        yield CONFIDENCE, confidence_rgb(confidence[0].numpy())
        if threshold is not None:
            classes = torch.from_numpy(np.ascontiguousarray(prob))[None]
            pseudo = refined_pseudo_labels(classes, confidence[None].logit(), threshold)
            yield PSEUDO_LABEL, pseudo_label_rgb(pseudo[0].numpy())
