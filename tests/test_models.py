"""The networks: shapes, what feeds what, and the codebook."""

import pytest
import torch

from cohortseg.config import ModelConfig
from cohortseg.errors import ModelError
from cohortseg.models.discriminator import Discriminator
from cohortseg.models.efficientnet import EfficientNetLite0Encoder
from cohortseg.models.segmenter import Segmenter
from cohortseg.models.vqvae import VectorQuantizer, revive_codes, update_usage

SMALL = ModelConfig(decoder_channels=(32, 16, 16, 8), codebook_size=16, code_dim=8, discriminator_channels=8)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "resnet50", "efficientnet-lite0"])
def test_logits_and_reconstruction_have_the_input_s_size(encoder):
    network = Segmenter(ModelConfig(encoder=encoder, codebook_size=8, code_dim=4))
    output = network(torch.rand(1, 1, 64, 96))
    assert output.logits.shape == (1, 3, 64, 96)
    assert output.reconstruction is not None
    assert output.reconstruction.shape == (1, 1, 64, 96)
    assert [tuple(level.indices.shape) for level in output.levels] == [(1, 2, 3), (1, 8, 12)]


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


def test_imagenet_statistics_stay_in_training():
    encoder = EfficientNetLite0Encoder().train()
    mean = encoder._bn0.running_mean.clone()
    encoder(torch.rand(4, 1, 64, 64))
    assert torch.equal(encoder._bn0.running_mean, mean)
    assert encoder._bn0.weight.requires_grad


def test_the_confidence_map_has_the_size_of_the_prediction():
    discriminator = Discriminator(8)
    assert discriminator(torch.rand(2, 3, 96, 64)).shape == (2, 1, 96, 64)
