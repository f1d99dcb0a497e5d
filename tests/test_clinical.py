"""The clinical table: what a user's text may look like, and that the days since onset stay in an output folder."""

import hashlib
import json
import os
import shutil
import threading
from datetime import date
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from phantoms import ill_body, write_series
from runs import run
from test_longitudinal import burden, series
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.errors import ConfigError, DataError, SchemaError
from cohortseg.longitudinal import patients_table, timeline_table
from cohortseg.pipeline import report_cohort
from cohortseg.report.clinical import read_clinical
from cohortseg.store.schemas import CLINICAL, PATIENTS, TIMELINE
from cohortseg.store.tables import read_table, table_from_rows


def clinical(**onsets: date | None) -> pl.DataFrame:
    return table_from_rows(({"patient_id": name, "onset_date": day} for name, day in onsets.items()), CLINICAL)


def test_days_since_onset_by_hand() -> None:
    rows = [
        series("A", 11, "c", 20.0),
        series("A", 4, "b", 35.0),
        series("B", 2, "d", 5.0),
        series("A", None, "e", 9.0),
    ]
    known = clinical(A=date(2020, 3, 6), Z=date(2020, 1, 1))
    timeline = timeline_table(burden(*rows), known)
    assert timeline.schema == TIMELINE.polars_schema
    assert timeline["days_since_onset"].to_list() == [-2, 5, None, None], "before onset, after it, undated, not known"
    first, second = patients_table(burden(*rows), known).to_dicts()
    assert (first["onset_date"], first["onset_to_peak_days"]) == (date(2020, 3, 6), -2)
    assert (second["onset_date"], second["onset_to_peak_days"]) == (None, None)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "patients.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "patient_id,onset_date\n007,2020-03-01\nB,\n",
        "\ufeffPatient_ID;age; Onset_Date\n007;71;20200301\n B ;60; \n",
        "patient_id,onset_date,age\n007,2020-03-01,71\n\n  \nB,,60\n,,\n , ,9\n",
        "sep=;\r\npatient_id;onset_date;a,b,c\r\n007;2020-03-01;1,2,3\r\nB;;\r\n",
        "\r\n\ufeffpatient_id,onset_date\r007,2020-03-01\rB,,,\r",
        "patient_id\tonset_date\r\n007\t2020-03-01\r\nB\t\r\n".encode("utf-16"),
        "patient_id,onset_date\n007,2020-03-01 00:00:00\nB,\n",
        "patient_id,onset_date\n007,2020-03-01\nB,NA\n",
        "patient_id,onset_date\n007,2020-03-01\n007,1900-01-01\nB,1900-01-01\n",
        '"seen; where; by; whom",patient_id,onset_date\n,007,2020-03-01\n,B,\n',
        "onset_date\tpatient_id\r\n2020/03/01\t007\r\n\tB\r\n2020-03-01\t007\r\n\t007\r\n",
    ],
)
def test_commas_semicolons_and_tabs_are_read(tmp_path: Path, content: str | bytes) -> None:
    path = written(tmp_path, content)
    table, sha256 = read_clinical(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dict(table.iter_rows()) == {"007": date(2020, 3, 1), "B": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,onset_date\nSECRET,2020-03-01\n", "lacks patient_id"),
        ("patient_id,onset_date,onset_date\nSECRET,2020-03-01,2020-04-01\n", "two columns have the same name"),
        ("patient_id;patient_id;onset_date\nSECRET;X;2020-03-01\n", "two columns have the same name"),
        ("patient_id\nSECRET\n", "lacks onset_date"),
        ("SECRET,2020-03-01\nB,2020-03-02\n", "its first line must name the columns"),
        ("patient_id,Patient_ID,onset_date\nSECRET,B,2020-03-01\n", "two columns have the same name"),
        ("patient_id,onset_date\nSECRET,3/1/20\nB,31-03-20\nC,2020111\nD,01/02/2020\n", "no date .*: 1, 2, 3, 4 "),
        ("patient_id,onset_date\nA,2020-03-01\nSECRET,1.3.2020\n", "1 rows whose onset_date is no date .*: 2 "),
        ("patient_id,onset_date\nSECRET,2020-02-30\n", "whose onset_date is no date"),
        ("patient_id,onset_date\nSECRET,0000-01-01\nB,1799-12-31\n", "2 rows whose onset_date is no date from 1800 on"),
        ("patient_id,onset_date\nSECRET,2020-03-01\nSECRET,2020-03-02\n", "another onset_date .*: 1, 2 "),
        ("patient_id,onset_date\n,2020-03-01\n", "without patient_id: 1 "),
        ("patient_id,x,onset_date\nA,x,2020-03-01\nSECRET,2020-03-01\n", "fewer columns than the header: 2 "),
        ("patient_id,onset_date\nSECRET,2020-03-01,x,y\n", "more columns than the header: 1 "),
        ('patient_id,onset_date\n"SECRET,2020-03-01\n', "cannot be read as a table"),
        ("\n\nB,\n\npatient_id,onset_date\n", "its first line must name the columns"),
        ("", "lacks patient_id and onset_date"),
        ("\n\npatient_id,onset_date,onset_date\nSECRET,2020-03-01,2020-04-01\n", "two columns have the same name"),
        ("patient_id,onset_date\nSECRET\u00e9,2020-03-01\n".encode("latin-1"), "UTF-8"),
    ],
)
def test_tables_that_could_be_misread_are_refused_by_row_and_not_by_name(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_clinical(written(tmp_path, content))
    assert "SECRET" not in str(caught.value)


def test_the_report_keeps_the_onset_through_later_runs(
    tmp_path: Path, cohort: Path, model_path: Path, unbroken: Path
) -> None:
    out = shutil.copytree(unbroken, tmp_path / "out")
    patient, first = (
        read_table(out / PATIENTS.file_name, PATIENTS).select("patient_id", "first_date").drop_nulls().row(0)
    )

    def report(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["report", str(out), *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    def onsets() -> list[int]:
        return read_table(out / TIMELINE.file_name, TIMELINE)["days_since_onset"].drop_nulls().to_list()

    assert onsets() == []
    output = report(
        "--clinical", str(written(tmp_path, f"patient_id,onset_date\n{patient},{first:%Y}0101\nX9,20200301\n"))
    )
    assert "1 of the 2 patients" in " ".join(output.split())
    assert read_table(out / CLINICAL.file_name, CLINICAL)["patient_id"].to_list() == [patient], "X9 is not of OUT"
    since = (first - date(first.year, 1, 1)).days
    told = onsets()
    assert told[0] == since
    png = (out / "pictures/trajectories.png").read_bytes()
    left = [out / f".{name}.{'0' * 32}.tmp" for name in (CLINICAL.file_name, "report.html")]  # of a killed report
    for path in left:
        path.touch()
    report()
    assert not any(path.exists() for path in left)
    run(cohort, out, model_path)
    assert onsets() == told, "a later run goes by the table that the folder keeps"
    report()
    assert onsets() == told
    assert (out / "pictures/trajectories.png").read_bytes() == png

    nobody = CliRunner().invoke(
        app, ["report", str(out), "--clinical", str(written(tmp_path, "patient_id,onset_date\nX9,2020-03-01\n"))]
    )
    assert nobody.exit_code == 2
    assert "none of its 1 patients" in " ".join(nobody.output.split())
    assert onsets() == told
    (out / CLINICAL.file_name).write_bytes(b"mine")
    damaged = CliRunner().invoke(app, ["report", str(out)])
    assert damaged.exit_code == 2
    assert CLINICAL.file_name in damaged.output
    with pytest.raises(SchemaError, match=r"clinical\.parquet"):
        run(tmp_path / "nowhere", out, model_path)  # before the cohort is looked at


def test_identifiers_are_the_same_however_their_accents_are_written(tmp_path: Path, model_path: Path) -> None:
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    for day, name in (("20200301", composed), ("20200305", decomposed)):
        write_series(
            tmp_path / "cohort" / day,
            shape=(4, 96, 80),
            spacing_mm=(5.0, 3.0, 3.5),
            hu=ill_body,
            patient_id=name,
            study_date=day,
            series=day,
            attributes={"SpecificCharacterSet": "ISO_IR 192"},
        )
    out = tmp_path / "out"
    run(tmp_path / "cohort", out, model_path)
    report_cohort(out, written(tmp_path, f"patient_id,onset_date\n{decomposed},2020-02-25\n"))
    (patient,) = read_table(out / PATIENTS.file_name, PATIENTS).to_dicts()
    assert (patient["patient_id"], patient["n_timepoints"]) == (composed, 2)
    assert patient["onset_date"] == date(2020, 2, 25)


def test_the_onset_of_who_is_not_measured_yet_is_kept(tmp_path: Path, model_path: Path) -> None:
    kind = {"shape": (4, 96, 80), "spacing_mm": (5.0, 3.0, 3.5), "hu": ill_body}
    write_series(tmp_path / "cohort/a", patient_id="A", **kind)
    lost = write_series(tmp_path / "cohort/b", patient_id="B", series="2", **kind)
    (tmp_path / "away").mkdir()
    lost[1].rename(tmp_path / "away/slice")
    command = ["infer", str(tmp_path / "cohort"), "-o", str(tmp_path / "out"), "--model", str(model_path)]
    first = CliRunner().invoke(app, command)
    assert "patients none of whose series was chosen: 1" in " ".join(first.output.split())
    report_cohort(tmp_path / "out", written(tmp_path, "patient_id,onset_date\nA,2020-03-25\nB,2020-03-28\n"))
    (tmp_path / "away/slice").rename(lost[1])
    second = CliRunner().invoke(app, command)
    assert "none of whose series" not in second.output
    timeline = read_table(tmp_path / "out" / TIMELINE.file_name, TIMELINE)
    assert dict(timeline.select("patient_id", "days_since_onset").iter_rows()) == {"A": 7, "B": 4}


def test_onsets_far_from_every_scan_are_told_and_those_of_another_cohort_go(
    tmp_path: Path, model_path: Path, unbroken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shutil.copytree(unbroken, tmp_path / "out")
    patient = read_table(out / PATIENTS.file_name, PATIENTS)["patient_id"][0]
    report_cohort(out, written(tmp_path, f"patient_id,onset_date\n{patient},2023-03-01\n"))
    assert "1 patients have an onset of symptoms more than a year from each of their scans" in caplog.text
    assert "1 patients have an onset of symptoms after all of their scans" in caplog.text
    other = tmp_path / "other"
    write_series(other, shape=(4, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=ill_body, patient_id=patient, series="other")
    run(other, out, model_path, resume=False)
    assert not (out / CLINICAL.file_name).exists(), "a patient of the same identifier may be another one"
    assert read_table(out / TIMELINE.file_name, TIMELINE)["days_since_onset"].drop_nulls().is_empty()


def test_a_table_may_come_through_a_pipe(tmp_path: Path, unbroken: Path) -> None:
    out, pipe = shutil.copytree(unbroken, tmp_path / "out"), tmp_path / "pipe"
    content = b"patient_id,onset_date\nA,2020-03-30\n"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    report_cohort(out, pipe)
    writer.join()
    metadata = json.loads(pq.read_schema(out / CLINICAL.file_name).metadata[b"cohortseg"])
    assert metadata["source_sha256"] == hashlib.sha256(content).hexdigest()


def test_who_has_gone_from_the_cohort_goes_from_the_clinical_table_too(
    tmp_path: Path, model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for patient in "AB":
        series_of = tmp_path / "cohort" / patient
        write_series(series_of, shape=(4, 96, 80), spacing_mm=(5.0, 3.0, 3.5), hu=ill_body, patient_id=patient)
    out = tmp_path / "out"
    run(tmp_path / "cohort", out, model_path)
    report_cohort(out, written(tmp_path, "patient_id,onset_date\nA,2020-03-01\nB,2020-03-02\n"))
    shutil.rmtree(tmp_path / "cohort/B")
    run(tmp_path / "cohort", out, model_path, resume=False)
    assert read_table(out / CLINICAL.file_name, CLINICAL)["patient_id"].to_list() == ["A"]
    assert "1 patients of clinical.parquet are not in the cohort any more" in caplog.text
    run(tmp_path / "cohort", out, model_path, resume=False, select=("study_date>=2020-01-01",))
    assert read_table(out / CLINICAL.file_name, CLINICAL)["patient_id"].to_list() == ["A"], "rules leave it alone"
    assert "whose onset was known" not in caplog.text
    report_cohort(out, written(tmp_path, "patient_id,onset_date\nA,\n"))
    assert "1 patients whose onset was known have none in this table" in caplog.text
    assert "1 of 1 patients have no onset_date" in caplog.text
    (out / CLINICAL.file_name).write_bytes((out / PATIENTS.file_name).read_bytes())
    with pytest.raises(ConfigError, match=r"clinical.parquet: is damaged, or not from cohortseg"):
        report_cohort(out, written(tmp_path, "patient_id,onset_date\nA,2020-03-01\n"))
