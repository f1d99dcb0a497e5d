"""The two training steps: one labelled batch (phase 1), labelled and unlabelled ones with a discriminator (phase 2)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from cohortseg.config import TrainConfig
from cohortseg.datasets.batches import Batch, Batches
from cohortseg.losses import (
    IGNORE,
    adversarial_loss,
    cross_entropy,
    discriminator_loss,
    opacity_dice_loss,
    proportion_loss,
    refined_pseudo_labels,
    semi_loss,
    soft_dice_loss,
    softened_truth,
    vq_loss,
)
from cohortseg.models.segmenter import SegmenterOutput
from cohortseg.models.vqvae import ALIVE_SHARE, revive_codes, update_usage
from cohortseg.train.state import ADVERSARIAL, TrainState

Losses = dict[str, torch.Tensor]
"""Detached scalars on the device, for the history."""

_REVIVE_EVERY = 25
"""Iterations of phase 1 between revivals of dead codes."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How this process works together with the other workers."""

    segmenter: nn.Module
    """The segmenter as it is called in training: wrapped for gradient averaging if there are several workers."""
    discriminator: nn.Module
    """Likewise."""
    sum_over_workers: Callable[[torch.Tensor], torch.Tensor]
    """Adds a tensor over all workers; every worker must call it equally often."""
    rank: int
    world: int
    device: torch.device
    bf16: bool


def draw_batch(batches: Batches, config: TrainConfig, phase: int, iteration: int) -> Batch:
    """Return this worker's share of the batch of an iteration: without unlabelled slices where the phase has no use."""
    num_unlabeled = config.unlabeled_a_step if phase == ADVERSARIAL else 0
    return batches.draw(iteration, config.batch_labeled, num_unlabeled, config.batch_pseudo)


def supervised_step(state: TrainState, workers: Workers, batch: Batch) -> Losses:
    """Take a step of phase 1: L_comp = L_ce + lambda L_prop (11), and the VQ-VAE loss (2), on labelled slices.

    The paper calls L_comp the only objective of this phase and gives the VQ-VAE loss no weight anywhere; a branch that
    is to reconstruct must be trained, so its loss is added from the start.
    """
    with torch.autocast(workers.device.type, torch.bfloat16, enabled=workers.bf16):
        output: SegmenterOutput = workers.segmenter(batch.labeled)
    losses = _labeled_losses(state, output.logits, batch.labels)
    losses |= _vq_losses(state, output, batch.labeled)
    total = _total(state.config, losses)
    _step(state.segmenter_optimizer, total)
    _count_codes(state, workers, output)
    _revive_codes(state, workers, output)
    return _detached({"total": total, **losses})


def adversarial_step(state: TrainState, workers: Workers, batch: Batch) -> Losses:
    """Take a step of phase 2: S learns from labels, from trusted pseudo labels and from a fixed D; then D learns.

    Labelled branch: L_ce, L_prop, L_adv. Unlabelled branch: L_semi, L_prop, L_adv; its L_semi and L_prop count only
    after the first iterations of the phase, since an untrained D trusts everything.
    """
    config = state.config
    num_labeled, num_true = len(batch.labeled), len(batch.labeled) - batch.num_pseudo
    images = torch.cat([batch.labeled, batch.unlabeled]).contiguous(memory_format=torch.channels_last)

    # S moves, D stands still
    with _frozen(state.discriminator), torch.autocast(workers.device.type, torch.bfloat16, enabled=workers.bf16):
        output: SegmenterOutput = workers.segmenter(images)
        prob = output.logits.softmax(dim=1)
        confidence = state.discriminator(prob)
    logits, unlabeled_logits = output.logits[:num_labeled], output.logits[num_labeled:]
    losses = _labeled_losses(state, logits, batch.labels)
    losses |= _vq_losses(state, output, images)
    losses["adversarial"] = adversarial_loss(confidence)
    if len(batch.unlabeled):
        pseudo = refined_pseudo_labels(unlabeled_logits, confidence[num_labeled:], config.confidence_threshold)
        losses |= _unlabeled_losses(workers, unlabeled_logits, pseudo)
    total = _total(config, losses, self_taught=state.iteration - state.phase_start >= config.warmup_iterations)
    _step(state.segmenter_optimizer, total)
    _count_codes(state, workers, output)

    # D moves, S stands still: its predictions come in without gradient
    truth = softened_truth(batch.labels[:num_true], prob[:num_true], config.truth_confidence)
    with torch.autocast(workers.device.type, torch.bfloat16, enabled=workers.bf16):
        both = workers.discriminator(torch.cat([prob[:num_true].detach(), truth]))
    losses["discriminator"] = discriminator_loss(both[:num_true], both[num_true:])
    _step(state.discriminator_optimizer, losses["discriminator"])
    losses["confidence_predicted"] = both[:num_true].sigmoid().mean()
    losses["confidence_truth"] = both[num_true:].sigmoid().mean()
    return _detached({"total": total, **losses})


def _total(config: TrainConfig, losses: Losses, *, self_taught: bool = False) -> torch.Tensor:
    """Return what S minimises, the weighted sum of its losses; those of pseudo labels only if ``self_taught``."""
    weights = {
        "ce": 1.0,
        "proportion": config.proportion_weight,
        "dice": config.dice_weight,
        "opacity_dice": config.opacity_dice_weight,
        "vq": config.vq_weight,
        "adversarial": config.adversarial_weight,
        "semi": self_taught * config.semi_weight,
        "proportion_unlabeled": self_taught * config.proportion_weight,
    }
    if unweighted := losses.keys() - weights.keys() - {"trusted"}:
        raise ValueError(f"these losses would not be minimised: {', '.join(sorted(unweighted))}")
    return torch.stack([weight * losses[name] for name, weight in weights.items() if name in losses]).sum()


def _labeled_losses(state: TrainState, logits: torch.Tensor, labels: torch.Tensor) -> Losses:
    """Return the losses on labelled slices; Dice losses, which are not in the paper, only if they have a weight."""
    losses = {"ce": cross_entropy(logits, labels), "proportion": proportion_loss(logits, labels)}
    if state.config.dice_weight:
        losses["dice"] = soft_dice_loss(logits, labels)
    if state.config.opacity_dice_weight:
        losses["opacity_dice"] = opacity_dice_loss(logits, labels)
    return losses


def _unlabeled_losses(workers: Workers, logits: torch.Tensor, pseudo: torch.Tensor) -> Losses:
    """Return L_semi (13), and L_prop against the refined pseudo label's own proportions, both over trusted pixels."""
    trusted = (pseudo != IGNORE).sum()
    # every worker runs the same backward pass, even without a trusted pixel
    trusted_mean = workers.sum_over_workers(trusted.float()) / workers.world
    return {
        "semi": semi_loss(logits, pseudo, trusted_mean),
        "proportion_unlabeled": proportion_loss(logits, pseudo),
        "trusted": trusted / max(pseudo.numel(), 1),
    }


def _vq_losses(state: TrainState, output: SegmenterOutput, images: torch.Tensor) -> Losses:
    if output.reconstruction is None:
        return {}
    codebook = torch.stack([level.codebook_loss for level in output.levels]).sum()
    commitment = torch.stack([level.commitment_loss for level in output.levels]).sum()
    return {"vq": vq_loss(images, output.reconstruction, codebook, commitment, state.config.commitment)}


def _count_codes(state: TrainState, workers: Workers, output: SegmenterOutput) -> None:
    """Update the running use of codes, in the same way on every worker."""
    if state.segmenter.vq is None:
        return
    quantizer = state.segmenter.vq.quantizer
    indices = torch.cat([level.indices.flatten() for level in output.levels])
    counts = torch.zeros_like(quantizer.usage).scatter_add_(0, indices, torch.ones_like(indices, dtype=torch.float32))
    update_usage(quantizer, workers.sum_over_workers(counts))


def _revive_codes(state: TrainState, workers: Workers, output: SegmenterOutput) -> None:
    """Revive dead codes now and then, alike on every worker; at first all codes, as they are far from all latents."""
    begins = state.iteration == 0
    if state.segmenter.vq is None or ((state.iteration + 1) % _REVIVE_EVERY and not begins):
        return
    levels = (level.latents.detach().permute(0, 2, 3, 1).flatten(0, 2) for level in output.levels)
    top, bottom = (_from_all(workers, latents) for latents in levels)
    # as many of the top level as of the bottom, which has sixteen times the latents and would take all the codes
    latents = torch.cat([top.repeat(len(bottom) // len(top), 1), bottom])
    generator = torch.Generator(latents.device).manual_seed(state.config.seed * 1_000_003 + state.iteration)
    revive_codes(state.segmenter.vq.quantizer, latents, generator, math.inf if begins else ALIVE_SHARE)


def _from_all(workers: Workers, values: torch.Tensor) -> torch.Tensor:
    """Return the (N, ...) values of all workers, concatenated: those that one worker with all slices would have."""
    table = values.new_zeros(workers.world, *values.shape)
    table[workers.rank] = values
    return workers.sum_over_workers(table).flatten(0, 1)


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    module.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        module.requires_grad_(requires_grad=True)


def _detached(losses: Losses) -> Losses:
    return {name: value.detach() for name, value in losses.items()}
