"""The command `cohortseg infer` on whole cohorts: exit codes, outputs, engines."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr
from phantoms import body_hu, write_series
from typer.testing import CliRunner, Result

from cohortseg.cli import app
from cohortseg.store.schemas import BURDEN, MANIFEST, PATIENTS, SLICES, TIMELINE
from cohortseg.store.tables import read_table

POISON = "poison.dcm"


@pytest.fixture(scope="module")
def cohort_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("once") / "cohort"
    for patient, day in (("SECRET-A", 1), ("SECRET-A", 9), ("SECRET-B", 3)):
        write_series(
            root / f"{patient}-{day}",
            shape=(4, 96, 80),
            spacing_mm=(5.0, 3.0, 3.5),
            patient_id=patient,
            study_date=f"2020040{day}",
            shuffle=day,
        )
    return root


@pytest.fixture
def cohort(cohort_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cohort_once, tmp_path / "cohort")


@pytest.fixture(scope="module")
def healthy(cohort_once: Path, model_path: Path) -> tuple[Result, Path]:
    """What the command says of the healthy cohort, and its output folder; tests that write work on copies of it."""
    out, before = cohort_once.parent / "out", files_below(cohort_once)
    result = infer(cohort_once, "-o", out, "--model", model_path)
    assert files_below(cohort_once) == before, "the cohort is only read"
    return result, out


def infer(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["infer", *map(str, arguments)])


def files_below(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_whole_output_of_a_healthy_cohort(healthy: tuple[Result, Path]) -> None:
    result, out = healthy
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"\bok\b", result.stdout)) == 3
    for schema, rows in ((MANIFEST, 3), (BURDEN, 3), (SLICES, 12), (TIMELINE, 3), (PATIENTS, 2)):
        assert len(read_table(out / f"{schema.name}.parquet", schema)) == rows
    burden = read_table(out / "burden.parquet", BURDEN)
    assert burden["days_since_baseline"].to_list() == [0, 8, 0]
    for key in burden["series_key"]:
        group = zarr.open(out / "masks.zarr", mode="r")[key]
        assert group["labels"].shape == (4, 96, 80)
        assert not group["labels"][:][group["lungs"][:] == 0].any(), "lesions lie inside the lungs only"
        assert (out / "pictures" / f"{key}.png").is_file()
    assert json.loads((out / "run.json").read_text())["counts"]["status"] == {"ok": 3}


def test_no_identity_outside_the_tables(cohort: Path, model_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut = cohort / "SECRET-A-1" / "f0002"
    cut.write_bytes(cut.read_bytes()[:-5000])
    result = CliRunner().invoke(app, ["-v", "infer", *map(str, (cohort, "-o", out, "--model", model_path))])
    assert (result.stdout + result.stderr).count("decoded") == 2, "in the log and in the table"
    assert "SECRET" not in result.output
    assert "SECRET-A-1/f0002: " in "".join(read_table(out / "burden.parquet", BURDEN)["reason"].drop_nulls())
    assert not [path for path in out.rglob("*") if "SECRET" in str(path.relative_to(out))]
    for name in ("report.html", "run.json"):
        assert "SECRET" not in (out / name).read_text()


def test_repeated_run_and_report_do_nothing_again(
    cohort: Path, healthy: tuple[Result, Path], model_path: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(healthy[1], tmp_path / "out")
    masks = files_below(out / "masks.zarr")
    again = infer(cohort, "-o", out, "--model", model_path)
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr
    tables = {name: (out / name).read_bytes() for name in ("timeline.parquet", "patients.parquet", "report.html")}
    for name in tables:
        (out / name).unlink()
    report = CliRunner().invoke(app, ["report", str(out)])
    assert report.exit_code == 0, report.output
    assert {name: (out / name).read_bytes() for name in tables} == tables
    assert files_below(out / "masks.zarr") == masks


def test_series_that_cannot_be_measured_end_with_code_3_again_and_again(
    cohort: Path, model_path: Path, tmp_path: Path
) -> None:
    no_lung = np.where(body_hu((4, 96, 80)) < -900, -1000, 40)
    write_series(cohort / "c", shape=(4, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=no_lung, patient_id="SECRET-C")
    first, second = (infer(cohort, "-o", tmp_path / "out", "--model", model_path) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (3, 3)
    assert "1 not_evaluable, 3 ok" in first.stderr
    assert "nothing to do" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["{cohort}", "-o", "{cohort}/out"], "must not lie inside the cohort", id="output-in-input"),
        pytest.param(["{cohort}/nowhere"], "does not exist", id="no-folder"),
        pytest.param(["{empty}"], "no DICOM series found", id="no-dicom"),
        pytest.param(["{cohort}", "--workers", "5000", "-o", "{empty}"], "use --workers", id="too-many-workers"),
    ],
)
def test_wrong_usage_is_code_2_and_nothing_on_stdout(
    cohort: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    filled = [argument.format(cohort=cohort, empty=empty) for argument in arguments]
    result = infer(*filled, "--model", model_path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_report_needs_an_output_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "no burden.parquet here" in result.stderr


@pytest.mark.realdata
def test_hospital_slices(ny_sbu: Path, model_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert infer(ny_sbu, "-o", out, "--model", model_path).exit_code == 3
    manifest = read_table(out / "manifest.parquet", MANIFEST)
    skipped = manifest.filter(pl.col("decision") == "skipped")
    assert skipped["reason"].null_count() == 0
    not_axial = manifest.filter(pl.col("orientation").is_in(["coronal", "sagittal"]))
    assert set(not_axial["decision"]) == {"skipped"}
    burden = read_table(out / "burden.parquet", BURDEN)
    assert burden["status"].value_counts().sort("status").rows() == [("not_evaluable", 2), ("ok", 8)]
    assert burden.filter(pl.col("status") == "not_evaluable")["po_pct"].null_count() == 2
    assert burden["lung_volume_ml"].null_count() == 10, "all are single slices"


@pytest.mark.ray
def test_ray_equals_local_and_gives_up_what_kills_its_actors(
    cohort: Path, healthy: tuple[Result, Path], model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    unpoisoned = healthy[1]
    assert json.loads((unpoisoned / "run.json").read_text())["engine"] == "local"
    paths = write_series(cohort / "p", shape=(4, 96, 80), spacing_mm=(5.0, 3.0, 3.5), patient_id="SECRET-P")
    paths[1].rename(paths[1].with_name(POISON))
    # A real crash, in the actors only: they start with a hook that kills the process that opens the file.
    hook = f"lambda event, args: event == 'open' and str(args[0]).endswith('{POISON}') and os.kill(os.getpid(), 9)"
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(f"import os, sys\nsys.addaudithook({hook})\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    # Nor does it matter what lies in the folder that the user is in.
    (tmp_path / "here").mkdir()
    (tmp_path / "here/PIL.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ImportError('not mine')\n")
    monkeypatch.chdir(tmp_path / "here")

    result = infer(cohort, "-o", tmp_path / "ray", "--model", model_path, "--engine", "ray")
    assert not (tmp_path / "ran").exists()
    assert result.exit_code == 3, result.output
    assert json.loads((tmp_path / "ray/run.json").read_text())["engine"] == "ray"
    burden = read_table(tmp_path / "ray/burden.parquet", BURDEN)
    poison = burden.filter(pl.col("status") != "ok")
    assert poison["reason"].to_list() == [
        "given up after 3 attempts that ended the process (crash, or killed for memory)"
    ]
    good, local = burden.filter(pl.col("status") == "ok"), read_table(unpoisoned / "burden.parquet", BURDEN)
    assert good.drop("runtime_s").equals(local.drop("runtime_s"))
    for key in good["series_key"]:
        ours, theirs = (
            zarr.open(out / "masks.zarr", mode="r")[key]["labels"][:] for out in (tmp_path / "ray", unpoisoned)
        )
        assert np.array_equal(ours, theirs)
    again = infer(cohort, "-o", tmp_path / "ray", "--model", model_path, "--engine", "ray")
    assert (again.exit_code, "nothing to do" in again.stderr) == (3, True)
