"""Residual encoder (He et al. 2016) for one-channel slices: from scratch, or with ImageNet weights."""

from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from cohortseg.errors import ModelError
from cohortseg.models.blocks import ConvNormReLU, FrozenBatchNorm2d, Norm, conv, norm
from cohortseg.models.resnet_weights import find_imagenet, read_resnet

_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: the block of ResNet-18 and ResNet-34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNormReLU(in_channels, channels, stride=stride, norm=norm), conv(channels, channels), norm(channels)
        )
        self.shortcut = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out, H / stride, W / stride)."""
        return functional.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions and a shortcut: the block of ResNet-50."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.body = nn.Sequential(
            ConvNormReLU(in_channels, channels, kernel_size=1, norm=norm),
            ConvNormReLU(channels, channels, stride=stride, norm=norm),
            conv(channels, out_channels, kernel_size=1),
            norm(out_channels),
        )
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out, H / stride, W / stride)."""
        return functional.relu(self.body(x) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Module:
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
    imagenet
        Whether it is to hold ImageNet weights: three input channels and frozen batch normalisation, as torchvision's;
        otherwise one channel and group normalisation. `load_imagenet` loads the weights themselves.
    width
        Channels of the first stage, doubled by each of the others; ImageNet's are 64.
    """

    def __init__(self, name: str, *, imagenet: bool, width: int = 64) -> None:
        super().__init__()
        self._name, self._imagenet = name, imagenet
        chosen_norm: Norm = FrozenBatchNorm2d if imagenet else norm
        block, depths = _DEPTHS[name]
        widths = (width, 2 * width, 4 * width, 8 * width)
        outputs = [block.expansion * channels for channels in widths]
        self.stem = ConvNormReLU(3 if imagenet else 1, width, kernel_size=7, stride=2, norm=chosen_norm)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        for stage, ((in_channels, out_channels), depth) in enumerate(
            zip(pairwise([width, *outputs]), depths, strict=True)
        ):
            first = block(in_channels, widths[stage], stride=1 if stage == 0 else 2, norm=chosen_norm)
            rest = [block(out_channels, widths[stage], stride=1, norm=chosen_norm) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(first, *rest))
        self.out_channels: tuple[int, ...] = (width, *outputs)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return five feature maps.

        Parameters
        ----------
        images
            (B, 1, H, W) in [0, 1]; H and W multiples of 32.
        """
        features = [self.stem(_as_on_imagenet(images) if self._imagenet else images)]  # (B, width, H/2, W/2)
        x = self.pool(features[0])
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def load_imagenet(self, path: Path | None = None) -> None:
        """Start from ImageNet weights.

        Parameters
        ----------
        path
            A file in torchvision's layout; None: torchvision's own, fetched once.

        Raises
        ------
        ModelError
            If the file is missing and cannot be fetched, damaged, or not of this encoder.
        """
        path = find_imagenet(self._name, path)
        try:
            self.load_state_dict(read_resnet(path))
        except RuntimeError as error:
            raise ModelError(f"{path}: not the weights of a {self._name}: {error}") from error


def _as_on_imagenet(images: torch.Tensor) -> torch.Tensor:
    """Return slices (B, 1, H, W) in [0, 1] as three equal channels, normalised like the photographs of ImageNet."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (images - mean) / std
