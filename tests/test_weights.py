"""Model files: what is written loads again; what is damaged or foreign is refused with the file's name."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cohortseg.config import CanonicalConfig, ModelConfig
from cohortseg.errors import ModelError
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.segmenter import Segmenter
from cohortseg.weights import ModelCard, default_model_path, load_model, save_model
from cohortseg.weights.model_file import model_file_bytes

SMALL = ModelConfig(
    encoder_width=16, decoder_channels=(32, 16, 16, 8), codebook_size=16, code_dim=8, discriminator_channels=8
)
CARD = ModelCard(
    name="tiny", model=SMALL, canonical=CanonicalConfig(size=64), training_images=("ab", "cd"), licence="none",
    recipe={"preset": "test"}, versions={"torch": "x"},
)  # fmt: skip


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_model(path, Segmenter(SMALL), Discriminator(8), CARD)
    return path


@pytest.fixture
def model_file(saved_once: Path, tmp_path: Path) -> Path:
    """A copy of each test's own, which it may damage."""
    return Path(shutil.copy(saved_once, tmp_path))


def test_what_is_written_loads_with_its_card(model_file):
    model = load_model(model_file)
    assert model.card == CARD
    assert model.training_images == {"ab", "cd"}
    assert len(model.sha256) == 64
    prediction = model.predict(torch.rand(2, 1, 64, 64))
    assert prediction.prob.shape == (2, 3, 64, 64)
    torch.testing.assert_close(prediction.prob.sum(dim=1), torch.ones(2, 64, 64))
    assert prediction.confidence.shape == (2, 1, 64, 64)


def test_mirrored_slices_get_mirrored_predictions_with_flips(model_file):
    model = load_model(model_file, bf16=False)
    images = torch.rand(1, 1, 64, 64)
    prob = model.predict(images, flips=True).prob
    torch.testing.assert_close(model.predict(images.flip(-1), flips=True).prob.flip(-1), prob)


def test_flips_tell_where_the_mirror_image_is_called_otherwise_at_no_further_pass(model_file):
    model = load_model(model_file, bf16=False)
    images = torch.rand(1, 1, 64, 64)
    alone, mirrored = (model.predict(batch).prob.argmax(dim=1) for batch in (images, images.flip(-1)))
    passes = []
    model.segmenter.register_forward_hook(lambda *_: passes.append(1))
    change = model.predict(images, flips=True).flip_change
    assert len(passes) == 2
    assert torch.equal(change[:, 0].bool(), alone != mirrored.flip(-1))
    assert model.predict(images).flip_change is None


def test_an_inspection_gives_the_same_probabilities_at_no_further_pass(model_file):
    model = load_model(model_file, bf16=False)
    images = torch.rand(2, 1, 64, 64)
    prediction, branch = model.predict(images, flips=True), model.segmenter(images)
    passes = []
    model.segmenter.register_forward_hook(lambda *_: passes.append(1))
    inspection = model.inspect(images, flips=True)
    assert len(passes) == 2
    assert torch.equal(inspection.prob, prediction.prob)
    assert torch.equal(inspection.confidence, prediction.confidence)
    torch.testing.assert_close(inspection.reconstruction, branch.reconstruction)
    for index in range(2):
        for level, counts in zip(branch.levels, inspection.code_counts[index], strict=True):
            assert counts.tolist() == level.indices[index].flatten().bincount(minlength=SMALL.codebook_size).tolist()


def test_bf16_agrees_with_float32(model_file):
    images = torch.rand(4, 1, 64, 64)
    exact = load_model(model_file, bf16=False).predict(images).prob
    assert (load_model(model_file, bf16=True).predict(images).prob - exact).abs().max() < 0.05


def test_the_hash_is_of_what_was_loaded(model_file, monkeypatch):
    digest = hashlib.sha256(model_file.read_bytes()).hexdigest()

    def replaced() -> None:
        model_file.write_bytes(b"of another run")

    monkeypatch.setattr("cohortseg.weights.model_file.reuse_memory", replaced)
    assert load_model(model_file).sha256 == digest


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match="cohortseg train"):
        load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(model_file, keep):
    whole = model_file.read_bytes()
    model_file.write_bytes(whole[: int(keep if keep >= 1 or keep == 0 else keep * len(whole))])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_model(model_file)


def test_one_changed_weight_is_noticed(model_file):
    damaged = bytearray(model_file.read_bytes())
    damaged[-1000] ^= 1
    model_file.write_bytes(damaged)
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged"):
        load_model(model_file)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    path = tmp_path / "evil.safetensors"
    torch.save({"state": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(path)


def test_a_header_nested_deeper_than_python_parses_is_refused(tmp_path):
    path = tmp_path / "nested.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"cohortseg": "[" * 100_000})
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="not a model file"):
        load_model(path)


def test_weights_that_do_not_fit_or_are_not_finite_are_refused(model_file):
    tensors = load_file(model_file)
    header = _header(model_file)
    name = next(key for key in tensors if key.startswith("segmenter.head"))
    spoilt = {**tensors, name: torch.full_like(tensors[name], float("nan"))}
    model_file.write_bytes(model_file_bytes(header, spoilt))
    with pytest.raises(ModelError, match="finite"):
        load_model(model_file)
    model_file.write_bytes(model_file_bytes(header, {key: value for key, value in tensors.items() if key != name}))
    with pytest.raises(ModelError, match=rf"weights do not fit .* such as {name}, none in place of \(3,\)"):
        load_model(model_file)


def test_networks_larger_than_the_weights_take_no_memory(model_file, monkeypatch):
    header, made = _header(model_file), []
    header["model"]["discriminator_channels"] = 128
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda module, **_: made.append(module))
    model_file.write_bytes(model_file_bytes(header, load_file(model_file)))
    with pytest.raises(ModelError, match=r"weights do not fit .* in place of \(128,\)"):
        load_model(model_file)
    assert not made


@pytest.mark.parametrize("lost", ["sha256", "teachers"])
def test_a_model_file_of_an_earlier_version_is_not_called_damaged(model_file, lost):
    with safe_open(model_file, framework="pt") as file:
        header = json.loads(file.metadata()["cohortseg"])
    del header[lost]
    save_file(load_file(model_file), model_file, metadata={"cohortseg": json.dumps(header)})
    with pytest.raises(ModelError, match="not a model file of this version of cohortseg"):
        load_model(model_file)


def test_settings_out_of_range_are_refused(model_file):
    header = _header(model_file)
    header["canonical"]["size"] = 63
    model_file.write_bytes(model_file_bytes(header, load_file(model_file)))
    with pytest.raises(ModelError, match="multiple of 32"):
        load_model(model_file)


def _header(path: Path) -> dict:
    from dataclasses import asdict

    return asdict(load_model(path).card)


@pytest.mark.parametrize(
    "change",
    [
        {"model": []},
        {"canonical": "x"},
        {"canonical": {"size": 64_000}},
        {"canonical": {"window_hu": [float("-inf"), 150.0]}},
        {"recipe": None},
        {"training_images": [["a"]]},
        {"training_images": None},
        {"training_images": "abc"},
        {"recipe": {"class_offsets": None}},
        {"recipe": {"class_offsets": [0.0, 1.0]}},
        {"recipe": {"class_offsets": [0.0, "a", 1.0]}},
        {"recipe": {"confidence_threshold": "a"}},
        {"recipe": {"semi_weight": None}},
        {"recipe": {"semi_weight": 10**400}},
        {"name": 5},
        {"versions": [1]},
        {"more": 1},
    ],
    ids=str,
)
def test_a_header_that_describes_no_model_is_refused(model_file, change):
    with safe_open(model_file, framework="pt") as file:
        header = json.loads(file.metadata()["cohortseg"])
    for name, value in change.items():
        nested = isinstance(value, dict) and isinstance(header.get(name), dict)
        header[name] = {**header[name], **value} if nested else value
    del header["format"], header["sha256"]
    model_file.write_bytes(model_file_bytes(header, load_file(model_file)))
    with pytest.raises(ModelError, match=r"model\.safetensors: the header does not describe a model"):
        load_model(model_file)


def test_the_packaged_model_is_small_loads_and_states_its_terms():
    path = default_model_path()
    assert path.stat().st_size <= 40 * 1024**2
    model = load_model()
    assert "non-commercial" in model.card.licence
    assert len(model.training_images) == 1650
    recipe = {"preset", "painted_foci", "iterations_done", "batch_pseudo"}
    assert {name: model.card.recipe[name] for name in recipe} == {
        "preset": "student",
        "painted_foci": 0.35,
        "iterations_done": 1200,
        "batch_pseudo": 4,
    }
