"""From one image's stored values to HU; a compressed image's own header is checked before it is decoded."""

from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_rescale
from pydicom.pixels.utils import get_expected_length, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGLSLossless,
    JPEGTransferSyntaxes,
    RLELossless,
)

from cohortseg.dicom import jpeg12
from cohortseg.dicom.elements import READ_ERRORS, Attributes
from cohortseg.dicom.guards import codestream_shape
from cohortseg.dicom.headers import LOSSY_SYNTAXES
from cohortseg.dicom.padding import AIR_MAX_HU, joined_to_frame
from cohortseg.errors import DicomError
from cohortseg.volume import HU_MAX, HU_MIN

jpeg12.register()

_OPENJPEG: Final = "pylibjpeg"
"""Plugin for JPEG 2000: GDCM, which pydicom would try first, ends the process at damaged data."""
_PIXEL_FORMAT: Final = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
_RLE_SLACK: Final = 4096
"""Bytes of header and segment padding beyond the worst case of RLE, which is less than twice the image."""


def slice_hu(dataset: Dataset, path: str, frame: int = 0, rescale: Dataset | None = None) -> NDArray[np.int16]:
    """Return one slice (Y, X), HU, rounded and clipped to [HU_MIN, HU_MAX]; declared padding becomes HU_MIN.

    Parameters
    ----------
    dataset
        The file, with its pixels.
    path
        The file's path, for messages.
    frame
        Index of the frame, from 0.
    rescale
        Dataset with RescaleSlope and RescaleIntercept; None: ``dataset``.

    Raises
    ------
    DicomError
        If the pixels are missing or cannot be decoded, or there is no rescale.

    References
    ----------
    DICOM PS3.3, C.11.1 (rescale) and C.7.5.1.1.2 (padding). PhotometricInterpretation MONOCHROME1 says how to show the
    values; it does not change what they mean (C.7.6.3.1.2).
    """
    rescale = dataset if rescale is None else rescale
    stored = stored_values(dataset, path, frame)
    linear = Dataset()  # the rescale as numbers, whatever VR the file gives it
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        number = Attributes.of(rescale).real(keyword)
        if number is None:
            raise DicomError(f"{path}: {keyword} is missing, or not one number: values are not in HU")
        setattr(linear, keyword, number)
    hu: NDArray[np.float64] = np.rint(apply_rescale(stored, linear))
    padding = _padding_range(dataset, stored)
    if padding is not None:
        padded = (stored >= padding[0]) & (stored <= padding[1])
        # Where padding has a value that tissue has too (0 HU), only pixels joined to the image's frame are padding.
        if hu[padded].max(initial=HU_MIN) > AIR_MAX_HU:
            padded = joined_to_frame(padded)
        hu[padded] = HU_MIN
    clipped: NDArray[np.int16] = np.clip(hu, HU_MIN, HU_MAX).astype(np.int16)
    return clipped


def stored_values(dataset: Dataset, path: str, frame: int = 0) -> NDArray[np.integer]:
    """Return one decoded image (Y, X), before any rescale.

    Raises
    ------
    DicomError
        If there are no pixels, no decoder, or the data are damaged or of another size than the header says.
    """
    if "PixelData" not in dataset:
        raise DicomError(
            f"{path}: no pixel data; the file was cut off (copy it again), or keeps its pixels in private elements"
        )
    syntax = _transfer_syntax(dataset, path)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DicomError(
            f"{path}: transfer syntax {syntax.name if syntax.is_valid else 'missing or malformed'} is not supported"
        ) from error
    if not decoder.is_available:
        raise DicomError(f"{path}: {syntax.name} needs one of: {'; '.join(decoder.missing_dependencies)}")
    try:
        if missing := [keyword for keyword in _PIXEL_FORMAT if dataset.get(keyword) is None]:
            raise DicomError(f"{path}: {missing[0]} is missing, so what the pixel data mean is not known")
        dataset.setdefault("SamplesPerPixel", 1)  # one grey channel is all that a CT slice can be (PS3.3 C.8.2.1)
        if syntax.is_encapsulated:
            _index_frames(dataset)
            _check_compressed(dataset, syntax, frame)
        stored = _right_justified(_decoded(dataset, syntax, frame), dataset, syntax, frame)
    except READ_ERRORS as error:
        # The texts of other errors can quote header values.
        detail = str(error) if isinstance(error, _MismatchError) else type(error).__name__
        if not syntax.is_encapsulated and _is_cut_short(dataset):
            detail = "there are fewer than the header says; the file is cut short"
        more = syntax in JPEGTransferSyntaxes and not isinstance(error, _MismatchError)
        hint = " (pip install pylibjpeg-libjpeg reads more kinds of JPEG)" if more else ""
        raise DicomError(f"{path}: pixel data ({syntax.name}) cannot be decoded: {detail}{hint}") from error
    if stored.ndim != 2:
        raise DicomError(f"{path}: one grey-scale image is expected, got an array of shape {stored.shape}")
    return stored


def num_frames(dataset: Dataset) -> int:
    """Return the number of images in a dataset, 1 if NumberOfFrames is absent."""
    return int(dataset.get("NumberOfFrames") or 1)


def is_whole(dataset: Dataset) -> bool:
    """Return whether pixel data are as long as the header says; True for compressed ones, whose end pydicom found."""
    if dataset["PixelData"].is_undefined_length:
        return True
    return len(dataset.PixelData) >= get_expected_length(dataset)


def _is_cut_short(dataset: Dataset) -> bool:
    try:
        return not is_whole(dataset)
    except READ_ERRORS:  # the header does not say how long they are
        return False


def _transfer_syntax(dataset: Dataset, path: str) -> UID:
    """Return the transfer syntax; where it is missing or wrong, the one that the data set itself shows.

    Native pixels are in the data set's own encoding and have a length; compressed pixels never have one (PS3.5 A.4).
    Some archives decompress the pixels and leave the syntax as it was.
    """
    stated = Attributes.of(getattr(dataset, "file_meta", Dataset())).text("TransferSyntaxUID")
    if stated is not None and not _is_wrong(UID(stated), dataset):
        return UID(stated)
    if dataset["PixelData"].is_undefined_length:
        raise DicomError(f"{path}: the pixels are compressed, and TransferSyntaxUID, which says how, is missing")
    is_implicit, is_little_endian = dataset.original_encoding
    if not is_little_endian:
        syntax = ExplicitVRBigEndian
    else:
        syntax = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return syntax


def _is_wrong(syntax: UID, dataset: Dataset) -> bool:
    """Return whether a syntax is a compressed one although the pixels have exactly the length of native ones."""
    try:
        has_length = syntax.is_encapsulated and not dataset["PixelData"].is_undefined_length
        return has_length and len(dataset.PixelData) == get_expected_length(dataset)
    except READ_ERRORS:  # not a transfer syntax, or the header does not say how long the pixels are
        return False


def _decoded(dataset: Dataset, syntax: UID, frame: int) -> NDArray[np.integer]:
    """Return the values in the BitsStored of an image; bits above them may hold an old overlay, or no sign."""
    plugin = _OPENJPEG if syntax in JPEG2000TransferSyntaxes else ""
    stored: NDArray[np.integer] = pixel_array(dataset, raw=True, index=frame, decoding_plugin=plugin)
    unused = 8 * stored.dtype.itemsize - int(dataset.BitsStored)
    # Pydicom does this in other syntaxes. After loss, values beyond BitsStored are errors of coding, not bits.
    return stored << unused >> unused if unused > 0 and syntax in (JPEG2000Lossless, JPEGLSLossless) else stored


def _right_justified(stored: NDArray[np.integer], dataset: Dataset, syntax: UID, frame: int) -> NDArray[np.integer]:
    """Return stored values shifted to the lower bits, if an old file has them in the upper ones.

    HighBit above BitsStored - 1 says so, but is wrong in many files: the values are in the upper bits only if the lower
    ones are all empty.
    """
    bits, high = int(dataset.BitsStored), int(dataset.get("HighBit", dataset.BitsStored - 1))
    if not bits <= high < int(dataset.BitsAllocated) or syntax in (JPEG2000, *LOSSY_SYNTAXES):
        return stored
    dataset.BitsStored = high + 1
    try:
        whole = _decoded(dataset, syntax, frame)
    except READ_ERRORS:  # of a JPEG that holds only the bits that are stored
        return stored
    finally:
        dataset.BitsStored = bits
    lower = high + 1 - bits
    return stored if (whole & (2**lower - 1)).any() or not whole.any() else whole >> lower


def _index_frames(dataset: Dataset) -> None:
    """Give compressed frames that have no table of offsets one: without it, all are walked through to find each.

    It is an Extended Offset Table (PS3.3 C.7.6.3.1.8), made where each frame is one fragment.
    """
    count = num_frames(dataset)
    if count == 1 or "ExtendedOffsetTable" in dataset:
        return
    buffer = BytesIO(dataset.PixelData)
    if parse_basic_offsets(buffer):
        return
    first = buffer.tell()
    num_fragments, offsets = parse_fragments(buffer)
    lengths = [int.from_bytes(dataset.PixelData[offset + 4 : offset + 8], "little") for offset in offsets]
    if num_fragments == count and offsets[-1] + 8 + lengths[-1] <= len(dataset.PixelData):
        dataset.ExtendedOffsetTable = (np.array(offsets, "<u8") - first).tobytes()
        dataset.ExtendedOffsetTableLengths = np.array(lengths, "<u8").tobytes()


class _MismatchError(ValueError):
    """Raised for compressed pixels that must not be decoded; its text quotes only sizes from the header."""


def _check_compressed(dataset: Dataset, syntax: UID, frame: int) -> None:
    """Refuse a compressed image that contradicts the header: decoders allocate the memory that it asks for."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    tables = (dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths"))
    encoded = get_frame(
        dataset.PixelData,
        frame,
        number_of_frames=num_frames(dataset),
        extended_offsets=tables if all(tables) else None,
    )
    if syntax == RLELossless:
        if len(encoded) > rows * columns * int(dataset.BitsAllocated) // 4 + _RLE_SLACK:
            raise _MismatchError(f"{len(encoded)} bytes of RLE for an image of {rows} x {columns}")
        return
    try:
        shape = codestream_shape(encoded, syntax)
    except ValueError as error:
        raise _MismatchError(str(error)) from error
    if shape[:2] != (rows, columns):
        size = f"{shape[0]} x {shape[1]}"
        raise _MismatchError(f"the compressed image is {size}, the header says {rows} x {columns}")
    if shape[2] != dataset.SamplesPerPixel:
        raise _MismatchError(f"the compressed image has {shape[2]} channels, the header says {dataset.SamplesPerPixel}")


def _padding_range(dataset: Dataset, stored: NDArray[np.integer]) -> tuple[int, int] | None:
    """Return the lowest and the highest stored value that mean padding, or None if none is declared."""
    value = Attributes.of(dataset).reals("PixelPaddingValue", 1)
    if value is None:
        return None
    limit = Attributes.of(dataset).reals("PixelPaddingRangeLimit", 1) or value
    # Both are often written as unsigned although the pixels are signed: -2000 as 63536.
    bits = 8 * stored.dtype.itemsize
    low, high = sorted(int(np.array(int(end) % 2**bits).astype(stored.dtype)) for end in (*value, *limit))
    # One value in more bits than the BitsStored that decoding leaves has lost the upper ones. A range may not have: its
    # ends would come to lie the wrong way round, and tissue between them.
    span = 2 ** int(dataset.BitsStored)
    lowest = -span // 2 if np.issubdtype(stored.dtype, np.signedinteger) else 0
    fits = lowest <= low < lowest + span
    if low == high and not fits and lowest <= stored.min() and stored.max() < lowest + span:
        low = high = (low - lowest) % span + lowest
    return low, high
