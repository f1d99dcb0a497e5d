"""Evaluation of a model over a split of COVID-SemiSeg: tables, pictures, the command."""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from phantoms import AXIAL, ill_body, write_series
from PIL import Image
from runs import run as infer
from scoring import one_hot, row
from training_data import canonical_of
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.config import CanonicalConfig, ModelConfig
from cohortseg.datasets.covid_semiseg import VALIDATION, Split, find_data, labeled_slices
from cohortseg.datasets.folders import labeled_folder
from cohortseg.datasets.slices import read_mask
from cohortseg.errors import ConfigError, DataError, ModelError
from cohortseg.evaluate.page import evaluation_html
from cohortseg.evaluate.run import Evaluation, evaluate_images
from cohortseg.evaluate.score import Case, eight_bit, score_images, summarise
from cohortseg.evaluate.tables import IMAGES, METRICS, TOOLBOX_METRICS
from cohortseg.figures import codebook_png
from cohortseg.metrics import toolbox_scores
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.segmenter import Segmenter
from cohortseg.overlays import png_bytes
from cohortseg.pages import smaller_jpeg
from cohortseg.preprocess import TRANSPOSED
from cohortseg.store.masks import read_masks
from cohortseg.store.provenance import read_run_json
from cohortseg.store.schemas import MANIFEST
from cohortseg.store.tables import read_table
from cohortseg.weights import ModelCard, load_model, save_model

SIZE = (132, 96)  # stored height and width: upright the image is 96 high and 132 wide
CAPTION, GAP = 20, 6  # of a picture: height of its captions, distance of its tiles


def chest(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An upright 8-bit slice with two lungs, and its labels."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    gray = np.where(((y - 48) / 46) ** 2 + ((x - 66) / 64) ** 2 < 1, 230.0, 20.0)
    labels = np.zeros(gray.shape, np.uint8)
    for centre in (36, 96):
        lung = ((y - 48) / 34) ** 2 + ((x - centre) / 22) ** 2 < 1
        gray[lung] = 70
        row, radius = rng.integers(35, 60), rng.integers(5, 10)
        labels[lung & ((y - row) ** 2 + (x - centre) ** 2 < radius**2)] = 1 + (centre > 66)
    gray[labels == 1], gray[labels == 2] = 140, 215
    return np.clip(gray + rng.normal(0, 3, gray.shape), 0, 255).astype(np.uint8), labels


def write_split(folder: Path, names: list[str]) -> None:
    rng = np.random.default_rng(len(names))
    for part in ("Imgs", "GT"):
        (folder / part).mkdir(parents=True)
    for name in names:
        gray, labels = chest(rng)
        Image.fromarray(gray.T).save(folder / "Imgs" / f"{name}.jpg", quality=95)  # stored lying on its side
        Image.fromarray(np.ascontiguousarray(labels.T)).save(folder / "GT" / f"{name}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains COVID-SemiSeg with the validation images, two others, and two test images."""
    root = tmp_path_factory.mktemp("data")
    write_split(root / "COVID-SemiSeg/TrainingSet/MultiClassInfection-Train", [*sorted(VALIDATION), "1", "3"])
    write_split(root / "COVID-SemiSeg/TestingSet/MultiClassInfection-Test", ["1", "2"])
    return root


@pytest.fixture(scope="module")
def model_path(data: Path) -> Path:
    """An untrained model that claims to have seen one validation image."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder_width=16, decoder_channels=(16, 16, 8, 8), codebook_size=8, code_dim=8, discriminator_channels=4
    )
    seen = data / "COVID-SemiSeg/TrainingSet/MultiClassInfection-Train/Imgs/14.jpg"
    card = ModelCard(
        name="untrained",
        model=config,
        canonical=CanonicalConfig(size=64),
        training_images=(hashlib.sha256(seen.read_bytes()).hexdigest(),),
    )
    path = data / "untrained.safetensors"
    save_model(path, Segmenter(config), Discriminator(config.discriminator_channels), card)
    return path


def evaluated(data: Path, split: Split, **options: Any) -> Evaluation:
    folder = find_data(data)
    return evaluate_images(labeled_slices(folder, split), data=folder, split=split, **options)


def test_output_holds_tables_pictures_and_provenance(data: Path, model_path: Path, tmp_path: Path):
    output = tmp_path / "out"
    result = evaluated(data, "val", model_path=model_path, output=output)
    assert read_table(output / "metrics.parquet", METRICS).equals(result.metrics)
    images = read_table(output / "images.parquet", IMAGES)
    assert images.equals(result.images)
    assert summarise(images).equals(result.metrics)  # the summary can be made again from the images alone
    assert set(images["image"]) == VALIDATION
    assert result.seen == ("14",)
    assert images.filter(pl.col("in_training"))["image"].unique().to_list() == ["14"]
    run = json.loads((output / "run.json").read_text())
    assert run["model"]["sha256"] == hashlib.sha256(model_path.read_bytes()).hexdigest()
    assert (run["counts"], run["arguments"]["split"]) == ({"images": 5, "images_in_training": 1}, "val")
    assert {path.stem for path in (output / "pictures").iterdir()} == VALIDATION
    assert not (output / "labels").exists()
    with Image.open(output / "pictures" / "2.png") as picture:  # upright
        assert picture.size == (3 * (SIZE[0] + GAP) + GAP, 2 * (CAPTION + SIZE[1] + GAP))


def test_page_shows_every_image_the_worst_first(data: Path, model_path: Path, tmp_path: Path):
    result = evaluated(data, "val", model_path=model_path, output=tmp_path)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == page.count("<img") == 6  # one of the codebook
    assert page.count("The model was trained on this image.") == 1
    assert hashlib.sha256(model_path.read_bytes()).hexdigest() in page
    shown = re.findall(r"<h3>(\d+)</h3><p>ggo Dice ([0-9.\u2013]+).*?consolidation Dice ([0-9.\u2013]+)", page)
    assert {name for name, *_ in shown} == VALIDATION
    assert "more in pictures/" not in page
    means = [np.mean([float(text) for text in dice if text != "\u2013"]) for _, *dice in shown]
    assert means == sorted(means)
    pooled = result.metrics.filter(protocol="pooled", class_name="opacity")["dice"].item()
    assert f"<td>{pooled:.3f}</td>" in page


def test_page_of_many_images_shows_the_worst_in_a_fixed_order(tmp_path: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    healthy = np.zeros((8, 8), np.uint8)
    ill = healthy.copy()
    ill[2:4] = 1
    names = [f"case{number:03}" for number in range(205)]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    truths = {name: healthy if name in names[:5] else ill for name in reversed(names)}
    images = score_images([Case(name, one_hot(truth), truth) for name, truth in truths.items()])
    pages = [evaluation_html("Model", "0" * 64, summarise(images), images, folder) for _ in range(2)]
    assert pages[0] == pages[1]
    assert re.findall(r"<h3>(.*?)</h3>", pages[0]) == names[5:], "an image without lesion has no Dice, and comes last"
    assert "<p>5 more in pictures/.</p>" in pages[0]


def saved_model(path: Path, recipe: dict[str, Any], *, vq_branch: bool) -> Path:
    """A model that finds GGO everywhere and reconstructs middle gray; its discriminator trusts nothing."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder_width=16,
        decoder_channels=(16, 16, 8, 8),
        vq_branch=vq_branch,
        codebook_size=8,
        code_dim=8,
        discriminator_channels=4,
    )
    segmenter, discriminator = Segmenter(config), Discriminator(config.discriminator_channels)
    layers = [(segmenter.head, torch.tensor([0.0, 9.0, 0.0])), (discriminator.layers[-1], torch.tensor([-9.0]))]
    if segmenter.vq is not None:
        layers.append((segmenter.vq.decoder[-1], torch.tensor([0.0])))
    with torch.no_grad():
        for layer, bias in layers:
            layer.get_parameter("weight").zero_()
            layer.get_parameter("bias").copy_(bias)
    card = ModelCard(name="known", model=config, canonical=CanonicalConfig(size=64), recipe=recipe)
    save_model(path, segmenter, discriminator, card)
    return path


def test_pictures_show_reconstruction_trust_and_the_page_the_use_of_the_codebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = saved_model(tmp_path / "model.safetensors", {"phase": 2, "confidence_threshold": 0.3}, vq_branch=True)
    rng, frame = np.random.default_rng(0), 12
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(5):  # more than a batch
        for folder, pixels in zip(("images", "masks"), chest(rng), strict=True):
            Image.fromarray(np.pad(pixels, frame)).save(tmp_path / folder / f"{number}.png")
    drawn = []

    def keep(usage: torch.Tensor, counts: torch.Tensor, slices: str) -> bytes:
        drawn.append(counts.tolist())
        return codebook_png(usage, counts, slices)

    monkeypatch.setattr("cohortseg.evaluate.run.codebook_png", keep)
    assert run("evaluate", "--labeled", tmp_path, "--model", model, "-o", tmp_path / "out")[0] == 0
    picture = np.asarray(Image.open(tmp_path / "out/pictures/4.png")).astype(int)
    height, width = SIZE[1] + 2 * frame, SIZE[0] + 2 * frame
    assert picture.shape == (2 * (CAPTION + height + GAP), 3 * (width + GAP) + GAP, 3)
    tops = (CAPTION, 2 * CAPTION + height + GAP)
    lefts = [GAP + number * (width + GAP) for number in range(3)]
    _, _, prediction, *inner = (picture[y : y + height, x : x + width] for y in tops for x in lefts)
    seen = prediction[..., 0] > prediction[..., 1] + 20
    assert seen[frame:-frame, frame:-frame].mean() > 0.9
    assert seen.sum() <= SIZE[0] * SIZE[1]
    for tile in inner:
        assert not tile[~seen].any(), "black outside the networks' view"
    reconstruction, confidence, pseudo_label = (tile[seen] for tile in inner)
    assert (abs(reconstruction - 127.5) < 1).all()
    assert (confidence == confidence[0]).all()
    assert 0 < confidence[0].sum() < 200, "dark: near 0"
    assert (pseudo_label == 128).all(), "gray: nothing is trusted"
    assert [sum(level) for level in drawn[0]] == [5 * 2 * 2, 5 * 8 * 8], "five images at strides 32 and 8"
    page = (tmp_path / "out/page.html").read_text(encoding="utf-8")
    assert "<h2>Use of the codebook</h2>" in page
    assert "gray where the confidence is not above 0.3" in page
    assert "Left out" not in page
    assert page.count("<img") == 6, "five images, and the codebook"
    with Image.open(tmp_path / "out/codebook.png") as codebook:
        assert codebook.width > 3 * codebook.height


@pytest.mark.parametrize(
    ("recipe", "vq_branch", "tiles", "told"),
    [
        (
            {"phase": 1},
            False,
            (3, 1),
            "Left out: reconstruction and use of the codebook (the model has no VQ-VAE branch); "
            "confidence map and refined pseudo label (the discriminator was not trained).",
        ),
        (
            {"phase": 2, "semi_weight": 0.0},
            False,
            (4, 1),
            "Left out: reconstruction and use of the codebook (the model has no VQ-VAE branch); "
            "refined pseudo label (the model learned from none).",
        ),
        (
            {"phase": 2, "semi_weight": 0.0},
            True,
            (3, 2),
            "Left out: refined pseudo label (the model learned from none).",
        ),
    ],
)
def test_what_a_model_lacks_is_left_out_and_the_page_says_so(
    data: Path, tmp_path: Path, recipe: dict[str, Any], vq_branch: bool, tiles: tuple[int, int], told: str
):
    model = saved_model(tmp_path / "model.safetensors", recipe, vq_branch=vq_branch)
    command = ["evaluate", "--data", data, "--split", "test", "-o", tmp_path / "out"]
    whole = saved_model(tmp_path / "whole.safetensors", {"phase": 2}, vq_branch=True)
    for path in (whole, model):
        assert run(*command, "--model", path)[0] == 0
    page = (tmp_path / "out/page.html").read_text(encoding="utf-8")
    assert f"<p>{told}</p>" in page
    assert ("Use of the codebook" in page) == (tmp_path / "out/codebook.png").exists() == vq_branch
    with Image.open(tmp_path / "out/pictures/1.png") as picture:
        width, height = tiles
        assert picture.size == (width * (SIZE[0] + GAP) + GAP, height * (CAPTION + SIZE[1] + GAP))


def test_saved_maps_give_the_same_numbers_at_the_images_own_size(data: Path, model_path: Path, tmp_path: Path):
    result = evaluated(data, "val", model_path=model_path, output=tmp_path, save_maps=True)
    truth_folder = data / "COVID-SemiSeg/TrainingSet/MultiClassInfection-Train/GT"
    for scores in result.images.filter(pl.col("class_name") != "opacity").to_dicts():
        name, class_name = f"{scores['image']}.png", scores["class_name"]
        value = {"ggo": 1, "consolidation": 2}[class_name]
        truth = np.asarray(Image.open(truth_folder / name)) == value
        labels = np.asarray(Image.open(tmp_path / "labels" / name))
        probability = np.asarray(Image.open(tmp_path / "maps" / class_name / name))
        assert labels.shape == probability.shape == truth.shape == SIZE
        assert set(np.unique(labels).tolist()) <= {0, 1, 2}
        for maps, class_map in (("labels", labels == value), ("softmax", probability)):
            expected = toolbox_scores(class_map, truth)
            for metric in TOOLBOX_METRICS:
                assert scores[f"toolbox_{maps}_{metric}"] == getattr(expected, metric)


def test_an_evaluation_that_breaks_off_leaves_no_numbers_of_an_earlier_one(
    data: Path, model_path: Path, tmp_path: Path
):
    evaluated(data, "test", model_path=model_path, output=tmp_path)
    assert (tmp_path / "metrics.parquet").is_file()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(data, "test", model_path=model_path, output=tmp_path, report=interrupt)
    assert not list(tmp_path.glob("*.parquet"))
    assert not list(tmp_path.glob("*.html"))
    assert read_run_json(tmp_path)["finished"] is None


def test_an_image_that_cannot_be_read_costs_no_earlier_evaluation(data: Path, model_path: Path, tmp_path: Path):
    mine, out = tmp_path / "COVID-SemiSeg", tmp_path / "out"
    shutil.copytree(data, mine)
    evaluated(mine, "test", model_path=model_path, output=out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    masks = sorted(mine.rglob("MultiClassInfection-Test/GT/*.png"))
    masks[-1].write_bytes(b"no picture")
    with pytest.raises(DataError, match=masks[-1].name):
        evaluated(mine, "test", model_path=model_path, output=out)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_a_folder_that_holds_something_else_is_left_alone(data: Path, model_path: Path, tmp_path: Path):
    mine = tmp_path / "mine/labels/my-annotation.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"mine: holds other things than an evaluation"):
        evaluated(data, "test", model_path=model_path, output=tmp_path / "mine")
    assert mine.read_bytes() == b"mine"
    for _ in range(2):
        evaluated(data, "test", model_path=model_path, output=tmp_path / "again")


def test_batches_and_flips_are_those_of_the_model(data: Path, model_path: Path, tmp_path: Path):
    evaluated(data, "val", model_path=model_path, output=tmp_path, save_maps=True)
    model = load_model(model_path)
    source = next(item for item in labeled_slices(data / "COVID-SemiSeg", "val") if item.name == "24")
    item = canonical_of(source, model.card.canonical)
    alone = eight_bit(item.restore(model.predict(item.image[None], flips=True).prob[0])[1])
    saved = np.asarray(Image.open(tmp_path / "maps" / "ggo" / "24.png"))
    assert np.abs(saved.astype(int) - alone).max() <= 1  # rounding


def test_truth_taken_for_prediction_lands_where_it_lies(data: Path):
    # The way to the canonical slice and back keeps place and orientation: labels survive it but for their borders.
    model_config = CanonicalConfig(size=128)
    for source in labeled_slices(data / "COVID-SemiSeg", "val"):
        item = canonical_of(source, model_config)
        assert item.labels is not None
        assert source.mask_path is not None
        prob = item.restore(torch.from_numpy(one_hot(item.labels)))
        images = score_images([Case(source.name, prob, read_mask(source.mask_path))])
        assert min(images["dice"].to_list()) > 0.9


def test_images_of_ones_own_are_measured_as_the_same_images_of_the_data_set(
    data: Path, model_path: Path, tmp_path: Path
):
    """The split's images, turned upright, in another layout."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for source in labeled_slices(find_data(data), "test"):
        for path, folder in ((source.image_path, "images"), (source.mask_path, "masks")):
            upright = source.orientation.to_upright(np.asarray(Image.open(path)))
            Image.fromarray(np.ascontiguousarray(upright)).save(tmp_path / folder / f"{path.stem}.png")
    command = ["evaluate", "--model", model_path, "--labeled", tmp_path]
    assert run(*command, "-o", tmp_path / "own")[0] == 0
    assert run("evaluate", "--model", model_path, "--data", data, "--split", "test", "-o", tmp_path / "same")[0] == 0
    own, same = (read_table(tmp_path / name / "metrics.parquet", METRICS) for name in ("own", "same"))
    assert own.select("class_name", "maps", "protocol").equals(same.select("class_name", "maps", "protocol"))
    for mine, theirs in zip(own["dice"], same["dice"], strict=True):
        assert mine == pytest.approx(theirs, abs=0.02)
    assert run(*command, "--split", "test")[0] == 2
    assert run("evaluate", "--model", model_path, "--data", data, "--orientation", "upright")[0] == 2


def test_dicom_of_ones_own_is_predicted_as_infer_does(model_path: Path, tmp_path: Path):
    """The masks of infer as the truth: every pixel must agree, of a series that lies otherwise, too."""
    shape = (6, 96, 80)
    hu = np.zeros(shape, np.int16)
    hu[:5], hu[5] = ill_body(shape)[:5], -1000  # the last slice holds no lung
    otherwise = (0.0, -1.0, 0.0, -1.0, 0.0, 0.0)  # transposed, mirrored, and from head to feet
    for name, orientation, stored, spacing_mm in (
        ("a", AXIAL, hu, (5.0, 3.0, 3.5)),
        ("b", otherwise, hu.swapaxes(1, 2)[::-1, ::-1, ::-1], (5.0, 3.5, 3.0)),
    ):
        write_series(
            tmp_path / "images" / name,
            shape=stored.shape,
            spacing_mm=spacing_mm,
            hu=stored,
            orientation=orientation,
            series=name,
            shuffle=1,
        )
    infer(tmp_path / "images", tmp_path / "out", model_path, select=("all",))
    manifest = read_table(tmp_path / "out/manifest.parquet", MANIFEST)
    for key, files in manifest.select("series_key", "files").iter_rows():
        for labels, file in zip(read_masks(tmp_path / "out/masks.zarr", key).labels, files, strict=True):
            path = tmp_path / "masks" / f"{file}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
    code, _, stderr = run(
        "evaluate", "--model", model_path, "--labeled", tmp_path, "-o", tmp_path / "scores", "--save-maps"
    )
    assert code == 0, stderr
    images = read_table(tmp_path / "scores/images.parquet", IMAGES)
    assert images["image"].n_unique() == 12
    assert images["predicted_pixels"].sum() > 100
    wrong = (images["truth_pixels"] + images["predicted_pixels"] - 2 * images["true_positive_pixels"]).sum()
    assert wrong <= 0.01 * images["predicted_pixels"].sum(), "batches of another size round otherwise"
    empty = images.filter(pl.col("image").str.ends_with("-0005"))
    assert (len(empty), empty["predicted_pixels"].sum()) == (6, 0)
    key = manifest["series_key"][0]
    with (
        Image.open(tmp_path / f"scores/pictures/{key}-0004.png") as seen,
        Image.open(tmp_path / f"scores/pictures/{key}-0005.png") as without_lung,
    ):
        assert seen.height > 2 * without_lung.height, "of which the networks have nothing to tell"
    stored = np.asarray(Image.open(tmp_path / f"scores/labels/{key}-0002.png"))
    assert (stored == read_masks(tmp_path / "out/masks.zarr", key).labels[2]).mean() > 0.999
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    (volumes / "images").symlink_to(tmp_path / "images")
    code, _, stderr = run("export", tmp_path / "out", "--format", "nifti", "-o", volumes / "masks")
    assert code == 0, stderr
    command = ["evaluate", "--model", model_path, "--labeled", volumes, "-o", tmp_path / "of-volumes"]
    code, _, stderr = run(*command)
    assert (code, f"{key}_lungs.nii.gz: is the label map of no series" in " ".join(stderr.split())) == (2, True)
    for unneeded in (volumes / "masks").glob("*_lungs.nii.gz"):
        unneeded.unlink()
    assert run(*command)[0] == 0
    assert read_table(tmp_path / "of-volumes/images.parquet", IMAGES).equals(images)
    before = {path: path.read_bytes() for path in (tmp_path / "scores").rglob("*.*")}
    Image.fromarray(labels[1:]).save(path)
    code, _, stderr = run("evaluate", "--model", model_path, "--labeled", tmp_path, "-o", tmp_path / "scores")
    assert code != 0
    assert "label map is" in stderr
    assert {path: path.read_bytes() for path in (tmp_path / "scores").rglob("*.*")} == before
    Image.fromarray(labels).save(path)
    damaged = tmp_path / "images" / file
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    code, _, stderr = run("evaluate", "--model", model_path, "--labeled", tmp_path, "-o", tmp_path / "scores")
    assert (code, file in stderr) == (2, True)
    assert {path: path.read_bytes() for path in (tmp_path / "scores").rglob("*.*")} == before
    assert (tmp_path / f"scores/pictures/{key}-0000.png").is_file()


def test_only_the_folders_of_the_split_are_needed(data: Path, model_path: Path, tmp_path: Path):
    (tmp_path / "TestingSet").symlink_to(data / "COVID-SemiSeg" / "TestingSet")
    result = evaluated(tmp_path, "test", model_path=model_path)
    assert set(result.images["image"]) == {"1", "2"}
    assert result.seen == ()
    with pytest.raises(ConfigError, match=r"TrainingSet/MultiClassInfection-Train"):
        evaluated(tmp_path, "val", model_path=model_path)


def test_missing_model_is_named(data: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"nowhere\.safetensors"):
        evaluated(data, "val", model_path=tmp_path / "nowhere.safetensors")


def test_labels_of_another_size_are_named(data: Path, model_path: Path, tmp_path: Path):
    folder = tmp_path / "TestingSet/MultiClassInfection-Test"
    write_split(folder, ["1"])
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(folder / "GT" / "1.png")
    with pytest.raises(DataError, match=r"1\.png"):
        evaluated(tmp_path, "test", model_path=model_path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((0, 1), "holds Consolidation; if one label stands for"),
        ((0,), "no label map holds a lesion"),
        ((0, 1, 2), ""),
    ],
)
def test_classes_that_the_truth_lacks_are_told(
    model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, values: tuple[int, ...], told: str
):
    write_split(tmp_path, ["1"])
    labels = np.asarray(Image.open(tmp_path / "GT/1.png"))
    Image.fromarray(np.where(np.isin(labels, values), labels, 0).astype(np.uint8)).save(tmp_path / "GT/1.png")
    evaluate_images(labeled_folder(tmp_path, TRANSPOSED), data=tmp_path, model_path=model_path)
    assert told in caplog.text
    assert bool(told) == ("no label map holds" in caplog.text)


def test_a_truth_without_background_is_refused(model_path: Path, tmp_path: Path):
    write_split(tmp_path, ["1"])
    shape = np.asarray(Image.open(tmp_path / "GT/1.png")).shape
    Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / "GT/1.png")
    with pytest.raises(DataError, match="no label map holds background"):
        evaluate_images(labeled_folder(tmp_path, TRANSPOSED), data=tmp_path, model_path=model_path)


def test_pictures_of_an_earlier_evaluation_go_and_ones_own_stay(data: Path, model_path: Path, tmp_path: Path):
    evaluated(data, "test", model_path=model_path, output=tmp_path, save_maps=True)
    for mine in ("pictures/mine.png", "labels/reader2.png"):
        (tmp_path / mine).write_bytes(b"mine")
    evaluated(data, "val", model_path=model_path, output=tmp_path, save_maps=True)
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == VALIDATION | {"mine"}
    assert {path.stem for path in (tmp_path / "labels").iterdir()} == VALIDATION | {"reader2"}
    assert {path.stem for path in (tmp_path / "maps/ggo").iterdir()} == VALIDATION


# ---- the command


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_command_prints_labels_before_softmax_and_the_clinical_tables(data: Path, model_path: Path):
    code, stdout, stderr = run("evaluate", "--data", data, "--model", model_path)
    assert code == 0
    assert "untrained on 5 images (split val)" in stdout
    lines = [line for line in stdout.splitlines() if "GGO" in line]
    assert "labels" in lines[0]
    assert "softmax" in lines[1]
    for text in ("Dice", "Sen.", "Spe.", "PPV", "Pearson r", "95 % limits", "Opacity", "per image"):
        assert text in stdout
    assert "…" not in stdout  # nothing is cut in 80 columns
    assert "1 of 5 images" in stderr
    assert "optimistic" in stderr
    assert "optimistic" not in stdout


def test_command_does_not_warn_about_images_the_model_never_saw(data: Path, model_path: Path):
    code, _, stderr = run("evaluate", "--data", data / "COVID-SemiSeg", "--model", model_path, "--split", "test")
    assert code == 0
    assert "training images" not in stderr


def test_command_writes_maps(data: Path, model_path: Path, tmp_path: Path):
    code, _, stderr = run("evaluate", "--data", data, "--model", model_path, "-o", tmp_path / "out", "--save-maps")
    assert code == 0
    assert "written to" in stderr
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert {"metrics.parquet", "images.parquet", "run.json", "labels/2.png", "maps/consolidation/2.png"} <= written


def test_command_finds_data_in_the_environment(data: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COHORTSEG_DATA", str(data))
    assert run("evaluate", "--model", model_path)[0] == 0


def test_command_without_data_names_the_layout(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COHORTSEG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run("evaluate", "--model", model_path)
    assert code == 2
    assert stdout == ""
    assert "TrainingSet/MultiClassInfection-Train/{Imgs,GT}" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save-maps"], "add -o OUT"),
        (["--split", "all-of-them"], "--split"),
        (["--model", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_command_refuses_wrong_usage(data: Path, arguments: list[str], message: str):
    code, stdout, stderr = run("evaluate", "--data", data, *arguments)
    assert code == 2
    assert stdout == ""
    assert message in stderr


def test_a_picture_of_huge_images_is_shown_without_a_warning(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        jpeg = smaller_jpeg(png_bytes(Image.new("RGB", (30, 40))))
    shown = Image.open(io.BytesIO(jpeg))
    assert (shown.format, shown.size) == ("JPEG", (30, 40))


@pytest.mark.realdata
def test_canonical_slice_costs_little_on_real_labels(covid_semiseg: Path):
    # The best any model can reach: the truth itself, sent through the canonical slice and back.
    cases = []
    for source in labeled_slices(find_data(covid_semiseg), "val"):
        item = canonical_of(source, CanonicalConfig())
        assert item.labels is not None
        assert source.mask_path is not None
        cases.append(
            Case(source.name, item.restore(torch.from_numpy(one_hot(item.labels))), read_mask(source.mask_path))
        )
    metrics = summarise(score_images(cases))
    assert row(metrics, "ggo", "pooled")["dice"] > 0.93
    assert row(metrics, "consolidation", "pooled")["dice"] > 0.93
