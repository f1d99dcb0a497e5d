"""The VQ-VAE branch ("VVM"): two levels of codes from one shared codebook, reconstruction, and fused latent maps.

Layout as in VQ-VAE-2 (Razavi et al. 2019), which the paper follows: the top level comes from the end of the encoder
(stride 32: shape), the bottom level from stride 8 given the top level (texture). The paper puts the branch at "the
intermediate layer" (3.1) and at "the endpoint of the encoder" (3.2); two levels need both places.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from cohortseg.losses import codebook_loss, commitment_loss
from cohortseg.models.blocks import ConvNormReLU, norm

ALIVE_SHARE: Final = 0.1
"""A code is alive while its share of use is at least this fraction of an equal share."""
_USAGE_DECAY: Final = 0.99
"""Decay of the running use of each code, per batch."""


class VectorQuantizer(nn.Module):
    """The codebook: replaces each latent vector by its nearest code, equation (1), with a straight-through gradient.

    Parameters
    ----------
    size
        Number of codes K.
    dim
        Length of a code.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(size, dim))
        self.usage: torch.Tensor
        self.register_buffer("usage", torch.zeros(size))

    def forward(self, latents: torch.Tensor) -> "Quantized":
        """Quantise (B, dim, h, w); computed in float32 whatever autocast says, since distances cancel."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            flat = latents.permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, dim)
            indices = nearest_code(flat, self.codes)
            codes = functional.embedding(indices, self.codes)
            codes = codes.view(latents.shape[0], *latents.shape[2:], -1).permute(0, 3, 1, 2)
            return Quantized(
                values=latents + (codes - latents).detach(),
                indices=indices.view(latents.shape[0], *latents.shape[2:]),
                latents=latents,
                codebook_loss=codebook_loss(latents, codes),
                commitment_loss=commitment_loss(latents, codes),
            )


class Quantized(NamedTuple):
    """A level's latent map after quantisation."""

    values: torch.Tensor
    """(B, dim, h, w): codes, with the gradient of the latents."""
    indices: torch.Tensor
    """(B, h, w) int64: which code."""
    latents: torch.Tensor
    """(B, dim, h, w): E(x), before quantisation."""
    codebook_loss: torch.Tensor
    """Second term of equation (2)."""
    commitment_loss: torch.Tensor
    """Third term of equation (2), without beta."""


def nearest_code(latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest code of each vector, equation (1): argmin_j ||E(x) - e_j||.

    Parameters
    ----------
    latents
        (N, dim).
    codes
        (K, dim).

    Returns
    -------
    torch.Tensor
        (N,) int64.
    """
    distances = (
        codes.square().sum(dim=1) - 2 * latents.detach() @ codes.detach().t()
    )  # + ||E(x)||^2, the same for all j
    return distances.argmin(dim=1)


class VQBranch(nn.Module):
    """Latent maps of two levels, their fusion, and the reconstruction of the input.

    Parameters
    ----------
    bottom_channels, top_channels
        Channels of the encoder's features at strides 8 and 32.
    codebook_size, code_dim
        Number and length of the codes in the codebook that both levels share.
    """

    def __init__(self, bottom_channels: int, top_channels: int, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.quantizer = VectorQuantizer(codebook_size, code_dim)
        self.top = nn.Sequential(nn.Conv2d(top_channels, code_dim, 1), norm(code_dim))
        self.bottom = nn.Sequential(nn.Conv2d(bottom_channels + code_dim, code_dim, 1), norm(code_dim))
        self.out_channels = 2 * code_dim
        self.decoder = nn.ModuleList(
            [
                ConvNormReLU(self.out_channels, 64),
                ConvNormReLU(64, 16),
                nn.Conv2d(16, 1, 3, padding=1),
            ]
        )

    def forward(
        self, bottom_features: torch.Tensor, top_features: torch.Tensor
    ) -> tuple[torch.Tensor, list[Quantized]]:
        """Return the fused latent map (B, 2 dim, H/8, W/8) and both levels, top first."""
        top = self.quantizer(self.top(top_features))
        top_values = functional.interpolate(top.values, size=bottom_features.shape[-2:], mode="nearest")
        bottom = self.quantizer(self.bottom(torch.cat([bottom_features, top_values.to(bottom_features.dtype)], dim=1)))
        return torch.cat([top_values, bottom.values], dim=1), [top, bottom]

    def reconstruct(self, fused: torch.Tensor) -> torch.Tensor:
        """Return D(e), the reconstructed input: (B, 1, H, W) in [0, 1].

        Computed up to stride 2, like the logits, and up-sampled from there: codes at stride 8 hold nothing finer, and
        layers at full size would make the branch a quarter of a training step.
        """
        x = fused
        for layer in list(self.decoder)[:-1]:
            x = functional.interpolate(layer(x), scale_factor=2, mode="bilinear", align_corners=False)
        x = torch.sigmoid(self.decoder[-1](x).float())
        return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@torch.no_grad()
def revive_codes(quantizer: VectorQuantizer, latents: torch.Tensor, generator: torch.Generator, minimum: float) -> int:
    """Replace codes that are no longer used by latent vectors of the present batch.

    Without it most of a codebook trained by gradient alone dies early (van den Oord et al. 2017 discuss it; the paper
    does not say what it did).

    Parameters
    ----------
    quantizer
        Changed in place; its ``usage`` starts anew for revived codes.
    latents
        (N, dim) vectors to choose from.
    generator
        Decides which; on the device of ``latents``.
    minimum
        Codes whose running share of use is below ``minimum / K`` are replaced.

    Returns
    -------
    int
        How many were replaced.
    """
    usage = quantizer.usage
    dead = usage / usage.sum().clamp_min(1e-12) < minimum / len(usage)
    count = int(dead.sum())
    if count:
        chosen = torch.randint(len(latents), (count,), generator=generator, device=latents.device)
        quantizer.codes[dead] = latents[chosen]
        usage[dead] = usage.mean()
    return count


@torch.no_grad()
def update_usage(quantizer: VectorQuantizer, counts: torch.Tensor) -> None:
    """Add the counts of one batch, (K,) over all ranks, to the running use of each code."""
    quantizer.usage.mul_(_USAGE_DECAY).add_(counts, alpha=1 - _USAGE_DECAY)


def code_counts(levels: Sequence[Quantized], size: int) -> torch.Tensor:
    """Return how often each slice uses each of ``size`` codes: (B, levels, size) int64, levels in the order given."""
    counts = []
    for level in levels:
        indices = level.indices.flatten(1)
        counts.append(indices.new_zeros(len(indices), size).scatter_add_(1, indices, torch.ones_like(indices)))
    return torch.stack(counts, dim=1)


def codebook_use(usage: torch.Tensor) -> tuple[int, float]:
    """Return how many codes are alive, and the perplexity of their use: 1 for one code, K for equal use of all.

    Parameters
    ----------
    usage
        (K,) counts, running or of one batch.
    """
    share = usage / usage.sum().clamp_min(1e-12)
    alive = int((share >= ALIVE_SHARE / len(share)).sum())
    return alive, float(torch.exp(-torch.xlogy(share, share).sum()))
