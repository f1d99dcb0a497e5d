"""The page that a run writes about itself as it goes: losses, overlays, the paper's figure 4, codebook."""

import time
from pathlib import Path
from typing import Any, Final

import torch

from cohortseg.datasets.prepared import PreparedData
from cohortseg.labels import LESIONS
from cohortseg.overlays import png_bytes
from cohortseg.pages import image_html, number_text, page_html, smaller_jpeg, table_html
from cohortseg.store.files import store_errors, write_file
from cohortseg.store.layout import PAGE, PICTURES
from cohortseg.train.curves import curves_png
from cohortseg.train.history import read_history
from cohortseg.train.pictures import draw_codebook, draw_labeled, draw_unlabeled, evenly_spread
from cohortseg.train.state import TrainState

CURVES: Final = "curves.png"

_NUM_SLICES: Final = 4
_MOST_TIME: Final = 0.02
"""Fraction of the training time that drawing may take."""
_POSITION: Final = ("iteration", "total_iterations", "phase")


class RunPage:
    """Draws the page and its pictures; only one worker has one.

    Parameters
    ----------
    run
        The run's folder.
    data
        Four labelled slices, if possible with both classes, and four unlabelled ones are shown, always the same.
    device
        Device of the networks.
    """

    def __init__(self, run: Path, data: PreparedData, device: torch.device) -> None:
        both = torch.stack([(data.labels == label.value).flatten(1).any(dim=1) for label in LESIONS]).all(dim=0)
        candidates = both.nonzero()[:, 0] if both.any() else torch.arange(len(data.labels))
        chosen = candidates[evenly_spread(_NUM_SLICES, len(candidates))]
        self._labeled, self._labels = data.labeled[chosen].float().to(device), data.labels[chosen]
        shown = evenly_spread(_NUM_SLICES, len(data.unlabeled))
        self._unlabeled = data.unlabeled[shown].float().to(device)
        self._pseudo_labels = data.pseudo_labels[shown] if len(data.pseudo_labels) else None
        self._run = run
        self._started = time.perf_counter()
        self._spent_s = 0.0

    def renew(self, state: TrainState, *, bf16: bool) -> None:
        """Draw the page again, unless drawing has taken more than 2 % of the time so far."""
        start = time.perf_counter()
        if self._spent_s <= _MOST_TIME * (start - self._started):
            self.draw(state, bf16=bf16)
            self._spent_s += time.perf_counter() - start

    def draw(self, state: TrainState, *, bf16: bool) -> None:
        """Draw the page: ``page.html``, and its pictures as ``pictures/*.png`` and ``curves.png``."""
        with store_errors(self._run / PICTURES, "cannot be made"):
            (self._run / PICTURES).mkdir(exist_ok=True)
        pictures = {"labeled": png_bytes(draw_labeled(state, self._labeled, self._labels, bf16=bf16))}
        if len(self._unlabeled):
            pictures["unlabeled"] = png_bytes(
                draw_unlabeled(state, self._unlabeled, bf16=bf16, pseudo_labels=self._pseudo_labels)
            )
        if state.segmenter.vq is not None:
            pictures["codebook"] = draw_codebook(state, torch.cat([self._labeled, self._unlabeled]), bf16=bf16)
        for name, content in pictures.items():
            write_file(self._run / PICTURES / f"{name}.png", content)
        rows = read_history(self._run)
        if rows:
            pictures["curves"] = curves_png(rows)
            write_file(self._run / CURVES, pictures["curves"])
        write_file(self._run / PAGE, _html(state, pictures, rows).encode())


_FIGURES: Final = {
    "curves": ("Losses", "The dotted line is the end of phase 1."),
    "labeled": (
        "Labelled slices",
        "Ground-glass opacity red, consolidation green, by the model as it would be written now. It learns from these "
        "very slices: how good it is on new ones is what cohortseg evaluate measures.",
    ),
    "unlabeled": (
        "Unlabelled slices",
        "By the networks as they learn, without averaged weights or class offsets. Confidence is the discriminator's "
        "probability that a pixel is ground truth, dark 0, bright 1. A student learns from the labels of its teachers. "
        "In a refined pseudo label gray pixels are below the threshold and teach nothing.",
    ),
    "codebook": (
        "Codebook",
        "How often each code is used: over the latest iterations, and by the slices above. Dotted: all alike.",
    ),
}


def _html(state: TrainState, pictures: dict[str, bytes], rows: list[dict[str, Any]]) -> str:
    title = f"Training, phase {state.phase}: iteration {state.iteration} of {state.total_iterations}"
    parts = [f"<p>Recipe {state.config.preset}, encoder {state.config.model.encoder}, seed {state.config.seed}.</p>"]
    for name, (heading, text) in _FIGURES.items():
        if name in pictures:
            picture = image_html(smaller_jpeg(pictures[name]), heading, "jpeg")
            parts.append(f"<h2>{heading}</h2><p>{text}</p>{picture}")
    if rows:
        first = {name: value for row in reversed(rows) for name, value in row.items()}
        losses = ([number_text(first[name], 4), number_text(value, 4), name] for name, value in rows[-1].items()
                  if name not in _POSITION)  # fmt: skip
        parts += ["<h2>Numbers</h2>", table_html(("first", "now", "what"), losses, num_text=1)]
    return page_html(title, parts)
