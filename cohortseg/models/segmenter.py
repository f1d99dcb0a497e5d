"""The segmentation network S: residual encoder, VQ-VAE branch fused back into a smaller decoder."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from cohortseg.config import ModelConfig
from cohortseg.labels import NUM_CLASSES
from cohortseg.models.backbone import ConvNormReLU, ResNetEncoder
from cohortseg.models.efficientnet import EfficientNetLite0Encoder
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
        self.encoder = _build_encoder(config)
        channels = self.encoder.out_channels
        self.vq = (
            VQBranch(channels[_BOTTOM], channels[_TOP], config.codebook_size, config.code_dim)
            if config.vq_branch
            else None
        )
        fused = self.vq.out_channels if self.vq is not None else 0
        self.decoder = Decoder(channels, config.decoder_channels, fused)
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
        logits = self.head(self.decoder(features, fused)).float()  # at stride 2
        logits = functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        reconstruction = (
            self.vq.reconstruct(fused) if self.vq is not None and fused is not None and reconstruct else None
        )
        return SegmenterOutput(logits, reconstruction, levels)


def _build_encoder(config: ModelConfig) -> EfficientNetLite0Encoder | ResNetEncoder:
    if config.encoder == "efficientnet-lite0":
        return EfficientNetLite0Encoder()
    return ResNetEncoder(config.encoder)


class Decoder(nn.Module):
    """Up-samples from stride 32 to 2, joining the encoder's features on the way and the latent maps at stride 8.

    Parameters
    ----------
    encoder_channels
        Of the features at strides 2, 4, 8, 16, 32.
    decoder_channels
        At strides 16, 8, 4, 2.
    latent_channels
        Of the fused latent map at stride 8; 0: none.
    """

    def __init__(
        self, encoder_channels: tuple[int, ...], decoder_channels: tuple[int, int, int, int], latent_channels: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        below = encoder_channels[4]
        for step, (skip, width) in enumerate(zip(reversed(encoder_channels[:4]), decoder_channels, strict=True)):
            latent = latent_channels if step == 1 else 0
            self.blocks.append(nn.Sequential(ConvNormReLU(below + skip + latent, width), ConvNormReLU(width, width)))
            below = width

    def forward(self, features: list[torch.Tensor], latent: torch.Tensor | None) -> torch.Tensor:
        """Return (B, decoder_channels[3], H/2, W/2)."""
        x = features[4]
        for step, block in enumerate(self.blocks):
            skip = features[3 - step]
            parts = [functional.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False), skip]
            if step == 1 and latent is not None:
                parts.append(latent.to(skip.dtype))
            x = block(torch.cat(parts, dim=1))
        return x
