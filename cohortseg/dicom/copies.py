"""Files that repeat a slice, found by their pixels: dropped if these are equal, or worse than those of another copy."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_partial
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import CTImageStorage

from cohortseg.dicom.elements import READ_ERRORS, Attributes, behind_pixels, quiet_pydicom
from cohortseg.dicom.frames import ENHANCED_CT
from cohortseg.dicom.geometry import rounded
from cohortseg.dicom.guards import BoundedFile
from cohortseg.dicom.headers import PLACE, Header, SkippedFile
from cohortseg.dicom.pixels import is_whole, num_frames, stored_values
from cohortseg.dicom.rules import image_kind
from cohortseg.errors import DicomError
from cohortseg.hashes import file_sha256
from cohortseg.processors import SecondProcess

_OFTEN_LOST: Final = (
    "patient_id",
    "study_instance_uid",
    "convolution_kernel",
    "acquisition_number",
    "temporal_position",
    "stack_id",
    "cardiac_phase_pct",
    "respiratory_phase_pct",
)
"""Attributes that tell scans apart, but that one export of a slice may keep and another lose."""
_FIRST_OF_ALL: Final = ("patient_id", "study_date", "study_instance_uid")
"""Compared first, in this order: of several copies, the one that has these is kept."""
_TOLD: Final = ("study_date", *_OFTEN_LOST, "series_description", "body_part", "image_type", "slice_thickness_mm")
"""Counted next: of several copies, the one that lacks fewest of these is kept."""
_DAMAGED: Final = "damaged copy of a slice of its series that is there whole"
_UNDECODED: Final = "at the place of a slice that is there whole; its own pixels cannot be decoded: not compared"
_EQUAL: Final = "copy of a slice of its series, with the same pixels"
_LOSSY: Final = "lossy copy of a slice of its series that is there without loss"
_UNREAD: Final = "at the place of another slice of its series; it cannot be read any more: not compared"


class Copy(NamedTuple):
    """A file that repeats a slice."""

    file: SkippedFile
    of: str
    """Path of the file it repeats, relative to the cohort."""
    other_date: bool
    """Whether the StudyDates of the two files differ; it is not known which is right."""


def drop_copies(root: Path, headers: Sequence[Header], second: SecondProcess) -> tuple[list[Header], list[Copy]]:
    """Return the files of one series to keep, and the copies to drop; the most complete copy is kept, or the first.

    Copies can differ in what splits a series later, its date above all: the same version is kept of all slices, the one
    that most slices have.

    Copies are files at the same place with the same pixels (for anything but CT with a position: with the same
    SOPInstanceUID and content). A file is also a copy if its pixels are cut off or cannot be decoded where those of
    another file are whole, or if they are compressed with loss where a file of the same SOPInstanceUID has them
    without. Files at the same place with different pixels are kept: the series is then skipped as conflicting.

    Parameters
    ----------
    root
        The cohort's folder.
    headers
        Files with one SeriesInstanceUID.
    second
        The process in which pixels are decoded: a decoder can end it, and such pixels are not compared.
    """
    kept: dict[str, list[Header]] = {}
    dropped: list[Copy] = []
    groups = _groups(headers)
    ranks = _ranks(groups) if any(len(group) > 1 for group in groups) else {}
    for group in groups:
        repeats = _repeats(root, group, ranks, second) if len(group) > 1 else {}
        kept |= {path: file for path, file in group.items() if path not in repeats}
        for path, (_, reason) in repeats.items():
            of = _original(path, repeats)
            days = {group[one][0].study_date for one in (path, of)} - {None}
            dropped.append(Copy(SkippedFile(path, reason, unreadable=reason == _UNREAD), of, len(days) > 1))
    return [header for path in sorted(kept) for header in kept[path]], dropped


def _groups(headers: Sequence[Header]) -> list[dict[str, list[Header]]]:
    """Return the files at each place, by path; a multi-frame file (several headers) is compared as a whole."""
    files: defaultdict[str, list[Header]] = defaultdict(list)
    for header in headers:
        files[header.path].append(header)
    places = {
        name: rounded((getattr(header, name) for header in headers), tolerance) for name, tolerance in PLACE.items()
    }
    told = _told(headers)
    groups: defaultdict[Hashable, dict[str, list[Header]]] = defaultdict(dict)
    for path, file in files.items():
        groups[tuple(_place(header, places, told) for header in file)][path] = file
    return list(groups.values())


def _version(file: Sequence[Header]) -> Hashable:
    """Return what copies of a slice can differ in and what, if slices of a series do, splits the series."""
    first = file[0]
    return (
        *(first.patient_id, first.study_instance_uid),
        *(first.study_date, first.frame_of_reference_uid, image_kind(first)),
    )


def _ranks(groups: Sequence[Mapping[str, Sequence[Header]]]) -> dict[Hashable, int]:
    """Return the rank of each version of a patient's slices of a study, from 0: most slices have the first.

    Of versions of as many slices, the one that states most comes first, then the one of the first path.
    """
    places: Counter[Hashable] = Counter()
    files: defaultdict[Hashable, list[tuple[str, int]]] = defaultdict(list)
    for group in groups:
        places.update({_version(file) for file in group.values()})
        for path, file in group.items():
            files[_version(file)].append((path, sum(_lacks(file).values())))

    def worse(version: Hashable) -> tuple[int, float, str]:
        paths, lacks = zip(*files[version], strict=True)
        return -places[version], sum(lacks) / len(lacks), min(paths)

    return {version: rank for rank, version in enumerate(sorted(places, key=worse))}


def _repeats(
    root: Path, group: Mapping[str, Sequence[Header]], ranks: Mapping[Hashable, int], second: SecondProcess
) -> dict[str, tuple[str, str]]:
    """Return, for each file to drop among those at one place, the path of the file it repeats and the reason."""
    best_first = sorted(group, key=lambda path: (*_lost(group[path], ranks), path))
    contents = _contents(root, {path: group[path] for path in best_first}, second)
    wholes = [path for path, content in contents.items() if content.whole]
    uids = {path: tuple(header.sop_instance_uid for header in file) for path, file in group.items()}
    exact = {uids[path]: path for path in reversed(wholes) if not group[path][0].lossy}  # the first of each
    best = [*wholes, *(path for path, content in contents.items() if not content.unread), *contents][0]
    first_of: dict[str, str] = {}
    repeats: dict[str, tuple[str, str]] = {}
    for path, content in contents.items():
        if content.unread and path != best:
            repeats[path] = best, _UNREAD
        elif wholes and not content.whole:
            repeats[path] = wholes[0], _UNDECODED if content.undecoded else _DAMAGED
        elif group[path][0].lossy and uids[path] in exact:
            repeats[path] = exact[uids[path]], _LOSSY
        elif (first := first_of.setdefault(content.digest, path)) != path:
            repeats[path] = first, _EQUAL
    return repeats


def _lost(file: Sequence[Header], ranks: Mapping[Hashable, int]) -> list[int]:
    """Return what makes a copy worse than others.

    That is how many of its headers lack patient, date and study, how far behind its version is, and how many `_TOLD`
    values it lacks in all.
    """
    lacks = _lacks(file)
    return [*(lacks[name] for name in _FIRST_OF_ALL), ranks[_version(file)], sum(lacks.values())]


def _lacks(file: Sequence[Header]) -> dict[str, int]:
    """Return in how many headers of a file each of the `_TOLD` attributes is missing."""
    return {name: sum(getattr(header, name) in (None, (), ("",)) for header in file) for name in _TOLD}


def _original(path: str, repeats: Mapping[str, tuple[str, str]]) -> str:
    """Return the kept file that a file repeats, following chains of copies."""
    while path in repeats:
        path, _ = repeats[path]
    return path


def _told(headers: Sequence[Header]) -> dict[tuple[str, str], Any]:
    """Return the attribute values on which all files of a SOPInstanceUID that have them agree, by UID and name."""
    told: dict[tuple[str, str], Any] = {}
    for header in headers:
        for name in _OFTEN_LOST:
            value, key = getattr(header, name), (header.sop_instance_uid, name)
            if value is not None and told.setdefault(key, value) != value:
                told[key] = None
    return told


def _known(header: Header, name: str, told: Mapping[tuple[str, str], Any]) -> Any:
    """Return an attribute of a file, or if it lacks it, the value that other files of its SOPInstanceUID agree on."""
    value = getattr(header, name)
    return told.get((header.sop_instance_uid, name)) if value is None else value


def _place(header: Header, places: Mapping[str, Mapping[Any, Any]], told: Mapping[tuple[str, str], Any]) -> Hashable:
    """Return a key that copies of a slice share: geometry, rescale, size and identity, else the SOPInstanceUID."""
    if header.sop_class_uid in (CTImageStorage, *ENHANCED_CT) and header.image_position_patient is not None:
        return (
            *(alike[getattr(header, name)] for name, alike in places.items()),
            header.rescale_slope,
            header.rescale_intercept,
            header.rows,
            header.columns,
            *(_known(header, name, told) for name in _OFTEN_LOST),
        )
    return header.sop_instance_uid


class _Content(NamedTuple):
    """Content of a file, as far as copies are compared by it."""

    digest: str
    """Hash of the pixel data (decoded if one stored form can differ from another), else of the whole file."""
    whole: bool
    """Whether the file holds as many pixels as its header says."""
    form: "_Form | None" = None
    """How the pixels are stored; the same bytes mean the same pixels only in one form."""
    undecoded: bool = False
    """Whether the pixels cannot be decoded."""
    unread: bool = False
    """Whether the file is gone or can no longer be read, although its header was."""


def _contents(root: Path, group: Mapping[str, Sequence[Header]], second: SecondProcess) -> dict[str, _Content]:
    """Return the contents of files at one place; pixels are decoded where their bytes do not tell.

    That is where files store them otherwise, or where compressed copies of one image differ: one may be damaged.
    """
    if len({file[0].transfer_syntax_uid for file in group.values()}) > 1:
        return {path: _decoded(root / path, second) for path in group}
    contents = {path: _content(root / path) for path in group}
    forms = {path: content.form for path, content in contents.items()}
    compressed = {
        (group[path][0].sop_instance_uid, contents[path].digest)
        for path, form in forms.items()
        if form and form.compressed
    }
    differ = len({uid for uid, _ in compressed}) < len(compressed)
    if differ or len(set(forms.values())) > 1:
        return {path: _decoded(root / path, second) for path in group}
    return contents


def _decoded(path: Path, second: SecondProcess) -> _Content:
    try:
        return second.call(_content, path, decode=True)
    except BrokenProcessPool:
        return _by_file(path, undecoded=True)


def _content(path: Path, *, decode: bool = False) -> _Content:
    try:
        with quiet_pydicom(), BoundedFile(path) as file:
            dataset = read_partial(file, behind_pixels, force=True)
            if "PixelData" in dataset:
                return _Content(_pixel_digest(dataset, decode=decode), is_whole(dataset), _form(dataset))
    except DicomError as error:
        return _unread(path) if isinstance(error.__cause__, MemoryError) else _by_file(path, undecoded=True)
    except MemoryError:
        return _unread(path)
    except READ_ERRORS:
        pass  # damaged pixels: only an equal file is a copy
    return _by_file(path)


def _by_file(path: Path, *, undecoded: bool = False) -> _Content:
    try:
        return _Content(file_sha256(path), whole=False, undecoded=undecoded)
    except OSError:
        return _unread(path)


def _unread(path: Path) -> _Content:
    return _Content(f"unreadable {path}", whole=False, unread=True)


class _Form(NamedTuple):
    """How pixels are stored."""

    compressed: bool
    bits: tuple[float | None, ...]
    """Of BitsAllocated, BitsStored, HighBit and PixelRepresentation."""


def _form(dataset: Dataset) -> _Form:
    attributes = Attributes.of(dataset)
    return _Form(
        dataset["PixelData"].is_undefined_length,
        tuple(map(attributes.real, ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"))),
    )


def _pixel_digest(dataset: Dataset, *, decode: bool) -> str:
    digest = hashlib.sha256()
    if decode:
        for frame in range(num_frames(dataset)):
            digest.update(stored_values(dataset, "", frame).astype("<i4").tobytes())
    elif dataset["PixelData"].is_undefined_length:
        for frame_bytes in _compressed_frames(dataset):
            digest.update(frame_bytes)
    else:
        digest.update(memoryview(dataset.PixelData)[: get_expected_length(dataset)])  # some exports add padding
    return digest.hexdigest()


def _compressed_frames(dataset: Dataset) -> Iterable[bytes]:
    """Return the compressed images, the same however they are split into fragments; all as it is if that fails."""
    try:
        return list(generate_frames(dataset.PixelData, number_of_frames=num_frames(dataset)))
    except READ_ERRORS:
        return [dataset.PixelData]
