"""The output folder when it is come back to: renamed patients, deleted files, other rules, damaged pictures."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pydicom
import pytest
from phantoms import ill_body, write_series
from runs import run
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.errors import CohortSegError, ConfigError, StoreError
from cohortseg.infer.claim import claimed
from cohortseg.report.write import write_report
from cohortseg.store.schemas import BURDEN, SLICES, TIMELINE
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


def test_two_volumes_of_one_series_stay_apart_in_every_table(model_path: Path, tmp_path: Path) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "out"
    for number, kernel in enumerate(("B30f", "B70f")):
        write_series(
            cohort / kernel,
            shape=(4 + number, 128, 128),
            spacing_mm=(8.0, 3.0, 3.0),
            hu=ill_body,
            attributes=lambda index, kernel=kernel: {
                "ConvolutionKernel": kernel,
                "SOPInstanceUID": f"1.2.3.{len(kernel)}{ord(kernel[1])}{index}",
            },
        )
    run(cohort, out, model_path, select=("all",))
    burden = read_table(out / "burden.parquet", BURDEN)
    assert burden["series_instance_uid"].n_unique() == 1
    keys = burden["series_key"].to_list()
    assert len(set(keys)) == 2
    slices = read_table(out / "slices.parquet", SLICES)
    assert dict(slices.group_by("series_key").len().iter_rows()) == dict(burden.select("series_key", "n_slices").rows())
    assert not slices.select("series_key", "slice_index").is_duplicated().any()
    (standing,) = read_table(out / "timeline.parquet", TIMELINE)["series_key"]
    page = (out / "report.html").read_text(encoding="utf-8")
    rows = {key: page[page.index(f'<td><a href="#{key}">') :].split("</tr>")[0] for key in keys}
    assert {key: ">yes<" in row for key, row in rows.items()} == {key: key == standing for key in keys}


def test_rules_that_leave_nothing_are_refused_and_replace_nothing(
    cohort: Path, model_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(cohort, out, model_path, select=("patient_id = A",))
    before = (out / "burden.parquet").read_bytes()
    with pytest.raises(ConfigError, match=r"no series is chosen: \d+ does not match --select 'patient_id = nobody'"):
        run(cohort, out, model_path, select=("patient_id = nobody",))
    assert (out / "burden.parquet").read_bytes() == before


def test_the_results_of_another_cohort_are_not_replaced_unasked(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    """Two cohorts in folders of one name share the default output folder."""
    out = tmp_path / "out"
    for name in ("A1", "B3"):
        shutil.copytree(cohort / name, tmp_path / name / "dicom")
    run(tmp_path / "A1/dicom", out, model_path)
    before = (out / "burden.parquet").read_bytes()
    with pytest.raises(ConfigError, match="holds results, none of which is of a series of this cohort"):
        run(tmp_path / "B3/dicom", out, model_path)
    assert (out / "burden.parquet").read_bytes() == before
    replaced = run(tmp_path / "B3/dicom", out, model_path, resume=False)
    assert replaced.burden["patient_id"].to_list() == ["B"]
    assert len(list(out.glob("masks.zarr/*/labels"))) == 1
    (tmp_path / "B3").rename(tmp_path / "moved")
    assert run(tmp_path / "moved/dicom", out, model_path).num_done == 0, "the same cohort elsewhere"


def test_a_report_is_refused_while_a_run_writes_into_its_folder(unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    with claimed(out):
        result = CliRunner().invoke(app, ["report", str(out)])
    assert result.exit_code == 1
    assert "another cohortseg run is writing here" in " ".join(result.stderr.split())


def test_a_resampled_series_counts_the_slices_that_were_segmented(model_path: Path, tmp_path: Path) -> None:
    """One of nine slices is missing; n_lung_slices must not exceed n_slices."""
    paths = write_series(tmp_path / "cohort", shape=(9, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=ill_body)
    paths[4].unlink()
    (row,) = run(tmp_path / "cohort", tmp_path / "out", model_path, repair=("resample",)).burden.to_dicts()
    assert (row["status"], row["n_slices"]) == ("ok", 9)
    assert read_table(tmp_path / "out/slices.parquet", SLICES).height == 9


@pytest.mark.parametrize("name", ["burden.parquet", "run.json", "masks.zarr"])
def test_a_folder_with_another_program_s_files_is_refused(
    cohort: Path, model_path: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds a {name} that is not of an output folder of infer"):
        run(cohort, tmp_path, model_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_table_of_scan_does_not_make_a_folder_ours(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    assert CliRunner().invoke(app, ["scan", str(cohort), "-o", str(tmp_path / "w/manifest.parquet")]).exit_code == 0
    (tmp_path / "w/patients.parquet").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds a patients\.parquet"):
        run(cohort, tmp_path / "w", model_path)
    (tmp_path / "w/patients.parquet").unlink()
    assert run(cohort, tmp_path / "w", model_path).counts


def test_a_repeated_run_with_other_workers_keeps_the_record_of_the_work(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(unbroken, tmp_path / "out")
    run(cohort, out, model_path, workers=1)
    assert (out / "run.json").read_bytes() == (unbroken / "run.json").read_bytes()


def test_a_folder_without_dicom_leaves_no_output_behind(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong/letter.txt").write_text("no DICOM")
    mine = tmp_path / "mine"
    mine.mkdir()
    for out in (tmp_path / "new", mine):
        with pytest.raises(CohortSegError):
            run(tmp_path / "wrong", out, model_path)
    assert not (tmp_path / "new").exists()
    assert mine.is_dir(), "what was there before is the user's"


def test_damaged_rows_of_slices_are_told_and_made_again(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    """Damaged within, its size as it was."""
    mine, out = tmp_path / "cohort", tmp_path / "out"
    shutil.copytree(cohort / "B3", mine / "B3")
    before = run(mine, out, model_path)
    (rows,) = (out / ".state/slices").iterdir()
    rows.write_bytes(bytes(rows.stat().st_size))
    with pytest.raises(StoreError, match=f"run the same command again, which does series {rows.stem} anew"):
        run(mine, out, model_path)
    again = run(mine, out, model_path)
    assert again.num_done == 1
    assert again.burden.drop("runtime_s").equals(before.burden.drop("runtime_s"))


def test_files_that_cannot_be_read_are_told_and_flag_what_lies_beside_them(
    cohort: Path, model_path: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "cohort"
    shutil.copytree(cohort / "B3", mine / "B3")
    assert run(mine, tmp_path / "out", model_path).complete
    last = max((mine / "B3").iterdir())
    last.write_bytes(last.read_bytes()[:300])
    summary = run(mine, tmp_path / "out", model_path)
    assert (summary.num_unreadable, summary.complete) == (1, False)
    assert "files_unreadable" in summary.burden["qc_flags"][0].to_list()
    result = CliRunner().invoke(app, ["infer", str(mine), "-o", str(tmp_path / "out"), "--model", str(model_path)])
    assert result.exit_code == 3
    assert "1 files or folders of the cohort could not be read" in " ".join(result.stderr.split())


def test_run_json_tells_of_the_series_that_the_tables_hold(
    cohort: Path, model_path: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(unbroken, tmp_path / "out")
    assert run(cohort, out, model_path, select=("patient_id = A",)).num_done == 0
    document = json.loads((out / "run.json").read_text())
    assert document["config"]["select"] == ["patient_id = A"]
    assert document["counts"]["series_chosen"] == 2
    assert document["counts"]["series_segmented_by_this_run"] == 0


@pytest.mark.parametrize("lost", [("model", "sha256"), ("methods", "lungs"), ("versions", "cohortseg")])
def test_run_json_tells_of_the_model_and_method_that_made_the_tables(
    cohort: Path, model_path: Path, tmp_path: Path, lost: tuple[str, str]
) -> None:
    """A run with another model may be killed between its last series and its record."""
    out = tmp_path / "out"
    select = ("patient_id = B",)
    run(cohort, out, model_path, select=select)
    whole = json.loads((out / "run.json").read_text())
    before = json.loads((out / "run.json").read_text())
    before[lost[0]][lost[1]] = "of the run before"
    (out / "run.json").write_text(json.dumps(before))
    assert run(cohort, out, model_path, select=select).num_done == 0
    assert json.loads((out / "run.json").read_text())[lost[0]] == whole[lost[0]]


def test_pictures_can_be_left_out(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(cohort, out, model_path, select=("patient_id = B",), overlays=False).complete
    assert [path.name for path in (out / "pictures").iterdir()] == ["trajectories.png"]
    assert (out / "report.html").read_text(encoding="utf-8").count("<img ") == 1
    assert run(cohort, out, model_path, select=("patient_id = B",), overlays=False).num_done == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.with_columns(status=pl.lit(None, pl.String)), "status hold NaN, or null"),
        (lambda table: table.with_columns(po_pct=pl.lit(float("nan"))), "po_pct hold NaN, or null"),
        (lambda table: table.drop("po_pct"), "lacks po_pct"),
        (lambda table: table.with_columns(mine=1), "has besides mine"),
        (lambda table: table.with_columns(pl.col("n_slices").cast(pl.Float64)), "another type of n_slices"),
        (lambda table: table.select(sorted(table.columns)), "in another order"),
    ],
    ids=["null", "nan", "dropped", "added", "type", "order"],
)
def test_a_burden_table_changed_by_hand_is_refused_with_what_is_wrong(
    unbroken: Path, tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], words: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    change(pl.read_parquet(out / "burden.parquet")).write_parquet(out / "burden.parquet")
    result = CliRunner().invoke(app, ["report", str(out)])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_a_damaged_picture_does_not_cost_the_report(unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    picture = next(path for path in out.glob("pictures/*.png") if path.stem != "trajectories")
    whole = picture.read_bytes()
    other_length = whole[:36] + bytes([whole[36] ^ 0xFF]) + whole[37:]  # of the second chunk: a SyntaxError of Pillow
    for content in (b"no picture", other_length):
        picture.write_bytes(content)
        assert "This picture is damaged" in write_report(out).page.read_text()
    (out / "report.html").unlink()
    (out / "report.html").mkdir()
    with pytest.raises(StoreError, match=r"report\.html: cannot be written"):
        write_report(out)


def test_header_values_never_reach_the_terminal_by_way_of_warnings(model_path: Path, tmp_path: Path) -> None:
    """In a process of its own: here pytest would catch them."""
    write_series(
        tmp_path / "cohort",
        shape=(4, 96, 80),
        spacing_mm=(5.0, 3.0, 3.5),
        hu=ill_body,
        attributes={"SpecificCharacterSet": "ISO_IR 100"},
    )
    for index, path in enumerate(sorted((tmp_path / "cohort").iterdir())):
        content = path.read_bytes().replace(b"ISO_IR 100", b"NONSENSE 1")
        uid = pydicom.dcmread(path).SOPInstanceUID.encode()
        path.write_bytes(content.replace(uid, f"MUELLER_HANS.{index}".ljust(len(uid), "0").encode()))
    command = [sys.executable, "-m", "cohortseg", "infer", str(tmp_path / "cohort"), "-o", str(tmp_path / "out")]
    done = subprocess.run([*command, "--model", str(model_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "MUELLER" not in done.stdout + done.stderr
    assert "Warning" not in done.stderr
