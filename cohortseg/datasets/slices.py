"""Single slices with or without labels, brought to the canonical form: 8-bit images, and DICOM series with masks."""

import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from cohortseg.config import CanonicalConfig
from cohortseg.datasets.label_volumes import read_label_volume
from cohortseg.dicom.decode import read_volume
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import DataError
from cohortseg.hashes import file_sha256
from cohortseg.labels import NUM_CLASSES
from cohortseg.lungs import segment_lungs
from cohortseg.preprocess import (
    UPRIGHT,
    CropBox,
    Orientation,
    canonical_batch,
    canonical_labels,
    hu_from_image,
    lung_boxes,
    orientation_from_affine,
    restore,
    whole_hu,
    within_black_frame,
)
from cohortseg.volume import HU_MIN, Volume

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png"})
"""Endings of 8-bit images."""

_log = logging.getLogger(__name__)
_IMAGE_SPACING_MM = (None, 0.75, 0.75)
"""Assumed for 8-bit images, which have no spacing; only the lung segmentation's filter sizes depend on it."""
_MAX_PIXELS = 4096 * 4096
_MIN_SIDE = 8
_CHROMA = 40
"""Channels that differ by more are a colour; JPEG makes gray slightly coloured."""
_COLOURED = 0.005
"""Most coloured pixels that a gray image may have, as a fraction."""
_EXIF_ERRORS = (struct.error, OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image with this Orientation (EXIF 0x0112) to the way it is shown. `PIL.ImageOps.exif_transpose` fails
where another tag cannot be written again."""
_LOST_SHARE = 0.1
"""Larger parts of the labelled lesions outside the crop are told of; outlines reach a little beyond the lungs."""
_OLD_CODES = {38: 1, 75: 2}
"""Label codes of older archives of COVID-SemiSeg."""
_CODE_CHANNEL = 128
"""Channel value of the dark red and dark green whose gray values these codes are."""


@dataclass(frozen=True, kw_only=True)
class ImageSlice:
    """An 8-bit image file, with its label map if it has one."""

    name: str
    """File name without its ending."""
    image_path: Path
    mask_path: Path | None = None
    orientation: Orientation = UPRIGHT
    """Orientation of the stored image."""


@dataclass(frozen=True, kw_only=True)
class DicomSlices:
    """One axial DICOM series, with a label map for each slice, one for all of them, or none."""

    record: SeriesRecord
    root: Path
    """Folder that the record's files are relative to."""
    mask_paths: tuple[Path, ...] | None = None
    """PNG files, in slice order."""
    label_volume: Path | None = None
    """In place of these: a NIfTI file."""


@dataclass(frozen=True, kw_only=True)
class CanonicalSlice:
    """A network input, and the way back to its image."""

    name: str
    image: torch.Tensor
    """(1, size, size) float32 in [0, 1]."""
    labels: NDArray[np.uint8] | None
    """(size, size): 0, 1, 2; None without a label map."""
    box: CropBox
    orientation: Orientation
    upright_shape: tuple[int, int]
    sha256: str
    """Of the image file."""
    lungs_found: bool
    """False: no lung was recognised, so that the whole frame is the crop."""

    def restore(self, prob: torch.Tensor) -> NDArray[np.float32]:
        """Return (C, size, size) probabilities as (C, H, W) on the image's own grid and in its own orientation."""
        upright = restore(prob, self.box, self.upright_shape).numpy()
        return np.ascontiguousarray(self.orientation.from_upright(upright), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class SourceSlice:
    """A slice on its own grid, and the network input made from it."""

    name: str
    """For an image, its file name without the ending; for a slice of a series, the series key and the slice's index."""
    file: str
    """Path of its file, relative to the folder of the images."""
    upright_hu: NDArray[np.int16]
    """(Y, X) HU, upright."""
    stored_labels: NDArray[np.uint8] | None
    """(H, W) label map as stored, not set upright: 0, 1, 2; None without one."""
    lungs: NDArray[np.bool_] | None
    """(Y, X) lungs, upright; None for 8-bit images, which may be cropped so that lungs cannot be told from air."""
    orientation: Orientation
    canonical: CanonicalSlice | None
    """None for a slice of a series without lung in view."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W) uint8 gray values.

    Raises
    ------
    DataError
        If the file is no image, damaged, of more than 8 bits, coloured, smaller than 8 x 8 or larger than 4096 x 4096.
    """
    with _opened(path, "image") as image:
        if _has_deep_pixels(image) or _loses_bits(image):
            raise DataError(f"{path}: has more than 8 bits a pixel; save it with 8, lung window, or use the DICOM file")
        if image.mode == "1":
            raise DataError(f"{path}: has one bit a pixel: a mask in place of a slice?")
        if min(image.size) < _MIN_SIDE:
            raise DataError(f"{path}: {image.width} x {image.height} pixels are too few for a slice")
        if (np.ptp(np.asarray(image.convert("RGB")), axis=2) > _CHROMA).mean() > _COLOURED:
            raise DataError(f"{path}: is coloured (marks drawn over the CT?); give the slice without them")
        return np.asarray(image.convert("L"))


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Image.Image]:
    """Open an image file; errors in reading it, in the block too, become a `DataError` that names it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about damaged EXIF
            opened = Image.open(path)
        with opened as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{path}: {image.width} x {image.height} pixels; at most 4096 x 4096 are read")
            yield _as_shown(image)
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: not a readable {kind}: {error}") from error


def _as_shown(image: Image.Image) -> Image.Image:
    """Return a JPEG turned and mirrored as its EXIF says and viewers show it; damaged EXIF says nothing."""
    turn = None
    if image.format in ("JPEG", "MPO"):  # for other formats Pillow would read the pixels, and forget their bits
        with suppress(*_EXIF_ERRORS), warnings.catch_warnings(action="ignore"):
            turn = _TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    return image if turn is None else image.transpose(turn)


def _has_deep_pixels(image: Image.Image) -> bool:
    """Return whether gray values have more than 8 bits; Pillow clips them at 255 when it converts them."""
    return image.mode.startswith(("I", "F"))


def _loses_bits(image: Image.Image) -> bool:
    """Return whether Pillow has read 16 bits per channel as 8: with several channels it drops the lower bits."""
    return not _has_deep_pixels(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Return a label map as (H, W) uint8 with values 0, 1, 2; the older codes 38 and 75 become 1 and 2.

    Colour images, also with a palette, are read if every pixel is gray, or the dark red (128, 0, 0) or dark green
    (0, 128, 0) whose gray values those codes are. The meaning of other colours, of the order of a palette or of
    transparency is not guessed.

    Raises
    ------
    DataError
        If the file is no image or holds other values.
    """
    with _opened(path, "label map") as image:
        values = np.asarray(image) if image.mode == "L" or _has_deep_pixels(image) else _gray_of_colours(image, path)
    present = set(np.unique(values).tolist())
    if present <= set(range(NUM_CLASSES)):
        return values.astype(np.uint8)
    if not present <= {0, *_OLD_CODES}:
        raise DataError(f"{path}: labels must be 0, 1, 2 (or 0, 38, 75), found {sorted(present)[:10]}")
    labels = np.zeros(values.shape, np.uint8)
    for old, new in _OLD_CODES.items():
        labels[values == old] = new
    return labels


def _gray_of_colours(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    deep = _loses_bits(image)
    rgba, gray = np.asarray(image.convert("RGBA")), np.asarray(image.convert("L"))
    is_gray = (rgba[..., 0] == rgba[..., 1]) & (rgba[..., 1] == rgba[..., 2])
    is_code = np.isin(gray, list(_OLD_CODES)) & (rgba[..., :3].max(axis=-1) == _CODE_CHANNEL) & (rgba[..., 2] == 0)
    if deep or not (is_gray | is_code).all() or np.ptp(rgba[..., 3]) > 0:
        raise DataError(
            f"{path}: what its colours, transparency or bits mean is not known; save label maps as one gray channel "
            "of 0, 1, 2"
        )
    return gray


def read_slices(source: ImageSlice | DicomSlices, config: CanonicalConfig) -> Iterator[SourceSlice]:
    """Yield an image, or every slice of a DICOM series in order, with the network input made from it.

    Raises
    ------
    DataError
        If the image or a label map cannot be used; the message names the file.
    DicomError, GeometryError
        If the series cannot be used.
    """
    if isinstance(source, DicomSlices):
        yield from _read_series(source, config)
        return
    hu, content, labels = _read_image(source)
    yield SourceSlice(
        name=source.name,
        file=source.image_path.name,
        upright_hu=whole_hu(hu),
        stored_labels=labels,
        lungs=None,
        orientation=source.orientation,
        canonical=_canonical_of_image(source, hu, content, labels, config),
    )


def slice_names(source: ImageSlice | DicomSlices) -> list[str]:
    """Return the name of an image, or of every slice of a series in order."""
    if isinstance(source, ImageSlice):
        return [source.name]
    return [f"{source.record.series_key}-{index:04d}" for index in range(source.record.n_slices)]


def check_source(source: ImageSlice | DicomSlices) -> set[int]:
    """Read an image or a series before any other work, which may be long, and return the labels that its maps hold.

    Raises
    ------
    DataError
        If an image or a label map cannot be used; the message names the file.
    DicomError, GeometryError
        If the series cannot be used.
    """
    if isinstance(source, ImageSlice):
        _, _, labels = _read_image(source)
        return set() if labels is None else {*np.unique(labels).tolist()}
    labels = _labels_of_series(source, read_volume(source.record, source.root))
    return set() if labels is None else {*np.unique(labels).tolist()}


def _labels_of_series(source: DicomSlices, volume: Volume) -> NDArray[np.uint8] | None:
    """Return the labels of a series (Z, Y, X), as stored; None without any."""
    if source.label_volume is not None:
        return read_label_volume(source.label_volume, volume)
    if source.mask_paths is None:
        return None
    return np.stack([_read_mask_of(path, volume.volume_hu.shape[1:]) for path in source.mask_paths])


def _read_mask_of(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the label map of a slice of (rows, columns), as stored."""
    labels = read_mask(path)
    if labels.shape != shape:
        raise DataError(f"{path}: label map is {labels.shape}, its image {shape}")
    return labels


def _read_image(source: ImageSlice) -> tuple[NDArray[np.float32], CropBox, NDArray[np.uint8] | None]:
    """Return an image as upright HU (Y, X), the part of it within a black frame, and its label map as stored."""
    gray = read_image(source.image_path)
    labels = None if source.mask_path is None else _read_mask_of(source.mask_path, gray.shape)
    upright = source.orientation.to_upright(gray)
    content = within_black_frame(upright)
    hu = np.full(upright.shape, HU_MIN, np.float32)
    try:
        hu[content.index] = hu_from_image(upright[content.index])
    except DataError as error:
        raise DataError(f"{source.image_path}: {error}") from error
    return hu, content, labels


def _canonical_of_image(
    source: ImageSlice,
    upright_hu: NDArray[np.float32],
    content: CropBox,
    labels: NDArray[np.uint8] | None,
    config: CanonicalConfig,
) -> CanonicalSlice:
    """Return an image's content in canonical form; one without recognised lung is not cropped any further."""
    hu = np.ascontiguousarray(upright_hu[content.index])
    lungs = segment_lungs(whole_hu(hu)[None], _IMAGE_SPACING_MM).mask > 0
    found = lung_boxes(lungs, config)[0]
    inner = found or CropBox(0, hu.shape[0], 0, hu.shape[1])
    box = inner.moved(content.y0, content.x0)
    if labels is not None and source.mask_path is not None and found is not None:
        _warn_of_lost_lesions(source.mask_path, source.orientation.to_upright(labels)[None], [box])
    return CanonicalSlice(
        name=source.name,
        image=canonical_batch(hu[None], lungs, [inner], config)[0],
        labels=_canonical_labels(labels, source.orientation, box, config),
        box=box,
        orientation=source.orientation,
        upright_shape=(upright_hu.shape[0], upright_hu.shape[1]),
        sha256=file_sha256(source.image_path),
        lungs_found=found is not None,
    )


def _warn_of_lost_lesions(mask_path: Path, labels: NDArray[np.uint8], boxes: Sequence[CropBox | None]) -> None:
    """Warn of labelled lesions (Z, Y, X, upright) outside the crops, where the network sees nothing of them."""
    total = np.count_nonzero(labels)
    seen = sum(np.count_nonzero(labels[z][box.index]) for z, box in enumerate(boxes) if box is not None)
    if total - seen > _LOST_SHARE * total:
        found = any(box is not None for box in boxes)
        what = "outside the lung that was found, and the network's view" if found else "no lung was found there"
        _log.warning("%s: %.0f %% of its labelled lesions are lost: %s", mask_path, 100 * (1 - seen / total), what)


def _canonical_labels(
    labels: NDArray[np.uint8] | None, orientation: Orientation, box: CropBox, config: CanonicalConfig
) -> NDArray[np.uint8] | None:
    if labels is None:
        return None
    return canonical_labels(np.ascontiguousarray(orientation.to_upright(labels)), box, config.size)


def _read_series(source: DicomSlices, config: CanonicalConfig) -> Iterator[SourceSlice]:
    volume = read_volume(source.record, source.root)
    sha256_of = cache(file_sha256)  # a multi-frame file holds many slices
    names = slice_names(source)
    orientation = orientation_from_affine(volume.affine)
    hu = np.ascontiguousarray(orientation.to_upright(volume.volume_hu))
    lungs = segment_lungs(hu, orientation.upright_spacing(volume.spacing_mm)).mask > 0
    stored = _labels_of_series(source, volume)
    boxes = lung_boxes(lungs, config)
    if stored is not None:
        upright = orientation.to_upright(stored)
        if source.label_volume is not None:
            _warn_of_lost_lesions(source.label_volume, upright, boxes)
        for index, path in enumerate(source.mask_paths or ()):
            _warn_of_lost_lesions(path, upright[index : index + 1], boxes[index : index + 1])
    for index, box in enumerate(boxes):
        labels = None if stored is None else stored[index]
        name = names[index]
        canonical = None
        if box is not None:
            canonical = CanonicalSlice(
                name=name,
                image=canonical_batch(hu[index : index + 1], lungs[index : index + 1], [box], config)[0],
                labels=_canonical_labels(labels, orientation, box, config),
                box=box,
                orientation=orientation,
                upright_shape=(hu.shape[1], hu.shape[2]),
                sha256=sha256_of(source.root / source.record.files[index]),
                lungs_found=True,
            )
        yield SourceSlice(
            name=name,
            file=source.record.files[index],
            upright_hu=hu[index],
            stored_labels=labels,
            lungs=lungs[index],
            orientation=orientation,
            canonical=canonical,
        )
