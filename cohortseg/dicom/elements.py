"""Attributes of one DICOM header: found in the file's first bytes where possible, parsed by pydicom, and cached."""

import io
import math
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import cache, lru_cache
from typing import Any, BinaryIO, Final, Self
from unicodedata import normalize

from pydicom.charset import convert_encodings, default_encoding
from pydicom.config import disable_value_validation
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import data_element_generator
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

READ_ERRORS: Final = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    BytesLengthException,
    struct.error,
    zlib.error,
)
"""Errors that pydicom raises on damaged files; found by damaging files at random (see the tests)."""

_REMEMBERED_BYTES: Final = 256
"""Longer values are not cached, so that the cache does not fill memory."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
"""Also those that reverse the direction of text on a terminal."""
_UPPER_CONTROL: Final = re.compile(r"[\x80-\x9f]")
_SHORT_BYTES: Final = 2
_WHOLE_LIMIT: Final = 1 << 63
"""Larger numbers fit into no column of a table."""
_DATE: Final = re.compile(r"(\d{4})([./-]?)(\d{2})\2(\d{2})(?:[T ]?\d{2,6}(?:\.\d+)?(?:[+-]\d{4})?)?")
FIRST_YEAR: Final = 1800
"""Earlier dates are fillers."""
FILLER_DATE: Final = date(1900, 1, 1)
"""Date that databases store where they have none."""
META_AT: Final = 132
"""Offset of the file meta information in a file with preamble, bytes."""
_META_GROUP: Final = 2
PIXEL_TAGS: Final = frozenset({0x7FE0_0008, 0x7FE0_0009, 0x7FE0_0010})

_Element = RawDataElement | DataElement


class _Silence:
    """What `quiet_pydicom` changes holds for all threads: the first changes it, and the last restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._changed = ExitStack()

    def begin(self) -> None:
        with self._lock:
            if not self._inside:
                self._changed.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                self._changed.enter_context(disable_value_validation())
            self._inside += 1

    def end(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._changed.close()


_silence: Final = _Silence()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings about odd values: they quote the values, which can be a patient's name."""
    _silence.begin()
    try:
        yield
    finally:
        _silence.end()


def silence_pydicom() -> None:
    """Silence pydicom's warnings for the rest of this process; `quiet_pydicom` does so for a block."""
    warnings.filterwarnings("ignore", module="pydicom")


def behind_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    """Tell pydicom's `read_partial` to stop after the pixels: some exports add bytes there that are no element."""
    return int(tag) > max(PIXEL_TAGS)


class Attributes:
    """The attributes of one dataset by keyword; absent, empty and unreadable ones are all None."""

    def __init__(self, elements: Iterable[_Element], encoding: str | Iterable[str]) -> None:
        self._elements: Mapping[int, _Element] = {int(element.tag): element for element in elements}
        self._encoding = (encoding,) if isinstance(encoding, str) else tuple(encoding)

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Return the attributes of a dataset."""
        return cls(dataset.values(), dataset.original_character_set or default_encoding)

    def text(self, keyword: str) -> str | None:
        """Return an attribute as text, several values joined by backslashes."""
        return "\\".join(self.texts(keyword)) or None

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return each value of an attribute as text that is safe in a table and on a terminal."""
        found: tuple[str, ...] = self._parsed(keyword, _texts)
        return found

    def reals(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Return exactly ``count`` finite numbers of an attribute."""
        numbers: tuple[float, ...] = self._parsed(keyword, _reals)
        return numbers if len(numbers) == count else None

    def real(self, keyword: str) -> float | None:
        """Return an attribute that is one finite number."""
        numbers = self.reals(keyword, 1)
        return None if numbers is None else numbers[0]

    def whole(self, keyword: str) -> int | None:
        """Return an attribute that is one number of at most 64 bits, truncated to an integer."""
        number = self.real(keyword)
        return None if number is None or abs(number) >= _WHOLE_LIMIT else int(number)

    def date(self, keyword: str) -> date | None:
        """Return a date (DA): YYYYMMDD, YYYY.MM.DD as before DICOM 3, or a variant that exports write.

        Variants have another separator, or a time after the date (DT). Fillers, which are years before 1800 and
        1900-01-01, give None.
        """
        match = _DATE.fullmatch(self.text(keyword) or "")
        if match is None or int(match[1]) < FIRST_YEAR:
            return None
        try:
            day = date(*(int(match[group]) for group in (1, 3, 4)))
        except ValueError:
            return None
        return None if day == FILLER_DATE else day

    def _parsed(self, keyword: str, form: Callable[[list[Any]], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return an attribute's values converted by ``form``; empty if it is absent, empty or cannot be parsed."""
        tag = tag_of(keyword)
        element = self._elements.get(tag)
        if element is None:
            return ()
        if not isinstance(element, RawDataElement):
            return form(_listed(element.value))
        raw = (tag, element.VR, element.value, element.is_implicit_VR, element.is_little_endian)
        parse = _remembered if len(element.value or b"") <= _REMEMBERED_BYTES else _remembered.__wrapped__
        found: tuple[Any, ...] = parse(form, raw, self._encoding)
        return found


def first_attributes(start: bytes, tags: list[int]) -> tuple[Attributes, Attributes] | None:
    """Return the file meta information and some attributes of a file whose header fits into its first bytes.

    The result is that of ``pydicom.dcmread``, in a third of the time, because no datasets are built.

    Parameters
    ----------
    start
        The file's first bytes, preamble included.
    tags
        Attributes to find.

    Returns
    -------
    tuple of Attributes or None
        None if ``pydicom.dcmread`` has to read the file: its encoding is rare or not as stated, or the header is
        damaged or goes beyond ``start``.
    """
    try:
        return _first_attributes(start, tags)
    except READ_ERRORS:
        return None


def _first_attributes(start: bytes, tags: list[int]) -> tuple[Attributes, Attributes] | None:
    file = io.BytesIO(start)
    file.seek(META_AT)
    meta = Attributes(meta_elements(file), default_encoding)
    syntax = UID(meta.text("TransferSyntaxUID") or "")
    if not syntax.is_transfer_syntax or syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        return None
    is_implicit = syntax == ImplicitVRLittleEndian
    if _looks_implicit(start[file.tell() :][:6]) != is_implicit:
        return None
    found = data_element_generator(
        file,
        is_implicit,
        is_little_endian=True,
        stop_when=lambda tag, *_: int(tag) in PIXEL_TAGS,
        specific_tags=[*tags],
    )
    elements = list(found)
    if file.tell() >= len(start):
        return None
    sets = Attributes(elements, default_encoding).texts("SpecificCharacterSet")
    return meta, Attributes(elements, convert_encodings(list(sets)) if sets else default_encoding)


def meta_elements(file: BinaryIO) -> Iterator[_Element]:
    """Yield the file meta information from the file's position on; as with pydicom, the file is left at the dataset.

    The end is recognised by the tags, not by the length, which is not always stated.
    """
    return data_element_generator(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: int(tag) >> 16 != _META_GROUP
    )


def _looks_implicit(element: bytes) -> bool:
    """Return whether an element's first six bytes (tag, then VR) hold no VR, which is two capital letters."""
    return not (element[4:].isalpha() and element[4:].isupper())


@cache
def tag_of(keyword: str) -> int:
    """Return the tag of a DICOM keyword.

    Raises
    ------
    ValueError
        If there is no such keyword.
    """
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword}: no DICOM keyword")
    return tag


@lru_cache(maxsize=4096)
def _remembered(
    form: Callable[[list[Any]], tuple[Any, ...]],
    raw: tuple[int, str | None, bytes | None, bool, bool],
    encoding: tuple[str, ...],
) -> tuple[Any, ...]:
    """Return an element's values as pydicom parses them; cached, since the files of a series share most of them."""
    tag, vr, value, is_implicit, is_little_endian = raw
    element = RawDataElement(BaseTag(tag), vr, len(value or b""), value, 0, is_implicit, is_little_endian)
    try:
        found = form(_listed(convert_raw_data_element(element, encoding=list(encoding)).value))
        # Bytes outside the declared character set are escaped: all replaced alike, they could make two patients one.
        if form is _texts and any("\N{REPLACEMENT CHARACTER}" in text for text in found):
            found = form([part.decode("ascii", "backslashreplace") for part in (value or b"").split(b"\\")])
    except MemoryError:  # not the value's fault, and not to be cached
        raise
    except READ_ERRORS:
        return ()
    return found


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (MultiValue, list)) else [value]


def _texts(values: list[Any]) -> tuple[str, ...]:
    # Control characters would reach terminals (--show-ids) and tables; the upper ones are letters in other character
    # sets, and are escaped rather than removed.
    texts = (_UPPER_CONTROL.sub(_escaped, _CONTROL.sub("", str(value))).strip() for value in values)
    # Bytes of an undeclared character set must not break the table, which is UTF-8. Writers differ in whether a letter
    # and its accent are one character or two; NFC makes them one.
    return tuple(
        value if value.isascii() else normalize("NFC", value.encode("utf-8", "replace").decode("utf-8"))
        for value in texts
    )


def _escaped(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"


def _reals(values: list[Any]) -> tuple[float, ...]:
    try:
        numbers = tuple(map(_real, values))
    except (TypeError, ValueError):
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def _real(value: Any) -> float:
    """Return a number; pydicom leaves values of the ambiguous VR "US or SS" as bytes, which are taken as unsigned."""
    if not isinstance(value, bytes):
        return float(value)
    if len(value) != _SHORT_BYTES:
        raise ValueError(f"a number of {len(value)} bytes, and no VR that tells which")
    return float(int.from_bytes(value, "little"))  # implicit VR is little endian
