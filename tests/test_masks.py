"""The mask store: what goes in comes out, with its geometry, and half-written groups are never seen."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortseg.errors import StoreError
from cohortseg.store.masks import (
    MaskFacts,
    SeriesMasks,
    create_mask_store,
    mask_sizes,
    read_masks,
    remove_masks,
    write_masks,
)
from cohortseg.volume import Volume

KEY = "0123456789abcdef"


def volume(shape: tuple[int, int, int] = (3, 40, 50), *, single: bool = False) -> Volume:
    affine = np.array([[0, 0, 0.7, -100], [0, 0.8, 0, -120], [5, 0, 0, 30], [0, 0, 0, 1.0]])
    return Volume(
        volume_hu=np.zeros(shape, np.int16),
        affine=affine,
        spacing_mm=(None if single else 5.0, 0.8, 0.7),
        series_instance_uid="1.2.3",
        sop_instance_uids=tuple(f"1.2.3.{z}" for z in range(shape[0])),
        frame_of_reference_uid="1.2.9",
    )


def masks(source: Volume, seed: int = 0) -> SeriesMasks:
    rng = np.random.default_rng(seed)
    facts = MaskFacts.of(source, study_instance_uid="1.2", model_name="m", model_sha256="ab", lung_method="lungs 1")
    labels, lungs = (rng.integers(0, 3, source.volume_hu.shape, np.uint8) for _ in range(2))
    return SeriesMasks(labels=labels, lungs=lungs, facts=facts)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    create_mask_store(tmp_path / "masks.zarr")
    return tmp_path / "masks.zarr"


def test_round_trip_with_geometry_by_plain_zarr(store: Path) -> None:
    written = masks(volume())
    write_masks(store, KEY, written)
    group = zarr.open(store, mode="r")[KEY]
    assert np.array_equal(group["labels"][:], written.labels)
    assert np.array_equal(group["lungs"][:], written.lungs)
    ours = group.attrs["cohortseg"]
    assert ours["affine_zyx_to_lps_mm"] == volume().affine.tolist()
    assert ours["spacing_zyx_mm"] == [5.0, 0.8, 0.7]
    assert ours["sop_instance_uids"] == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]
    assert (ours["series_instance_uid"], ours["frame_of_reference_uid"]) == ("1.2.3", "1.2.9")
    assert ours["model"] == {"name": "m", "sha256": "ab"}
    codes = {item["name"]: item["snomed_code"] for item in ours["classes"]}
    assert codes == {"background": None, "ggo": "1217294009", "consolidation": "95436008"}


def test_ngff_label_metadata(store: Path) -> None:
    write_masks(store, KEY, masks(volume()))
    ome = zarr.open(store, mode="r")[KEY].attrs["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in multiscale["axes"]} == {"millimeter"}
    (level,) = multiscale["datasets"]
    assert level["path"] == "labels"
    assert level["coordinateTransformations"] == [{"type": "scale", "scale": [5.0, 0.8, 0.7]}]
    assert [colour["label-value"] for colour in ome["image-label"]["colors"]] == [1, 2]


def test_single_slice_claims_no_thickness(store: Path) -> None:
    write_masks(store, KEY, masks(volume((1, 8, 8), single=True)))
    assert read_masks(store, KEY).facts.spacing_mm == (None, 0.8, 0.7)
    attributes = zarr.open(store, mode="r")[KEY].attrs.asdict()
    assert attributes["cohortseg"]["spacing_zyx_mm"] == [None, 0.8, 0.7]
    assert "unit" not in attributes["ome"]["multiscales"][0]["axes"][0]


def test_one_shard_an_array(store: Path) -> None:
    write_masks(store, KEY, masks(volume((70, 300, 200))))
    group = zarr.open(store, mode="r")[KEY]
    for name in ("labels", "lungs"):
        assert all(shard >= size for shard, size in zip(group[name].shards, group[name].shape, strict=True))
        assert sum(path.is_file() for path in (store / KEY / name).rglob("*")) == 2, "zarr.json and one shard"


@settings(max_examples=10, deadline=None)
@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 150)), seed=st.integers(0, 9))
def test_round_trip_of_any_shape(
    shape: tuple[int, int, int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = tmp_path_factory.mktemp("store") / "masks.zarr"
    create_mask_store(store)
    written = masks(volume(shape), seed)
    write_masks(store, KEY, written)
    read = read_masks(store, KEY)
    assert np.array_equal(read.labels, written.labels)
    assert np.array_equal(read.lungs, written.lungs)


def test_writing_again_replaces(store: Path) -> None:
    write_masks(store, KEY, masks(volume()))
    second = masks(volume((2, 16, 16)), seed=1)
    write_masks(store, KEY, second)
    assert np.array_equal(read_masks(store, KEY).labels, second.labels)
    assert [path.name for path in store.iterdir() if path.is_dir()] == [KEY], "nothing temporary is left"


def test_failed_write_leaves_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match=f"series {KEY} cannot be written"):
        write_masks(store, KEY, masks(volume()))
    assert not mask_sizes(store, KEY)
    assert [path for path in store.iterdir() if path.is_dir()] == []


def test_leftovers_of_killed_runs_are_swept(store: Path) -> None:
    write_masks(store, KEY, masks(volume()))
    (store / KEY).rename(store / f".{KEY}.{'0' * 32}.tmp")
    create_mask_store(store)
    assert [path.name for path in store.iterdir()] == ["zarr.json"]


def test_a_store_whose_root_a_power_failure_left_empty_is_used(store: Path) -> None:
    write_masks(store, KEY, masks(volume()))
    (store / "zarr.json").write_bytes(b"")
    (store / f"zarr.{'0' * 32}.partial").write_bytes(b"{")
    create_mask_store(store)
    assert sorted(path.name for path in store.iterdir()) == [KEY, "zarr.json"]
    assert list(zarr.open_group(store, mode="r").group_keys()) == [KEY]


def test_removing_and_missing(store: Path) -> None:
    remove_masks(store, KEY)
    write_masks(store, KEY, masks(volume()))
    assert mask_sizes(store, KEY)
    remove_masks(store, KEY)
    assert not mask_sizes(store, KEY)
    with pytest.raises(StoreError, match=f"{KEY}: no readable masks"):
        read_masks(store, KEY)


@pytest.mark.parametrize("fact", ["affine_zyx_to_lps_mm", "sop_instance_uids", "lung_method", "version"])
def test_masks_that_lack_a_fact_of_their_origin_are_refused(store: Path, fact: str) -> None:
    write_masks(store, KEY, masks(volume()))
    group = zarr.open_group(store / KEY)
    group.attrs["cohortseg"] = {name: value for name, value in group.attrs["cohortseg"].items() if name != fact}
    with pytest.raises(StoreError, match=f"{KEY}: no masks as cohortseg writes them"):
        read_masks(store, KEY)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("affine_zyx_to_lps_mm", [[1.0, 0, 0, 0]] * 3),
        ("affine_zyx_to_lps_mm", [["a", 0, 0, 0]] * 4),
        ("spacing_zyx_mm", ["a", 1.0, 1.0]),
        ("spacing_zyx_mm", [5.0, -1.0, 1.0]),
        ("lung_method", None),
        ("model", {"name": 5, "sha256": "ab"}),
    ],
)
def test_masks_whose_facts_are_not_as_written_are_refused(store: Path, fact: str, value: object) -> None:
    write_masks(store, KEY, masks(volume()))
    group = zarr.open_group(store / KEY)
    group.attrs["cohortseg"] = group.attrs["cohortseg"] | {fact: value}
    with pytest.raises(StoreError, match=f"{KEY}: no masks as cohortseg writes them"):
        read_masks(store, KEY)


@pytest.mark.parametrize("name", ["labels", "lungs"])
def test_masks_that_lost_a_file_are_not_read_as_healthy(store: Path, name: str) -> None:
    write_masks(store, KEY, masks(volume()))
    (shard,) = (path for path in (store / KEY / name / "c").rglob("*") if path.is_file())
    shard.unlink()
    with pytest.raises(StoreError, match=f"{KEY}: masks have lost a file"):
        read_masks(store, KEY)


@pytest.mark.parametrize("content", ["null", "[]", '{"zarr_format": 3, "node_type": "group", "attributes": []}'])
def test_store_whose_root_is_damaged_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match=r"cannot be used as a mask store .*remove its zarr\.json"):
        create_mask_store(tmp_path)


def test_masks_that_cannot_be_put_in_their_place_are_told_of(store: Path) -> None:
    (store / KEY).write_bytes(b"a file of someone else")
    with pytest.raises(StoreError, match=f"{KEY} cannot be written"):
        write_masks(store, KEY, masks(volume()))
    assert (store / KEY).read_bytes() == b"a file of someone else"
    assert not list(store.glob(".*"))


def test_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "masks.zarr"
    path.write_text("not a store")
    with pytest.raises(StoreError, match="cannot be used as a mask store"):
        create_mask_store(path)
