"""The loss curves of a run as a picture."""

from collections.abc import Sequence
from typing import Any, Final

from matplotlib.figure import Figure

from cohortseg.pages import figure_png, own_style

_PANELS: Final = (
    ("segmenter, labelled", ("ce", "dice", "opacity_dice", "proportion")),
    ("segmenter, unlabelled", ("semi", "proportion_unlabeled", "adversarial")),
    ("discriminator", ("discriminator", "confidence_truth", "confidence_predicted", "trusted")),
    ("VQ-VAE", ("vq",)),
    ("codebook", ("codes_alive", "perplexity")),
    ("speed", ("images_per_s",)),
)


@own_style()
def curves_png(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the losses of both phases as a picture encoded as PNG; ``rows`` is a history with at least one line."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    boundary = max((row["iteration"] for row in rows if row["phase"] == 1), default=None)
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, _PANELS, strict=True):
        for name in names:
            points = [(row["iteration"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1.2)
        if boundary is not None and boundary < rows[-1]["iteration"]:
            axes.axvline(boundary, color="0.6", linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="iteration", xlim=(0, rows[-1]["total_iterations"]))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure_png(figure)
