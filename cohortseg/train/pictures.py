"""Pictures of the networks' output on a few fixed slices: the paper's figures 2 to 4, and the use of the codebook."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cohortseg.figures import (
    CONFIDENCE,
    PSEUDO_LABEL,
    RECONSTRUCTION,
    Tiles,
    codebook_png,
    confidence_rgb,
    hu_from_canonical,
    pseudo_label_rgb,
)
from cohortseg.losses import refined_pseudo_labels
from cohortseg.models.vqvae import code_counts
from cohortseg.overlays import Compared, compared, contact_sheet, gray_slice, overlay_slice
from cohortseg.train.state import ADVERSARIAL, TrainState


@torch.no_grad()
def draw_labeled(state: TrainState, images: torch.Tensor, labels: torch.Tensor, *, bf16: bool) -> Image.Image:
    """Return figures 2 and 3: input, truth and prediction of labelled slices, GGO red and consolidation green.

    Parameters
    ----------
    state
        The model that it would give now predicts: averaged if asked for, with the class offsets.
    images
        (B, 1, size, size) float32 on the segmenter's device.
    labels
        (B, size, size) uint8.
    bf16
        Whether to predict in bfloat16.
    """
    segmenter = state.final_segmenter().eval()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = segmenter(images, reconstruct=False).logits
    predicted = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return compared(
        [
            Compared(_hu(image, state), truth, prediction)
            for image, truth, prediction in zip(images, labels.cpu().numpy(), predicted, strict=True)
        ]
    )


@torch.no_grad()
def draw_unlabeled(
    state: TrainState, images: torch.Tensor, *, bf16: bool, pseudo_labels: torch.Tensor | None = None
) -> Image.Image:
    """Return figure 4: input, reconstruction, prediction, confidence map and refined pseudo label of unlabelled slices.

    The confidence map is dark at 0 and bright at 1; in the pseudo label black is background and gray is not trusted.
    Both are left out in phase 1, in which the discriminator does not learn; so is the reconstruction without a VQ-VAE.

    Parameters
    ----------
    state
        Its current segmenter and discriminator predict, as in the losses of phase 2.
    images
        (B, 1, size, size) float32 on the networks' device.
    bf16
        Whether to predict in bfloat16.
    pseudo_labels
        (B, size, size) uint8, what teachers say of the slices; None: there are no teachers.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        output = state.segmenter(images)
        confidence = state.discriminator(output.logits.softmax(dim=1))
    predicted = output.logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    pseudo = refined_pseudo_labels(output.logits, confidence, state.config.confidence_threshold).cpu().numpy()
    sure = confidence[:, 0].float().sigmoid().cpu().numpy()
    rows: list[Tiles] = []
    for index, image in enumerate(images):
        slice_hu = _hu(image, state)
        row = {"input": gray_slice(slice_hu)}
        if output.reconstruction is not None:
            row[RECONSTRUCTION] = gray_slice(_hu(output.reconstruction[index], state))
        row["prediction"] = overlay_slice(slice_hu, predicted[index])
        if pseudo_labels is not None:
            row["label of teachers"] = overlay_slice(slice_hu, pseudo_labels[index].cpu().numpy())
        if state.phase == ADVERSARIAL:
            row[CONFIDENCE] = confidence_rgb(sure[index])
        if state.phase == ADVERSARIAL and state.config.semi_weight:
            row[PSEUDO_LABEL] = pseudo_label_rgb(pseudo[index])
        rows.append(row)
    return contact_sheet([list(row.values()) for row in rows], list(rows[0]))


@torch.no_grad()
def draw_codebook(state: TrainState, images: torch.Tensor, *, bf16: bool) -> bytes:
    """Return the running share of each code, and the codes that the given slices use at each level, as PNG.

    Parameters
    ----------
    state
        Its segmenter must have a VQ-VAE branch.
    images
        (B, 1, size, size) float32 on the segmenter's device.
    bf16
        Whether to encode in bfloat16.
    """
    if state.segmenter.vq is None:
        raise ValueError("the segmenter must have a VQ-VAE branch")
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        levels = state.segmenter(images, reconstruct=False).levels
    usage = state.segmenter.vq.quantizer.usage
    return codebook_png(usage, code_counts(levels, len(usage)).sum(dim=0), "these slices")


def evenly_spread(count: int, total: int) -> list[int]:
    """Return up to ``count`` different indices below ``total``, evenly spread, none at the ends if there are enough."""
    places = (np.arange(min(count, total)) + 0.5) * total / max(min(count, total), 1)
    return [int(place) for place in places]


def _hu(image: torch.Tensor, state: TrainState) -> NDArray[np.int16]:
    """Return (1, H, W) in [0, 1] as (H, W) in HU."""
    return hu_from_canonical(image[0].float().cpu().numpy(), state.config.canonical)
