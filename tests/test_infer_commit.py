"""Markers and attempts of series in the output folder, and one run at a time."""

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cohortseg.errors import StoreError
from cohortseg.infer.attempts import attempts_noted, begin_attempt, count_attempts, require_run, suspects
from cohortseg.infer.claim import claimed
from cohortseg.infer.commit import (
    SeriesResult,
    begin_anew,
    commit,
    committed_keys,
    committed_slices,
    end_anew,
    forget_failed,
    is_done,
    read_committed,
    result_token,
)
from cohortseg.store.masks import MaskFacts, SeriesMasks, create_mask_store
from cohortseg.store.schemas import BURDEN, SLICES

FACTS = MaskFacts(
    affine=((0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    spacing_mm=(None, 1.0, 1.0),
    study_instance_uid=None,
    series_instance_uid="1",
    frame_of_reference_uid=None,
    sop_instance_uids=("1.1",),
    model_name="m",
    model_sha256="ab",
    lung_method="lungs 1",
)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    with claimed(tmp_path / "out"):
        create_mask_store(tmp_path / "out" / "masks.zarr")
        yield tmp_path / "out"


def result_of(status: str = "ok") -> SeriesResult:
    array = np.ones((1, 4, 4), np.uint8)
    row = dict.fromkeys(BURDEN.polars_schema) | {"status": status, "qc_flags": [], "po_pct": 1.5}
    masks = SeriesMasks(labels=array, lungs=array, facts=FACTS) if status == "ok" else None
    return SeriesResult(burden=row, masks=masks, picture_png=b"png" if masks else None)


def test_marker_is_valid_only_for_the_same_files_model_and_settings(out: Path) -> None:
    token = result_token("files", "model", {"flips": True})
    commit(out, "k", token, result_of())
    assert is_done(out, "k", token)
    others = [
        ("other", "model", {"flips": True}),
        ("files", "other", {"flips": True}),
        ("files", "model", {"flips": False}),
    ]
    assert not any(is_done(out, "k", result_token(*other)) for other in others)
    burden, (slices,) = read_committed(out, {"k": token}), committed_slices(out, ["k"])
    assert (burden.schema, slices.schema) == (BURDEN.polars_schema, SLICES.polars_schema)
    assert burden["po_pct"].to_list() == [1.5]


def test_a_result_without_a_picture_is_done_for_a_run_that_draws_none(out: Path) -> None:
    commit(out, "k", "t", replace(result_of(), picture_png=None))
    assert (is_done(out, "k", "t"), is_done(out, "k", "t", with_picture=True)) == (True, False)
    commit(out, "f", "t", result_of("failed"))
    assert is_done(out, "f", "t", with_picture=True)


def test_result_without_its_masks_or_with_a_cut_marker_is_not_done(out: Path) -> None:
    commit(out, "k", "t", result_of())
    marker = out / ".state/rows/k.json"
    text = marker.read_text()
    marker.write_text(text[: len(text) // 2])
    assert not is_done(out, "k", "t")
    marker.write_text("[" * 100_000)  # deeper than Python's parser goes
    assert not is_done(out, "k", "t")
    marker.write_text(text)
    (out / "masks.zarr/k").rename(out / "elsewhere")
    assert not is_done(out, "k", "t")
    with pytest.raises(StoreError, match="series other has no result"):
        read_committed(out, {"other": "t"})


@pytest.mark.parametrize(
    "damage",
    [
        {"po_pct": "much"},
        {"study_date": "yesterday"},
        {"acquisition_date": 20200401},
        {"n_files": 0.5},
        {"another": 1},
        None,
    ],
)
def test_a_marker_whose_row_is_no_burden_row_is_named_and_its_series_done_anew(
    out: Path, damage: dict[str, object] | None
) -> None:
    for key in ("j", "k"):
        commit(out, key, "t", result_of())
    marker = out / ".state/rows/k.json"
    document = json.loads(marker.read_text())
    document["burden"] = {"status": "ok"} if damage is None else document["burden"] | damage
    marker.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"k\.json: cannot be read .*run the same command again, .* series k anew"):
        read_committed(out, {"j": "t", "k": "t"})
    assert is_done(out, "j", "t")
    assert not is_done(out, "k", "t")


def test_a_result_that_a_worker_of_another_run_has_put_there_comes_into_no_table(out: Path) -> None:
    commit(out, "k", "mine", result_of())
    commit(out, "k", "of a run with another model", result_of())
    with pytest.raises(StoreError, match=r"series k has the result of another run; run the same command again$"):
        read_committed(out, {"k": "mine"})


def test_a_marker_without_a_row_is_none(out: Path) -> None:
    commit(out, "k", "t", result_of())
    marker = out / ".state/rows/k.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"burden": None}))
    assert not is_done(out, "k", "t")


def test_a_slices_table_of_other_columns_is_named_and_its_series_done_anew(out: Path) -> None:
    commit(out, "k", "t", result_of())
    pl.DataFrame({"a": [1]}).write_ipc(out / ".state/slices/k.arrow")
    with pytest.raises(StoreError, match=r"k\.arrow: cannot be read .*run the same command again"):
        list(committed_slices(out, ["k"]))
    assert not is_done(out, "k", "t")


def test_a_slices_table_with_any_byte_changed_is_a_table_or_named(out: Path) -> None:
    """Of 15,000 so changed, 700 made Polars panic."""
    commit(out, "k", "t", replace(result_of(), slices=({"series_key": "k", "slice_index": 0, "lung_area_mm2": 5.0},)))
    path, marker = out / ".state/slices/k.arrow", out / ".state/rows/k.json"
    whole, done = path.read_bytes(), marker.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 5)):
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        marker.write_bytes(done)
        try:
            (slices,) = committed_slices(out, ["k"])
        except StoreError:
            assert not marker.exists(), "its series is done anew"
        else:
            assert slices.schema == SLICES.polars_schema


def test_failed_result_takes_the_place_of_an_older_mask(out: Path) -> None:
    commit(out, "k", "t", result_of())
    commit(out, "k", "t2", result_of("failed"))
    assert is_done(out, "k", "t2")
    assert not (out / "masks.zarr/k").exists()
    assert not (out / "pictures/k.png").exists()


def test_attempts_count_for_one_result_of_one_run_and_end_with_it(out: Path) -> None:
    (out / ".state/attempts/killed").mkdir()
    begin_attempt(out, "k", "t", "killed")
    begin_attempt(out, "l", "t", "killed")
    with attempts_noted(out, "this"):
        begin_attempt(out, "k", "t", "this")
        begin_attempt(out, "k", "t", "this")
        begin_attempt(out, "m", "t", "this")
        assert count_attempts(out, "k", "t", "this") == 2, "what ended the earlier run may have meant the run"
        assert count_attempts(out, "k", "changed", "this") == 0
        assert suspects(out) == {"k", "l", "m"}
        commit(out, "k", "t", result_of())
        assert count_attempts(out, "k", "t", "this") == 0
        assert suspects(out) == {"l", "m"}
    assert suspects(out) == {"l"}
    commit(out, "l", "t", result_of())
    assert not suspects(out)
    with attempts_noted(out, "next"):
        assert [path.name for path in (out / ".state/attempts").iterdir()] == ["next"]


def test_a_worker_that_outlives_its_run_notes_nothing(out: Path) -> None:
    """Ray ends the actors of a run on a cluster after the run itself."""
    with pytest.raises(KeyboardInterrupt), attempts_noted(out, "this"):  # noqa: PT012 - begun, then interrupted
        begin_attempt(out, "k", "t", "this")
        raise KeyboardInterrupt
    with pytest.raises(StoreError, match="cannot be read or written"):
        begin_attempt(out, "l", "t", "this")
    with pytest.raises(StoreError, match="this run has ended, or another one has begun"):
        require_run(out, "this")
    assert not suspects(out)


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is a mere file would outlive a killed run."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StoreError, match=r"cannot be used as .*not implemented; .* no file locks"), claimed(tmp_path):
        pass


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    refusals: list[str] = []

    def second() -> None:
        try:
            with claimed(tmp_path):
                pass
        except StoreError as error:
            refusals.append(str(error))

    with claimed(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"another cohortseg run is writing here (process {os.getpid()} on " in refusals[0]
    second()
    assert len(refusals) == 1, "the lock ends with the run"


@pytest.mark.parametrize(
    "pattern", ["masks.zarr/k/labels/c/**/*", "masks.zarr/k/zarr.json", "pictures/k.png", ".state/slices/k.arrow"]
)
@pytest.mark.parametrize("damage", ["remove", "cut"])
def test_a_result_of_which_a_file_is_damaged_is_not_done(out: Path, pattern: str, damage: str) -> None:
    commit(out, "k", "t", result_of())
    assert is_done(out, "k", "t")
    path = next(path for path in out.glob(pattern) if path.is_file())
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert not is_done(out, "k", "t")


def test_forgetting_removes_what_a_killed_run_left_without_a_marker(out: Path) -> None:
    key = "0123456789abcdef"
    commit(out, key, "t", result_of())
    (out / f".state/rows/{key}.json").unlink()
    (out / "pictures/mine.png").write_bytes(b"a user's own")
    begin_anew(out)
    assert not (out / "masks.zarr" / key).exists()
    assert [path.name for path in (out / "pictures").iterdir()] == ["mine.png"]


def test_only_failed_series_are_forgotten_to_be_done_again(out: Path) -> None:
    for status in ("ok", "failed", "not_evaluable"):
        commit(out, status, "t", result_of(status))
    forget_failed(out)
    assert [is_done(out, status, "t") for status in ("ok", "failed", "not_evaluable")] == [True, False, True]


def test_a_run_that_began_anew_is_gone_on_with_until_it_has_ended(out: Path) -> None:
    begin_anew(out)
    commit(out, "0123456789abcdef", "t", result_of())
    begin_anew(out)  # the same command after an interruption
    assert is_done(out, "0123456789abcdef", "t")
    end_anew(out)
    assert is_done(out, "0123456789abcdef", "t")
    begin_anew(out)
    assert not is_done(out, "0123456789abcdef", "t")


def test_hidden_files_of_a_desktop_are_no_results(out: Path) -> None:
    commit(out, "0123456789abcdef", "t", result_of())
    (out / "masks.zarr/0123456789abcdef/.DS_Store").touch()
    (out / ".state/rows/._0123456789abcdef.json").touch()
    assert is_done(out, "0123456789abcdef", "t")
    assert committed_keys(out) == {"0123456789abcdef"}


def test_rows_that_cannot_be_read_for_now_are_not_forgotten(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(out, "k", "t", result_of())

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(StoreError, match="Permission denied"):
            list(committed_slices(out, ["k"]))
    assert is_done(out, "k", "t")


def test_an_output_that_the_file_system_refuses_is_one_clear_error(out: Path) -> None:
    (out / ".state/rows/k.json").mkdir()
    with pytest.raises(StoreError, match="cannot be read or written"):
        commit(out, "k", "t", result_of())


def test_garbage_in_the_notes_of_attempts_and_of_the_owner_is_no_error(out: Path) -> None:
    (out / ".state/attempts/k").write_bytes(b"\xff\xfe\n")  # where a run has its folder
    (out / ".state/attempts/this").mkdir()
    (out / ".state/attempts/this/k").write_bytes(b"\xff\xfe\n")
    assert count_attempts(out, "k", "t", "this") == 0
    assert suspects(out) == {"k"}
    (out / ".state/owner.json").write_text("{}")
    with pytest.raises(StoreError, match="another cohortseg run is writing here;"), claimed(out):
        pass
