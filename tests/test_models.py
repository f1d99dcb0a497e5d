"""The networks: shapes, what feeds what, the codebook, and ImageNet weights."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from cohortseg.config import ModelConfig, TrainConfig
from cohortseg.errors import ModelError
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.efficientnet import EfficientNetLite0Encoder
from cohortseg.models.fold import fold_batch_norms
from cohortseg.models.resnet import ResNetEncoder
from cohortseg.models.segmenter import Segmenter
from cohortseg.models.vqvae import VectorQuantizer, codebook_use, revive_codes, update_usage
from cohortseg.train.state import build_state, imagenet_sha256

SMALL = ModelConfig(
    encoder_width=16, decoder_channels=(32, 16, 16, 8), codebook_size=16, code_dim=8, discriminator_channels=8
)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "resnet50", "efficientnet-lite0"])
def test_logits_and_reconstruction_have_the_input_s_size(encoder):
    imagenet = encoder == "efficientnet-lite0"
    network = Segmenter(ModelConfig(encoder=encoder, imagenet=imagenet, codebook_size=8, code_dim=4))
    output = network(torch.rand(1, 1, 64, 96))
    assert output.logits.shape == (1, 3, 64, 96)
    assert output.reconstruction is not None
    assert output.reconstruction.shape == (1, 1, 64, 96)
    assert [tuple(level.indices.shape) for level in output.levels] == [(1, 2, 3), (1, 8, 12)]


def test_a_narrower_encoder_has_its_channels_and_fewer_weights():
    def parameters(width):
        network = Segmenter(ModelConfig(encoder="resnet50", encoder_width=width, codebook_size=8, code_dim=4))
        assert network.encoder.out_channels == (width, 4 * width, 8 * width, 16 * width, 32 * width)
        assert network(torch.rand(1, 1, 64, 64)).logits.shape == (1, 3, 64, 64)
        return sum(value.numel() for value in network.encoder.parameters())

    assert 3.8 < parameters(32) / parameters(16) < 4.1


def test_every_parameter_learns_so_that_workers_never_wait_for_a_gradient():
    network = Segmenter(SMALL)
    output = network(torch.rand(2, 1, 64, 64))
    assert output.reconstruction is not None
    codebook = sum(level.codebook_loss + level.commitment_loss for level in output.levels)
    (output.logits.square().mean() + output.reconstruction.mean() + codebook).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


def test_latent_codes_feed_the_segmentation_as_soon_as_it_has_learned_to_use_them():
    network = Segmenter(SMALL)
    images = torch.rand(1, 1, 64, 64)
    before = network(images).logits
    before.square().mean().backward()
    with torch.no_grad():
        network.vq.quantizer.codes.add_(5.0)
        torch.testing.assert_close(network(images).logits, before)  # the fusion starts at zero
        network.fusion.weight -= network.fusion.weight.grad
        assert not torch.allclose(network(images).logits, before)


def test_the_prediction_of_one_slice_does_not_depend_on_the_others():
    network = Segmenter(SMALL).eval()
    images = torch.rand(3, 1, 64, 64)
    torch.testing.assert_close(network(images).logits[1:2], network(images[1:2]).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "efficientnet-lite0"])
def test_folded_batch_norms_predict_the_same(encoder):
    torch.manual_seed(0)
    network = Segmenter(ModelConfig(encoder=encoder, imagenet=True, codebook_size=8, code_dim=4)).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # as after training on photographs: no longer mean 0, variance 1
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    images = torch.rand(2, 1, 64, 96)
    with torch.inference_mode():
        before = network(images).logits
        fold_batch_norms(network)
        torch.testing.assert_close(network(images).logits, before, rtol=1e-4, atol=1e-4)
    assert len(norms) > 10
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_without_the_branch_there_is_nothing_to_reconstruct():
    output = Segmenter(ModelConfig(vq_branch=False))(torch.rand(1, 1, 64, 64))
    assert output.reconstruction is None
    assert output.levels == []


def test_the_gradient_passes_the_quantizer_unchanged():
    quantizer = VectorQuantizer(4, 2)
    latents = torch.randn(1, 2, 3, 3, requires_grad=True)
    (quantizer(latents).values * torch.arange(18.0).view(1, 2, 3, 3)).sum().backward()
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, torch.arange(18.0).view(1, 2, 3, 3))


def test_dead_codes_are_revived_from_the_batch_and_living_ones_stay():
    quantizer = VectorQuantizer(3, 2)
    alive = quantizer.codes[0].clone()
    for _ in range(1000):
        update_usage(quantizer, torch.tensor([90.0, 10.0, 0.0]))
    latents = torch.tensor([[7.0, 7.0]])
    assert revive_codes(quantizer, latents, torch.Generator().manual_seed(0), minimum=0.1) == 1
    assert torch.equal(quantizer.codes[0], alive)
    assert torch.equal(quantizer.codes[2], latents[0])
    assert revive_codes(quantizer, latents, torch.Generator().manual_seed(0), minimum=0.1) == 0


def test_codes_that_nothing_used_yet_are_dead_from_the_first_count_on():
    quantizer = VectorQuantizer(4, 2)
    update_usage(quantizer, torch.tensor([5.0, 3.0, 0.0, 0.0]))
    assert codebook_use(quantizer.usage)[0] == 2
    assert revive_codes(quantizer, torch.zeros(1, 2), torch.Generator().manual_seed(0), minimum=0.1) == 2


def test_codebook_use_counts_living_codes_and_how_evenly_they_are_used():
    assert codebook_use(torch.tensor([3.0, 3.0, 3.0, 3.0])) == (4, pytest.approx(4))
    assert codebook_use(torch.tensor([50.0, 50.0, 0.0, 0.0])) == (2, pytest.approx(2))
    shares = (98.0, 2.0, 0.0, 0.0)  # 2 % is below a tenth of an equal share of 25 %
    assert codebook_use(torch.tensor(shares)) == (1, pytest.approx(0.98**-0.98 * 0.02**-0.02))


def test_imagenet_weights_load_without_internet_and_are_checked(tmp_path):
    encoder = EfficientNetLite0Encoder()
    before = [value.clone() for value in encoder(torch.zeros(1, 1, 64, 64))]
    encoder.load_imagenet()
    after = encoder(torch.zeros(1, 1, 64, 64))
    assert not torch.allclose(before[-1], after[-1])
    assert encoder._bn0.running_var.std() > 0
    (tmp_path / "other.pth").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="not the published EfficientNet-lite0 weights"):
        encoder.load_imagenet(tmp_path / "other.pth")
    with pytest.raises(ModelError, match="cannot be read"):
        encoder.load_imagenet(tmp_path / "missing.pth")


def test_training_begins_with_imagenet_weights_where_they_are_asked_for():
    model = ModelConfig(encoder="efficientnet-lite0", imagenet=True, codebook_size=8, code_dim=4)
    published = EfficientNetLite0Encoder()
    published.load_imagenet()
    state = build_state(TrainConfig(model=model, ema_decay=0.99), torch.device("cpu"))
    assert state.averaged is not None
    for network in (state.segmenter, state.averaged.module):
        found = network.encoder.state_dict()
        for name, value in published.state_dict().items():
            assert torch.equal(found[name], value), name


def test_imagenet_statistics_stay_in_training():
    encoder = EfficientNetLite0Encoder().train()
    mean = encoder._bn0.running_mean.clone()
    encoder(torch.rand(4, 1, 64, 64))
    assert torch.equal(encoder._bn0.running_mean, mean)
    assert encoder._bn0.weight.requires_grad


def test_the_confidence_map_has_the_size_of_the_prediction():
    discriminator = Discriminator(8)
    assert discriminator(torch.rand(2, 3, 96, 64)).shape == (2, 1, 96, 64)


DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def torchvision_weights(name: str) -> dict[str, torch.Tensor]:
    """Random weights under the names and in the shapes of torchvision's files."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        weights[f"{conv}.weight"] = torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] ** 2)) ** 0.5
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{part}"] = torch.rand(shape[0], generator=generator) + 0.5

    add("conv1", "bn1", 64, 3, 7, 7)
    below = 64
    for layer, depth in enumerate(DEPTHS[name], start=1):
        width = 32 * 2**layer
        above = 4 * width if name == "resnet50" else width
        for block in range(depth):
            at = f"layer{layer}.{block}"
            if name == "resnet50":
                add(f"{at}.conv1", f"{at}.bn1", width, below, 1, 1)
                add(f"{at}.conv2", f"{at}.bn2", width, width, 3, 3)
                add(f"{at}.conv3", f"{at}.bn3", above, width, 1, 1)
            else:
                add(f"{at}.conv1", f"{at}.bn1", width, below, 3, 3)
                add(f"{at}.conv2", f"{at}.bn2", width, width, 3, 3)
            if block == 0 and below != above:
                add(f"{at}.downsample.0", f"{at}.downsample.1", above, below, 1, 1)
            below = above
    return weights | {"fc.weight": torch.zeros(1000, below), "fc.bias": torch.zeros(1000)}


def torchvision_features(weights: dict[str, torch.Tensor], photograph: torch.Tensor) -> list[torch.Tensor]:
    """The same network written down a second time, from its paper: (B, 3, H, W) to features at five strides."""

    def normed(x: torch.Tensor, norm: str) -> torch.Tensor:
        scale, offset, mean, var = (
            weights[f"{norm}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + offset

    x = functional.conv2d(photograph, weights["conv1.weight"], stride=2, padding=3)
    features = [normed(x, "bn1").relu()]
    x = functional.max_pool2d(features[0], 3, stride=2, padding=1)
    for layer in range(1, 5):
        block = 0
        while f"layer{layer}.{block}.conv1.weight" in weights:
            at, shortcut = f"layer{layer}.{block}", x
            last = 3 if f"{at}.conv3.weight" in weights else 2
            first = layer > 1 and block == 0
            for number in range(1, last + 1):
                kernel = weights[f"{at}.conv{number}.weight"]
                stride = 2 if first and number == last - 1 else 1
                x = normed(
                    functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2), f"{at}.bn{number}"
                )
                x = x.relu() if number < last else x
            if f"{at}.downsample.0.weight" in weights:
                shortcut = functional.conv2d(shortcut, weights[f"{at}.downsample.0.weight"], stride=2 if first else 1)
                shortcut = normed(shortcut, f"{at}.downsample.1")
            x = (x + shortcut).relu()
            block += 1
        features.append(x)
    return features


def published(folder: Path, name: str, weights: object) -> Path:
    """Write a weights file, named after its hash as torchvision's are."""
    torch.save(weights, folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    return (folder / "weights.pth").rename(folder / f"{name}-{digest[:8]}.pth")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_resnet_with_torchvision_s_weights_computes_what_torchvision_s_does(tmp_path, name):
    weights = torchvision_weights(name)
    encoder = ResNetEncoder(name, imagenet=True).train()
    encoder.load_imagenet(published(tmp_path, name, weights))
    images = torch.rand(2, 1, 64, 64)
    photograph = images.expand(-1, 3, -1, -1) - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    photograph = photograph / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for ours, theirs in zip(encoder(images), torchvision_features(weights, photograph), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    assert torch.equal(encoder.stem[1].running_mean, weights["bn1.running_mean"])  # training leaves them alone
    assert encoder.stem[1].weight.requires_grad


def test_imagenet_weights_are_known_by_their_content(tmp_path):
    def sha256(path, encoder="resnet18"):
        model = ModelConfig(encoder=encoder, imagenet=True)
        return imagenet_sha256(TrainConfig(model=model, imagenet_file=str(path)))

    weights = torchvision_weights("resnet18")
    one = published(tmp_path, "resnet18", weights)
    (tmp_path / "elsewhere").mkdir()
    two = shutil.copy(one, tmp_path / "elsewhere" / one.name)
    other = published(tmp_path, "resnet18", weights | {"bn1.bias": weights["bn1.bias"] + 1})
    assert sha256(one) == sha256(two) == hashlib.sha256(one.read_bytes()).hexdigest() != sha256(other)
    assert imagenet_sha256(TrainConfig()) is None
    assert sha256("", "efficientnet-lite0") is None, "its own are the only ones"


def test_resnet_weights_that_are_not_what_they_should_be_are_refused(tmp_path):
    encoder = ResNetEncoder("resnet18", imagenet=True)
    good = published(tmp_path, "resnet18", torchvision_weights("resnet18"))
    with pytest.raises(ModelError, match="first 8 hex digits"):
        encoder.load_imagenet(good.rename(tmp_path / "mine.pth"))
    with pytest.raises(ModelError, match="damaged or not what its name says"):
        encoder.load_imagenet((tmp_path / "mine.pth").rename(tmp_path / "resnet18-00000000.pth"))
    with pytest.raises(ModelError, match="not the weights of a resnet18"):
        encoder.load_imagenet(published(tmp_path, "resnet34", torchvision_weights("resnet34")))
    with pytest.raises(ModelError, match="not the weights of a ResNet"):
        encoder.load_imagenet(published(tmp_path, "other", {"encoder.weight": torch.zeros(3)}))
    with pytest.raises(ModelError, match="not a readable weights file"):  # a pickle that would run code
        encoder.load_imagenet(published(tmp_path, "evil", {"conv1.weight": print}))
    with pytest.raises(ModelError, match="cannot be read"):
        encoder.load_imagenet(tmp_path / "missing-12345678.pth")


def test_without_a_network_it_says_where_to_put_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        ModelError, match=r"(?s)fetch it elsewhere and put it at .*resnet50-0676ba61\.pth.*imagenet_file"
    ):
        ResNetEncoder("resnet50", imagenet=True).load_imagenet()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
