"""Any folders of images or DICOM: labelled ones with label maps beside them, unlabelled ones without."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image
from pydicom.misc import is_dicom

from cohortseg.config import ScanConfig
from cohortseg.datasets.slices import IMAGE_ENDINGS, DicomSlices, ImageSlice
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.series import SeriesRecord
from cohortseg.errors import ConfigError, DataError
from cohortseg.preprocess import UPRIGHT, Orientation
from cohortseg.store.files import require_utf8, visible_files

TERMS: Final = "Trained on data of the user's own: their terms apply. Research software, not a medical device."
"""Terms of a model trained on such data."""

_log: Final = logging.getLogger(__name__)
_DICOM_ENDINGS: Final = {".dcm", ".dicom", ".ima"}
_NIFTI: Final = ".nii"
"""Ending of label volumes, compressed or not."""
_VOLUME_ENDINGS: Final = {".npy", ".npz", _NIFTI, ".mha", ".mhd", ".nrrd"}
"""Endings of images that other tools read and this one does not."""
_COVID_SEMISEG: Final = "MultiClassInfection"
"""How the names of COVID-SemiSeg's folders of labelled images begin."""
_IMAGE_FOLDERS: Final = ("Imgs", "images")
_MASK_FOLDERS: Final = ("GT", "masks")


def labeled_folder(folder: Path, orientation: Orientation) -> list[ImageSlice | DicomSlices]:
    """Return the slices in a folder's ``Imgs`` or ``images``, each with its label map in ``GT`` or ``masks``.

    A label map has the name of its image or DICOM file with the ending ``.png``, the same size, and values 0, 1, 2.
    For a DICOM file in a subfolder of ``images``, it lies in the same subfolder of ``masks``, or in ``masks`` itself.
    A DICOM series may have one NIfTI volume instead (`_label_volume`).

    Parameters
    ----------
    folder
        Holds the two folders.
    orientation
        Orientation of 8-bit images; DICOM files state their own.

    Raises
    ------
    ConfigError
        If a folder is missing or holds nothing to use.
    DataError
        If a slice has no label map, or shares it with another slice, or a DICOM series cannot be used.
    """
    images = _one_of(folder, _IMAGE_FOLDERS)
    label_maps = _LabelMaps(_one_of(folder, _MASK_FOLDERS))
    if folder.name.startswith(_COVID_SEMISEG) and orientation == UPRIGHT:
        _log.warning(
            "%s: the labelled images of COVID-SemiSeg lie transposed, and are read upright here; give --data in place "
            "of --labeled, or --orientation transposed",
            folder,
        )

    sources: list[ImageSlice | DicomSlices] = [
        ImageSlice(name=path.stem, image_path=path, mask_path=label_maps.of_slice(path.name), orientation=orientation)
        for path in _image_files(images)
    ]
    if not sources:
        sources += [label_maps.with_labels(source) for source in _dicom_series(images, all_needed=True)]
    label_maps.refuse_left_over()
    return sources


class _LabelMaps:
    """The label maps in a folder, each of which belongs to one slice or one series."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = [path for path in sorted(folder.rglob("*")) if not path.name.startswith(".")]
        self._volumes = _label_volumes(folder, self._files)
        self._listed = cache(_label_maps)
        self._owners: dict[Path, str] = {}

    def of_slice(self, name: str, series_key: str | None = None) -> Path:
        """Return the label map of an image, or of a DICOM file of a series, named by its path.

        Raises
        ------
        DataError
            If there is none, or another slice has it.
        """
        beside = self._folder / _mask_name(name)
        places = (beside, self._folder / beside.name)
        path = next((found for place in places if (found := self._listed(place.parent).get(place.name))), None)
        if path is None and series_key is not None:
            volumes = [other.name for other in self._files if _ending(other) in _VOLUME_ENDINGS]
            there = f" (volumes there: {', '.join(volumes[:3])})" if volumes else ""
            raise DataError(
                f"{beside}: the label map of {name} is missing, and so is one volume for its series, "
                f"{series_key}_labels.nii.gz{there}"
            )
        if path is None:
            others = [other.name for other in visible_files(self._folder) if other.name.startswith(f"{beside.stem}.")]
            hint = f"; {others[0]} is none: label maps are .png files with their image's name" if others else ""
            raise DataError(f"{beside}: the label map of {name} is missing{hint}")
        if self._owners.setdefault(path, name) != name:
            advice = f"put that of {name} at {beside}" if path != beside else f"rename {name} or {self._owners[path]}"
            raise DataError(f"{path}: is the label map of two slices; {advice}")
        return path

    def with_labels(self, source: DicomSlices) -> DicomSlices:
        """Return a series with its label volume, or else with one label map for each slice.

        Raises
        ------
        DataError
            If there are none, or they belong to another series, too.
        """
        record = source.record
        volume = _label_volume(record, self._volumes)
        if volume is not None:
            if volume in self._owners:
                keys = f"{self._owners[volume]}_labels and {record.series_key}_labels"
                raise DataError(f"{volume}: is the label map of two series; give each its own, named {keys}")
            self._owners[volume] = record.series_key
            return replace(source, label_volume=volume)
        if record.frames:
            raise DataError(
                f"{source.root / record.files[0]}: the slices of a multi-frame file have one name, so that their label "
                f"maps cannot be told apart; give one volume, {self._folder / record.series_key}_labels.nii.gz"
            )
        return replace(source, mask_paths=tuple(self.of_slice(name, record.series_key) for name in record.files))

    def refuse_left_over(self) -> None:
        """Refuse label maps that no slice and no series took: they are named wrongly, or their images are missing.

        Raises
        ------
        DataError
            If there are any; the message names the first.
        """
        for path in self._files:
            if path.suffix.lower() == ".png" and path not in self._owners:
                raise DataError(f"{path}: is the label map of no slice that can be used; add its image, or take it out")
        for path in self._volumes.values():
            if path not in self._owners:
                raise DataError(
                    f"{path}: is the label map of no series that can be used; a label volume is named "
                    "<series_key>_labels, by the SeriesInstanceUID, or by the folder of the series. Rename it, or take "
                    "it out"
                )


def _label_volumes(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Return the NIfTI files among those of a tree by their paths in it, without the ending."""
    found: dict[str, Path] = {}
    for path in files:
        if _ending(path) == _NIFTI:
            name = path.relative_to(folder).as_posix()
            name = name[: name.lower().rindex(_NIFTI)]
            if name in found:
                raise DataError(f"{path}: is there twice, as {found[name].name} too; keep one of them")
            found[name] = path
    return found


def _label_volume(record: SeriesRecord, volumes: Mapping[str, Path]) -> Path | None:
    """Return the label volume of a series; None if it has none.

    It is named as ``export --format nifti`` names it, by the SeriesInstanceUID, or else by the folder of the series'
    files. Of several the first such name counts.
    """
    folders = {PurePosixPath(name).parent.as_posix() for name in record.files}
    names = [f"{record.series_key}_labels", record.series_instance_uid, *(folders if len(folders) == 1 else ())]
    return next((volumes[name] for name in names if name in volumes), None)


def _label_maps(folder: Path) -> dict[str, Path]:
    """Return the PNG files of a folder by their names with the ending ``.png``, however that is written."""
    files = visible_files(folder) if folder.is_dir() else []
    return {path.with_suffix(".png").name: path for path in files if path.suffix.lower() == ".png" and path.is_file()}


def unlabeled_folder(folder: Path, orientation: Orientation) -> list[ImageSlice | DicomSlices]:
    """Return the slices of a folder of 8-bit images or of a tree of DICOM files.

    Raises
    ------
    ConfigError
        If the folder is missing or holds nothing to use.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    images = _image_files(folder)
    if images:
        return [ImageSlice(name=path.stem, image_path=path, orientation=orientation) for path in images]
    return list(_dicom_series(folder, all_needed=False))


def _mask_name(name: str) -> Path:
    """Return the relative path of a slice's label map; a file named by a UID has no ending to remove."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in IMAGE_ENDINGS | _DICOM_ENDINGS else path.name
    return path.with_name(f"{stem}.png")


def _one_of(folder: Path, names: tuple[str, ...]) -> Path:
    found = [folder / name for name in names if (folder / name).is_dir()]
    if len(found) != 1:
        raise ConfigError(f"{folder}: a labelled folder must hold one folder {' or '.join(names)}, found {len(found)}")
    return found[0]


def _image_files(folder: Path) -> list[Path]:
    """Return the 8-bit images of a folder.

    Raises
    ------
    ConfigError
        If it also holds DICOM files or folders, since which are meant is not known, or images of other formats, which
        would be left out.
    """
    listed = visible_files(folder)
    images = [path for path in listed if path.suffix.lower() in IMAGE_ENDINGS]
    unknown = (Image.registered_extensions().keys() | _VOLUME_ENDINGS) - IMAGE_ENDINGS
    unread = [path for path in listed if _ending(path) in unknown]
    if unread:
        is_volume = _ending(unread[0]) in _VOLUME_ENDINGS
        as_what = "convert them to DICOM, which keeps their HU" if is_volume else "save them as .png"
        raise ConfigError(
            f"{folder}: {len(unread)} image(s) like {unread[0].name} are not read; {as_what}, or take them out"
        )
    if not images:
        return []
    others = [path for path in listed if path.is_dir() or path.suffix.lower() not in IMAGE_ENDINGS]
    if dicom := [path for path in others if path.is_dir() or _ending(path) in _DICOM_ENDINGS or _is_dicom(path)]:
        raise ConfigError(f"{folder}: holds images ({images[0].name}) and also {dicom[0].name}; keep one kind of data")
    if others:
        _log.warning("%d other files of %s, like %s, are passed over", len(others), folder, others[0].name)
    for path in images:
        require_utf8(path, "an image's name")
    return images


def _is_dicom(path: Path) -> bool:
    """Return whether a file says that it is DICOM; one that cannot be opened says nothing."""
    try:
        return is_dicom(path)
    except OSError:
        return False


def _ending(path: Path) -> str:
    """Return the ending of a file's name in lower case, of a compressed one that before ``.gz``."""
    endings = [suffix.lower() for suffix in path.suffixes]
    return (endings[-2] if endings[-1:] == [".gz"] and len(endings) > 1 else endings[-1]) if endings else ""


def _dicom_series(folder: Path, *, all_needed: bool) -> list[DicomSlices]:
    nothing = f"{folder}: holds neither .jpg or .png images, in the folder itself, nor an axial DICOM CT series"
    try:
        scan = scan_cohort(folder, config=ScanConfig(select=("all",)))  # every series, not only a study's preferred one
    except ConfigError as error:
        raise ConfigError(f"{nothing} ({error})") from error
    for record in scan.series:
        if record.decision == "selected":
            continue
        problem = f"{folder / record.files[0]}: its series of {record.n_slices} slices cannot be used: {record.reason}"
        if all_needed:
            raise DataError(f"{problem}; take it out, or mend it")
        _log.info("series %s is left out: %s", record.series_key, record.reason)
    lost = [*(file for file in scan.skipped if file.unreadable), *scan.copies]
    if lost and all_needed:
        raise DataError(f"{folder / lost[0].path}: cannot be used: {lost[0].reason}; take it out, or mend it")
    if not scan.selected:
        reason, count = Counter(record.reason for record in scan.series).most_common(1)[0]
        raise ConfigError(f"{nothing}; {count} of {len(scan.series)} series: {reason}")
    return [DicomSlices(record=record, root=folder) for record in scan.selected]
