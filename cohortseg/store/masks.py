"""Label and lung masks in one Zarr v3 store: one group per series, written whole, on the series' own grid.

Each group holds two arrays (z, y, x) uint8, slices ordered as in `Volume`, rows and columns as in the DICOM files:
``labels`` (0 background, 1 GGO, 2 consolidation) and ``lungs`` (0 none, 1 the patient's right, 2 the left lung). The
group's attributes carry NGFF 0.5 image-label metadata under ``ome`` and geometry, identity, terminology and model under
``cohortseg``. Each array is a single shard, since two writers of one shard lose data; a group appears by renaming.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from cohortseg import __version__
from cohortseg.errors import StoreError
from cohortseg.labels import LABELS, LESIONS, SIDES, Lesion
from cohortseg.store.files import file_sizes, remove_folder, replacing_folder, store_errors, sweep_temporaries
from cohortseg.volume import Volume

_CHUNK: Final = (32, 128, 128)
_AXES: Final = ("z", "y", "x")
_DAMAGED: Final = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    SystemError,
)
"""What Zarr and its codecs raise on damaged chunks and metadata."""


@dataclass(frozen=True, kw_only=True)
class MaskFacts:
    """Geometry, identity and origin of the masks of a series."""

    affine: tuple[tuple[float, ...], ...]
    """(4, 4) array index (z, y, x) to LPS, mm."""
    spacing_mm: tuple[float | None, float, float]
    """(z, y, x); z is None for a single slice, whose extent along the normal is not known."""
    study_instance_uid: str | None
    series_instance_uid: str
    frame_of_reference_uid: str | None
    sop_instance_uids: tuple[str, ...]
    """Of the slices, in order."""
    model_name: str
    model_sha256: str
    lung_method: str
    """Name and version of the lung segmentation."""
    version: str = __version__
    """Version of cohortseg that made the masks."""

    @classmethod
    def of(
        cls, volume: Volume, *, study_instance_uid: str | None, model_name: str, model_sha256: str, lung_method: str
    ) -> Self:
        """Return what is known of the masks of a volume."""
        return cls(
            affine=tuple(map(tuple, volume.affine.tolist())),
            spacing_mm=volume.spacing_mm,
            study_instance_uid=study_instance_uid,
            series_instance_uid=volume.series_instance_uid,
            frame_of_reference_uid=volume.frame_of_reference_uid,
            sop_instance_uids=volume.sop_instance_uids,
            model_name=model_name,
            model_sha256=model_sha256,
            lung_method=lung_method,
        )

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """Return the facts that the attributes of a group state.

        Raises
        ------
        LookupError, TypeError, ValueError
            If they are not those of `to_attributes`.
        """
        stated = attributes["cohortseg"]
        z, y, x = stated["spacing_zyx_mm"]
        affine = np.asarray(stated["affine_zyx_to_lps_mm"], dtype=np.float64)
        texts = [stated["series_instance_uid"], stated["lung_method"], stated["version"], *stated["model"].values()]
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not all(isinstance(text, str) for text in texts):
            raise ValueError("affine, names or versions are not as they are written")
        if not all(isinstance(side, float) and side > 0 for side in (y, x, *([] if z is None else [z]))):
            raise ValueError("spacing is not positive")
        return cls(
            affine=tuple(map(tuple, affine.tolist())),
            spacing_mm=(z, y, x),
            study_instance_uid=stated["study_instance_uid"],
            series_instance_uid=stated["series_instance_uid"],
            frame_of_reference_uid=stated["frame_of_reference_uid"],
            sop_instance_uids=tuple(stated["sop_instance_uids"]),
            model_name=stated["model"]["name"],
            model_sha256=stated["model"]["sha256"],
            lung_method=stated["lung_method"],
            version=stated["version"],
        )

    def to_attributes(self) -> dict[str, Any]:
        """Return them as the attributes of a group.

        Returns
        -------
        dict
            ``ome``: NGFF 0.5 ``multiscales`` with one level and ``image-label``; the axis z of a single slice has no
            unit, since its extent is not known. ``cohortseg``: see docs/tables.md.
        """
        return {
            "ome": _ome(self.spacing_mm),
            "cohortseg": {
                "version": self.version,
                "affine_zyx_to_lps_mm": self.affine,
                "spacing_zyx_mm": self.spacing_mm,
                "study_instance_uid": self.study_instance_uid,
                "series_instance_uid": self.series_instance_uid,
                "frame_of_reference_uid": self.frame_of_reference_uid,
                "sop_instance_uids": self.sop_instance_uids,
                "classes": [
                    {
                        "value": label.value,
                        "name": label.name,
                        "title": label.title,
                        "rgb": list(label.rgb),
                        "snomed_code": label.snomed_code if isinstance(label, Lesion) else None,
                        "snomed_meaning": label.snomed_meaning if isinstance(label, Lesion) else None,
                    }
                    for label in LABELS
                ],
                "lungs": {"0": "none"} | {str(value): side for side, value in SIDES.items()},
                "lung_method": self.lung_method,
                "model": {"name": self.model_name, "sha256": self.model_sha256},
            },
        }


@dataclass(frozen=True, kw_only=True)
class SeriesMasks:
    """The masks of one series, on the grid of its volume."""

    labels: NDArray[np.uint8]
    """(Z, Y, X) uint8: 0 background, 1 GGO, 2 consolidation."""
    lungs: NDArray[np.uint8]
    """(Z, Y, X) uint8: 0 none, 1 the patient's right lung, 2 the left one."""
    facts: MaskFacts


def _ome(spacing_mm: tuple[float | None, float, float]) -> dict[str, Any]:
    """Return NGFF 0.5 label-image metadata (https://ngff.openmicroscopy.org/0.5/#labels-md)."""
    axes = [
        {"name": name, "type": "space"} | ({} if spacing is None else {"unit": "millimeter"})
        for name, spacing in zip(_AXES, spacing_mm, strict=True)
    ]
    scale = [1.0 if spacing is None else spacing for spacing in spacing_mm]
    level = {"path": "labels", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    return {
        "version": "0.5",
        "multiscales": [{"name": "labels", "axes": axes, "datasets": [level]}],
        "image-label": {
            "colors": [{"label-value": label.value, "rgba": [*label.rgb, 255]} for label in LESIONS],
            "properties": [{"label-value": label.value, "class": label.title} for label in LESIONS],
        },
    }


def create_mask_store(path: Path) -> None:
    """Create the store's root group unless it exists, and remove temporary files that killed runs left.

    Raises
    ------
    StoreError
        If the store cannot be created or is no Zarr v3 group.
    """
    root = path / "zarr.json"
    try:
        if root.is_file() and not root.stat().st_size:  # zarr does not wait for the disk: power failed
            root.unlink()
        zarr.open_group(path, mode="a", zarr_format=3)
        sweep_masks(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be used as a mask store: {error}") from error
    except _DAMAGED as error:
        raise StoreError(
            f"{path}: cannot be used as a mask store ({error}); if it is one, remove its zarr.json and run again"
        ) from error


def sweep_masks(path: Path) -> None:
    """Remove temporary files that killed processes left."""
    sweep_temporaries(path)
    for leftover in path.glob("zarr.*.partial"):  # zarr's own
        leftover.unlink(missing_ok=True)


def write_masks(path: Path, series_key: str, masks: SeriesMasks) -> None:
    """Write or replace the group of one series; a reader sees the whole old one, none, or the whole new one.

    Raises
    ------
    StoreError
        If it cannot be written (disk full, permissions).
    """
    arrays = {"labels": masks.labels, "lungs": masks.lungs}
    attributes = masks.facts.to_attributes()
    attributes["cohortseg"] |= {"nonzero_voxels": _nonzero(arrays)}
    try:
        with replacing_folder(path / series_key) as folder:
            group = zarr.open_group(folder, mode="w-", zarr_format=3, attributes=attributes)
            for name, array in arrays.items():
                _write_array(group, name, array)
    except StoreError as error:
        what = f"masks of series {series_key} cannot be written"
        raise StoreError(f"{path}: {what}: {error.__cause__}") from error


def remove_masks(path: Path, series_key: str) -> None:
    """Remove the group of one series if there is one; it vanishes at once.

    Raises
    ------
    StoreError
        If it cannot be removed.
    """
    with store_errors(path, f"masks of series {series_key} cannot be removed"):
        remove_folder(path / series_key)


def read_masks(path: Path, series_key: str) -> SeriesMasks:
    """Read the group of one series.

    Raises
    ------
    StoreError
        If there are no masks of this series, they cannot be read, or one of their files is lost: Zarr reads zeros.
    """
    advice = "remove this folder and run infer again"
    try:
        group = zarr.open_group(path / series_key, mode="r")
        arrays = {name: _read_array(group, name) for name in ("labels", "lungs")}
        attributes: dict[str, Any] = group.attrs.asdict()
    except _DAMAGED as error:
        raise StoreError(f"{path / series_key}: no readable masks ({error}); {advice}") from error
    try:
        facts, nonzero = MaskFacts.from_attributes(attributes), attributes["cohortseg"]["nonzero_voxels"]
    except (LookupError, TypeError, ValueError) as error:
        raise StoreError(f"{path / series_key}: no masks as cohortseg writes them; {advice}") from error
    whole = arrays["labels"].shape == arrays["lungs"].shape and nonzero == _nonzero(arrays)
    if not whole:
        raise StoreError(f"{path / series_key}: masks have lost a file, or were changed; {advice}")
    return SeriesMasks(**arrays, facts=facts)


def mask_sizes(path: Path, series_key: str) -> dict[str, int]:
    """Return the bytes of each file of the group of one series, by its path below the store; none without a group."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return dict(file_sizes(path, series_key))
    return {}


def masks_hash(path: Path, series_key: str) -> str:
    """Return the SHA-256 of the stored masks of one series, including their attributes (model and geometry).

    Raises
    ------
    StoreError
        If a file cannot be read.
    """
    digest = hashlib.sha256()
    with store_errors(path / series_key, "masks cannot be read"):
        for file in (path / name for name in sorted(mask_sizes(path, series_key))):
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _write_array(group: zarr.Group, name: str, array: NDArray[np.uint8]) -> None:
    chunks = tuple(min(chunk, size) for chunk, size in zip(_CHUNK, array.shape, strict=True))
    shard = tuple(-(-size // chunk) * chunk for chunk, size in zip(chunks, array.shape, strict=True))
    stored = group.create_array(
        name,
        shape=array.shape,
        dtype="uint8",
        chunks=chunks,
        shards=shard,
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        fill_value=0,
        dimension_names=_AXES,
    )
    stored[...] = array


def _read_array(group: zarr.Group, name: str) -> NDArray[np.uint8]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise KeyError(name)
    return np.asarray(array[...], dtype=np.uint8)


def _nonzero(arrays: Mapping[str, NDArray[np.uint8]]) -> dict[str, int]:
    return {name: int(np.count_nonzero(array)) for name, array in arrays.items()}
