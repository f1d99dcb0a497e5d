"""The segmentation network S: residual encoder, VQ-VAE branch fused back into a smaller decoder."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from cohortseg.config import ModelConfig
from cohortseg.labels import NUM_CLASSES
from cohortseg.models.blocks import ConvNormReLU
from cohortseg.models.efficientnet import EfficientNetLite0Encoder
from cohortseg.models.resnet import ResNetEncoder
from cohortseg.models.vqvae import Quantized, VQBranch

_BOTTOM, _TOP = 2, 4  # places of strides 8 and 32 among the encoder's feature maps


class SegmenterOutput(NamedTuple):
    """What the network returns in training."""

    logits: torch.Tensor
    """(B, classes, H, W) float32."""
    reconstruction: torch.Tensor | None
    """(B, 1, H, W) in [0, 1]; None without the VQ-VAE branch."""
    levels: list[Quantized]
    """Top and bottom latent maps; empty without the VQ-VAE branch."""


class Segmenter(nn.Module):
    """Canonical slices to class logits.

    Parameters
    ----------
    config
        Encoder, decoder and VQ-VAE settings.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = build_encoder(config)
        channels = self.encoder.out_channels
        self.vq: VQBranch | None = None
        if config.vq_branch:
            with torch.random.fork_rng(devices=[]):  # so that all that is built later begins as without the branch
                self.vq = VQBranch(channels[_BOTTOM], channels[_TOP], config.codebook_size, config.code_dim)
                self.fusion = nn.Conv2d(self.vq.out_channels, channels[_BOTTOM], kernel_size=1)
            # Starts at zero: the decoder first learns without the codes, which change fast until the codebook settles.
            for parameter in self.fusion.parameters():
                nn.init.zeros_(parameter)
        self.decoder = Decoder(channels, config.decoder_channels)
        self.head = nn.Conv2d(config.decoder_channels[-1], NUM_CLASSES, kernel_size=1)

    def forward(self, images: torch.Tensor, *, reconstruct: bool = True) -> SegmenterOutput:
        """Return logits and, in training, what the VQ-VAE loss needs.

        Parameters
        ----------
        images
            (B, 1, H, W) in [0, 1]; H and W multiples of 32.
        reconstruct
            Whether the input is reconstructed too; inference does not need it.
        """
        features = self.encoder(images)
        fused: torch.Tensor | None = None
        levels: list[Quantized] = []
        if self.vq is not None:
            fused, levels = self.vq(features[_BOTTOM], features[_TOP])
            features[_BOTTOM] = features[_BOTTOM] + self.fusion(fused)
        logits = self.head(self.decoder(features)).float()  # at stride 2
        logits = functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        reconstruction = (
            self.vq.reconstruct(fused) if self.vq is not None and fused is not None and reconstruct else None
        )
        return SegmenterOutput(logits, reconstruction, levels)


def build_encoder(config: ModelConfig) -> EfficientNetLite0Encoder | ResNetEncoder:
    """Return the encoder that the settings name, with random weights; calling ``load_imagenet`` is up to the caller."""
    if config.encoder == "efficientnet-lite0":
        return EfficientNetLite0Encoder()
    return ResNetEncoder(config.encoder, imagenet=config.imagenet, width=config.encoder_width)


class Decoder(nn.Module):
    """Up-samples from stride 32 to 2, joining the encoder's features on the way.

    Parameters
    ----------
    encoder_channels
        Channels of the features at strides 2, 4, 8, 16, 32.
    decoder_channels
        Channels at strides 16, 8, 4, 2.
    """

    def __init__(self, encoder_channels: tuple[int, ...], decoder_channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        below = encoder_channels[4]
        for skip, width in zip(reversed(encoder_channels[:4]), decoder_channels, strict=True):
            self.blocks.append(nn.Sequential(ConvNormReLU(below + skip, width), ConvNormReLU(width, width)))
            below = width

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Return (B, decoder_channels[3], H/2, W/2)."""
        x = features[4]
        for skip, block in zip(reversed(features[:4]), self.blocks, strict=True):
            x = functional.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        return x
