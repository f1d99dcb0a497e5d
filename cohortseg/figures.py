"""What the networks make of a slice, drawn alike in training and evaluation: tiles of figure 4, use of the codebook."""

from typing import Final

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cohortseg.config import CanonicalConfig
from cohortseg.labels import LABELS
from cohortseg.losses import IGNORE
from cohortseg.models.vqvae import codebook_use
from cohortseg.pages import figure_png, own_style

Tiles = dict[str, NDArray[np.uint8]]
"""One row of a picture: caption to (Y, X) gray or (Y, X, 3) RGB."""

RECONSTRUCTION: Final = "reconstruction"
CONFIDENCE: Final = "confidence, 0 to 1"
PSEUDO_LABEL: Final = "refined pseudo label"
_UNTRUSTED_RGB: Final = (128, 128, 128)


def hu_from_canonical(image: NDArray[np.float32], config: CanonicalConfig) -> NDArray[np.int16]:
    """Return an image or reconstruction (Y, X) in [0, 1] in HU, the inverse of the canonical window."""
    low, high = config.window_hu
    shown = np.nan_to_num(image)  # a run that diverges must survive this to report it
    slice_hu: NDArray[np.int16] = np.rint(low + (high - low) * shown).astype(np.int16)
    return slice_hu


def confidence_rgb(confidence: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a confidence map (Y, X) in [0, 1] as (Y, X, 3) RGB, dark at 0 and bright at 1."""
    rgb: NDArray[np.uint8] = (255 * mpl.colormaps["viridis"](confidence)[..., :3]).astype(np.uint8)
    return rgb


def pseudo_label_rgb(pseudo: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return a refined pseudo label (Y, X) as (Y, X, 3) RGB: background black, not trusted gray."""
    rgb = np.zeros((*pseudo.shape, 3), np.uint8)
    rgb[pseudo == IGNORE] = _UNTRUSTED_RGB
    for label in LABELS:
        rgb[pseudo == label.value] = label.rgb
    return rgb


@own_style()
def codebook_png(usage: torch.Tensor, counts: torch.Tensor, slices: str) -> bytes:
    """Return the share of each code in training, and in some slices at each level, as PNG.

    Parameters
    ----------
    usage
        (K,) float32, the running use of both levels.
    counts
        (2, K) int64, how often the top and the bottom level of the slices use each code.
    slices
        The slices in words, for the captions.
    """
    size = len(usage)
    alive, perplexity = codebook_use(usage)
    panels = {f"both levels, in training: {alive} of {size} alive, perplexity {perplexity:.1f}": usage}
    for name, level in zip(("top", "bottom"), counts.float(), strict=True):
        used, perplexity = int((level > 0).sum()), codebook_use(level)[1]
        panels[f"{name} level, {slices}: {used} used, perplexity {perplexity:.1f}"] = level
    figure = Figure(figsize=(15, 2.8), layout="constrained")
    for axes, (title, use) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        share = (100 * use / use.sum().clamp_min(1e-12)).sort(descending=True).values.cpu().numpy()
        axes.bar(np.arange(size), share, width=1.0)
        axes.axhline(100 / size, color="0.4", linestyle=":", linewidth=1)
        axes.set(xlabel="code, the most used first", ylabel="share, %", xlim=(-0.5, size - 0.5))
        axes.set_title(title, fontsize="medium")
    return figure_png(figure)
