"""Residual encoder (He et al. 2016) with group normalisation, for one-channel slices."""

from itertools import pairwise
from typing import Final

import torch
from torch import nn
from torch.nn import functional

_NORM_GROUPS = 8
STRIDES: Final = (2, 4, 8, 16, 32)
"""Strides of the feature maps that an encoder returns."""


def norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation: unlike batch normalisation it is the same for every batch size, rank and mode."""
    return nn.GroupNorm(min(_NORM_GROUPS, channels), channels)


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps H and W but for its stride; the normalisation that follows has the bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class ConvNormReLU(nn.Sequential):
    """Convolution, normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__(
            conv(in_channels, out_channels, kernel_size, stride), norm(out_channels), nn.ReLU(inplace=True)
        )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: the block of ResNet-18 and ResNet-34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNormReLU(in_channels, channels, stride=stride), conv(channels, channels), norm(channels)
        )
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out, H / stride, W / stride)."""
        return functional.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions and a shortcut: the block of ResNet-50."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.body = nn.Sequential(
            ConvNormReLU(in_channels, channels, kernel_size=1),
            ConvNormReLU(channels, channels, stride=stride),
            conv(channels, out_channels, kernel_size=1),
            norm(out_channels),
        )
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out, H / stride, W / stride)."""
        return functional.relu(self.body(x) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv(in_channels, out_channels, kernel_size=1, stride=stride), norm(out_channels))


_DEPTHS: Final[dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNetEncoder(nn.Module):
    """Slices in, feature maps at strides 2, 4, 8, 16 and 32 out.

    Parameters
    ----------
    name
        ``resnet18``, ``resnet34`` or ``resnet50``.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        block, depths = _DEPTHS[name]
        widths = (64, 128, 256, 512)
        outputs = [block.expansion * width for width in widths]
        self.stem = ConvNormReLU(1, 64, kernel_size=7, stride=2)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        for stage, ((in_channels, out_channels), depth) in enumerate(
            zip(pairwise([64, *outputs]), depths, strict=True)
        ):
            first = block(in_channels, widths[stage], stride=1 if stage == 0 else 2)
            rest = [block(out_channels, widths[stage], stride=1) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(first, *rest))
        self.out_channels: tuple[int, ...] = (64, *outputs)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return five feature maps.

        Parameters
        ----------
        images
            (B, 1, H, W) in [0, 1]; H and W multiples of 32.
        """
        features = [self.stem(images)]  # (B, 64, H/2, W/2)
        x = self.pool(features[0])
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
