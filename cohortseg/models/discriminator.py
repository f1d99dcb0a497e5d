"""The discriminator D: fully convolutional, class probabilities in, confidence that a pixel is ground truth out."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from cohortseg.labels import NUM_CLASSES


class Discriminator(nn.Module):
    """Four strided convolutions with leaky ReLU and a classifier, as in Hung et al. 2018, without normalisation.

    Parameters
    ----------
    channels
        Channels of the first layer; the second has twice, the third and fourth four times as many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (NUM_CLASSES, channels, 2 * channels, 4 * channels, 4 * channels)
        layers: list[nn.Module] = []
        for below, width in pairwise(widths):
            layers += [nn.Conv2d(below, width, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1))

    def forward(self, prob: torch.Tensor) -> torch.Tensor:
        """Return logits of the confidence map, of the same height and width.

        Parameters
        ----------
        prob
            (B, classes, H, W) class probabilities, or ground truth made as soft as they are (`losses.softened_truth`).

        Returns
        -------
        torch.Tensor
            (B, 1, H, W) float32; their sigmoid is the probability that a pixel comes from the ground truth.
        """
        logits = self.layers(prob).float()
        return functional.interpolate(logits, size=prob.shape[-2:], mode="bilinear", align_corners=False)
