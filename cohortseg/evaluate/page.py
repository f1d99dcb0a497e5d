"""The page of an evaluation: the numbers, and images beside their truth and their prediction."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import polars as pl

from cohortseg import __version__
from cohortseg.evaluate.tables import OPACITY
from cohortseg.labels import LESIONS
from cohortseg.pages import image_html, number_text, page_html, smaller_jpeg, table_html

_CLASSES: Final = (*(label.name for label in LESIONS), OPACITY)
_METRICS: Final = {
    "class_name": "class",
    "maps": "maps",
    "protocol": "protocol",
    "n_images": "images",
    "dice": "Dice",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "s_measure": "S",
    "e_measure": "E",
    "mae": "MAE",
}
_NUM_TEXTS: Final = 3
_MOST_IMAGES: Final = 200


def evaluation_html(
    title: str,
    model_sha256: str,
    metrics: pl.DataFrame,
    images: pl.DataFrame,
    pictures: Path,
    *,
    notes: Sequence[str] = (),
    codebook: bytes | None = None,
) -> str:
    """Return the page, with the 200 images of the lowest Dice, the lowest first.

    Parameters
    ----------
    title
        Heading: model and split.
    model_sha256
        Of the model's file.
    metrics, images
        Tables ``METRICS`` and ``IMAGES``.
    pictures
        Folder of ``<image>.png``.
    notes
        Paragraphs about the pictures, plain text.
    codebook
        The use of the codebook as PNG; None: the model has no codebook.
    """
    texts, numbers = list(_METRICS)[:_NUM_TEXTS], list(_METRICS)[_NUM_TEXTS:]
    rows = (
        [*(number_text(row[name], 3) for name in numbers), *(row[name] for name in texts)]
        for row in metrics.filter(pl.col("protocol") != "area").iter_rows(named=True)
    )
    return page_html(
        title,
        [
            "<p><strong>Research software, not a medical device.</strong> Ground-glass opacity red, consolidation "
            "green. A dash means not defined. docs/evaluation.md explains the protocols.</p>",
            f"<p>SHA-256 of the model: {model_sha256}; cohortseg {__version__}.</p>",
            table_html([_METRICS[name] for name in (*numbers, *texts)], rows, num_text=_NUM_TEXTS),
            *_codebook(codebook),
            "<h2>Images, the lowest Dice first</h2>",
            "<p>Sorted by the mean Dice of the classes that the truth or the prediction has.</p>",
            *(f"<p>{html.escape(note)}</p>" for note in notes),
            *_figures(images, pictures),
        ],
    )


def _codebook(codebook: bytes | None) -> Iterator[str]:
    if codebook is not None:
        yield "<h2>Use of the codebook</h2>"
        yield "<p>How often each code is used: at the end of training, and by all images. Dotted: all alike.</p>"
        yield image_html(smaller_jpeg(codebook), "use of the codebook", "jpeg")


def _figures(images: pl.DataFrame, pictures: Path) -> Iterator[str]:
    # Images without any lesion, true or predicted, have no Dice and come last.
    dice = pl.col("dice").filter(pl.col("class_name") != OPACITY).mean()
    names = images.group_by("image").agg(dice).sort("dice", "image", nulls_last=True)["image"].to_list()
    shown = images.filter(pl.col("image").is_in(names[:_MOST_IMAGES]))
    by_image = shown.partition_by("image", as_dict=True)
    for name in names[:_MOST_IMAGES]:
        rows = {row["class_name"]: row for row in by_image[(name,)].iter_rows(named=True)}
        facts = "; ".join(
            f"{class_name} Dice {number_text(rows[class_name]['dice'], 3)}, "
            f"area {rows[class_name]['predicted_area_pct']:.1f} % (truth {rows[class_name]['truth_area_pct']:.1f} %)"
            for class_name in _CLASSES
        )
        seen = " <span class='bad'>The model was trained on this image.</span>" if rows[OPACITY]["in_training"] else ""
        picture = image_html(smaller_jpeg((pictures / f"{name}.png").read_bytes()), f"image {name}", "jpeg")
        yield f"<h3>{html.escape(name)}</h3><p>{html.escape(facts)}.{seen}</p>{picture}"
    if len(names) > _MOST_IMAGES:
        yield f"<p>{len(names) - _MOST_IMAGES} more in pictures/.</p>"
