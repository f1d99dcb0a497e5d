"""The output folder when it is come back to: renamed patients, deleted files, other rules, damaged pictures."""

import json
import os
import shutil
from pathlib import Path

import pydicom
import pytest
from runs import run

from cohortseg.errors import StoreError
from cohortseg.report.write import write_report
from cohortseg.store.schemas import BURDEN, SLICES
from cohortseg.store.tables import read_table


def test_a_patient_renamed_in_place_is_noticed(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    """Pseudonymisers can keep the size and the time of a file."""
    mine, out = tmp_path / "cohort", tmp_path / "out"
    shutil.copytree(cohort / "B3", mine / "B3")
    run(mine, out, model_path)
    for path in (mine / "B3").iterdir():
        before = path.stat()
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "Z" * len(dataset.PatientID)
        dataset.save_as(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
    assert run(mine, out, model_path).burden["patient_id"].to_list() == ["Z"]


def test_what_was_deleted_from_the_output_is_made_again_and_other_files_stay(
    cohort: Path, model_path: Path, tmp_path: Path
) -> None:
    """In a folder whose name polars and pyarrow would read as a pattern and as a URI."""
    out = tmp_path / "o[1]:x*"
    run(cohort, out, model_path, select=("patient_id = A",))
    (out / ".mine.tmp").write_text("a user's own")
    (out / ".mine.too.tmp").mkdir()
    picture = next(path for path in out.glob("pictures/*.png") if path.stem != "trajectories")
    picture.unlink()
    assert run(cohort, out, model_path, select=("patient_id = A",)).num_done == 1
    assert picture.is_file()
    assert (out / ".mine.tmp").is_file()
    assert (
        read_table(out / "slices.parquet", SLICES).height
        == read_table(out / "burden.parquet", BURDEN)["n_slices"].sum()
    )


def test_run_json_tells_of_the_series_that_the_tables_hold(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(cohort, out, model_path)
    assert run(cohort, out, model_path, select=("patient_id = A",)).num_done == 0
    document = json.loads((out / "run.json").read_text())
    assert document["config"]["select"] == ["patient_id = A"]
    assert document["counts"]["series_chosen"] == 2
    assert document["counts"]["series_segmented_by_this_run"] == 0


def test_a_damaged_picture_does_not_cost_the_report(unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    next(path for path in out.glob("pictures/*.png") if path.stem != "trajectories").write_bytes(b"no picture")
    assert "This picture is damaged" in write_report(out).page.read_text()
    (out / "report.html").unlink()
    (out / "report.html").mkdir()
    with pytest.raises(StoreError, match=r"report\.html: cannot be written"):
        write_report(out)
