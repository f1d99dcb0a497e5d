"""What a file claims against what it holds: checked before memory is taken."""

import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Final

from pydicom.uid import DeflatedExplicitVRLittleEndian

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
_NO_LENGTH: Final = {0x01, *range(0xD0, 0xD9)}


class BoundedFile(io.BufferedReader):
    """A file whose large reads ask for no more bytes than are left, whatever length a header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "r"), 1 << 16)
        self._size = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most ``size`` bytes."""
        if size is not None and size > _LARGE_READ:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def archive_kind(start: bytes) -> str | None:
    """Return the kind of archive that a file's first 64 kB tell, or None."""
    return next((kind for at, magic, kind in _ARCHIVES if start[at : at + len(magic)] == magic), None)


def inflates_too_far(file: BinaryIO, limit: int = INFLATED_MAX) -> bool:
    """Return whether a deflated DICOM file expands beyond a limit; False for every other transfer syntax.

    The data are inflated in small pieces and thrown away. The file is left at its beginning.

    Parameters
    ----------
    file
        Opened, at its beginning.
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
        return False  # pydicom does not get to the data either
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while size <= limit and not inflater.eof:
            piece = inflater.unconsumed_tail or file.read(_LARGE_READ)
            if not piece:
                break
            size += len(inflater.decompress(piece, _LARGE_READ))
    except zlib.error:
        pass  # damaged: pydicom will say so, at no more memory than this
    file.seek(0)
    return size > limit


def codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) as a JPEG, JPEG-LS or JPEG 2000 code stream states them; None if it states none.

    Decoders take memory by these numbers, not by those of the DICOM header.

    Parameters
    ----------
    frame
        One frame's code stream, or a JP2 file.
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC, SIZ: T.800 A.5.1
    if start >= 0 and len(frame) >= start + 24:
        x_size, y_size, x_offset, y_offset = struct.unpack(">4I", frame[start + 8 : start + 24])
        return y_size - y_offset, x_size - x_offset
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker in _FRAME_MARKERS:
            rows, columns = struct.unpack(">2H", frame[at + 5 : at + 9])
            return rows, columns
        if marker == 0xFF or marker in _NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int(struct.unpack(">H", frame[at + 2 : at + 4])[0])
    return None
