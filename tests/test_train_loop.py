"""The training loop in this process: it learns, stops, resumes bit for bit, and leaves a model that loads."""

import errno
import json
import re
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from training_data import lesion_slice, prepared

from cohortseg.config import CanonicalConfig, ModelConfig, TrainConfig, preset_config
from cohortseg.datasets.batches import Batch, Batches
from cohortseg.datasets.prepared import PreparedData
from cohortseg.errors import CohortSegError, ConfigError, StoreError
from cohortseg.losses import softened_truth
from cohortseg.store.files import write_file
from cohortseg.store.provenance import write_run_json
from cohortseg.train import fit, loop, phases
from cohortseg.train.checkpoints import checkpoint_name, newest_whole, tidy_checkpoints
from cohortseg.train.history import HISTORY, History, read_history
from cohortseg.train.loop import LOG_EVERY, MODEL, PHASE_1_MODEL, learning_rate_at
from cohortseg.train.page import RunPage
from cohortseg.train.phases import Workers, adversarial_step, supervised_step
from cohortseg.train.pictures import draw_labeled, draw_unlabeled
from cohortseg.train.state import TrainState, check_same_settings, is_whole, save_state, undone
from cohortseg.weights import load_model

SMALL = ModelConfig(
    encoder_width=16, decoder_channels=(32, 32, 16, 16), codebook_size=16, code_dim=8, discriminator_channels=8
)
QUICK = TrainConfig(
    canonical=CanonicalConfig(size=64),
    model=SMALL,
    supervised_iterations=6,
    adversarial_iterations=6,
    warmup_iterations=2,
    batch_labeled=2,
    batch_unlabeled=2,
    checkpoint_every=5,
    bf16=False,
)


class Stopped(Exception):
    """The test's own way of ending a run at a checkpoint."""


@pytest.fixture(scope="module", autouse=True)
def _no_pages() -> Iterator[None]:
    """Draw no page where no test looks at it: that takes longer than a short training."""
    with patch.object(loop, "RunPage"):
        yield


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "RunPage", RunPage)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of QUICK to its end, with the folder of its last checkpoint; only read."""
    run = tmp_path_factory.mktemp("quick") / "run"
    train(QUICK, run)
    return run


def train(
    config: TrainConfig,
    run: Path,
    *,
    data: PreparedData | None = None,
    stop_at: int | None = None,
    restore: Path | None = None,
    world: int = 1,
) -> Path:
    """Run the loop in this process, as the first of so many workers; return the folder of the latest checkpoint."""
    run.mkdir(exist_ok=True)
    kept = run / "checkpoint"

    def report(metrics: dict[str, Any], save: Callable[[Path], None] | None) -> None:
        assert save is not None
        kept.mkdir(exist_ok=True)
        save(kept)
        if metrics["iteration"] == stop_at:
            raise Stopped

    loop.train(
        config,
        data or prepared(),
        run,
        wrap=lambda module: module,
        sum_over_workers=lambda values: values,
        report=report,
        rank=0,
        world=world,
        device=torch.device("cpu"),
        restore=restore,
    )
    return kept


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    config = replace(QUICK, ema_decay=0.9, optimizer="adamw", learning_rate=1e-3)
    train(config, tmp_path / "unbroken")
    for stop_at in (5, 10):  # in phase 1, in phase 2
        run = tmp_path / f"broken{stop_at}"
        with pytest.raises(Stopped):
            train(config, run, stop_at=stop_at)
        train(config, run, restore=run / "checkpoint")
        assert (run / MODEL).read_bytes() == (tmp_path / "unbroken" / MODEL).read_bytes()
        iterations = [row["iteration"] for row in read_history(run)]
        assert iterations == sorted(set(iterations))
        assert iterations[-1] == 12


def test_a_student_learns_what_its_teachers_say_of_slices_that_no_reader_labelled(tmp_path):
    """The only slice that a reader labelled is free of lesions here: what is found was learned from teachers."""
    config = replace(
        QUICK, supervised_iterations=200, semi_supervised=False, optimizer="adamw", learning_rate=3e-3, dice_weight=1.0,
        augment=False, model=replace(SMALL, vq_branch=False), batch_labeled=1, batch_pseudo=2,
    )  # fmt: skip
    data = prepared(1, 2)
    said = torch.stack([torch.from_numpy(lesion_slice(seed, 64)[1]) for seed in (100, 101)])
    data = replace(
        data, labeled=torch.zeros_like(data.labeled), labels=torch.zeros_like(data.labels), pseudo_labels=said
    )
    train(config, tmp_path / "student", data=data)
    model = load_model(tmp_path / "student" / MODEL, bf16=False)
    found, lesion = model.predict(data.unlabeled.float()).prob.argmax(dim=1) > 0, said > 0
    assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.5
    assert model.training_images == {*data.labeled_images, *data.unlabeled_images}


def test_the_discriminator_sees_no_label_of_a_teacher_as_truth(tmp_path, monkeypatch):
    config = replace(QUICK, model=replace(SMALL, vq_branch=False), batch_labeled=2, batch_pseudo=3)
    data = prepared()
    data = replace(data, labels=data.labels.clamp(max=1), pseudo_labels=torch.full((6, 64, 64), 2, dtype=torch.uint8))
    seen = []
    softened = phases.softened_truth

    def noted(labels, prob, confidence):
        seen.append((labels, prob))
        return softened(labels, prob, confidence)

    monkeypatch.setattr(phases, "softened_truth", noted)
    train(config, tmp_path / "student", data=data)
    assert len(seen) == config.adversarial_iterations
    for labels, prob in seen:
        assert labels.shape == (2, 64, 64)
        assert set(labels.unique().tolist()) == {0, 1}, "a reader's"
        assert prob.shape == (2, 3, 64, 64)


def test_both_phases_need_no_unlabelled_slices_where_these_teach_nothing(tmp_path):
    config = replace(
        QUICK,
        model=replace(SMALL, vq_branch=False),
        proportion_weight=0.0,
        adversarial_weight=0.0,
        semi_weight=0.0,
    )
    assert not config.uses_unlabeled
    assert not preset_config("labels").uses_unlabeled
    assert preset_config("cpu").uses_unlabeled
    train(config, tmp_path / "none", data=prepared(num_unlabeled=0))
    train(config, tmp_path / "some", data=prepared())
    assert (tmp_path / "none" / MODEL).read_bytes() == (tmp_path / "some" / MODEL).read_bytes()
    model = load_model(tmp_path / "none" / MODEL)
    assert model.has_trained_discriminator
    assert model.training_images == {"0" * 64}
    assert {row["phase"] for row in read_history(tmp_path / "none")} == {1, 2}


def test_it_learns_to_segment_what_it_is_shown(tmp_path):
    config = replace(
        QUICK, supervised_iterations=100, semi_supervised=False, optimizer="adamw", learning_rate=3e-3, dice_weight=1.0,
        augment=False,
    )  # fmt: skip
    data = prepared(2, 0)
    train(config, tmp_path / "run", data=data)
    predicted = load_model(tmp_path / "run" / MODEL, bf16=False).predict(data.labeled.float()).prob.argmax(dim=1)
    for value in (1, 2):
        overlap = 2 * ((predicted == value) & (data.labels == value)).sum()
        assert overlap / ((predicted == value).sum() + (data.labels == value).sum()) > 0.5
    assert not (tmp_path / "run" / PHASE_1_MODEL).exists()


def test_damaged_lines_of_a_history_are_passed_over(tmp_path):
    lines = ('{"iteration": 10}', '{"iteration": "x"}', "[1]", '{"ce": 1}', "half a li", '{"iteration": 20}', '{"iter')
    (tmp_path / "history.jsonl").write_text("\n".join(lines))
    assert read_history(tmp_path) == [{"iteration": 10}, {"iteration": 20}]


def test_both_phases_leave_a_model_and_a_history(quick):
    rows = read_history(quick)
    assert {row["phase"] for row in rows} == {1, 2}
    assert {"ce", "proportion", "vq", "semi", "adversarial", "discriminator", "trusted"} <= set(rows[-1])
    assert all(json.dumps(row) for row in rows)
    assert list((quick / "tensorboard").iterdir())
    first, last = load_model(quick / PHASE_1_MODEL), load_model(quick / MODEL)
    assert first.sha256 != last.sha256
    assert last.card.recipe["phase"] == 2
    assert first.training_images == {"0" * 64}, "phase 1 sees no unlabelled slice"
    assert last.training_images == {"0" * 64, "1" * 64}
    assert "6 labelled + 6 unlabelled" in last.name
    assert first.card.licence == last.card.licence == "synthetic", "the terms of the data"


def test_class_offsets_and_finer_slices_are_in_the_finished_model_and_change_no_training(quick, tmp_path):
    offsets = (0, 0.5, 2)
    finished = load_model(_model(tmp_path / "run", replace(QUICK, class_offsets=offsets, predict_size=96)), bf16=False)
    plain = load_model(quick / MODEL, bf16=False)
    assert (plain.card.canonical.size, finished.card.canonical.size) == (QUICK.canonical.size, 96)
    for name, value in plain.segmenter.state_dict().items():
        if name != "head.bias":
            assert torch.equal(value, finished.segmenter.state_dict()[name]), name
    images = prepared(2, 0).labeled.float()
    logits, shifted = (model.segmenter(images).logits for model in (plain, finished))
    for index, offset in enumerate(offsets):
        torch.testing.assert_close(shifted[:, index], logits[:, index] + offset, atol=2e-3, rtol=0)


@pytest.mark.usefixtures("pages")
def test_a_run_shows_what_it_does_on_one_page_and_learns_the_same(quick, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train(QUICK, run, stop_at=5)
    page = (run / "page.html").read_text(encoding="utf-8")  # renewed at the first checkpoint, in phase 1
    assert "phase 1: iteration 5 of 12" in page
    size, gap = 64, 6  # of the slices; between tiles
    assert _size(run / "pictures/labeled.png") == (3 * (size + gap) + gap, 20 + 4 * (size + gap))
    # twice as large, since the captions are wider; no confidence yet
    assert _size(run / "pictures/unlabeled.png")[0] == 3 * (2 * size + gap) + gap

    train(QUICK, run, restore=run / "checkpoint")
    page = (run / "page.html").read_text(encoding="utf-8")
    assert "phase 2: iteration 12 of 12" in page
    assert page.count("src=") == page.count('src="data:image/jpeg;base64,') == 4  # self-contained
    assert not re.search(r"<script|<link|https?:", page.lower())
    assert _size(run / "pictures/unlabeled.png")[0] == 5 * (2 * size + gap) + gap
    assert (run / MODEL).read_bytes() == (quick / MODEL).read_bytes()


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_pictures_show_truth_prediction_trust_and_reconstruction_where_they_are():
    state = loop.build_state(QUICK, torch.device("cpu"))
    state.phase = 2
    data = prepared(1, 1)
    with torch.no_grad():  # a network that says GGO everywhere, a discriminator that trusts nothing
        state.segmenter.head.weight.zero_()
        state.segmenter.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
        state.discriminator.layers[-1].weight.zero_()
        state.discriminator.layers[-1].bias.fill_(-9.0)
    labeled = np.asarray(draw_labeled(state, data.labeled.float(), data.labels, bf16=False))
    tiles = [labeled[20:84, 6 + 70 * column : 70 + 70 * column].astype(int) for column in range(3)]
    redder, greener = (tile[..., 0] > tile[..., 1] + 20 for tile in tiles), tiles[1][..., 1] > tiles[1][..., 0] + 20
    in_input, in_truth, in_prediction = redder
    assert not in_input.any()
    assert (in_truth == (data.labels[0] == 1).numpy()).all()
    assert (greener == (data.labels[0] == 2).numpy()).all()
    assert in_prediction.all()
    state.config = replace(QUICK, class_offsets=(0.0, 0.0, 99.0))
    offset = np.asarray(draw_labeled(state, data.labeled.float(), data.labels, bf16=False))
    assert (offset[20:84, 146:210, 1] > offset[20:84, 146:210, 0].astype(int) + 20).all(), "the model as it is written"
    state.config = QUICK
    unlabeled = np.asarray(draw_unlabeled(state, data.unlabeled.float(), bf16=False))
    # twice as large, since the captions are wider
    confidence, pseudo = (unlabeled[20:148, 6 + 134 * column : 134 + 134 * column] for column in (3, 4))
    assert unlabeled.shape[1] == 6 + 134 * 5
    assert (confidence == confidence[0, 0]).all()
    assert confidence.sum(axis=2).max() < 200  # dark: near 0
    assert (pseudo == 128).all()  # gray: nothing is trusted
    state.config = replace(state.config, semi_weight=0.0)
    said = torch.full((len(data.unlabeled), 64, 64), 2, dtype=torch.uint8)
    taught = np.asarray(draw_unlabeled(state, data.unlabeled.float(), bf16=False, pseudo_labels=said))
    assert taught.shape[1] == unlabeled.shape[1], (
        "a label of teachers in place of the refined one, which teaches nothing"
    )
    label = taught[20:148, 6 + 134 * 3 : 134 + 134 * 3].astype(int)
    assert (label[..., 1] > label[..., 0] + 20).all()


def test_drawing_the_page_takes_little_of_the_time(tmp_path):
    page = RunPage(tmp_path, prepared(), torch.device("cpu"))
    state = loop.build_state(QUICK, torch.device("cpu"))
    for state.iteration in (3, 4, 5):  # no time goes by between them but that of drawing
        page.renew(state, bf16=False)
    assert "iteration 3 of" in (tmp_path / "page.html").read_text(encoding="utf-8")
    page.draw(state, bf16=False)
    assert "iteration 5 of" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_discriminator_stands_still_in_phase_1_and_moves_in_phase_2(quick):
    one, two = (load_model(quick / name).discriminator.state_dict() for name in (PHASE_1_MODEL, MODEL))
    torch.manual_seed(QUICK.seed)
    fresh = loop.build_state(QUICK, torch.device("cpu")).discriminator.state_dict()
    for name, value in fresh.items():
        assert torch.equal(one[name], value.half().float())
    assert any(not torch.equal(two[name], value.half().float()) for name, value in fresh.items())


@pytest.fixture(scope="module")
def begun() -> TrainState:
    """What steps set out from; tests work on copies of it."""
    return loop.build_state(QUICK, torch.device("cpu"))


@pytest.mark.parametrize(
    ("phase", "switch"),
    [
        (1, {"proportion_weight": 0.0}),
        (1, {"dice_weight": 1.0}),
        (1, {"opacity_dice_weight": 1.0}),
        (1, {"vq_weight": 0.0}),
        (2, {"adversarial_weight": 0.0}),
        (2, {"semi_weight": 0.0}),
        (2, {"truth_confidence": 1.0}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else f"phase {value}",
)
def test_each_switch_changes_what_is_learned(begun, phase, switch):
    def learned(config: TrainConfig) -> dict[str, torch.Tensor]:
        state = deepcopy(begun)
        state.config, state.phase = config, phase
        state.iteration = QUICK.warmup_iterations
        for _ in range(2):  # what D learns in the first step changes S in the second
            (supervised_step if phase == 1 else adversarial_step)(state, alone(state), drawn())
            state.iteration += 1
        return dict(state.segmenter.named_parameters())

    plain = learned(QUICK)
    assert same(plain, learned(QUICK))
    assert not same(plain, learned(replace(QUICK, **switch)))


def test_the_vq_vae_branch_changes_what_the_encoder_learns():
    """By its loss: from the same weights, on the same batch. Without that loss its codes begin without effect."""
    whole = loop.build_state(replace(QUICK, bf16=False), torch.device("cpu"))
    weights = {name: value.clone() for name, value in whole.segmenter.state_dict().items()}

    def encoder_after_a_step(**changes: object) -> torch.Tensor:
        state = loop.build_state(replace(QUICK, bf16=False, **changes), torch.device("cpu"))
        state.segmenter.load_state_dict({name: weights[name] for name in state.segmenter.state_dict()})
        supervised_step(state, alone(state), drawn())
        return torch.cat([value.flatten() for value in state.segmenter.encoder.parameters()])

    without = encoder_after_a_step(model=replace(SMALL, vq_branch=False))
    assert not torch.equal(encoder_after_a_step(), without)
    assert torch.allclose(encoder_after_a_step(vq_weight=0.0), without, atol=1e-7)


def _model(run: Path, config: TrainConfig, world: int = 1) -> Path:
    train(config, run, world=world)
    return run / MODEL


WEIGHTED = replace(QUICK, dice_weight=0.7, opacity_dice_weight=0.3, vq_weight=0.9, proportion_weight=0.4)


def drawn() -> Batch:
    return Batches(prepared(), device=torch.device("cpu"), seed=0, augmented=True, rank=0, world=1).draw(0, 2, 2)


def test_phase_1_minimises_the_weighted_sum_of_its_losses():
    state = loop.build_state(WEIGHTED, torch.device("cpu"))
    losses = supervised_step(state, alone(state), drawn())
    expected = (
        losses["ce"]
        + 0.4 * losses["proportion"]
        + 0.7 * losses["dice"]
        + 0.3 * losses["opacity_dice"]
        + 0.9 * losses["vq"]
    )
    assert losses["total"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("taught", [False, True])
def test_phase_2_minimises_the_weighted_sum_of_its_losses(taught):
    """What S teaches itself counts once the discriminator has had its first iterations."""
    state = loop.build_state(WEIGHTED, torch.device("cpu"))
    state.phase, state.phase_start = 2, 6
    state.iteration = 6 + taught * WEIGHTED.warmup_iterations
    losses = adversarial_step(state, alone(state), drawn())
    expected = (
        losses["ce"]
        + 0.4 * (losses["proportion"] + taught * losses["proportion_unlabeled"])
        + 0.7 * losses["dice"]
        + 0.3 * losses["opacity_dice"]
        + 0.9 * losses["vq"]
        + 0.01 * losses["adversarial"]
        + taught * 0.1 * losses["semi"]
    )
    assert losses["total"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_discriminator_learns_predictions_from_truth():
    state = loop.build_state(replace(WEIGHTED, bf16=False), torch.device("cpu"))
    batch = drawn()
    with torch.no_grad():
        prob = state.segmenter(torch.cat([batch.labeled, batch.unlabeled])).logits[:2].softmax(dim=1)
        truth = softened_truth(batch.labels, prob, WEIGHTED.truth_confidence)
        logits = state.discriminator(torch.cat([prob, truth]))
    expected = (-torch.log(1 - logits[:2].sigmoid())).mean() + (-torch.log(logits[2:].sigmoid())).mean()
    assert adversarial_step(state, alone(state), batch)["discriminator"] == pytest.approx(expected.item(), rel=1e-3)


def test_a_loss_that_does_not_count_is_not_shown_as_0():
    state = loop.build_state(replace(QUICK, model=replace(SMALL, vq_branch=False)), torch.device("cpu"))
    assert not {"dice", "opacity_dice", "vq"} & set(supervised_step(state, alone(state), drawn()))


def test_s_is_taught_its_own_predictions_of_unlabelled_slices():
    state, batch = loop.build_state(replace(QUICK, confidence_threshold=0.0), torch.device("cpu")), drawn()
    logits = state.segmenter(torch.cat([batch.labeled, batch.unlabeled])).logits[2:]
    expected = torch.nn.functional.cross_entropy(logits, logits.argmax(dim=1))
    losses = adversarial_step(state, alone(state), batch)
    assert losses["semi"] == pytest.approx(expected.item(), rel=1e-3)
    assert losses["trusted"] == 1, "a share of the pixels"


@pytest.mark.parametrize("step", [supervised_step, adversarial_step])
def test_a_step_learns_from_its_own_batch_alone(step):
    """Gradients of the batches before would add up."""
    state = loop.build_state(replace(QUICK, model=replace(SMALL, vq_branch=False)), torch.device("cpu"))
    for optimizer in (state.segmenter_optimizer, state.discriminator_optimizer):
        optimizer.param_groups[0]["lr"] = 0.0
    networks = [state.segmenter] if step is supervised_step else [state.segmenter, state.discriminator]
    batch, seen = drawn(), []
    for _ in range(2):
        step(state, alone(state), batch)
        seen.append([weight.grad.clone() for network in networks for weight in network.parameters()])
    assert all(grad.any() for grad in seen[0])
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-6)


def test_codes_begin_as_latents_and_dead_ones_are_revived_every_25_iterations():
    state, batch = loop.build_state(QUICK, torch.device("cpu")), drawn()
    assert state.segmenter.vq is not None
    quantizer = state.segmenter.vq.quantizer
    state.segmenter_optimizer.param_groups[0]["lr"] = 0.0
    revived = {}
    for iteration in (0, 1, 23, 24, 25):
        state.iteration = iteration
        quantizer.usage.fill_(1.0)
        quantizer.usage[3] = 0.0  # below a tenth of an equal share, also after this batch
        before = quantizer.codes.detach().clone()
        supervised_step(state, alone(state), batch)
        revived[iteration] = (quantizer.codes != before).any(dim=1).nonzero().flatten().tolist()
    everything = list(range(SMALL.codebook_size))
    assert revived == {0: everything, 1: [], 23: [], 24: [3], 25: []}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def test_laying_out_the_gradients_of_three_workers_changes_nothing_that_is_learned(tmp_path, monkeypatch):
    """Here one of three trains alone, so that nothing but the steps taken back is left to differ."""
    learned = []
    for workers_whose_sum_is_exact in (2, 3):
        monkeypatch.setattr(loop, "_SUM_IS_EXACT", workers_whose_sum_is_exact)
        learned.append(load_model(_model(tmp_path / str(workers_whose_sum_is_exact), QUICK, world=3)))
    assert same(learned[0].segmenter.state_dict(), learned[1].segmenter.state_dict())


def test_a_step_that_is_undone_leaves_all_as_it_was():
    """So that workers can lay out the gradients that they exchange before the first step that counts."""
    state = loop.build_state(replace(WEIGHTED, ema_decay=0.9, optimizer="adamw"), torch.device("cpu"))
    supervised_step(state, alone(state), drawn())
    adversarial_step(state, alone(state), drawn())
    names = ("segmenter", "discriminator", "segmenter_optimizer", "discriminator_optimizer", "averaged")
    before = {name: deepcopy(getattr(state, name).state_dict()) for name in names}
    random = torch.random.get_rng_state()
    twin = deepcopy(state)
    expected = supervised_step(twin, alone(twin), drawn())["total"]
    with undone(state):
        supervised_step(state, alone(state), drawn())
        adversarial_step(state, alone(state), drawn())
        state.averaged.update_parameters(state.segmenter)
        torch.rand(1)
    for name in names:
        assert same(getattr(state, name).state_dict(), before[name]), name
    assert torch.equal(torch.random.get_rng_state(), random)
    assert supervised_step(state, alone(state), drawn())["total"] == expected


def alone(state: TrainState) -> Workers:
    return Workers(
        segmenter=state.segmenter,
        discriminator=state.discriminator,
        sum_over_workers=lambda values: values,
        rank=0,
        world=1,
        device=torch.device("cpu"),
        bf16=False,
    )


def test_a_checkpoint_on_a_full_disk_names_file_and_cause(tmp_path):
    (tmp_path / "state.pt").symlink_to("/dev/full")
    state = loop.build_state(WEIGHTED, torch.device("cpu"))
    with pytest.raises(StoreError, match=r"state\.pt: cannot be written: .*No space left on device"):
        save_state(state, tmp_path)


def test_phase_1_ends_early_once_its_loss_is_saturated(tmp_path):
    config = replace(QUICK, supervised_iterations=200, saturation_patience=10, learning_rate=1e-9, checkpoint_every=100)
    train(config, tmp_path / "run")
    rows = read_history(tmp_path / "run")
    ended = max(row["iteration"] for row in rows if row["phase"] == 1)
    assert ended < 100
    assert rows[-1]["iteration"] == rows[-1]["total_iterations"] == ended + config.adversarial_iterations


def test_saturation_does_not_hang_on_how_often_a_run_is_saved():
    losses = np.r_[np.linspace(2, 1, 60), np.ones(340)] + np.random.default_rng(0).normal(0, 0.05, 400)

    def ended(checkpoint_every: int) -> TrainState:
        state, recent = deepcopy(begun_with_patience), []
        for state.iteration, loss in enumerate(losses, start=1):
            recent.append(loss)
            if state.iteration % LOG_EVERY == 0 or state.iteration % checkpoint_every == 0:
                if loop._note_saturation(state, float(np.mean(recent)), len(recent)):
                    break
                recent = []
        return state

    begun_with_patience = loop.build_state(replace(QUICK, saturation_patience=40), torch.device("cpu"))
    often, never = ended(7), ended(400)
    assert 60 < often.iteration == never.iteration < 400
    assert often.smoothed_loss == pytest.approx(never.smoothed_loss)


def test_a_run_that_ended_saturated_is_finished_and_one_that_broke_off_ends_where_an_unbroken_one_does(tmp_path):
    config = replace(
        QUICK, semi_supervised=False, supervised_iterations=200, saturation_patience=15, learning_rate=1e-9
    )
    whole = train(replace(config, checkpoint_every=7), tmp_path / "whole")
    ended = read_history(tmp_path / "whole")
    assert ended[-1]["iteration"] < 100
    smoothed = smoothed_loss(ended)
    assert torch.load(whole / "state.pt", weights_only=True)["smoothed_loss"] == pytest.approx(smoothed)
    model = (tmp_path / "whole" / MODEL).read_bytes()
    train(replace(config, checkpoint_every=7), tmp_path / "whole", restore=whole)
    assert (tmp_path / "whole" / MODEL).read_bytes() == model
    assert read_history(tmp_path / "whole") == ended

    with pytest.raises(Stopped):
        train(replace(config, checkpoint_every=7), tmp_path / "broken", stop_at=14)
    train(replace(config, checkpoint_every=7), tmp_path / "broken", restore=tmp_path / "broken/checkpoint")
    resumed = read_history(tmp_path / "broken")
    for mine, theirs in zip(resumed, ended, strict=True):
        assert (mine["iteration"], mine["total"]) == (theirs["iteration"], theirs["total"])


def smoothed_loss(rows: list[dict[str, Any]]) -> float:
    """Return what saturation goes by, from a history with lines between those that it looks at."""
    iterations = [row["iteration"] for row in rows]
    losses = np.repeat([row["total"] for row in rows], np.diff([0, *iterations]))
    first, *later = losses[: len(losses) // LOG_EVERY * LOG_EVERY].reshape(-1, LOG_EVERY).mean(axis=1)
    for loss in later:
        first = 0.8 * first + 0.2 * loss
    return float(first)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tmp_path):
    with pytest.raises(CohortSegError, match=r"not finite any more: .*lower learning_rate"):
        train(replace(QUICK, learning_rate=1e12, supervised_iterations=30), tmp_path / "run")
    assert not (tmp_path / "run" / MODEL).exists()


def test_resuming_with_other_settings_is_refused_by_name():
    saved = json.loads(json.dumps(_asdict(QUICK)))
    check_same_settings(saved, replace(QUICK, checkpoint_every=7))
    with pytest.raises(ConfigError, match=r"semi_weight was 0\.1, is 0\.3"):
        check_same_settings(saved, replace(QUICK, semi_weight=0.3))


@pytest.fixture
def checkpointed(quick: Path, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A run's folder with three checkpoints, and the checkpoints."""
    folders = [tmp_path / "checkpoints" / checkpoint_name(iteration) for iteration in (5, 10, 100)]
    for folder in folders:
        shutil.copytree(quick / "checkpoint", folder)
    return tmp_path, folders


def test_a_damaged_checkpoint_gives_way_to_the_one_before(checkpointed):
    run, (one, two, three) = checkpointed
    assert newest_whole(run) == three
    content = bytearray((three / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (three / "state.pt").write_bytes(content)
    assert newest_whole(run) == two
    (two / "state.pt").unlink()
    assert newest_whole(run) == one
    (one / "state.pt").write_bytes(b"")
    assert newest_whole(run) is None


def test_whichever_bit_of_a_checkpoint_is_flipped_it_is_whole_only_if_it_loads_as_it_was(quick, tmp_path):
    content = (quick / "checkpoint/state.pt").read_bytes()
    document = torch.load(quick / "checkpoint/state.pt", weights_only=True)["segmenter"]
    rng = np.random.default_rng(0)
    ends = len(content) - np.arange(1, 20_000)  # where the zip archive's directory is
    date = content.rfind(b"PK\x01\x02") + 12  # of a file in the archive
    places = [date, *rng.choice(len(content), 20, replace=False), *rng.choice(ends, 100, replace=False)]
    found = Counter()
    for place in map(int, places):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        (tmp_path / "state.pt").write_bytes(flipped)
        found[whole := is_whole(tmp_path)] += 1
        if whole:
            loaded = torch.load(tmp_path / "state.pt", weights_only=True)["segmenter"]
            assert all(torch.equal(loaded[name], value) for name, value in document.items()), place
    assert found[False] > found[True] > 0, "a date does not matter, most else does"


@pytest.mark.parametrize("call", ["read_bytes", "iterdir"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(checkpointed, monkeypatch, call):
    run, _ = checkpointed

    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, call, stale)
    for look in (newest_whole, partial(tidy_checkpoints, num_kept=2)):
        with pytest.raises(StoreError, match=r"checkpoints.*: cannot be read: .*Stale file handle"):
            look(run)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unable to mmap: Cannot allocate memory (12)")])
def test_a_checkpoint_for_which_there_is_too_little_memory_is_not_taken_for_damaged(checkpointed, monkeypatch, error):
    def lacking(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", lacking)
    with pytest.raises(MemoryError):
        newest_whole(checkpointed[0])


def test_the_newest_whole_checkpoints_are_kept_and_that_some_are_damaged_or_gone_is_said(checkpointed, caplog):
    run, (one, two, three) = checkpointed
    (run / HISTORY).write_text('{"iteration": 5}\n')
    tidy_checkpoints(run, 3)
    assert not caplog.messages
    (three / "state.pt").write_bytes((three / "state.pt").read_bytes()[:-1000])
    tidy_checkpoints(run, 1)
    assert caplog.messages == [f"{three} is damaged: it is passed over"]
    assert (one.exists(), two.exists(), three.exists()) == (False, True, True)
    caplog.clear()
    shutil.rmtree(two)
    tidy_checkpoints(run, 1)
    again = f"{run / 'checkpoints'} holds no whole checkpoint: training begins again"
    assert caplog.messages == [f"{three} is damaged: it is passed over", again]
    caplog.clear()
    shutil.rmtree(run / "checkpoints")
    tidy_checkpoints(run, 1)
    assert caplog.messages == [again]
    caplog.clear()
    (run / HISTORY).unlink()
    tidy_checkpoints(run, 1)
    assert not caplog.messages, "it had not begun"


def _asdict(config: TrainConfig) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(config)


def test_what_a_run_did_behind_its_checkpoint_is_not_told_twice(tmp_path):
    history = History(tmp_path, 0)
    for iteration in (10, 20, 30):
        history.add({"iteration": iteration, "phase": 1, "ce": 0.5})
    history.close()
    History(tmp_path, 20).close()
    assert [row["iteration"] for row in read_history(tmp_path)] == [10, 20]


@pytest.mark.parametrize("resumed_at", [0, 20])
def test_tensorboard_is_told_from_where_a_run_goes_on(tmp_path, resumed_at):
    first = History(tmp_path, 0)
    for iteration in (10, 20, 30):
        first.add({"iteration": iteration, "phase": 1, "ce": 0.5})
    first.close()
    before = {*(tmp_path / "tensorboard").iterdir()}
    while time.time() <= max(path.stat().st_mtime for path in before) + 1:  # names of event files are by the second
        time.sleep(0.1)
    History(tmp_path, resumed_at).close()
    (again,) = {*(tmp_path / "tensorboard").iterdir()} - before
    starts = [event.step for event in events(again) if event.session_log.status == SessionLog.START]
    assert starts == [resumed_at + 1]


def events(path: Path) -> Iterator[Event]:
    """Yield what a file of TensorBoard holds: records with their length before them, and checksums around them."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += length + 16


def test_learning_rate_ramps_up_then_decays_to_zero():
    assert learning_rate_at(0, 1000, 0.01) == pytest.approx(0.01 / 20)
    assert learning_rate_at(500, 1000, 0.01) == pytest.approx(0.01 * 0.5**0.9)
    assert learning_rate_at(1000, 1000, 0.01) == 0.0


def test_lines_of_the_history_are_passed_on_once_but_those_that_a_resumed_run_writes_again(tmp_path, monkeypatch):
    found: SimpleQueue[list[dict[str, Any]]] = SimpleQueue()
    passed: list[int] = []

    def read(run: Path) -> list[dict[str, Any]]:
        rows = read_history(run)
        found.put(rows)
        return rows

    monkeypatch.setattr(fit, "read_history", read)
    monkeypatch.setattr(fit, "_POLL_S", 0.01)
    (tmp_path / HISTORY).write_text('{"iteration": 10}\n{"iteration": 20}\n{"iteration": 30}\n')
    with fit._following(tmp_path, lambda row: passed.append(row["iteration"])):
        assert len(found.get(timeout=10)) == 3
        for iterations in ([10], [10, 20], [10, 20, 40]):
            rows = [{"iteration": number} for number in iterations]
            write_file(tmp_path / HISTORY, "".join(json.dumps(row) + "\n" for row in rows).encode())
            while found.get(timeout=10) != rows:
                pass
    assert passed == [20, 40]


def test_a_run_is_finished_once_its_model_and_its_record_are_there(tmp_path):
    (tmp_path / MODEL).touch()
    assert not fit.is_finished(tmp_path)
    write_run_json(tmp_path, "train", {})
    assert fit.is_finished(tmp_path)
    (tmp_path / MODEL).unlink()
    assert not fit.is_finished(tmp_path)
