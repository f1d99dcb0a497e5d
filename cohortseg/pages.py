"""One self-contained HTML page: headings, tables and pictures in one file, no script, links within the page only."""

import base64
import html
import io
import threading
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

_FIGURE_DPI: Final = 110
_JPEG_SIZE: Final = (1320, 13200)
own_style: Final = partial(style.context, "default")
"""Decorator of functions that draw: with matplotlib's defaults, whatever a ``matplotlibrc`` says."""
_opening: Final = threading.Lock()
_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd }
td { text-align: right; white-space: nowrap } th { text-align: right; background: #f4f4f4 }
td.text, th.text { text-align: left; white-space: normal } img { max-width: 100% } .bad { color: #a02020 }
@page { size: landscape; margin: 1cm } @media print {
body { font-size: 8pt; margin: 0; max-width: none; padding: 0 } td, th { padding: .15rem .35rem }
td.text:last-child { overflow-wrap: anywhere } h2, h3 { break-after: avoid } img, tr { break-inside: avoid } }
"""


class Link(NamedTuple):
    """A table cell that leads to another part of the page."""

    text: str
    target: str
    """The ``id`` of an element."""


def page_html(title: str, parts: Iterable[str]) -> str:
    """Return a whole page; the parts are HTML, the title is plain text and also the heading."""
    body = "\n".join(parts)
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{name}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def table_html(header: Sequence[str], rows: Iterable[Sequence[str | Link]], num_text: int = 0) -> str:
    """Return a table whose last ``num_text`` columns are aligned as text; cells are plain text or links, not HTML."""

    def line(cells: Sequence[str | Link], tag: str) -> str:
        classes = [""] * (len(cells) - num_text) + [' class="text"'] * num_text
        return "".join(f"<{tag}{c}>{_cell_html(cell)}</{tag}>" for cell, c in zip(cells, classes, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table>\n<tr>{line(header, 'th')}</tr>\n{body}\n</table>"


def _cell_html(cell: str | Link) -> str:
    if isinstance(cell, Link):
        return f'<a href="#{html.escape(cell.target)}">{html.escape(cell.text)}</a>'
    return html.escape(cell)


def image_html(content: bytes, text: str, kind: str = "png") -> str:
    """Return an encoded picture as an HTML element, with its alternative text."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return f'<img alt="{html.escape(text)}" src="{source}">'


def number_text(value: float | None, digits: int = 1) -> str:
    """Return a number as text: integers as they are, a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    return str(value) if isinstance(value, int) else f"{value:z.{digits}f}"


def figure_png(figure: Figure) -> bytes:
    """Return a figure encoded as PNG; figures are made without pyplot, whose global state has no place in a library."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_FIGURE_DPI)
    return buffer.getvalue()


def smaller_jpeg(png: bytes) -> bytes:
    """Return a picture as JPEG, at most 1320 pixels wide: small enough to put dozens into one page."""
    buffer = io.BytesIO()
    with _open(png) as image:
        image.thumbnail(_JPEG_SIZE, Image.Resampling.BILINEAR)
        image.convert("RGB").save(buffer, format="JPEG", quality=82)
    return buffer.getvalue()


def _open(png: bytes) -> Image.Image:
    with _opening, warnings.catch_warnings():  # whose filters hold for all threads
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is ours, however large
        return Image.open(io.BytesIO(png))
