"""The page of a comparison: the table, and what each image gains or loses."""

from typing import Final

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cohortseg.compare.rows import BASELINE, PHASE_1
from cohortseg.compare.tables import paired_gains
from cohortseg.evaluate.tables import TOOLBOX_METRICS
from cohortseg.labels import LESIONS
from cohortseg.pages import figure_png, image_html, number_text, own_style, page_html, table_html

_GAINS: Final = ("dice_gain", "dice_gain_low", "dice_gain_high")


def comparison_html(table: pl.DataFrame, held_out: pl.DataFrame) -> str:
    """Return the page of tables ``COMPARISON`` and ``HELD_OUT``."""
    header = ("images", *TOOLBOX_METRICS, "paired images", "Dice gain", "from", "to", "row", "class")
    rows = (
        [
            str(line["n_images"]),
            *(number_text(line[name], 3) for name in TOOLBOX_METRICS),
            number_text(line["n_paired"], 0),
            *(number_text(line[name], 3) for name in _GAINS),
            line["row"],
            line["class_name"],
        ]
        for line in table.iter_rows(named=True)
    )
    parts = [
        "<p><strong>Research software, not a medical device.</strong> Toolbox protocol on label maps, means over the "
        f"images that the folds hold out. Gain: paired, over the row {BASELINE}, with its 95 % interval (images of one "
        f"scan counted together). Rows that end in {PHASE_1} learned for fewer iterations than {BASELINE}, "
        "student for more. A dash means not defined.</p>",
        table_html(header, rows, num_text=2),
    ]
    others = [row for row in table["row"].unique(maintain_order=True) if row != BASELINE]
    if others and BASELINE in set(table["row"]):
        picture = image_html(_gains_png(table, held_out, others), "Dice gain of each image")
        parts.append(f"<h2>What each image gains over {BASELINE}</h2>{picture}")
    return page_html("Rows of table 2 on the same folds", parts)


@own_style()
def _gains_png(table: pl.DataFrame, held_out: pl.DataFrame, rows: list[str]) -> bytes:
    """Return one panel per class as PNG: a point per image, and above them the mean with its interval."""
    figure = Figure(figsize=(13, 1.5 + 0.6 * len(rows)), layout="constrained")
    for axes, label in zip(figure.subplots(1, len(LESIONS), sharex=True, sharey=True), LESIONS, strict=True):
        for height, row in enumerate(rows):
            gains = paired_gains(held_out, row, label.name)["gain"].to_list()
            axes.plot(gains, [height] * len(gains), "o", color="C0", alpha=0.35, markersize=5)
            _draw_interval(axes, height, table.filter(pl.col("row") == row, pl.col("class_name") == label.name))
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set(title=label.title, xlabel="Dice gain")
    return figure_png(figure)


def _draw_interval(axes: Axes, height: int, line: pl.DataFrame) -> None:
    mean, low, high = line.select(_GAINS).row(0)
    if mean is not None:
        axes.plot([mean], [height - 0.25], "D", color="C3", markersize=6)
    if low is not None:
        axes.plot([low, high], [height - 0.25] * 2, color="C3")
