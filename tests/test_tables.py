"""Parquet written in parts is the table that it is written of, whatever the number of rows."""

import os
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from cohortseg.dicom.scan import CohortScan
from cohortseg.errors import SchemaError
from cohortseg.report.scan_tables import write_scan
from cohortseg.store import tables
from cohortseg.store.files import write_file
from cohortseg.store.schemas import FILES, MANIFEST
from cohortseg.store.tables import read_table, table_from_rows, tables_from_rows, write_table


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_a_table_written_in_parts_is_the_whole_table(tmp_path, monkeypatch, count):
    monkeypatch.setattr(tables, "ROWS_A_PART", 3)
    rows = [{"path": f"{number}.dcm", "went_to": "selected"} for number in range(count)]
    path = tmp_path / FILES.file_name
    write_table(path, tables_from_rows(iter(rows), FILES), FILES, {"why": "test"})
    assert read_table(path, FILES).equals(table_from_rows(rows, FILES))
    assert pq.read_metadata(path).num_row_groups <= max(1, -(-count // 3))
    assert pl.read_parquet(path).schema == FILES.polars_schema
    for column in FILES.columns:
        assert pq.read_schema(path).field(column.name).metadata == {b"description": column.meaning.encode()}


def test_a_row_of_another_table_is_refused_in_any_part(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_A_PART", 1)
    rows = [{"path": "1.dcm"}, {"paht": "2.dcm"}]
    with pytest.raises(SchemaError, match=r"unknown column.* paht"):
        write_table(tmp_path / FILES.file_name, tables_from_rows(rows, FILES), FILES, {})
    assert not list(tmp_path.iterdir())


def test_a_value_of_another_type_is_told_by_its_column_and_not_quoted() -> None:
    rows = [{"path": "1.dcm", "reason": "cut off"}, {"path": "2.dcm", "reason": {"Doe": "Jane"}}]
    with pytest.raises(SchemaError, match=r"^table files: values of another type in reason$"):
        table_from_rows(rows, FILES)
    with pytest.raises(SchemaError, match=r"^table manifest: values of another type in study_date$"):
        table_from_rows([{"study_date": True}], MANIFEST)


def test_rows_with_long_lists_make_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest row names all files of its series: by rows alone, 20,000 series would be one part of a gigabyte."""
    monkeypatch.setattr(tables, "ROWS_A_PART", 6)
    rows = [{"series_key": f"{index}", "files": [f"{index}/{z}" for z in range(3)]} for index in range(5)]
    parts = list(tables_from_rows(rows, MANIFEST))
    assert [part["series_key"].to_list() for part in parts] == [["0", "1"], ["2", "3"], ["4"]]


def test_a_file_written_again_alike_keeps_its_time(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    for content, untouched in ((b"one", False), (b"one", True), (b"two", False)):
        write_file(path, content)
        assert (path.read_bytes(), path.stat().st_mtime == 1) == (content, untouched)
        os.utime(path, (1, 1))


def test_a_scan_removes_what_a_killed_one_left_and_not_what_another_is_writing(tmp_path: Path) -> None:
    killed, at_work = (tmp_path / f".manifest.parquet.{digit * 32}.tmp" for digit in "ab")
    for path in (killed, at_work):
        path.touch()
    os.utime(killed, (1, 1))
    write_scan(CohortScan(series=(), skipped=(), copies=()), {}, manifest=tmp_path / "manifest.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {at_work.name, "manifest.parquet"}
