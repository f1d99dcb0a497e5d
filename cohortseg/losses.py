"""The paper's losses, one function per equation (Jin et al. 2022, doi 10.1016/j.ins.2022.08.059).

The paper writes sums over pixels in (2), (11) to (14); all functions here return means, so that a loss does not change
with the image size and the paper's weights stay comparable between terms. Labels are int64 (B, H, W); `IGNORE` marks
pixels without a label.
"""

from typing import Final

import torch
from torch.nn import functional

from cohortseg.labels import LESIONS, NUM_CLASSES

IGNORE: Final = 255
"""Label of a pixel that takes no part in a loss: an untrusted pixel of a pseudo label."""


def codebook_loss(latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the second term of equation (2), ||sg[E(x)] - e||^2: moves the codes to the latents."""
    return functional.mse_loss(codes, latents.detach())


def commitment_loss(latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the third term of equation (2) without beta, ||sg[e] - E(x)||^2: keeps latents near their codes."""
    return functional.mse_loss(latents, codes.detach())


def vq_loss(
    images: torch.Tensor,
    reconstruction: torch.Tensor,
    codebook: torch.Tensor,
    commitment: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Return the VQ-VAE objective, equation (2).

    Parameters
    ----------
    images, reconstruction
        (B, 1, H, W): x and D(e).
    codebook, commitment
        Second and third term, each summed over the code levels.
    beta
        Weight of the commitment, 0.25 in the paper.
    """
    return functional.mse_loss(reconstruction, images) + codebook + beta * commitment


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return L_ce: the mean cross-entropy over all pixels, (B, C, H, W) logits against (B, H, W) labels."""
    return functional.cross_entropy(logits, labels)


def class_proportions(labels: torch.Tensor, num_classes: int = NUM_CLASSES) -> torch.Tensor:
    """Return the ground-truth proportions y_k = |Omega_k| / |Omega|, equation (3).

    Parameters
    ----------
    labels
        (B, H, W) int64; pixels marked `IGNORE` are left out of Omega.
    num_classes
        Number of classes K.

    Returns
    -------
    torch.Tensor
        (B, K) float32, rows summing to 1; zeros for an image without any labelled pixel.
    """
    valid = labels != IGNORE
    one_hot = functional.one_hot(labels.masked_fill(~valid, 0), num_classes) * valid[..., None]
    counts = one_hot.sum(dim=(1, 2)).float()
    return counts / valid.sum(dim=(1, 2)).clamp_min(1)[:, None]


def proportion_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the proportion loss (y - p)^2, second part of equation (11), summed over classes, averaged over images.

    y are the label's proportions, equation (3), and p is the mean softmax over the same pixels. Cross-entropy already
    pulls towards the right proportions (section 3.3), but that pull is mixed with the per-pixel term and cannot be
    weighted. Here it has a weight of its own, and pulls on all pixels of an image by the class's total error,
    2 (p - y) dp, wherever they lie. It is bounded: a class that covers 1 % of the pixels costs at most (1 - 0.01)^2,
    when it is predicted everywhere. But it is weak where it is needed most: missing such a class altogether costs
    0.01^2, and dp vanishes with the class's probability, unlike the gradient of cross-entropy on the lesion itself.

    Parameters
    ----------
    logits
        (B, K, H, W).
    labels
        (B, H, W) int64; `IGNORE` pixels are left out of both y and p. An image with no other pixels costs 0.
    """
    predicted = _predicted_proportions(logits, labels)
    return (class_proportions(labels, logits.shape[1]) - predicted).square().sum(dim=1).mean()


def label_marginal_divergence(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return D_KL(y || p) of the proportions of each image, equation (9), averaged over images.

    It is the part of the cross-entropy that concerns proportions alone, equation (10) with its constant:
    CE = H(F|K) + D_KL(y || p) + H(y). Training minimises `proportion_loss` in its place; this is for analysis.

    Parameters
    ----------
    logits
        (B, K, H, W).
    labels
        (B, H, W) int64; as in `proportion_loss`.
    """
    truth, predicted = class_proportions(labels, logits.shape[1]), _predicted_proportions(logits, labels)
    return (torch.xlogy(truth, truth) - torch.xlogy(truth, predicted)).sum(dim=1).mean()


def _predicted_proportions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean softmax over the labelled pixels of each image: (B, K); zeros without any."""
    valid = (labels != IGNORE).float()[:, None]
    return (logits.softmax(dim=1) * valid).sum(dim=(2, 3)) / valid.sum(dim=(2, 3)).clamp_min(1)


def adversarial_loss(confidence_logits: torch.Tensor) -> torch.Tensor:
    """Return L_adv = -log D(S(I)), equation (12): low where the discriminator takes the prediction for ground truth.

    Parameters
    ----------
    confidence_logits
        (B, 1, H, W), the discriminator's logits for predictions.
    """
    return functional.softplus(-confidence_logits).mean()


def refined_pseudo_labels(logits: torch.Tensor, confidence_logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return refined pseudo labels, equation (13): argmax S(U) where D(S(U)) > T, `IGNORE` elsewhere.

    Parameters
    ----------
    logits
        (B, K, H, W) of unlabelled images.
    confidence_logits
        (B, 1, H, W), the discriminator's logits for the same.
    threshold
        T, in [0.1, 0.3] in the paper.

    Returns
    -------
    torch.Tensor
        (B, H, W) int64 without gradient.
    """
    trusted = confidence_logits.detach()[:, 0].sigmoid() > threshold
    # max, not argmax: over three channels it takes a tenth of the time on the CPU
    return logits.detach().max(dim=1).indices.masked_fill(~trusted, IGNORE)


def semi_loss(logits: torch.Tensor, pseudo_labels: torch.Tensor, num_trusted: torch.Tensor) -> torch.Tensor:
    """Return L_semi, equation (13): cross-entropy against refined pseudo labels, a mean over trusted pixels.

    Parameters
    ----------
    logits
        (B, K, H, W) of unlabelled images.
    pseudo_labels
        (B, H, W) int64 with `IGNORE` where untrusted.
    num_trusted
        Number of trusted pixels over which the mean is taken; with several workers, the mean number per worker, so that
        the average of the workers' losses is the loss of the whole batch. 0 gives a loss of 0 with gradient 0, never a
        skipped backward pass, by which the workers would fall out of step.
    """
    total = functional.cross_entropy(logits, pseudo_labels, ignore_index=IGNORE, reduction="sum")
    return total / num_trusted.clamp_min(1)


def discriminator_loss(predicted_logits: torch.Tensor, truth_logits: torch.Tensor) -> torch.Tensor:
    """Return L_D, equation (14): binary spatial cross-entropy, predictions to 0 and one-hot ground truth to 1.

    Parameters
    ----------
    predicted_logits, truth_logits
        (B, 1, H, W), the discriminator's logits for predictions and for ground truth.
    """
    return functional.softplus(predicted_logits).mean() + functional.softplus(-truth_logits).mean()


def softened_truth(labels: torch.Tensor, prob: torch.Tensor, confidence: float) -> torch.Tensor:
    """Return ground truth as the discriminator sees it: as soft as the prediction of the same image.

    A discriminator can tell one-hot truth from any softmax, pixel by pixel; it then wins at once, trusts nothing, and
    teaches nothing. The "scale" encoding of Luc et al. 2016 (arXiv 1611.08408, section 3.2) raises the right class to
    at least tau and shares the rest in proportion to the prediction: where the prediction is right and sure, truth and
    prediction are the same, and only errors and doubt can be detected.

    Parameters
    ----------
    labels
        (B, H, W) int64.
    prob
        (B, K, H, W), the prediction's probabilities for the same images; no gradient flows through them.
    confidence
        tau in (1/K, 1]; 1: plain one-hot.

    Returns
    -------
    torch.Tensor
        (B, K, H, W) float32, summing to 1 over the classes.
    """
    prob = prob.detach().float()
    one_hot = functional.one_hot(labels, prob.shape[1]).permute(0, 3, 1, 2).float()
    right = (prob * one_hot).sum(dim=1, keepdim=True)
    raised = right.clamp_min(confidence)
    share = (1 - raised) / (1 - right).clamp_min(1e-6)
    return one_hot * raised + (1 - one_hot) * prob * share


def soft_dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one minus the soft Dice coefficient of the lesion classes, averaged over them (not in the paper).

    Each class is pooled over the pixels of one image and smoothed by one part in a thousand of its pixels, so that an
    empty class still has a gradient against false positives; an empty class predicted empty costs 0.

    Parameters
    ----------
    logits
        (B, K, H, W).
    labels
        (B, H, W) int64 without `IGNORE`.
    """
    prob, truth = _lesions(logits, labels)
    return 1 - _soft_dice(prob, truth).mean()


def opacity_dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return one minus the soft Dice coefficient of both lesion classes taken as one (not in the paper).

    Readers agree on where the lung is opaque far better than on which class it is; this term asks for the outline
    alone, whatever the split costs. Pooled and smoothed as in `soft_dice_loss`.

    Parameters
    ----------
    logits
        (B, K, H, W).
    labels
        (B, H, W) int64 without `IGNORE`.
    """
    prob, truth = _lesions(logits, labels)
    return 1 - _soft_dice(prob.sum(dim=1), truth.any(dim=1)).mean()


def _lesions(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probability and truth of the lesion classes, (B, classes, H, W) each."""
    classes = [label.value for label in LESIONS]
    return logits.softmax(dim=1)[:, classes], torch.stack([labels == value for value in classes], dim=1)


def _soft_dice(prob: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the smoothed soft Dice coefficient over the last two axes."""
    truth = truth.float()
    smooth = 1e-3 * truth.shape[-1] * truth.shape[-2]
    overlap = (prob * truth).sum(dim=(-2, -1))
    total = prob.sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1))
    return (2 * overlap + smooth) / (total + smooth)
