"""Checks of what a file claims against what it holds, made before memory is allocated."""

import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Final

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000TransferSyntaxes

from cohortseg.dicom.elements import META_AT, READ_ERRORS, meta_elements

INFLATED_MAX: Final = 1 << 30
"""Bytes that a deflated file may expand to: 30 times the largest slice accepted."""
_LARGE_READ: Final = 1 << 20
_META_SEARCH: Final = 1024
_ARCHIVES: Final = (
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!\x1a\x07", "rar"),
    (257, b"ustar", "tar"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"\x1f\x9d", "compress"),
    (0, b"MSCF", "cabinet"),
    (32769, b"CD001", "ISO 9660"),
)
# JPEG and JPEG-LS: the frame headers SOF0 to SOF15 (without DHT, JPG, DAC) and SOF55 (T.81 B.1.1.3, T.87 C.1.1).
_FRAME_MARKERS: Final = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
_SCAN: Final = 0xDA
_BITS_MAX: Final = 16
_NO_LENGTH: Final = {0x01, *range(0xD0, 0xD9)}


class BoundedFile(io.BufferedReader):
    """A file whose large reads never ask for more bytes than are left, whatever length a header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "r"), 1 << 16)
        self._size = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most ``size`` bytes."""
        if size is not None and size > _LARGE_READ:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def archive_kind(start: bytes) -> str | None:
    """Return the kind of archive by a file's first 64 kB, or None if it is no known archive."""
    return next((kind for at, magic, kind in _ARCHIVES if start[at : at + len(magic)] == magic), None)


def inflates_too_far(file: BinaryIO, limit: int = INFLATED_MAX) -> bool:
    """Return whether a deflated DICOM file expands beyond a limit; False for every other transfer syntax.

    The data are inflated in small pieces and discarded. The file is left at its beginning.

    Parameters
    ----------
    file
        An open file, at its beginning.
    limit
        Bytes.
    """
    start = file.read(_META_SEARCH)
    file.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in start:
        return False
    file.seek(META_AT if start[128:132] == b"DICM" else 0)
    try:
        for _element in meta_elements(file):
            pass
    except OSError:
        raise
    except READ_ERRORS:
        file.seek(0)
        return False  # pydicom does not reach the data either
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while size <= limit and not inflater.eof:
            piece = inflater.unconsumed_tail or file.read(_LARGE_READ)
            if not piece:
                break
            size += len(inflater.decompress(piece, _LARGE_READ))
    except zlib.error:
        pass  # damaged: pydicom will report it, and needs no more memory than this
    file.seek(0)
    return size > limit


def codestream_shape(frame: bytes, syntax: UID) -> tuple[int, int, int]:
    """Return (rows, columns, channels) as a compressed image states them; decoders allocate memory by these numbers.

    Parameters
    ----------
    frame
        One frame's code stream; for JPEG 2000, possibly a JP2 file.
    syntax
        JPEG, JPEG-LS or JPEG 2000.

    Raises
    ------
    ValueError
        If the frame does not begin as its transfer syntax requires, or has no readable size: it must not be decoded.
    """
    shape = _jpeg2000_shape(frame) if syntax in JPEG2000TransferSyntaxes else _jpeg_shape(frame)
    if shape is None:
        raise ValueError("the compressed image has no readable header")
    return shape


def _jpeg2000_shape(frame: bytes) -> tuple[int, int, int] | None:
    """Return the shape in SIZ, right after SOC (T.800 A.5.1), of the first code stream if it is a JP2 file (I.4)."""
    at = 0
    if frame[4:8] == b"jP  ":
        while frame[at + 4 : at + 8] != b"jp2c":
            if len(frame) < at + 16:
                return None
            length, extended = struct.unpack_from(">I4xQ", frame, at)
            length = extended if length == 1 else length
            if length < 8:
                return None
            at += length
        at += 16 if frame[at : at + 4] == b"\0\0\0\1" else 8
    if frame[at : at + 4] != b"\xff\x4f\xff\x51" or len(frame) < at + 42:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, at + 8)
    (channels,) = struct.unpack_from(">H", frame, at + 40)
    return bottom - top, right - left, channels


def _jpeg_shape(frame: bytes) -> tuple[int, int, int] | None:
    """Return the shape in the frame header, found by walking the marker segments from SOI to the first scan.

    None if there is junk among them, or more than 16 bits: GDCM ends the process at those.
    """
    shape, at = None, 2
    if frame[:2] != b"\xff\xd8":
        return None
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == _SCAN:
            return shape
        if marker == 0xFF or marker in _NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker < min(_FRAME_MARKERS):
            return None  # reserved (T.81 B.1.1.3)
        if marker in _FRAME_MARKERS and at + 10 <= len(frame):
            bits, rows, columns, channels = struct.unpack_from(">B2HB", frame, at + 4)
            if shape is not None or bits > _BITS_MAX:
                return None
            shape = rows, columns, channels
        at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    return None
