"""Finished models as teachers: what they say of slices that no reader labelled, and what comes along with it."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from training_data import prepared
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.config import CanonicalConfig, ModelConfig, TrainConfig
from cohortseg.errors import ConfigError, DataError
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.segmenter import Segmenter
from cohortseg.progress import silent
from cohortseg.train.teachers import load_teachers, taught
from cohortseg.weights import ModelCard, load_model, save_model

TINY = ModelConfig(encoder_width=16, decoder_channels=(8, 8, 8, 8), vq_branch=False, discriminator_channels=8)
SIZE = 64
STUDENT = TrainConfig(canonical=CanonicalConfig(size=SIZE))


@cache
def networks() -> tuple[Segmenter, Discriminator]:
    return Segmenter(TINY), Discriminator(8)


def teacher(
    folder: Path,
    name: str,
    probs: tuple[float, float, float],
    *,
    offsets: tuple[float, float, float] = (0.0, 0.0, 0.0),
    canonical: CanonicalConfig = CanonicalConfig(size=96),  # noqa: B008 - frozen
    terms: str = "theirs",
) -> str:
    """Write a model that says the same of every pixel, before the offsets that its training gave it."""
    segmenter, discriminator = networks()
    with torch.no_grad():
        segmenter.head.weight.zero_()
        segmenter.head.bias.copy_(torch.tensor(probs).log() + torch.tensor(offsets))
    card = ModelCard(
        name=name,
        model=TINY,
        canonical=canonical,
        recipe={"class_offsets": offsets},
        training_images=(f"image of {name}",),
        licence=terms,
    )
    path = folder / f"{name}.safetensors"
    save_model(path, segmenter, discriminator, card)
    return str(path)


def labels_of(*paths: str) -> set[int]:
    found = taught(prepared(num_unlabeled=3, size=SIZE), load_teachers(paths, STUDENT), silent).pseudo_labels
    assert found.shape == (3, SIZE, SIZE)
    assert found.dtype == torch.uint8
    return set(found.unique().tolist())


def test_the_mean_probability_of_all_teachers_decides(tmp_path):
    sure = teacher(tmp_path, "sure", (0.05, 0.05, 0.9))
    unsure = teacher(tmp_path, "unsure", (0.5, 0.3, 0.2))
    assert labels_of(sure) == {2}
    assert labels_of(unsure) == {0}
    assert labels_of(sure, unsure) == {2}  # .275, .175, .55
    assert labels_of(sure, unsure, unsure) == {2}  # .35, .217, .433
    assert labels_of(sure, unsure, unsure, unsure) == {0}  # .3875, .2375, .375


def test_a_teacher_sees_slices_as_a_finished_model_does(tmp_path):
    """Finer than they are learned from, mirrored too, and each label where its lesion lies."""
    torch.manual_seed(0)
    path = tmp_path / "random.safetensors"
    card = ModelCard(name="random", model=TINY, canonical=CanonicalConfig(size=96), recipe={"class_offsets": (0, 0, 0)})
    save_model(path, Segmenter(TINY), Discriminator(8), card)
    data = prepared(num_unlabeled=20, size=SIZE)  # more than a batch
    found = taught(data, load_teachers([str(path)], STUDENT), silent).pseudo_labels
    finer = torch.nn.functional.interpolate(data.unlabeled.float(), size=(96, 96), mode="bilinear", align_corners=False)
    prob = load_model(path).predict(finer, flips=True).prob
    expected = torch.nn.functional.interpolate(prob, size=(SIZE, SIZE), mode="bilinear", align_corners=False).argmax(1)
    assert len(expected.unique()) > 1
    assert not torch.equal(expected, expected.flip(-1))
    assert (found == expected).float().mean() > 0.999  # rounding apart


def test_half_of_the_offsets_that_a_teacher_was_given_count(tmp_path):
    # By hand: the probabilities are even but for background, which is ahead of GGO by ln(.5 / .3) = .51.
    assert labels_of(teacher(tmp_path, "full", (0.5, 0.3, 0.2), offsets=(0.0, 1.1, 0.0))) == {1}  # half: .55 > .51
    assert labels_of(teacher(tmp_path, "less", (0.5, 0.3, 0.2), offsets=(0.0, 0.9, 0.0))) == {0}  # half: .45 < .51


def test_a_student_has_seen_what_its_teachers_have_and_is_bound_by_their_terms(tmp_path):
    paths = [teacher(tmp_path, name, (0.5, 0.3, 0.2)) for name in ("a", "b")]
    data = prepared(num_unlabeled=1, size=SIZE)
    found = taught(data, load_teachers(paths, STUDENT), silent)
    assert set(found.labeled_images) == {*data.labeled_images, "image of a", "image of b"}
    assert found.terms == "synthetic theirs"
    same = [teacher(tmp_path, "c", (0.5, 0.3, 0.2), terms="synthetic")]
    assert taught(data, load_teachers(same, STUDENT), silent).terms == "synthetic"
    older = [teacher(tmp_path, "d", (0.5, 0.3, 0.2), terms="synthetic theirs"), *paths]
    found = taught(replace(data, terms="synthetic theirs"), load_teachers(older, STUDENT), silent)
    assert found.terms == "synthetic theirs"
    assert found.teachers == tuple(load_model(Path(path)).sha256 for path in older)


def test_terms_do_not_grow_with_every_generation(tmp_path):
    student = teacher(tmp_path, "student", (0.5, 0.3, 0.2), terms="synthetic theirs")
    assert (
        taught(prepared(num_unlabeled=1, size=SIZE), load_teachers([student], STUDENT), silent).terms
        == "synthetic theirs"
    )


def test_what_teachers_see_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    labels_of(teacher(tmp_path, "sure", (0.05, 0.05, 0.9)))
    assert "of 3 unlabelled slices, teachers see Ground-glass opacity in 0, Consolidation in 3; 0.0 % is" in caplog.text
    assert "the teachers see no background" in caplog.text
    labels_of(*[teacher(tmp_path, "blind", (0.9, 0.05, 0.05))] * 2)
    assert "the teachers see no lesion" in caplog.text
    assert "a teacher is given more than once" in caplog.text
    data = replace(prepared(num_unlabeled=1, size=SIZE), unlabeled_images=("0" * 64,))
    taught(data, load_teachers([str(tmp_path / "sure.safetensors")], STUDENT), silent)
    assert "1 images are learned from twice" in caplog.text


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.safetensors: no such model file; a run needs its teachers until"):
        load_teachers([str(tmp_path / "gone.safetensors")], STUDENT)


def test_teachers_without_slices_to_label_are_refused(tmp_path):
    path = teacher(tmp_path, "a", (0.5, 0.3, 0.2))
    with pytest.raises(DataError, match="no unlabelled slice"):
        taught(prepared(num_unlabeled=0, size=SIZE), load_teachers([path], STUDENT), silent)


def test_a_teacher_that_sees_slices_otherwise_is_refused(tmp_path):
    path = teacher(tmp_path, "other", (0.5, 0.3, 0.2), canonical=CanonicalConfig(size=96, window_hu=(-1000.0, 400.0)))
    with pytest.raises(ConfigError, match=r"other\.safetensors: was trained on other windows or margins"):
        load_teachers([path], STUDENT)
    assert load_teachers([path], replace(STUDENT, canonical=CanonicalConfig(size=64, window_hu=(-1000.0, 400.0))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "student"], "needs models that label the unlabelled slices: --teacher MODEL"),
        (["--preset", "labels", "--teacher", "x.safetensors"], "--teacher goes with --preset student"),
        (
            ["--preset", "student", "--teacher", "x.safetensors", "--labeled", "x"],
            "label what --unlabeled holds",
        ),
    ],
)
def test_teachers_and_recipe_go_together(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "run"), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()
