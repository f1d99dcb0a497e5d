"""Measure images per second of the training steps against bare forward and backward passes of the same networks.

    python benchmarks/train_step.py                       # about two minutes on two cores
    python benchmarks/train_step.py --preset cpu --size 256 --repeats 20

A step is one iteration of the loop: drawing and augmenting the batch, all losses, both optimisers, upkeep of the
codebook, averaged weights. The bare pass is forward and backward of the same networks on such a batch, with the mean of
their outputs as loss: in phase 1 of S on the labelled slices; in phase 2 of S on labelled and unlabelled ones, of D on
the predictions (gradient to S), and of D on predictions and truth (gradient to D). Steps and passes take turns, so that
other load on the machine affects both; with one thread on the CPU, processor time is measured, which other load hardly
changes. The ratio is that of the medians. Slices are random: arithmetic takes the same time. Aim: >= 0.9.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from cohortseg.config import CanonicalConfig, TrainConfig, preset_config
from cohortseg.datasets.batches import Batches
from cohortseg.datasets.prepared import PreparedData
from cohortseg.models.device import find_device, has_fast_bf16
from cohortseg.train.phases import Workers, adversarial_step, draw_batch, supervised_step
from cohortseg.train.state import ADVERSARIAL, SUPERVISED, TrainState, build_state


def random_data(config: TrainConfig) -> PreparedData:
    """Return slices of noise with labels of noise."""
    size, generator = config.canonical.size, torch.Generator().manual_seed(0)
    return PreparedData(
        labeled=torch.rand(16, 1, size, size, generator=generator).half(),
        labels=torch.randint(0, 3, (16, size, size), generator=generator, dtype=torch.uint8),
        unlabeled=torch.rand(16, 1, size, size, generator=generator).half(),
        pseudo_labels=torch.randint(0, 3, (16, size, size), generator=generator, dtype=torch.uint8),
        labeled_images=(),
        unlabeled_images=(),
        terms="",
    )


def training_step(state: TrainState, workers: Workers, batches: Batches) -> None:
    """Do one iteration of the present phase, as the loop does."""
    batch = draw_batch(batches, state.config, state.phase, state.iteration)
    (supervised_step if state.phase == SUPERVISED else adversarial_step)(state, workers, batch)
    if state.averaged is not None:
        state.averaged.update_parameters(state.segmenter)
    state.iteration += 1


def bare_pass(state: TrainState, workers: Workers, images: torch.Tensor, maps: torch.Tensor) -> None:
    """Do only the forward and backward passes that a step of the present phase cannot do without."""
    adversarial = state.phase == ADVERSARIAL
    state.segmenter.zero_grad(set_to_none=True)
    state.discriminator.zero_grad(set_to_none=True)
    with torch.autocast(workers.device.type, torch.bfloat16, enabled=workers.bf16):
        output = state.segmenter(images)
    loss = output.logits.mean() + (0.0 if output.reconstruction is None else output.reconstruction.mean())
    if adversarial:
        state.discriminator.requires_grad_(requires_grad=False)
        with torch.autocast(workers.device.type, torch.bfloat16, enabled=workers.bf16):
            loss = loss + state.discriminator(output.logits).mean()
        state.discriminator.requires_grad_(requires_grad=True)
    loss.backward()
    if adversarial:
        with torch.autocast(workers.device.type, torch.bfloat16, enabled=workers.bf16):
            confidence = state.discriminator(maps)
        confidence.mean().backward()


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Return how many seconds the work takes."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    _wait(device)
    start = clock()
    work()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(config: TrainConfig, phase: int, repeats: int, *, profiled: bool) -> dict[str, float | None]:
    """Return the speed of a phase's steps and of the bare passes, and their ratio."""
    device = find_device()
    state = build_state(config, device)
    state.phase = phase
    workers = Workers(
        segmenter=state.segmenter,
        discriminator=state.discriminator,
        sum_over_workers=lambda values: values,
        rank=0,
        world=1,
        device=device,
        bf16=has_fast_bf16(device) if config.bf16 is None else config.bf16,
    )
    batches = Batches(
        random_data(config),
        device=device,
        seed=0,
        augmented=config.augment,
        painted_foci=config.painted_foci,
        rank=0,
        world=1,
    )
    batch = draw_batch(batches, config, phase, 0)
    images = torch.cat([batch.labeled, batch.unlabeled]).contiguous(memory_format=torch.channels_last)
    maps = torch.rand(2 * config.batch_labeled, 3, *images.shape[2:], device=device)

    def step() -> None:
        training_step(state, workers, batches)

    def bare() -> None:
        bare_pass(state, workers, images, maps)

    for _ in range(2):
        step()
        bare()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pairs = [(timed(step, device), timed(bare, device)) for _ in range(repeats)]
    step_s, bare_s = (median(times) for times in zip(*pairs, strict=True))
    if profiled:
        with profile(activities=[ProfilerActivity.CPU]) as record:
            step()
        print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))
    return {
        "images_per_s": round(len(images) / step_s, 2),
        "bare_images_per_s": round(len(images) / bare_s, 2),
        "ratio": round(bare_s / step_s, 3),
        "peak_gpu_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None,
    }


def main() -> None:
    """Measure both phases and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--size", type=int, default=128, help="of the canonical slice")
    parser.add_argument("--batch", type=int, default=8, help="labelled slices, and as many unlabelled ones")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--profile", action="store_true", help="also print where a step's time goes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = replace(
        preset_config(options.preset),
        canonical=CanonicalConfig(size=options.size),
        predict_size=0,
        batch_labeled=options.batch,
        batch_unlabeled=options.batch,
        warmup_iterations=0,
    )
    result = {
        "preset": options.preset,
        "size": options.size,
        "batch": options.batch,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }
    for phase in (SUPERVISED, ADVERSARIAL):
        numbers = measure(config, phase, options.repeats, profiled=options.profile)
        print(f"phase {phase}: {numbers}", flush=True)
        result |= {f"phase{phase}_{name}": value for name, value in numbers.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
