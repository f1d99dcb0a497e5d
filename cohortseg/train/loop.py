"""The training loop, top to bottom. It knows neither Ray nor files other than those of its own run folder.

- ``cohortseg train -o runs/a``: one worker, all cores or one GPU.
- ``cohortseg train -o runs/a --workers 8``: eight workers, gradients averaged.
"""

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cohortseg import __version__
from cohortseg.config import TrainConfig
from cohortseg.datasets.batches import Batches
from cohortseg.datasets.prepared import PreparedData
from cohortseg.errors import DivergedError
from cohortseg.models.device import has_fast_bf16
from cohortseg.models.vqvae import codebook_use
from cohortseg.train.history import History
from cohortseg.train.page import RunPage
from cohortseg.train.phases import Losses, Workers, adversarial_step, draw_batch, supervised_step
from cohortseg.train.state import ADVERSARIAL, SUPERVISED, TrainState, build_state, load_state, save_state, undone
from cohortseg.weights import ModelCard, check_finite, save_model

MODEL = "model.safetensors"
PHASE_1_MODEL = "model-phase1.safetensors"
LOG_EVERY = 10
"""Iterations between lines of the history; only then do losses leave the device."""

_SUM_IS_EXACT = 2
"""The sum of up to this many numbers does not depend on their order."""
_DECAY_POWER = 0.9
"""Of the polynomial decay of the learning rate (docs/method.md)."""
_RAMP_ITERATIONS = 20
_LOSS_SMOOTHING = 0.8
"""Share of the earlier value at each line of the history: a memory of about five lines, 50 iterations."""
_LEAST_GAIN = 0.99
"""A loss above this share of the best one is no progress."""

ReportCheckpoint = Callable[[dict[str, Any], Callable[[Path], None] | None], None]
"""Takes metrics and, on worker 0, a function that saves a checkpoint in a folder; all workers call it equally often."""


def learning_rate_at(iteration: int, total: int, start: float) -> float:
    """Return the learning rate: a short linear ramp, then polynomial decay with power 0.9 to zero."""
    ramp = min(1.0, (iteration + 1) / _RAMP_ITERATIONS)
    return float(start * ramp * max(0.0, 1 - iteration / total) ** _DECAY_POWER)


def train(
    config: TrainConfig,
    data: PreparedData,
    run: Path,
    *,
    wrap: Callable[[nn.Module], nn.Module],
    sum_over_workers: Callable[[torch.Tensor], torch.Tensor],
    report: ReportCheckpoint,
    rank: int,
    world: int,
    device: torch.device,
    restore: Path | None,
) -> None:
    """Train both phases; the first worker writes history, pictures and model into the run folder.

    Parameters
    ----------
    config
        The settings.
    data
        Canonical slices.
    run
        An existing folder, visible to the first worker.
    wrap
        Makes a network average its gradients over the workers.
    sum_over_workers
        Adds a tensor over the workers.
    report
        Called at every checkpoint and at the end.
    rank, world
        This worker's number and how many there are.
    device
        Where to train.
    restore
        Folder of a checkpoint to resume from.

    Raises
    ------
    DivergedError
        On every worker, if the loss is no longer a finite number.
    """
    # every rank: the same state, from the same seed or the same checkpoint
    state = build_state(config, device, imagenet=restore is None)
    if restore is not None:
        load_state(state, restore)
    workers = Workers(
        segmenter=wrap(state.segmenter),
        discriminator=wrap(state.discriminator),
        sum_over_workers=sum_over_workers,
        rank=rank,
        world=world,
        device=device,
        bf16=has_fast_bf16(device) if config.bf16 is None else config.bf16,
    )
    batches = Batches(
        data,
        device=device,
        seed=config.seed,
        augmented=config.augment,
        painted_foci=config.painted_foci,
        rank=rank,
        world=world,
    )
    if world > _SUM_IS_EXACT:
        _lay_out_gradients(state, workers, batches)
    page = RunPage(run, data, device) if rank == 0 else None
    recent: list[Losses] = []
    clock = time.perf_counter()

    with closing(History(run, state.iteration)) if rank == 0 else nullcontext() as history:
        while not state.finished and state.iteration < state.total_iterations:
            # every rank: one step of the present phase
            learning_rate = learning_rate_at(state.iteration, state.total_iterations, config.learning_rate)
            for group in state.segmenter_optimizer.param_groups:
                group["lr"] = learning_rate
            batch = draw_batch(batches, config, state.phase, state.iteration)
            step = supervised_step if state.phase == SUPERVISED else adversarial_step
            recent.append(step(state, workers, batch))
            if state.averaged is not None:
                state.averaged.update_parameters(state.segmenter)
            state.iteration += 1
            phase_ends = state.phase == SUPERVISED and state.iteration >= config.supervised_iterations
            checkpoint_due = state.iteration % config.checkpoint_every == 0

            # every rank, now and then: losses leave the device, summed over the workers. Before a checkpoint too, so
            # that a resumed run averages over the same iterations as an unbroken one.
            last = phase_ends or state.iteration == state.total_iterations
            if state.iteration % LOG_EVERY == 0 or checkpoint_due or last:
                row = _mean_losses(recent, workers)
                seconds = time.perf_counter() - clock
                images = len(recent) * world * (len(batch.labeled) + len(batch.unlabeled))
                row |= {"learning_rate": learning_rate, "images_per_s": images / seconds}
                if state.segmenter.vq is not None:
                    row["codes_alive"], row["perplexity"] = codebook_use(state.segmenter.vq.quantizer.usage)
                phase_ends = phase_ends or _note_saturation(state, row["total"], len(recent))
                if history is not None:
                    position = {"iteration": state.iteration, "total_iterations": state.total_iterations}
                    history.add(position | {"phase": state.phase} | row)
                recent, clock = [], time.perf_counter()

            # rank 0: the model of phase 1, for comparison; every rank: on to phase 2
            if phase_ends and not config.semi_supervised:
                state.finished = True
                break
            if phase_ends:
                # every rank: none may wait for one that gave up
                check_finite(state.final_segmenter(), state.discriminator)
                if rank == 0:
                    _write_model(run / PHASE_1_MODEL, state, data, phase=SUPERVISED)
                state.phase, state.phase_start = ADVERSARIAL, state.iteration

            # every rank reports, rank 0 writes
            if (checkpoint_due or phase_ends) and state.iteration < state.total_iterations:  # the end has its own
                if page is not None:
                    page.renew(state, bf16=workers.bf16)
                _checkpoint(state, report, rank)
                clock = time.perf_counter()

    check_finite(state.final_segmenter(), state.discriminator)  # every rank, as above
    if page is not None:
        page.draw(state, bf16=workers.bf16)
        _write_model(run / MODEL, state, data, phase=state.phase)
    _checkpoint(state, report, rank)


def _lay_out_gradients(state: TrainState, workers: Workers, batches: Batches) -> None:
    """Take one step of each phase and undo it.

    After its first backward pass PyTorch rearranges the gradients that workers exchange by the order in which they
    came, and this layout decides the order in which those of several workers are added. With this step taken first, a
    resumed run and one that never stopped add alike.
    """
    config = state.config
    with undone(state):
        supervised_step(state, workers, draw_batch(batches, config, SUPERVISED, 0))
        if config.semi_supervised:
            adversarial_step(state, workers, draw_batch(batches, config, ADVERSARIAL, 0))


def _mean_losses(recent: list[Losses], workers: Workers) -> dict[str, float]:
    """Return each loss's mean over the latest iterations and all workers.

    Raises
    ------
    DivergedError
        If one is not finite.
    """
    names = sorted(recent[0])
    table = torch.stack([torch.stack([losses[name].float() for name in names]) for losses in recent])
    means = (workers.sum_over_workers(table.mean(dim=0)) / workers.world).tolist()
    row = dict(zip(names, means, strict=True))
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(
            f"training stopped: not finite any more: {', '.join(bad)}; try a lower learning_rate, or bf16 = false"
        )
    return row


def _note_saturation(state: TrainState, loss: float, num_iterations: int) -> bool:
    """Record a loss; return whether phase 1 has saturated: its smoothed loss has not fallen by 1 % for the patience.

    ``loss`` is the mean over the latest ``num_iterations`` iterations. Wherever checkpoints come between, the detector
    looks at the same groups of `LOG_EVERY` iterations.
    """
    patience = state.config.saturation_patience
    if not patience or state.phase != SUPERVISED:
        return False
    state.loss_sum += num_iterations * loss
    if state.iteration % LOG_EVERY:
        return False
    latest, state.loss_sum = state.loss_sum / LOG_EVERY, 0.0
    previous = latest if state.smoothed_loss is None else state.smoothed_loss
    state.smoothed_loss = _LOSS_SMOOTHING * previous + (1 - _LOSS_SMOOTHING) * latest
    if state.best_loss is None or state.smoothed_loss < _LEAST_GAIN * state.best_loss:
        state.best_loss, state.best_iteration = state.smoothed_loss, state.iteration
    return state.iteration - state.best_iteration >= patience


def _checkpoint(state: TrainState, report: ReportCheckpoint, rank: int) -> None:
    metrics = {"iteration": state.iteration, "phase": state.phase}
    report(metrics, partial(save_state, state) if rank == 0 else None)


def _write_model(path: Path, state: TrainState, data: PreparedData, phase: int) -> None:
    config = state.config
    both = config.batch_pseudo > 0 or (phase == ADVERSARIAL and config.uses_unlabeled)
    semi = f" + {len(data.unlabeled)} unlabelled" if both else ""
    seen_unlabeled = data.unlabeled_images if both else ()
    recipe = {name: value for name, value in asdict(config).items() if name != "imagenet_file"}  # a path of one machine
    name = f"{config.model.encoder}, recipe {config.preset}, {len(data.labeled)} labelled{semi} slices"
    card = ModelCard(
        name=name,
        model=config.model,
        canonical=replace(config.canonical, size=config.predict_size or config.canonical.size),
        recipe=recipe | {"iterations_done": state.iteration, "phase": phase},
        training_images=tuple(sorted({*data.labeled_images, *seen_unlabeled})),
        teachers=data.teachers,
        licence=data.terms,
        versions={"cohortseg": __version__, "torch": version("torch")},
    )
    save_model(path, state.final_segmenter(), state.discriminator, card)
