"""All measured series of a run, exported one by one; files that an earlier export wrote from the same masks stay."""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, assert_never

import numpy as np
import polars as pl

from cohortseg import __version__
from cohortseg.config import ExportFormat
from cohortseg.dicom.decode import read_first_header, read_source_headers, read_volume
from cohortseg.dicom.elements import quiet_pydicom
from cohortseg.dicom.series import SeriesRecord, record_from_row
from cohortseg.errors import CohortSegError, ConfigError, DicomError, StoreError, unexpected
from cohortseg.export.dicom_seg import identity_hash, segmentation_bytes
from cohortseg.export.nifti import nifti_bytes
from cohortseg.export.png import slice_pictures
from cohortseg.identity import without_path
from cohortseg.progress import Progress, no_progress
from cohortseg.store.documents import parse_json
from cohortseg.store.files import held, replacing_folder, store_errors, sweep_temporaries, write_file
from cohortseg.store.layout import MASKS, RUN_JSON, STATE
from cohortseg.store.masks import SeriesMasks, masks_hash, read_masks
from cohortseg.store.output import require_output
from cohortseg.store.provenance import read_run_json, write_run_json
from cohortseg.store.schemas import BURDEN, MANIFEST
from cohortseg.store.tables import read_table
from cohortseg.volume import Volume

_log: Final = logging.getLogger(__name__)

Fate = Literal["written", "up to date", "without lesion", "failed"]
"""What became of one series."""

_COMMAND: Final = "export"
_MARKERS: Final = ".exported"
"""Folder in the target: for each series and format, what its files were made from, and their sizes."""
_PICTURE_NAME: Final = re.compile(r"\d{4}\.png")
_SAME_PLACE_MM: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What `export_masks` did."""

    fates: Mapping[Fate, int]
    """Number of series by what became of them."""
    failures: Mapping[str, str]
    """Why series were not exported, by series key; without file paths."""
    left_over: tuple[str, ...]
    """Keys of series that the target holds files of but ``out`` does not measure (any more)."""
    repaired: int
    """Number of exported series whose masks lie on a grid of their own (``infer --repair``), not on their slices."""

    @property
    def complete(self) -> bool:
        """Whether there was a series, and none failed."""
        return bool(self.fates) and not self.failures


def export_masks(
    out: Path,
    target: Path,
    *,
    form: ExportFormat,
    cohort: Path | None,
    only: Sequence[str] = (),
    progress: Progress = no_progress,
) -> ExportSummary:
    """Write the masks of measured series in another format, in files named by series key.

    Parameters
    ----------
    out
        Output folder of ``infer``; it is only read.
    target
        Folder for the files; it is created. A hidden folder in it tells a later export what is up to date; its
        ``run.json`` tells, for each format, of the last export into it.
    form
        ``dicom-seg``: one file per series. ``nifti``: labels and lungs, and the CT if the cohort is given. ``png``: one
        folder per series, with a picture of each slice that holds lung.
    cohort
        The folder that was segmented; only ``nifti`` can do without.
    only
        Series, each by its SeriesInstanceUID or the beginning of its key; empty: every measured one.
    progress
        Shows the progress, in series.

    Raises
    ------
    ConfigError
        If ``out`` is no output folder, a given series is unknown or was not measured, the cohort is needed but missing
        or is another one, or ``target`` lies inside it or inside ``out``, or is the output of another command.
    StoreError
        If tables cannot be read, or the target cannot be written or is being written by another export.
    """
    start = time.perf_counter()
    require_output(out)
    if cohort is None and form != "nifti":
        raise ConfigError(f"{form} needs the slices that were segmented; give their folder as --cohort")
    if cohort is not None and not cohort.is_dir():
        raise ConfigError(f"{cohort}: no such folder")
    if cohort is not None and target.resolve().is_relative_to(cohort.resolve()):
        raise ConfigError(f"{target}: the output must not lie inside the cohort, which is only read; choose another -o")
    if target.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"{target}: the files must not lie inside {out}, which is only read; choose another -o")
    if (target / STATE).exists() or ((target / RUN_JSON).exists() and read_run_json(target).get("command") != _COMMAND):
        raise ConfigError(f"{target}: holds the output of another command; choose another -o")
    burden = read_table(out / BURDEN.file_name, BURDEN)
    measured: list[str] = burden.filter(pl.col("status") == "ok")["series_key"].to_list()
    chosen = _named(burden, measured, only) if only else measured
    manifest = read_table(out / MANIFEST.file_name, MANIFEST).filter(pl.col("series_key").is_in(chosen))
    if lacking := len(set(chosen) - set(manifest["series_key"])):
        raise StoreError(
            f"{out / MANIFEST.file_name}: lacks {lacking} of the series in {BURDEN.file_name}; run infer again, which "
            "writes both"
        )
    if cohort is not None and chosen and not _holds_any(cohort, manifest["files"].list.explode()):
        raise ConfigError(
            f"{cohort}: holds none of the files of {out}; give the folder that infer was given as --cohort"
        )
    models: dict[str, str] = dict(burden.select("series_key", "model_sha256").iter_rows())
    fates: Counter[Fate] = Counter()
    failures: dict[str, str] = {}
    repaired = 0
    with (
        held(target, _COMMAND, folders=[target / _MARKERS]),
        progress("Exporting") as report,
        quiet_pydicom(),
    ):
        facts = {"series": sorted(chosen) if only else None, "model": read_run_json(out).get("model")}
        _record(target, form, facts, finished=False)
        for done, row in enumerate(manifest.iter_rows(named=True)):
            report(done, len(manifest), "")
            record = record_from_row(row)
            fate, failure = _export_one(record, models[record.series_key], out / MASKS, target, form, cohort)
            fates[fate] += 1
            if failure is not None:
                failures[record.series_key] = failure
            elif record.repairs and fate != "without lesion":
                repaired += 1
        report(len(manifest), len(manifest), "")
        exported = {path.name.removesuffix(f"-{form}.json") for path in (target / _MARKERS).glob(f"*-{form}.json")}
        unmeasured = sorted(exported - set(measured))
        left_over = [key for key in unmeasured if _sizes(_paths(target, key, form, with_ct=True))]
        timings = {"total_s": round(time.perf_counter() - start, 1)}
        _record(target, form, facts | {"counts": dict(fates), "timings": timings}, finished=True)
    return ExportSummary(fates=fates, failures=failures, left_over=tuple(left_over), repaired=repaired)


def _export_one(
    record: SeriesRecord, model_sha256: str, store: Path, target: Path, form: ExportFormat, cohort: Path | None
) -> tuple[Fate, str | None]:
    """Export one series unless it is up to date; return what became of it and, if it failed, why.

    ``model_sha256`` is that of its row in the burden table: masks that a worker of another run wrote late are refused.
    """
    paths = _paths(target, record.series_key, form, with_ct=cohort is not None)
    marker = target / _MARKERS / f"{record.series_key}-{form}.json"
    try:
        made_of = _made_of(record, masks_hash(store, record.series_key), model_sha256, form, cohort)
        before = _recorded(marker)
        if before is not None and before["made_of"] == made_of and _is_unchanged(before["sizes"], paths):
            return "up to date", None
        if form == "nifti" and before is not None and (changed := _changed(before["sizes"], record.series_key, target)):
            return "failed", f"{changed} was changed since it was exported; move it away to export the series again"
        masks = read_masks(store, record.series_key)
        if masks.facts.model_sha256 != model_sha256:
            return "failed", f"its masks are of another model than its row in {BURDEN.file_name}; run infer again"
        contents = _contents(record, masks, form, cohort)
    except CohortSegError as error:
        return "failed", without_path(str(error), record.files)
    except Exception as error:  # noqa: BLE001 - the boundary of a series: the others are to be exported
        reason, frames = unexpected(error)
        _log.debug("series %s\n%s", record.series_key, frames)
        return "failed", reason
    if before is None or before["made_of"][0] != made_of[0]:
        # The CT of an earlier export does not belong beside other masks.
        paths = _paths(target, record.series_key, form, with_ct=True)
    with store_errors(marker):
        marker.unlink(missing_ok=True)  # while files are replaced it tells of other ones, perhaps of equal size
    _write(paths, contents, form)
    write_file(marker, json.dumps({"made_of": made_of, "sizes": _sizes(paths)}).encode())
    return ("written" if contents else "without lesion"), None


def _record(target: Path, form: ExportFormat, facts: Mapping[str, Any], *, finished: bool) -> None:
    """Write ``run.json``, which tells of the last export in each format."""
    earlier = read_run_json(target).get("formats")
    last = {"finished": finished, "version": __version__, **facts}
    formats = (earlier if isinstance(earlier, dict) else {}) | {form: last}
    write_run_json(target, _COMMAND, {"formats": formats}, finished=finished)


def _holds_any(cohort: Path, files: pl.Series) -> bool:
    """Return whether a folder holds any of the files named; those of folders that are not there are not looked for."""
    folders: dict[str, bool] = {}
    for path in files:
        folder = os.path.dirname(path)  # noqa: PTH120
        if folder not in folders:
            folders[folder] = os.path.isdir(cohort / folder)  # noqa: PTH112 - Path.is_dir raises in one without rights
        if folders[folder] and os.path.exists(cohort / path):  # noqa: PTH110
            return True
    return False


def _named(burden: pl.DataFrame, measured: Collection[str], only: Sequence[str]) -> list[str]:
    """Return the keys of the series that a user names.

    Raises
    ------
    ConfigError
        If a name fits no series or several, or its series was not measured.
    """
    chosen = []
    for name in only:
        named = burden.filter(pl.col("series_key").str.starts_with(name) | (pl.col("series_instance_uid") == name))
        if not name or named.is_empty():
            raise ConfigError(f"no series {name!r} in burden.parquet; give a SeriesInstanceUID or a series_key")
        if named["series_instance_uid"].n_unique() > 1:
            raise ConfigError(f"{len(named)} series have a key that begins with {name!r}; give more of it")
        keys = [key for key in named["series_key"] if key in measured]
        if not keys:
            raise ConfigError(f"series {name} was not measured ({', '.join(named['status'].unique().sort())})")
        chosen += keys
    return chosen


def _paths(target: Path, series_key: str, form: ExportFormat, *, with_ct: bool) -> dict[str, Path]:
    """Return the paths of the exported files of a series, by what they hold."""
    if form == "nifti":
        names = ("labels", "lungs", "ct") if with_ct else ("labels", "lungs")
        return {name: target / f"{series_key}_{name}.nii.gz" for name in names}
    return {"all": target / (f"{series_key}.dcm" if form == "dicom-seg" else series_key)}


def _made_of(
    record: SeriesRecord, masks_sha256: str, model_sha256: str, form: ExportFormat, cohort: Path | None
) -> list[str]:
    """Return what the outputs of a series depend on.

    That is its masks, the model that its row tells of, CT, version and, for a DICOM SEG, the identity in it.
    """
    made_of = [masks_sha256, model_sha256, record.fingerprint, __version__]
    if form == "dicom-seg" and cohort is not None:
        made_of.append(identity_hash(read_first_header(record, cohort)))
    return made_of


def _recorded(marker: Path) -> dict[str, Any] | None:
    """Return what an earlier export recorded of its inputs and outputs; None if there is nothing readable."""
    try:
        before = parse_json(marker.read_bytes())
        return {"made_of": [*before["made_of"]], "sizes": {**before["sizes"]}} if before["made_of"] else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_unchanged(before: Mapping[str, Any], paths: Mapping[str, Path]) -> bool:
    """Return whether all these outputs are there, with the sizes that an earlier export gave them."""
    now = _sizes(paths)
    return all(name in now and name in before and now[name] == before[name] for name in paths)


def _changed(before: Mapping[str, Any], series_key: str, target: Path) -> str | None:
    """Return the name of a NIfTI file with another size than an export gave it: somebody corrected it."""
    paths = _paths(target, series_key, "nifti", with_ct=True)
    now = _sizes(paths)
    return next((paths[name].name for name in paths if name in now and now[name] != before.get(name, now[name])), None)


def _sizes(paths: Mapping[str, Path]) -> dict[str, Any]:
    """Return the sizes of the existing outputs; for a folder, those of its pictures by name."""
    sizes: dict[str, Any] = {}
    for name, path in paths.items():
        if path.is_dir():
            sizes[name] = {file.name: file.lstat().st_size for file in sorted(path.iterdir()) if _is_picture(file)}
        elif path.exists():
            sizes[name] = path.stat().st_size
    return sizes


def _is_picture(path: Path) -> bool:
    """Return whether what lies in a folder of pictures is ours, by its name; folders and others are a user's own."""
    return _PICTURE_NAME.fullmatch(path.name) is not None and (path.is_symlink() or not path.is_dir())


def _contents(record: SeriesRecord, masks: SeriesMasks, form: ExportFormat, cohort: Path | None) -> dict[str, bytes]:
    """Return the contents of the files to write for a series, by what they hold or, for ``png``, by file name."""
    if form == "nifti":
        return _nifti(record, masks, cohort)
    if cohort is None:
        raise ValueError(f"{form} without a cohort: export_masks refuses it before")
    if form == "png":
        return {f"{z:04d}.png": picture for z, picture in slice_pictures(_source(record, masks, cohort), masks)}
    if form == "dicom-seg":
        return _dicom_seg(record, masks, cohort)
    assert_never(form)


def _nifti(record: SeriesRecord, masks: SeriesMasks, cohort: Path | None) -> dict[str, bytes]:
    """Return the NIfTI files of a series, by what they hold; the CT only if the cohort is given."""
    arrays = {"labels": masks.labels, "lungs": masks.lungs}
    contents = {name: nifti_bytes(array, masks) for name, array in arrays.items()}
    if cohort is not None:
        contents["ct"] = nifti_bytes(_source(record, masks, cohort).volume_hu, masks)
    return contents


def _dicom_seg(record: SeriesRecord, masks: SeriesMasks, cohort: Path) -> dict[str, bytes]:
    """Return the DICOM SEG of a series; nothing if it has no lesion."""
    if not masks.labels.any():
        return {}  # viewers stumble over empty segments
    _source(record, masks, cohort)  # raises if the slices are others: headers alone do not tell where a stack lies
    return {"all": segmentation_bytes(masks, read_source_headers(record, cohort), record)}


def _source(record: SeriesRecord, masks: SeriesMasks, cohort: Path) -> Volume:
    """Return the CT that the masks were made from.

    Raises
    ------
    DicomError
        If it cannot be read, or is not what was segmented, by UIDs, shape and place; pixels are not compared.
    """
    volume = read_volume(record, cohort)
    if (
        volume.sop_instance_uids != masks.facts.sop_instance_uids
        or volume.volume_hu.shape != masks.labels.shape
        or not np.allclose(volume.affine, masks.facts.affine, atol=_SAME_PLACE_MM)
    ):
        raise DicomError(f"series {record.series_key}: its slices are not those that were segmented; run infer again")
    return volume


def _write_pictures(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the pictures of a series: a new folder at once, in an older one file by file, among a user's own."""
    if not folder.is_dir():
        with replacing_folder(folder) as new:
            for name, picture in contents.items():
                (new / name).write_bytes(picture)
        return
    with store_errors(folder, "cannot be written"):
        sweep_temporaries(folder)
        for name, picture in contents.items():
            write_file(folder / name, picture)
        for path in folder.iterdir():
            if _is_picture(path) and path.name not in contents:
                path.unlink()


def _write(paths: Mapping[str, Path], contents: Mapping[str, bytes], form: ExportFormat) -> None:
    """Write the exported files of a series, in place of those of an earlier export."""
    if form == "png":
        _write_pictures(paths["all"], contents)
        return
    for name, path in paths.items():
        if name in contents:
            write_file(path, contents[name])
        else:
            path.unlink(missing_ok=True)
