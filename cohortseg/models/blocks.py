"""Building blocks of several networks: convolutions and normalisations."""

from collections.abc import Callable
from typing import Self

from torch import nn

from cohortseg.config import NORM_GROUPS

Norm = Callable[[int], nn.Module]
"""Makes a normalisation layer for a number of channels."""


def norm(channels: int) -> nn.GroupNorm:
    """Return group normalisation: unlike batch normalisation it is the same for every batch size, rank and mode."""
    return nn.GroupNorm(min(NORM_GROUPS, channels), channels)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that keeps its ImageNet statistics in training too; only scale and offset learn.

    The statistics never change, so that workers agree.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(mode=False)


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps H and W up to its stride; the normalisation that follows has the bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class ConvNormReLU(nn.Sequential):
    """Convolution, normalisation, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, norm: Norm = norm
    ) -> None:
        super().__init__(
            conv(in_channels, out_channels, kernel_size, stride), norm(out_channels), nn.ReLU(inplace=True)
        )
