"""The folder of a training run: what the run was begun with, and whether one may begin or resume in it."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from cohortseg import __version__
from cohortseg.config import ImageOrientation, TrainConfig, config_from_mapping
from cohortseg.errors import ConfigError
from cohortseg.store.documents import parse_json
from cohortseg.store.files import LOCK, held, require_utf8, store_errors, sweep_temporaries, visible_files, write_file
from cohortseg.store.layout import PICTURES
from cohortseg.train.state import FREE_TO_CHANGE, check_same_settings

_log: Final = logging.getLogger(__name__)

SETTINGS: Final = "settings.json"
_DATA_OPTIONS: Final = "data-options.json"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which slices a run is asked to train on; None means "not given"."""

    data: str | None = None
    """COVID-SemiSeg folder."""
    labeled: str | None = None
    """Folder of the user's own labelled images."""
    unlabeled: str | None = None
    """Folder of unlabelled ones."""
    teachers: tuple[str, ...] | None = None
    """Model files that label the unlabelled images."""
    orientation: ImageOrientation | None = None
    """Orientation of the user's own 8-bit images; None: upright."""
    holdout: bool | None = None
    """Whether the validation images of COVID-SemiSeg are kept out; None: they are."""
    version: str | None = None
    """Version of cohortseg that began the run; not given by the user."""

    def meant(self, name: str) -> Any:
        """Return an option, or what stands for it where it is not given."""
        value = getattr(self, name)
        return {"orientation": "upright", "holdout": True}.get(name) if value is None else value

    def resolved(self) -> Self:
        """Return the options with absolute folders: a run may be resumed from elsewhere."""

        def absolute(path: str | None) -> str | None:
            return None if path is None else str(Path(path).resolve())

        return replace(
            self,
            data=absolute(self.data),
            labeled=absolute(self.labeled),
            unlabeled=absolute(self.unlabeled),
            teachers=self.teachers and tuple(str(Path(path).resolve()) for path in self.teachers),
        )


@contextmanager
def claimed_run(run: Path, *, new: bool) -> Iterator[None]:
    """Lock a run's folder, created if need be, so that no second training writes into it.

    Raises
    ------
    ConfigError
        If it is not empty for a new run, or holds no run to resume, or its path is not UTF-8.
    StoreError
        If another training holds it, or it cannot be made.
    """
    require_utf8(run.resolve(), "the path of the run's folder")
    if new:
        _refuse_used(run)
    else:
        saved_settings(run)  # raises before a lock is left in a folder of something else
    with held(run, "train"):
        sweep_temporaries(run / PICTURES)
        yield


def begin_run(run: Path, config: TrainConfig, options: DataOptions | None = None) -> None:
    """Record in a new run's folder its settings and its data.

    Raises
    ------
    ConfigError
        If the folder holds something.
    StoreError
        If it cannot be written.
    """
    _refuse_used(run)
    with store_errors(run, "cannot be made"):
        run.mkdir(parents=True, exist_ok=True)
    _write_json(run / _DATA_OPTIONS, replace(options or DataOptions(), version=__version__))
    _write_json(run / SETTINGS, config)


def reopen_run(run: Path, config: TrainConfig, options: DataOptions | None = None) -> DataOptions:
    """Return the data that a run was begun with, and record the settings that it continues with.

    Parameters
    ----------
    run
        The run's folder.
    config
        Settings; those that change what is minimised must be as they were.
    options
        Options not given stay as they were.

    Raises
    ------
    ConfigError
        If the folder holds no run, or one with other settings or data, or one of another version of cohortseg.
    StoreError
        If it cannot be written.
    """
    before = check_resumable(run, config, options or DataOptions())
    if before.version != __version__:
        raise ConfigError(
            f"{run}: was begun by cohortseg {before.version}, this is {__version__}, which may train otherwise; go on "
            "with that version, or use a new run folder"
        )
    if changed := changed_settings(run, config):
        _log.warning("%s: goes on with other %s than it had", run, ", ".join(changed))
    _write_json(run / SETTINGS, config)  # changed settings hold from now on
    return before


def check_resumable(run: Path, config: TrainConfig, options: DataOptions) -> DataOptions:
    """Return the data that a run was begun with; refuse other settings or data.

    Raises
    ------
    ConfigError
        If the folder holds no run, or one with other settings or data.
    """
    settings = saved_settings(run)
    check_same_settings(asdict(settings), config)
    for name, uses in (("batch_pseudo", True), ("batch_unlabeled", config.uses_unlabeled)):
        size, was = getattr(config, name), getattr(settings, name)
        if uses and size * settings.batch_labeled != was * config.batch_labeled:
            raise ConfigError(
                f"cannot resume with batch_labeled {config.batch_labeled}, {name} {size}: they were "
                f"{settings.batch_labeled} and {was}, and must stay in proportion"
            )
    before = saved_options(run)
    differing = [
        f"{item.name} was {was!r}, is {value!r}"
        for item in fields(DataOptions)
        if (value := getattr(options, item.name)) not in (None, was := before.meant(item.name))
    ]
    if differing:
        raise ConfigError(f"cannot resume on other data: {'; '.join(differing)}; use a new run folder")
    return before


def _refuse_used(run: Path) -> None:
    """Refuse a folder that is not empty, unless a start was killed in it before it recorded its settings."""
    if not run.exists():
        return
    if run.is_dir() and all(path.name == _DATA_OPTIONS for path in visible_files(run)):
        return
    raise ConfigError(f"{run}: is not empty; go on with --resume, or choose another folder with -o")


def discard_run(run: Path) -> None:
    """Undo `begin_run` for a run whose data proved unusable: once they are mended, the same command works."""
    with suppress(OSError):
        for name in (SETTINGS, _DATA_OPTIONS, LOCK):
            (run / name).unlink(missing_ok=True)
        run.rmdir()


def saved_settings(run: Path) -> TrainConfig:
    """Return the settings that a run was begun with.

    Raises
    ------
    ConfigError
        If the folder holds no run, or its settings cannot be read.
    """
    if not (run / SETTINGS).is_file():
        raise ConfigError(f"{run}: holds no run to resume")
    return config_from_mapping(TrainConfig, _read_json(run / SETTINGS))


def changed_settings(run: Path, config: TrainConfig) -> list[str]:
    """Return the names of the settings free to change in which these differ from a run's."""
    saved = saved_settings(run)
    return sorted(name for name in FREE_TO_CHANGE if getattr(config, name) != getattr(saved, name))


def saved_options(run: Path) -> DataOptions:
    """Return the data that a run was begun with.

    Raises
    ------
    ConfigError
        If they cannot be read.
    """
    return config_from_mapping(DataOptions, _read_json(run / _DATA_OPTIONS))


def _write_json(path: Path, record: DataOptions | TrainConfig) -> None:
    write_file(path, json.dumps(asdict(record), indent=1).encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds no settings")
    return document
