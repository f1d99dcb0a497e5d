"""Labels drawn over CT, alike everywhere: GGO red, consolidation green, lungs outlined. Arrays in, pictures out."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cohortseg.config import CanonicalConfig
from cohortseg.labels import LESIONS, is_opacity
from cohortseg.volume import bounding_box

WINDOW_HU: Final = CanonicalConfig.window_hu
"""HU shown as black and white: a lung window."""
OPACITY: Final = 0.45
"""Weight of a lesion's colour against the CT below it."""
OUTLINE_RGB: Final = (70, 160, 255)
"""Colour of the lungs' outline."""

MOST_SLICES: Final = 12
"""Slices in an overview."""
_CROSS: Final = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_MARGIN: Final = 0.08
_TILE_HEIGHT: Final = 240
_FEW_TILE_HEIGHT: Final = 440
_GAP: Final = 6
_PAIRS_A_ROW: Final = 3
_TEXT_HEIGHT: Final = 20
_CAPTION_SIZE: Final = 13
_INK: Final = (235, 235, 235)
_PAPER: Final = (16, 16, 16)


class Compared(NamedTuple):
    """One slice with its true and its predicted labels."""

    slice_hu: NDArray[np.int16]
    """(H, W) HU, upright."""
    truth: NDArray[np.uint8]
    """(H, W) label map, upright: 0, 1, 2."""
    predicted: NDArray[np.uint8]
    """(H, W) label map, upright: 0, 1, 2."""


def gray_slice(slice_hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return a slice (Y, X) in HU as gray values (Y, X) uint8 in the lung window."""
    low, high = WINDOW_HU
    scaled = (slice_hu.astype(np.float32) - low) / (high - low)
    gray: NDArray[np.uint8] = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return gray


def overlay_slice(
    slice_hu: NDArray[np.int16], labels: NDArray[np.uint8], lungs: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return one slice with its labels in colour.

    Parameters
    ----------
    slice_hu : (Y, X) HU
        The CT.
    labels : (Y, X) uint8
        0 background, 1 ground-glass opacity, 2 consolidation.
    lungs : (Y, X) uint8, or None
        Anything above 0 is lung; its outline, one pixel wide, lies just inside. None: no outline.

    Returns
    -------
    (Y, X, 3) uint8
        RGB. Pixels with neither label nor outline are the gray values of `gray_slice`.
    """
    rgb = np.repeat(gray_slice(slice_hu)[..., None], 3, axis=2)
    for label in LESIONS:
        where = labels == label.value
        colour = np.asarray(label.rgb, np.float32)
        rgb[where] = np.rint((1 - OPACITY) * rgb[where] + OPACITY * colour).astype(np.uint8)
    if lungs is not None:
        for value in np.unique(lungs[lungs > 0]):
            lung = lungs == value
            inner = cv2.erode(lung.astype(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
            rgb[lung & (inner == 0)] = OUTLINE_RGB
    return rgb


def overview_slices(labels: NDArray[np.uint8], lungs: NDArray[np.uint8], most: int) -> list[int]:
    """Return which slices an overview shows, from head to feet.

    Parameters
    ----------
    labels, lungs : (Z, Y, X) uint8
        As in `overlay_slice`.
    most
        Most slices to show, evenly spread over those with lung; the one with the most lesion is always among them.
    """
    with_lung = np.flatnonzero(lungs.any(axis=(1, 2)))
    if not len(with_lung):
        return []
    places = np.linspace(0, len(with_lung) - 1, min(most, len(with_lung))).round().astype(int)
    chosen = with_lung[places]
    lesion = is_opacity(labels).sum(axis=(1, 2))
    if lesion.any():
        fullest = int(lesion.argmax())
        chosen[np.abs(chosen - fullest).argmin()] = fullest
    return [int(z) for z in chosen[::-1]]


def overview(
    volume_hu: NDArray[np.int16],
    labels: NDArray[np.uint8],
    lungs: NDArray[np.uint8],
    *,
    pixel_spacing_mm: tuple[float, float],
    caption: Sequence[str],
) -> Image.Image:
    """Return a picture of a series: up to 12 slices from head to feet, each as plain CT and again with its labels.

    Parameters
    ----------
    volume_hu : (Z, Y, X) HU
        Upright: row 0 anterior, column 0 the patient's right.
    labels, lungs : (Z, Y, X) uint8
        As in `overlay_slice`.
    pixel_spacing_mm : mm
        Between rows, between columns: pictures have square pixels.
    caption
        Lines above the slices; they must name no patient.
    """
    window = _lung_window(lungs)
    chosen = overview_slices(labels, lungs, MOST_SLICES)
    height = _FEW_TILE_HEIGHT if len(chosen) == 1 else _TILE_HEIGHT
    pairs = []
    for z in chosen:
        at = (z, *window)
        sides = (
            np.repeat(gray_slice(volume_hu[at])[..., None], 3, axis=2),
            overlay_slice(volume_hu[at], labels[at], lungs[at]),
        )
        pairs.append((z, [_tile(side, pixel_spacing_mm, height) for side in sides]))
    return _sheet(pairs, height, caption)


def compared(cases: Sequence[Compared]) -> Image.Image:
    """Return a picture with a row per case: the CT, the CT with the truth, and the CT with the prediction."""
    rows = [compared_tiles(case) for case in cases]
    return contact_sheet([list(row.values()) for row in rows], list(rows[0]))


def compared_tiles(case: Compared) -> dict[str, NDArray[np.uint8]]:
    """Return a row of `compared`: captions and their pictures, (Y, X) gray or (Y, X, 3) RGB."""
    return {
        "input": gray_slice(case.slice_hu),
        "truth": overlay_slice(case.slice_hu, case.truth),
        "prediction": overlay_slice(case.slice_hu, case.predicted),
    }


def contact_sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], captions: Sequence[str]) -> Image.Image:
    """Return pictures in rows and columns, each column under its caption; enlarged if a caption is wider.

    Parameters
    ----------
    rows
        As many pictures per row as captions, each (Y, X) gray or (Y, X, 3) RGB, uint8, all of one size.
    captions
        One per column.
    """
    return _contact_sheet(rows, captions, _enlargement(captions, rows[0][0]))


def wrapped_sheet(tiles: Mapping[str, NDArray[np.uint8]], in_a_row: int) -> Image.Image:
    """Return pictures with so many in a row, each under its caption, drawn as by `contact_sheet`."""
    captions = list(tiles)
    factor = _enlargement(captions, tiles[captions[0]])
    rows = [captions[start : start + in_a_row] for start in range(0, len(captions), in_a_row)]
    sheets = [_contact_sheet([[tiles[caption] for caption in row]], row, factor) for row in rows]
    whole = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)), _PAPER)
    for number, sheet in enumerate(sheets):
        whole.paste(sheet, (0, number * sheet.height))
    return whole


def _enlargement(captions: Sequence[str], picture: NDArray[np.uint8]) -> int:
    """Return how many times pictures must be enlarged to be as wide as the captions."""
    font = ImageFont.load_default(_CAPTION_SIZE)
    columns: int = picture.shape[1]
    return math.ceil(max(font.getlength(caption) for caption in captions) / columns)


def _contact_sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], captions: Sequence[str], factor: int) -> Image.Image:
    height, width = (factor * size for size in rows[0][0].shape[:2])
    shape = (len(captions) * (width + _GAP) + _GAP, _TEXT_HEIGHT + len(rows) * (height + _GAP))
    sheet = Image.new("RGB", shape, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_CAPTION_SIZE)
    for column, caption in enumerate(captions):
        x = _GAP + column * (width + _GAP)
        draw.text((x, 2), caption, fill=_INK, font=font)
        for row, pictures in enumerate(rows):
            picture = Image.fromarray(pictures[column]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (x, _TEXT_HEIGHT + row * (height + _GAP)))
    return sheet


def png_bytes(image: Image.Image) -> bytes:
    """Return a picture encoded as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)  # takes half the time of the default, for the same size
    return buffer.getvalue()


def _lung_window(lungs: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return the rows and columns of the lungs in all slices, with a margin; everything where there is no lung."""
    flat: NDArray[np.bool_] = np.asarray(lungs.any(axis=0))
    if not flat.any():
        return slice(None), slice(None)
    rows, columns = (_widened(held) for held in bounding_box(flat))
    return rows, columns


def _widened(held: slice) -> slice:
    border = round(_MARGIN * (held.stop - held.start)) + 2
    return slice(max(held.start - border, 0), held.stop + border)


def _tile(rgb: NDArray[np.uint8], pixel_spacing_mm: tuple[float, float], tile_height: int) -> Image.Image:
    """Return a slice scaled to the height of a row of the sheet, with square pixels."""
    height, width = rgb.shape[0] * pixel_spacing_mm[0], rgb.shape[1] * pixel_spacing_mm[1]
    size = (max(1, round(width * tile_height / height)), tile_height)
    return Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)


def _sheet(pairs: Sequence[tuple[int, list[Image.Image]]], tile_height: int, caption: Sequence[str]) -> Image.Image:
    """Return the pairs in rows, each with its slice number, below the caption."""
    font = ImageFont.load_default(15)
    tile_width = pairs[0][1][0].width if pairs else tile_height
    pair_width = 2 * tile_width + _GAP
    columns = max(1, min(_PAIRS_A_ROW, len(pairs)))
    rows = -(-len(pairs) // columns)
    text_width = max((round(font.getlength(line)) for line in caption), default=0)
    top = _GAP + _TEXT_HEIGHT * len(caption)
    width = max(columns * (pair_width + 2 * _GAP), text_width) + 2 * _GAP
    sheet = Image.new("RGB", (width, top + rows * (tile_height + _TEXT_HEIGHT + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(caption):
        draw.text((2 * _GAP, _GAP + index * _TEXT_HEIGHT), line, fill=_INK, font=font)
    for index, (z, tiles) in enumerate(pairs):
        row, column = divmod(index, columns)
        x = 2 * _GAP + column * (pair_width + 2 * _GAP)
        y = top + row * (tile_height + _TEXT_HEIGHT + _GAP)
        draw.text((x, y), f"slice {z}", fill=_INK, font=font)
        for tile in tiles:
            sheet.paste(tile, (x, y + _TEXT_HEIGHT))
            x += tile_width + _GAP
    return sheet
