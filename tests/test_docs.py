"""The documentation that is made from the code is the code's."""

import re
import runpy
from pathlib import Path

import polars as pl
import polars.selectors as cs
import pytest
from typer.testing import CliRunner

from cohortseg import qc
from cohortseg.cli import app
from cohortseg.config import PREFERENCES
from cohortseg.longitudinal import LESS_SHARE
from cohortseg.noise import NOISY_HU
from cohortseg.store.schemas import BURDEN, PATIENTS, QUIRKS, SLICES, TIMELINE, TableSchema
from cohortseg.store.tables import read_table

ROOT = Path(__file__).parents[1]
DOCS = Path(__file__).parents[1] / "docs"


def test_page_of_the_tables_is_up_to_date() -> None:
    expected = runpy.run_path(str(DOCS / "make_tables.py"))["tables_markdown"]()
    assert (DOCS / "tables.md").read_text(encoding="utf-8") == expected, "run: python docs/make_tables.py"


def test_page_of_the_quirks_is_up_to_date(quirks_sample: Path) -> None:
    table = read_table(quirks_sample / "quirks.parquet", QUIRKS)
    expected = runpy.run_path(str(DOCS / "make_tables.py"))["quirks_markdown"](table)
    assert (DOCS / "quirks.md").read_text(encoding="utf-8") == expected, "run: python docs/make_tables.py"


def test_page_of_the_settings_is_up_to_date() -> None:
    expected = runpy.run_path(str(DOCS / "make_settings.py"))["settings_markdown"]()
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == expected, "run: python docs/make_settings.py"
    for name in ("batch_size", "auto_ray_series", "supervised_iterations", "min_box"):
        assert f"| `{name}` | " in expected


def test_each_preference_is_explained() -> None:
    page = (DOCS / "selection.md").read_text(encoding="utf-8")
    table = page.split("| name | prefers |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `([a-z]+)` \|", table, re.M)) == sorted(PREFERENCES)


def test_each_flag_has_one_meaning() -> None:
    names = [value for name, value in vars(qc).items() if name.isupper() and isinstance(value, str)]
    meanings = [*qc.HEADER_FLAGS, *qc.CHOICE_FLAGS, *qc.PIXEL_FLAGS, *qc.TIMELINE_FLAGS]
    assert sorted(names) == sorted(meanings)
    assert f"{NOISY_HU:.0f} or more" in qc.PIXEL_FLAGS[qc.NOISY]
    assert f"{100 * LESS_SHARE:.0f} %" in qc.TIMELINE_FLAGS[qc.LESS_LUNG_THAN_OTHER_DATES]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the sample cohort."""
    out = tmp_path_factory.mktemp("sample") / "out"
    result = CliRunner().invoke(app, ["-q", "infer", str(ROOT / "sample_data/cohort/dicom"), "-o", str(out)])
    assert result.exit_code == 0, result.stderr
    return out


@pytest.mark.parametrize(
    ("schema", "not_of_the_sample"),
    [
        (BURDEN, {"reason", "contrast_agent", "phase"}),
        (SLICES, set()),
        (TIMELINE, {"days_since_onset"}),
        (PATIENTS, {"onset_date", "onset_to_peak_days"}),
    ],
    ids=["burden", "slices", "timeline", "patients"],
)
def test_each_column_is_filled(sample: Path, schema: TableSchema, not_of_the_sample: set[str]) -> None:
    """Its series are all measured, and it has no clinical table."""
    table = read_table(sample / schema.file_name, schema)
    assert {name for name in table.columns if table[name].is_null().all()} == not_of_the_sample


def as_shown(name: str, number: float) -> object:
    """Equal to what README shows of a column, on processors with and without bfloat16; the lungs need no network."""
    if name == "lung_volume_ml":
        return pytest.approx(number, abs=0.1)
    return pytest.approx(number, abs=0.15) if name.endswith("_pct") else pytest.approx(number, rel=0.05, abs=0.5)


def test_the_readme_shows_what_the_sample_cohort_gives(sample: Path) -> None:
    """Other processors round otherwise, so numbers may differ a little; the rest of what is shown may not."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^ ([0-9a-f]{8})  (\S+)  ok +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)  (.*)$", readme, re.M)
    rows = pl.read_parquet(sample / "burden.parquet").rows(named=True)
    assert len(shown) == len(rows) == 8
    for (key, date, *numbers, remarks), row in zip(shown, rows, strict=True):
        assert (key, date) == (row["series_key"][:8], str(row["study_date"]))
        columns = ("lung_volume_ml", "ggo_pct", "consolidation_pct", "po_pct")
        for name, number in zip(columns, map(float, numbers), strict=True):
            assert row[name] == as_shown(name, number), (key, name)
        assert remarks.strip() == ", ".join(row["qc_flags"])

    lines = re.findall(r"^\| ((?:patient_id|SYN-\d+) .*) \|$", readme, re.M)
    header, *cells = ([cell.strip() for cell in line.split("|")] for line in lines)
    timeline = pl.read_parquet(sample / "timeline.parquet").select(header).rows(named=True)
    assert len(cells) == len(timeline) == 8
    for (patient, days, *numbers), row in zip(cells, timeline, strict=True):
        assert (patient, int(days)) == (row["patient_id"], row["days_since_baseline"])
        for name, number in zip(header[2:], map(float, numbers), strict=True):
            assert row[name] == as_shown(name, number), (patient, days, name)


def test_the_readme_s_way_to_csv_works_for_every_table(sample: Path, tmp_path: Path) -> None:
    (recipe,) = re.findall(r"`\.(with_columns\(cs\..*)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    paths = list(sample.glob("*.parquet"))
    assert len(paths) > 5
    for path in paths:
        table = eval(f"table.{recipe}", {"table": pl.read_parquet(path), "cs": cs, "pl": pl})
        table.write_csv(tmp_path / "table.csv")
        assert pl.read_csv(tmp_path / "table.csv", infer_schema=False).shape == table.shape


def test_burden_of_corrected_labels_is_measured_as_docs_tell(sample: Path, tmp_path: Path) -> None:
    """With the model's own labels it is that of the table."""
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(code, names := {})
    cohort = ROOT / "sample_data/cohort/dicom"
    assert CliRunner().invoke(app, ["export", str(sample), "--format", "nifti", "-o", str(tmp_path)]).exit_code == 0
    for row in pl.read_parquet(sample / "burden.parquet").rows(named=True):
        labels = tmp_path / f"{row['series_key']}_labels.nii.gz"
        found = names["corrected_burden"](sample, cohort, labels, row["series_key"])
        assert len(found) > 30
        assert found == {name: row[name] for name in found}
