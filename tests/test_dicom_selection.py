"""Which usable series are segmented: rules, preferences, and the reasons of the rest."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from phantoms import CORONAL, write_series
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.config import PREFERENCES, InferConfig, ScanConfig
from cohortseg.dicom.scan import scan_cohort
from cohortseg.dicom.select_rules import parse_rules
from cohortseg.dicom.selection import select_next
from cohortseg.errors import ConfigError
from cohortseg.store.schemas import FILES
from cohortseg.store.tables import read_table


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One study: thin sharp, thick soft, thin soft slab, and a thin slab with a kernel that is not known."""
    root = tmp_path_factory.mktemp("study")
    kinds = (("1", "B70f", 20, 1.0), ("2", "B30f", 5, 4.0), ("3", "B30f", 5, 1.0), ("4", "CUSTOM", 5, 1.0))
    for series, kernel, count, step in kinds:
        write_series(
            root / series,
            series=series,
            shape=(count, 8, 8),
            spacing_mm=(step, 1, 1),
            attributes={"ConvolutionKernel": kernel},
        )
    return root


def decisions(root: Path, **settings: tuple[str, ...]) -> dict[str, str]:
    """Return folder to decision."""
    found = scan_cohort(root, config=ScanConfig(**settings)).series
    return {record.files[0].split("/")[0]: record.decision for record in found}


def test_coverage_then_thinness_decide_by_default(study: Path) -> None:
    assert decisions(study) == {"1": "selected", "2": "alternative", "3": "alternative", "4": "alternative"}
    reasons = {record.files[0][0]: record.reason or "" for record in scan_cohort(study, config=ScanConfig()).series}
    assert reasons["2"].endswith("of the same study: slices of 4.00 mm against 1.00 mm")
    assert reasons["3"].endswith("of the same study: reaches over 4 mm against 19 mm")


@pytest.mark.parametrize(
    ("prefer", "selected"), [(("coverage", "soft"), "2"), (("thin", "soft"), "3"), (("lung",), "1"), (("slices",), "1")]
)
def test_the_preference_can_be_changed(study: Path, prefer: tuple[str, ...], selected: str) -> None:
    assert [name for name, decision in decisions(study, prefer=prefer).items() if decision == "selected"] == [selected]


@pytest.mark.parametrize("name", PREFERENCES)
def test_each_preference_can_stand_alone(study: Path, name: str) -> None:
    assert Counter(decisions(study, prefer=(name,)).values()) == {"selected": 1, "alternative": 3}


@pytest.mark.parametrize(("prefer", "selected"), [("soft", "4"), ("lung", "1")])
def test_a_kernel_that_is_not_known_comes_before_those_of_the_other_kind(
    study: Path, prefer: str, selected: str
) -> None:
    assert decisions(study, select=("kernel!~B30",), prefer=(prefer,))[selected] == "selected"


@pytest.mark.parametrize(
    ("select", "selected", "excluded"),
    [
        (("all",), "1234", ""),
        (("kernel~b30|B31",), "2", "14"),
        (("all", "kernel~b30|B31"), "23", "14"),
        (("all", "kernel!~B30"), "14", "23"),
        (("all", "spacing_z_mm<=1"), "134", "2"),
        (("all", "spacing_z_mm <= 2", "n_slices > 5"), "1", "234"),
        (("all", "study_date>=2020-04-01", "study_date<=2020-04-01"), "1234", ""),
        (("all", "study_date>=2020-04-02"), "", "1234"),
        (("all", "image_type=AXIAL"), "1234", ""),
        (("all", "qc_flags=thick_slices"), "", "1234"),
        (("all", "manufacturer!=other"), "1234", ""),
        (("all", "body_part!~none", "body_part!=CHEST"), "1234", ""),
    ],
)
def test_rules(study: Path, select: tuple[str, ...], selected: str, excluded: str) -> None:
    found = decisions(study, select=select)
    assert "".join(sorted(name for name, decision in found.items() if decision == "selected")) == selected
    assert "".join(sorted(name for name, decision in found.items() if decision == "excluded")) == excluded


def test_scan_decides_by_the_settings_of_infer(study: Path, tmp_path: Path) -> None:
    settings = tmp_path / "infer.toml"
    settings.write_text('select = ["all", "kernel~B30"]\nflips = false\n')
    for options, selected in (([], 2), (["--select", "all"], 4)):
        result = CliRunner().invoke(app, ["scan", str(study), "--config", str(settings), *options])
        assert f"4 series, {selected} to be segmented" in result.stdout


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        ("kernel", "must be all, preferred or a rule like"),
        ("colour~B30", "colour is no column; valid are kernel"),
        ("n_slices>many", "is no number; write it without a unit"),
        ("spacing_z_mm<=nan", "is no number"),
        ("kernel==B30", "the operators are =, !=,"),
        ("kernel!==B30", "the operators are =, !=,"),
        ("kernel=~B30", "the operators are =, !=,"),
        ('kernel="B30"', "stands without quotes"),
        ("kernel~(", "unterminated|missing"),
        ("study_date>soon", "write YYYY-MM-DD"),
        ("study_date>=2020-03", "write YYYY-MM-DD"),
        ("qc_flags=thick_slice", "headers raise no such flag"),
        ("qc_flags!~noisy|thick_slices", "noisy come later"),
        ("decision = alternative", "decision is what these rules decide"),
        ("reason~kernel", "reason is what these rules decide"),
        ("qc_flags!~lung_cut_at_end_slice|one_lung", "are filtered in burden.parquet"),
        ("qc_flags!=chosen_by_uid", "are filtered in burden.parquet"),
    ],
)
def test_rules_that_cannot_be_read_are_wrong_usage(rule: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_rules([rule])


def test_a_rule_finds_a_letter_with_its_accent_in_either_form() -> None:
    _, (rule,) = parse_rules(["patient_id != Mu\N{COMBINING DIAERESIS}ller"])
    assert not rule.matches("M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller"), "identifiers of headers are NFC"


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"prefer must be of stack, chest, .*, got 'thinnest'"):
        ScanConfig(prefer=("thinnest",))
    with pytest.raises(ConfigError, match=r"repair must be of resample, untilt, got 'all'"):
        InferConfig(repair=("all",))
    with pytest.raises(ConfigError, match="exclude each other"):
        parse_rules(["all", "preferred"])


def named(root: Path, name: str, count: int, step: float = 5.0, columns_mm: float = 1.0, **attributes: str) -> None:
    spacing_mm = (step, columns_mm, columns_mm)
    write_series(root / name, series=name, shape=(count, 8, 8), spacing_mm=spacing_mm, attributes=attributes)


def test_a_longer_abdomen_is_not_preferred_to_the_chest(tmp_path: Path) -> None:
    named(tmp_path, "chest", 50)
    named(tmp_path, "abdomen", 90, SeriesDescription="ABD/PELVIS", BodyPartExamined="ABDOMEN")
    assert decisions(tmp_path) == {"abdomen": "alternative", "chest": "selected"}


def test_a_thin_series_without_a_name_is_preferred_to_a_thick_one_called_chest(tmp_path: Path) -> None:
    named(tmp_path, "thick", 10, 5.0, SeriesDescription="LUNG 5.0")
    named(tmp_path, "thin", 50, 1.0, SeriesDescription="1.0")
    assert decisions(tmp_path) == {"thick": "alternative", "thin": "selected"}


def test_slices_of_one_class_are_equally_thin(tmp_path: Path) -> None:
    named(tmp_path, "sharp", 41, 0.7, ConvolutionKernel="B70f")
    named(tmp_path, "soft", 21, 1.4, ConvolutionKernel="B30f")
    assert decisions(tmp_path) == {"sharp": "alternative", "soft": "selected"}


def test_a_long_abdomen_does_not_make_a_chest_too_short(tmp_path: Path) -> None:
    named(tmp_path, "thin", 47, 5.0)
    named(tmp_path, "longer", 26, 10.0)
    named(tmp_path, "abdomen", 41, 10.0, SeriesDescription="ABD/PELVIS", BodyPartExamined="ABDOMEN")
    assert decisions(tmp_path) == {"abdomen": "alternative", "longer": "alternative", "thin": "selected"}


def test_beyond_the_height_of_lungs_length_is_no_merit(tmp_path: Path) -> None:
    named(tmp_path, "chest", 100, 2.5, SeriesDescription="2")
    named(tmp_path, "body", 200, SeriesDescription="1")
    assert decisions(tmp_path) == {"body": "alternative", "chest": "selected"}


def test_a_slim_chest_is_preferred_to_a_thick_wide_one(tmp_path: Path) -> None:
    named(tmp_path, "chest", 200, 1.0, columns_mm=27.0, SeriesDescription="CHEST 1.0")
    named(tmp_path, "pet", 40, 5.0, columns_mm=62.0, SeriesDescription="CT WB AC")
    assert decisions(tmp_path) == {"chest": "selected", "pet": "alternative"}


@pytest.mark.parametrize("name", ["Mono+ 40 keV", "LUNG MIP 10", "A_80kV"])
def test_what_is_no_plain_scan_is_not_preferred_to_one_that_is_narrow_or_short(tmp_path: Path, name: str) -> None:
    named(tmp_path, "plain", 38, 5.0, columns_mm=20.0)
    named(tmp_path, "other", 60, 5.0, columns_mm=40.0, SeriesDescription=name)
    assert decisions(tmp_path) == {"plain": "selected", "other": "alternative"}


def test_a_narrow_field_of_view_is_not_preferred_to_the_whole_chest(tmp_path: Path) -> None:
    named(tmp_path, "chest", 50, columns_mm=10.0)
    named(tmp_path, "left", 100, 2.5, columns_mm=5.0, SeriesDescription="LT LUNG HR")
    assert decisions(tmp_path) == {"chest": "selected", "left": "alternative"}
    (reason,) = (record.reason for record in scan_cohort(tmp_path).series if record.decision == "alternative")
    assert (reason or "").endswith("a field of view of 40 mm against 80 mm")


def test_a_part_of_the_chest_is_not_preferred_to_all_of_it_since_it_is_original(tmp_path: Path) -> None:
    named(tmp_path, "whole", 50, ImageType="DERIVED\\SECONDARY\\AXIAL")
    named(tmp_path, "part", 32)
    assert decisions(tmp_path) == {"whole": "selected", "part": "alternative"}


def test_a_scan_is_preferred_to_a_thinner_one_computed_from_another(tmp_path: Path) -> None:
    named(tmp_path, "scan", 50)
    named(tmp_path, "computed", 250, 1.0, ImageType="DERIVED\\SECONDARY\\AXIAL")
    assert decisions(tmp_path) == {"scan": "selected", "computed": "alternative"}


def test_a_scan_is_preferred_to_a_thinner_one_that_has_to_be_resampled(tmp_path: Path) -> None:
    named(tmp_path, "even", 50)
    positions = [(0.0, 0.0, 1.0 * z + (z > 100)) for z in range(245)]
    write_series(tmp_path / "gap", series="gap", shape=(245, 8, 8), spacing_mm=(1, 1, 1), positions=positions)
    assert decisions(tmp_path, repair=("resample",)) == {"even": "selected", "gap": "alternative"}


def test_a_slice_of_unknown_thickness_comes_after_thick_ones(tmp_path: Path) -> None:
    named(tmp_path, "thick", 2, 10.0)
    attributes = {"SliceThickness": None}
    write_series(tmp_path / "unknown", series="unknown", shape=(1, 8, 8), attributes=attributes)
    assert decisions(tmp_path, prefer=("thin",)) == {"thick": "selected", "unknown": "alternative"}


def test_what_is_called_a_projection_is_an_alternative(tmp_path: Path) -> None:
    named(tmp_path, "slices", 50)
    named(tmp_path, "slab", 100, 2.5, SeriesDescription="AX MIPS 8x2.5")
    assert decisions(tmp_path) == {"slices": "selected", "slab": "alternative"}


@pytest.mark.parametrize(
    ("origin_mm", "count", "name", "taken"),
    [
        (100.0, 20, "", True),
        (-40.0, 20, "", True),
        (0.0, 24, "", True),
        (-10.0, 21, "", False),
        (100.0, 20, "ABDOMEN", False),
        (100.0, 20, "EXPIRATION", False),
        (100.0, 20, "LUNG MIP", False),
        (150.0, 12, "", False),
    ],
)
def test_lungs_that_go_on_are_looked_for_in_a_series_that_reaches_farther(
    tmp_path: Path, origin_mm: float, count: int, name: str, taken: bool
) -> None:
    named(tmp_path, "chosen", 40, 2.5)
    other = {"SeriesDescription": name}
    origin, spacing_mm = (0, 0, 100 + origin_mm), (5.0, 1, 1)
    write_series(
        tmp_path / "other", series="2", shape=(count, 8, 8), spacing_mm=spacing_mm, origin=origin, attributes=other
    )
    records = list(scan_cohort(tmp_path).series)
    (chosen,) = (record for record in records if record.decision == "selected")
    assert chosen.n_slices == 40
    for cut in ({chosen.series_key}, set[str]()):
        after = select_next(records, ScanConfig(), set(), short=cut)
        assert select_next(records, ScanConfig(), set(), narrow=cut) == records, "none is wider"
        assert [record.decision for record in after].count("selected") == 1 + (taken and bool(cut))
    again = select_next(after, ScanConfig(), set(), short={record.series_key for record in records})
    assert select_next(again, ScanConfig(), set(), short={record.series_key for record in records}) == again


def test_a_whole_chest_of_several_energies_is_looked_at_where_no_plain_one_is_whole(tmp_path: Path) -> None:
    named(tmp_path, "slab", 34)
    named(tmp_path, "energies", 60, SeriesDescription="CTPA MONO 70keV")
    for count, expected in ((0, {34, 60}), (50, {34, 50})):
        if count:
            named(tmp_path, "whole", count, 5.0, ImageType="DERIVED\\SECONDARY\\AXIAL")
        records = list(scan_cohort(tmp_path, config=ScanConfig(prefer=("plain", "original"))).series)
        (slab,) = (record for record in records if record.decision == "selected")
        after = select_next(records, ScanConfig(), set(), short={slab.series_key})
        assert {record.n_slices for record in after if record.decision == "selected"} == expected


def test_what_is_whole_both_ways_is_looked_at_after_what_is_not(tmp_path: Path) -> None:
    sizes = {"both": (40, 20.0), "wide": (40, 30.0), "tall": (60, 20.0), "whole": (61, 31.0)}
    for name, (count, columns_mm) in sizes.items():
        named(tmp_path, name, count, columns_mm=columns_mm)
    records = list(scan_cohort(tmp_path, config=ScanConfig(select=("all",))).series)
    keys = {record.files[0].split("/")[0]: record.series_key for record in records}
    tried = [
        replace(record, decision="alternative" if record.series_key == keys["whole"] else "selected", reason="")
        for record in records
    ]
    short, narrow = {keys["both"], keys["wide"]}, {keys["both"], keys["tall"]}
    after = select_next(tried, ScanConfig(), set(), short=short, narrow=narrow)
    assert {record.decision for record in after} == {"selected"}


@pytest.mark.parametrize("attributes", [{"SeriesDescription": "AX MIP 8"}, {"SeriesDescription": "ABDOMEN"}])
def test_an_undated_chest_is_preferred_to_what_is_none(tmp_path: Path, attributes: dict[str, str]) -> None:
    write_series(
        tmp_path / "chest", series="1", shape=(50, 8, 8), spacing_mm=(5, 1, 1), study_date="", attributes=ONE_STUDY
    )
    other = ONE_STUDY | attributes
    write_series(tmp_path / "other", series="2", shape=(50, 8, 8), spacing_mm=(5, 1, 1), attributes=other)
    assert decisions(tmp_path) == {"chest": "selected", "other": "alternative"}


def test_lungs_cut_by_the_field_of_view_are_looked_for_in_a_wider_one(tmp_path: Path) -> None:
    for name, columns_mm, count in (("heart", 26.0, 60), ("chest", 40.0, 40), ("same", 26.0, 50)):
        named(tmp_path, name, count, columns_mm=columns_mm)
    records = scan_cohort(tmp_path).series
    (heart,) = (record for record in records if record.decision == "selected")
    after = select_next(records, ScanConfig(), set(), narrow={heart.series_key})
    assert {record.n_slices for record in after if record.decision == "selected"} == {60, 40}


def test_an_expiration_is_an_alternative(tmp_path: Path) -> None:
    named(tmp_path, "insp", 10, SeriesDescription="CHEST INSP")
    named(tmp_path, "exp", 12, SeriesDescription="CHEST EXP")
    assert decisions(tmp_path) == {"exp": "alternative", "insp": "selected"}


def test_an_inspiration_is_preferred_however_it_was_computed(tmp_path: Path) -> None:
    named(tmp_path, "insp", 10, SeriesDescription="CHEST INSP", ImageType="DERIVED\\SECONDARY\\AXIAL")
    named(tmp_path, "exp", 10, SeriesDescription="CHEST EXP", ImageType="ORIGINAL\\PRIMARY\\AXIAL")
    assert decisions(tmp_path) == {"exp": "alternative", "insp": "selected"}


def test_a_scan_for_attenuation_correction_is_not_preferred_for_its_length(tmp_path: Path) -> None:
    named(tmp_path, "ac", 60, SeriesDescription="CTAC WB")
    named(tmp_path, "chest", 50, SeriesDescription="Thorax 1.0")
    assert decisions(tmp_path) == {"ac": "alternative", "chest": "selected"}


def test_a_series_acquired_weeks_later_does_not_stand_for_its_study(tmp_path: Path) -> None:
    named(tmp_path, "planned", 10, AcquisitionDate="20200401")
    named(tmp_path, "later", 12, AcquisitionDate="20200513")
    found = {record.files[0].partition("/")[0]: record for record in scan_cohort(tmp_path, config=ScanConfig()).series}
    assert found["planned"].decision == "selected"
    assert (found["later"].reason or "").endswith("it was acquired on another date")


def test_where_no_acquisition_has_the_date_of_the_study_a_missing_one_is_no_merit(tmp_path: Path) -> None:
    named(tmp_path, "whole", 60, AcquisitionDate="20200513")
    named(tmp_path, "slab", 35)
    assert decisions(tmp_path) == {"slab": "alternative", "whole": "selected"}


def test_a_choice_left_to_uids_is_flagged(tmp_path: Path) -> None:
    for name in ("1", "2"):
        named(tmp_path, name, 10)
    (selected,) = [one for one in scan_cohort(tmp_path, config=ScanConfig()).series if one.decision == "selected"]
    assert selected.qc_flags == ("chosen_by_uid",)


def test_visits_under_one_study_uid_are_chosen_each_for_itself(tmp_path: Path) -> None:
    for day in ("20200401", "20200402", "20200501"):
        uid = {"StudyInstanceUID": "1.2.3"}
        write_series(tmp_path / day, study_date=day, shape=(6, 8, 8), attributes=uid)
    found = decisions(tmp_path)
    assert found.pop("20200501") == "selected"
    assert sorted(found.values()) == ["alternative", "selected"], "a study can run past midnight"
    records = scan_cohort(tmp_path, config=ScanConfig()).series
    best = next(record for record in records if record.decision == "selected" and record.study_date.month == 4)
    for found in (records, select_next(records, ScanConfig(), {best.series_key})):
        flags = {record.study_date.isoformat(): record.qc_flags.count("consecutive_days") for record in found}
        assert flags == {"2020-04-01": 1, "2020-04-02": 1, "2020-05-01": 0}


def test_studies_are_chosen_each_for_itself(tmp_path: Path) -> None:
    for day in ("20200401", "20200408"):
        for series, count in (("1", 6), ("2", 4)):
            write_series(tmp_path / day / series, study_date=day, series=series, shape=(count, 8, 8))
    found = scan_cohort(tmp_path, config=ScanConfig()).series
    chosen = {(record.study_date, record.n_slices) for record in found if record.decision == "selected"}
    assert chosen == {(date(2020, 4, 1), 6), (date(2020, 4, 8), 6)}


def test_a_rule_does_not_hide_why_a_series_cannot_be_used(tmp_path: Path) -> None:
    write_series(tmp_path / "axial", series="1")
    write_series(tmp_path / "coronal", series="2", orientation=CORONAL)
    assert decisions(tmp_path, select=("kernel~B30",)) == {"axial": "excluded", "coronal": "skipped"}


def test_series_without_a_study_are_not_compared(tmp_path: Path) -> None:
    for series in ("1", "2"):
        write_series(tmp_path / series, series=series, attributes={"StudyInstanceUID": None})
    assert set(decisions(tmp_path).values()) == {"selected"}


def test_command_says_what_it_decided_and_where_each_file_went(study: Path, tmp_path: Path) -> None:
    killed = tmp_path / f".files.parquet.{'0' * 32}.tmp"  # what a killed scan leaves
    killed.touch()
    os.utime(killed, (0, 0))
    (study / "notes.txt").write_text("hello")
    files = tmp_path / "files.parquet"
    result = CliRunner().invoke(app, ["scan", str(study), "--files", str(files), "--select", "n_slices>5"])
    assert result.exit_code == 0
    assert "does not match --select 'n_slices>5'" in " ".join(result.stdout.split())
    assert "4 series, 1 to be segmented; 1 other files" in result.stdout
    assert not killed.exists()
    table = read_table(files, FILES)
    assert dict(table["went_to"].value_counts().rows()) == {"selected": 20, "excluded": 15, "no series": 1}
    assert table.filter(pl.col("path") == "notes.txt")["reason"].to_list() == ["not DICOM"]
    plain = CliRunner().invoke(app, ["scan", str(study)])
    assert "Alternatives" in plain.stdout
    none = CliRunner().invoke(app, ["scan", str(study), "--select", "n_slices>500"])
    assert (none.exit_code, "4 series, 0 to be segmented" in none.stdout) == (3, True)
    wrong = CliRunner().invoke(app, ["scan", str(study), "--select", "size>2"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")


@pytest.mark.parametrize("option", ["--output", "--files"])
def test_scan_never_writes_into_the_cohort_or_over_other_files(tmp_path: Path, option: str) -> None:
    (path, *_) = write_series(tmp_path / "cohort")
    before = path.read_bytes()
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for target, message in (
        (path, "lies inside the cohort"),
        (tmp_path / "cohort/m.parquet", "lies inside the cohort"),
        (mine, "table of cohortseg's"),
        (tmp_path / "none/m.parquet", "no such folder"),
        (tmp_path / "m.csv", "written as .parquet"),
    ):
        result = CliRunner().invoke(app, ["scan", str(tmp_path / "cohort"), option, str(target)])
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
    assert (path.read_bytes(), mine.read_text()) == (before, "mine")
    other = tmp_path / "other.parquet"
    opposite = "--files" if option == "--output" else "--output"
    assert CliRunner().invoke(app, ["scan", str(tmp_path / "cohort"), opposite, str(other)]).exit_code == 0
    same = ["scan", str(tmp_path / "cohort"), option, str(other)]
    assert CliRunner().invoke(app, same).exit_code == 2, "another table of ours"
    assert CliRunner().invoke(app, [*same, opposite, str(other)]).exit_code == 2, "one name for two tables"
    for _ in range(2):
        out = tmp_path / "m.parquet"
        assert CliRunner().invoke(app, ["scan", str(tmp_path / "cohort"), option, str(out)]).exit_code == 0


def test_slices_that_each_have_a_series_uid_are_flagged(tmp_path: Path) -> None:
    for z in range(3):
        write_series(tmp_path / str(z), shape=(1, 32, 24), origin=(0, 0, 5.0 * z), series=str(z))
    records = scan_cohort(tmp_path).series
    (selected,) = [record for record in records if record.decision == "selected"]
    assert "slices_apart" in selected.qc_flags
    taken_up = select_next(records, ScanConfig(), {selected.series_key})
    flags = [record.qc_flags.count("slices_apart") for record in taken_up if record.decision == "selected"]
    assert flags == [1, 1]
    for z in range(3):
        apart = {"StudyInstanceUID": f"1.2.{z}"}
        write_series(tmp_path / str(z), shape=(1, 32, 24), origin=(0, 0, 5.0 * z), series=str(z), attributes=apart)
    records = scan_cohort(tmp_path).series
    assert ["slices_apart" in record.qc_flags for record in records if record.decision == "selected"] == [True] * 3
    shutil.rmtree(tmp_path / "2")
    assert not any("slices_apart" in record.qc_flags for record in scan_cohort(tmp_path).series)


def test_archives_are_told_of(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    for name in ("b.zip", "labels.nii.gz", "list.xlsx"):
        (tmp_path / name).write_bytes({"labels.nii.gz": b"\x1f\x8b\x08"}.get(name, b"PK\x03\x04").ljust(600, b"\0"))
    result = CliRunner().invoke(app, ["scan", str(tmp_path)])
    assert result.exit_code == 0
    assert "1 archives were not looked into" in result.stderr


def test_scan_tells_by_its_exit_code_what_could_not_be_read(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path)
    (tmp_path / "torn.dcm").write_bytes(path.read_bytes()[:200])
    result = CliRunner().invoke(app, ["scan", str(tmp_path)])
    assert result.exit_code == 3
    assert "1 files or folders of the cohort could not be read" in " ".join(result.stderr.split())


ONE_STUDY = {"StudyInstanceUID": "1.2.3.4"}


def test_visits_of_one_study_uid_on_following_days_do_not_chain(tmp_path: Path) -> None:
    for day in range(1, 8):
        write_series(
            tmp_path / str(day), series=str(day), study_date=f"202004{day:02}", shape=(2, 8, 8), attributes=ONE_STUDY
        )
    chosen = [record for record in scan_cohort(tmp_path, config=ScanConfig()).series if record.decision == "selected"]
    days = [(record.study_date.day - 1) // 2 for record in chosen if record.study_date]
    assert days == [0, 1, 2, 3], "a date and the day after it are one visit"


def test_a_series_without_a_date_gives_way_to_one_of_its_study_that_has_one(tmp_path: Path) -> None:
    write_series(tmp_path / "undated", series="1", study_date="", shape=(5, 8, 8), attributes=ONE_STUDY)
    write_series(tmp_path / "dated", series="2", shape=(4, 8, 8), attributes=ONE_STUDY)
    undated, dated = sorted(
        scan_cohort(tmp_path, config=ScanConfig()).series, key=lambda record: record.study_date is not None
    )
    assert (undated.decision, dated.decision) == ("alternative", "selected")
    assert (undated.reason or "").endswith("of the same study: it has no StudyDate")


@pytest.mark.parametrize("derived", [{"ImageType": "DERIVED\\SECONDARY\\OTHER\\CSA MPR"}, {}])
def test_slices_of_a_bolus_are_not_preferred_to_the_chest(tmp_path: Path, derived: dict[str, str]) -> None:
    """Many hospitals keep only reformats of the chest, and call it all that was scanned."""
    named(tmp_path, "bolus", 1, SeriesDescription="PreMonitoring")
    named(tmp_path, "slab", 3)
    named(tmp_path, "chest", 50, SeriesDescription="ABD PEL MonoE 70keV", **derived)
    assert decisions(tmp_path) == {"bolus": "alternative", "slab": "alternative", "chest": "selected"}
    reasons = {record.reason for record in scan_cohort(tmp_path).series if record.decision == "alternative"}
    assert any("reaches over 10 mm only" in (reason or "") for reason in reasons)


def test_a_slab_of_the_heart_is_not_preferred_to_a_reformatted_chest(tmp_path: Path) -> None:
    named(tmp_path, "heart", 100, 1.0, SeriesDescription="CORONARY 0.6")
    named(tmp_path, "chest", 50, SeriesDescription="CHEST MPR ax", ImageType="DERIVED\\SECONDARY\\MPR")
    named(tmp_path, "abdomen", 120, SeriesDescription="ABD PEL", BodyPartExamined="ABDOMEN")
    assert decisions(tmp_path) == {"heart": "alternative", "abdomen": "alternative", "chest": "selected"}


def test_a_resampled_series_reaches_as_far_as_its_slices(tmp_path: Path) -> None:
    """And not as far as its files times their median distance."""
    heights = [*range(10), *range(10, 130, 10)]
    positions = [(0.0, 0.0, float(height)) for height in heights]
    write_series(tmp_path / "long", series="1", shape=(len(heights), 8, 8), spacing_mm=(10, 1, 1), positions=positions)
    write_series(tmp_path / "short", series="2", shape=(7, 8, 8), spacing_mm=(10, 1, 1))
    config = ScanConfig(repair=("resample",), prefer=("coverage",))
    found = {record.files[0].split("/")[0]: record for record in scan_cohort(tmp_path, config=config).series}
    assert {name: record.extent_mm for name, record in found.items()} == {"long": 120, "short": 60}
    assert found["long"].decision == "selected"
    assert found["short"].reason.endswith("reaches over 60 mm against 120 mm")


def test_what_several_energies_give_is_the_last_of_a_study(tmp_path: Path) -> None:
    """However thin it is: virtual images have the HU of no scan; what was computed from a plain one has them."""
    named(tmp_path, "plain", 50)
    named(tmp_path, "vnc", 90, 1.0, SeriesDescription="CHEST VNC")
    named(tmp_path, "monoenergetic", 90, 1.0, ImageType="DERIVED\\PRIMARY\\AXIAL\\VMI")
    assert decisions(tmp_path) == {"plain": "selected", "vnc": "alternative", "monoenergetic": "alternative"}
    shutil.rmtree(tmp_path / "plain")
    chosen = [record for record in scan_cohort(tmp_path).series if record.decision == "selected"]
    assert [record.qc_flags.count("spectral_image") for record in chosen] == [1]
