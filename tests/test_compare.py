"""Recipes side by side: which settings a row has, gains by hand, and ``cohortseg compare`` through the command line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from training_data import COMPARED_FOLDS, TINY_RECIPE, TinyComparison, write_covid_semiseg
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.cluster import Resources, WorkerRequest
from cohortseg.compare import fold, on_ray
from cohortseg.compare.page import comparison_html
from cohortseg.compare.rows import FOLDS, ROWS, check_rows, row_config
from cohortseg.compare.tables import COMPARISON, HELD_OUT, comparison_table
from cohortseg.config import ModelConfig, TrainConfig, resolve_config
from cohortseg.datasets.covid_semiseg import SAME_SCAN, labeled_slices, unlabeled_slices
from cohortseg.datasets.preparation import prepare
from cohortseg.datasets.prepared import load_prepared, write_prepared
from cohortseg.errors import ConfigError, WorkerError
from cohortseg.store.files import LOCK
from cohortseg.store.layout import DATA
from cohortseg.store.provenance import read_run_json, write_run_json
from cohortseg.store.tables import read_table, table_from_rows
from cohortseg.train.state import build_state
from cohortseg.weights import load_model

FOLD_1, FOLD_2, (OTHER,) = COMPARED_FOLDS


def scores(row: str, dice: dict[str, float], class_name: str = "ggo") -> list[dict[str, object]]:
    return [
        {"row": row, "fold": 1, "image": image, "class_name": class_name, "toolbox_labels_dice": value}
        for image, value in dice.items()
    ]


def line(table: pl.DataFrame, row: str, class_name: str = "ggo") -> dict[str, object]:
    return table.filter(pl.col("row") == row, pl.col("class_name") == class_name).row(0, named=True)


def test_folds_hold_each_of_the_50_images_out_once_and_keep_slices_of_one_scan_together():
    names = [name for fold in FOLDS for name in fold]
    assert [len(fold) for fold in FOLDS] == [10] * 5
    assert len(set(names)) == 50
    for group in SAME_SCAN:
        assert sum(not group.isdisjoint(fold) for fold in FOLDS) == 1


@pytest.mark.parametrize("row", ROWS)
def test_a_row_begins_with_the_weights_of_plain(row):
    """Else a gain over it would be one of another seed, too."""
    base = TrainConfig(model=ModelConfig(encoder_width=16, decoder_channels=(16, 16, 16, 16), codebook_size=8))
    state, plain = (build_state(row_config(base, name), torch.device("cpu")) for name in (row, "plain"))
    for network in ("segmenter", "discriminator"):
        weights = getattr(state, network).state_dict()
        for name, value in getattr(plain, network).state_dict().items():
            assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_its_contributions_and_learns_as_long_as_the_others_a_student_longer(row):
    base = TrainConfig(supervised_iterations=50, adversarial_iterations=30, warmup_iterations=5)
    config = row_config(base, row)
    assert config.model.vq_branch == ("vvm" in row or row == "full")
    assert (config.proportion_weight > 0) == ("prop" in row or row == "full")
    assert config.semi_supervised == ("ssa" in row or row == "full")
    assert config.planned_iterations == (120 if row == "student" else 80)


def test_gains_are_paired_over_the_images_that_both_rows_have():
    rows = scores("plain", {"a": 0.5, "b": 0.6, "c": 0.1, "d": 0.9}) + scores("full", {"a": 0.6, "b": 0.5, "c": 0.4})
    table = comparison_table(table_from_rows(rows, HELD_OUT))
    plain, full = line(table, "plain"), line(table, "full")
    assert plain["dice"] == pytest.approx((0.5 + 0.6 + 0.1 + 0.9) / 4)
    assert plain["dice_gain"] is None
    assert (full["n_images"], full["n_paired"]) == (3, 3)
    assert full["dice_gain"] == pytest.approx((0.1 - 0.1 + 0.3) / 3)
    half = 4.30265 * 0.2 / 3**0.5  # t of two degrees of freedom, standard deviation 0.2
    assert full["dice_gain_low"] == pytest.approx(0.1 - half, rel=1e-5)
    assert full["dice_gain_high"] == pytest.approx(0.1 + half, rel=1e-5)
    assert table["row"].unique(maintain_order=True).to_list() == ["plain", "full"]


def test_images_of_one_scan_count_as_one_in_the_interval():
    gains = {"0": 0.1, "1": -0.1, "2": 0.0, "35": 0.2, "67": 0.3}  # the last two show one scan
    rows = scores("plain", dict.fromkeys(gains, 0.5)) + scores(
        "full", {name: 0.5 + gain for name, gain in gains.items()}
    )
    full = line(comparison_table(table_from_rows(rows, HELD_OUT)), "full")
    # deviations from .1 by scan: 0, -.2, -.1, .1 + .2; t of three degrees of freedom
    half = 3.18245 * (4 / 3 * (0.04 + 0.01 + 0.09)) ** 0.5 / 5
    assert (full["dice_gain_low"], full["dice_gain_high"]) == pytest.approx((0.1 - half, 0.1 + half), rel=1e-5)
    few = [one for one in rows if one["image"] in ("0", "35", "67")]
    assert line(comparison_table(table_from_rows(few, HELD_OUT)), "full")["dice_gain_low"] is None


def test_what_was_not_measured_is_null():
    rows = scores("plain", {"a": 0.5}) + scores("prop", {"a": 0.7, "b": 0.2}) + scores("ssa", {"z": 0.3})
    table = comparison_table(table_from_rows(rows, HELD_OUT))
    assert line(table, "prop")["dice_gain"] == pytest.approx(0.2)
    assert line(table, "prop")["dice_gain_low"] is None  # one image
    assert (line(table, "ssa")["n_paired"], line(table, "ssa")["dice_gain"]) == (0, None)
    assert (line(table, "plain", "consolidation")["n_images"], line(table, "plain", "consolidation")["dice"]) == (
        0,
        None,
    )


def test_the_picture_has_a_point_for_each_gain_and_above_them_the_mean_and_what_is_known_of_its_interval(monkeypatch):
    drawn = []
    monkeypatch.setattr("cohortseg.compare.page.figure_png", lambda figure: drawn.append(figure) or b"")
    rows = scores("plain", {"a": 0.5, "b": 0.6, "c": 0.1}) + scores("prop", {"a": 0.7})
    held_out = table_from_rows(rows + scores("full", {"a": 0.6, "b": 0.5, "c": 0.4}), HELD_OUT)
    table = comparison_table(held_out)
    comparison_html(table, held_out)
    full = line(table, "full")
    expected = [
        ([0.2], [0]),
        ([0.2], [-0.25]),
        ([0.1, -0.1, 0.3], [1, 1, 1]),
        ([full["dice_gain"]], [0.75]),
        ([full["dice_gain_low"], full["dice_gain_high"]], [0.75, 0.75]),
    ]
    ggo, consolidation = ([one.get_data() for one in axes.lines[:-1]] for axes in drawn[0].axes)  # the last: no gain
    for (x, y), (gains, heights) in zip(ggo, expected, strict=True):
        assert (list(x), list(y)) == (pytest.approx(gains), pytest.approx(heights))
    assert not any(len(x) for x, _ in consolidation)


@pytest.mark.parametrize(
    ("rows", "folds", "message"),
    [
        (["plain", "fool"], [1], "no such row: fool; use plain, vvm"),
        (["plain"], [6], "no such fold: 6; use 1, 2, 3, 4, 5"),
        ([], [1], "no such row: none given"),
        (["plain"], [1, 1], "a fold is given twice"),
    ],
)
def test_rows_and_folds_that_do_not_exist_are_refused(rows, folds, message):
    with pytest.raises(ConfigError, match=message):
        check_rows(rows, folds, TrainConfig())


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        ({"proportion_weight": 0.0}, ["full"]),
        ({"saturation_patience": 50}, ["plain"]),
        ({"batch_pseudo": 4}, ["plain"]),
        ({"batch_labeled": 1}, ["student"]),
        ({"semi_supervised": False}, ["plain"]),
        ({"semi_supervised": False, "adversarial_iterations": 0}, ["full"]),
    ],
)
def test_settings_that_would_make_a_row_another_one_are_refused(setting, rows):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        check_rows(rows, [1], TrainConfig(**setting))
    check_rows(["plain"], [1], TrainConfig(proportion_weight=0.0))


@pytest.fixture(scope="module", autouse=True)
def _no_pages() -> Iterator[None]:
    """Draw no page of a training here: no test looks at it, and it takes longer than a training."""
    with patch("cohortseg.train.loop.RunPage"):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyComparison:
    return TinyComparison(tmp_path_factory.mktemp("compare"))


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("folds/*/*")}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny: TinyComparison) -> Path:
    """Return the folder of a comparison that was killed once its first fold was done, and then run to its end.

    Tests leave it as it is.
    """
    out = tmp_path_factory.mktemp("compared") / "out"
    command = [sys.executable, "-m", "cohortseg", *tiny.arguments(out, "plain,full")]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not list(out.glob("folds/*/held_out.parquet")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    done = times(out)
    assert "folds/plain-1/held_out.parquet" in done
    assert not (out / "comparison.parquet").exists()

    ended = CliRunner().invoke(app, tiny.arguments(out, "plain,full"))
    assert ended.exit_code == 0, ended.output
    now = times(out)
    assert all(now[path] == written for path, written in done.items() if path.startswith("folds/plain-1/")), "again"
    return out


def test_each_row_is_trained_on_each_fold_and_scored_on_the_images_held_out(compared, tiny):
    held_out, table = (read_table(compared / schema.file_name, schema) for schema in (HELD_OUT, COMPARISON))
    assert table["row"].unique(maintain_order=True).to_list() == ["plain", "full-phase1", "full"]
    assert set(table["n_images"]) == {5}
    for row in ("plain", "full-phase1", "full"):
        images = held_out.filter(pl.col("row") == row, pl.col("class_name") == "opacity")
        assert dict(images.select("image", "fold").iter_rows()) == dict.fromkeys(FOLD_1, 1) | dict.fromkeys(FOLD_2, 2)
        assert not images["in_training"].any()
    for number, names in ((1, FOLD_1), (2, FOLD_2)):
        trained_on = load_model(compared / f"folds/full-{number}/model.safetensors").training_images
        for name in (*FOLD_1, *FOLD_2, OTHER):
            image = tiny.data / f"TrainingSet/MultiClassInfection-Train/Imgs/{name}.jpg"
            assert (hashlib.sha256(image.read_bytes()).hexdigest() in trained_on) == (name not in names)
    assert "full-phase1" in (compared / "page.html").read_text(encoding="utf-8")


def test_a_student_is_taught_by_networks_that_saw_none_of_the_images_held_out(compared, tiny, tmp_path):
    out = shutil.copytree(compared, tmp_path / "out")
    ended = CliRunner().invoke(app, tiny.arguments(out, "plain,student", folds="1"))
    assert ended.exit_code == 0, ended.output
    held_out = read_table(out / "held_out.parquet", HELD_OUT)
    assert set(held_out["row"]) == {"plain", "full", "full-phase1", "student"}
    assert set(held_out.filter(pl.col("row") == "student")["image"]) == set(FOLD_1)
    assert not held_out["in_training"].any()
    student = load_model(out / "folds/student-1/model.safetensors")
    assert (student.card.recipe["batch_labeled"], student.card.recipe["batch_pseudo"]) == (1, 1)
    teachers = [load_model(path) for path in sorted(out.glob("folds/student-1/teacher-*/model.safetensors"))]
    assert [teacher.card.recipe["seed"] for teacher in teachers] == [0, 1, 2, 3]
    for teacher in teachers:
        assert teacher.training_images < student.training_images
        for name in FOLD_1:
            image = tiny.data / f"TrainingSet/MultiClassInfection-Train/Imgs/{name}.jpg"
            assert (
                hashlib.sha256(image.read_bytes()).hexdigest() not in teacher.training_images | student.training_images
            )


def test_the_first_teacher_of_a_student_is_the_network_of_row_plain_trained_once(compared, tiny, tmp_path):
    with_plain, alone = shutil.copytree(compared, tmp_path / "with-plain"), tmp_path / "alone"
    for out in (with_plain, alone):
        ended = CliRunner().invoke(app, tiny.arguments(out, "student", folds="1"))
        assert ended.exit_code == 0, ended.output
    plain = with_plain / "folds/plain-1/model.safetensors"
    assert (with_plain / "folds/student-1/teacher-0/model.safetensors").read_bytes() == plain.read_bytes()
    assert not (with_plain / "folds/student-1/teacher-0/history.jsonl").exists()
    assert (alone / "folds/student-1/teacher-0/history.jsonl").exists()
    weights, trained = (load_file(path) for path in (plain, alone / "folds/student-1/teacher-0/model.safetensors"))
    for name, value in weights.items():
        assert torch.equal(value, trained[name]), name


def test_the_iterations_of_teachers_and_student_are_reported_as_those_of_one_training(compared, tiny, tmp_path):
    out = shutil.copytree(compared, tmp_path / "out")
    images = tuple(labeled_slices(tiny.data, "all"))
    config = resolve_config(TrainConfig, tiny.config, {})
    job = fold.FoldJob(out=out, images=images, config=config, row="student", fold=1)
    reported: list[int] = []
    fold.run_fold(job, reported.append)
    assert reported == sorted(set(reported))
    assert reported[-1] == job.iterations


def test_a_finished_comparison_is_not_trained_again(compared, tiny):
    before = times(compared)
    again = CliRunner().invoke(app, tiny.arguments(compared, "plain,full"))
    assert again.exit_code == 0, again.output
    assert "done before" in again.output
    assert times(compared) == before


def test_tables_that_a_kill_after_the_last_training_left_out_are_written_by_the_next_start(compared, tiny):
    (compared / "comparison.parquet").unlink()
    run_json = json.loads((compared / "run.json").read_bytes())
    write_run_json(compared, "compare", {}, finished=False)
    assert CliRunner().invoke(app, tiny.arguments(compared, "plain,full")).exit_code == 0
    assert read_run_json(compared)["finished"] is not None
    assert read_run_json(compared)["config"] == run_json["config"]
    assert (compared / "comparison.parquet").is_file()


def test_damaged_scores_are_named_with_the_way_out(compared, tiny):
    scores = compared / "folds/full-1/held_out.parquet"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:500])
    damaged = CliRunner().invoke(app, tiny.arguments(compared, "plain"))
    scores.write_bytes(whole)
    assert damaged.exit_code == 2
    assert "remove held_out.parquet, and that row and fold is trained again" in " ".join(damaged.output.split())


def test_a_comparison_does_not_go_on_with_another_recipe(compared, tiny, tmp_path):
    other = CliRunner().invoke(app, [*tiny.arguments(compared, "plain"), "--seed", "7"])
    assert other.exit_code == 2
    assert "seed was 0, is 7" in other.output
    changed = tmp_path / "changed.toml"
    changed.write_text(TINY_RECIPE.replace("batch_labeled = 2", "batch_labeled = 3"), encoding="utf-8")
    other = CliRunner().invoke(app, [*tiny.arguments(compared, "plain"), "--config", str(changed)])
    assert other.exit_code == 2
    assert "batch_labeled was 2, is 3" in other.output, "gains over another recipe are no gains"


def test_a_comparison_does_not_go_on_with_other_images(compared, tiny, tmp_path):
    moved = shutil.copytree(tiny.data, tmp_path / "COVID-SemiSeg")
    labels = moved / "TrainingSet/MultiClassInfection-Train/GT"
    shutil.copy(labels / "2.png", labels / "3.png")
    other = CliRunner().invoke(app, [*tiny.arguments(compared, "plain"), "--data", str(moved)])
    assert other.exit_code == 2
    assert "was begun with other labelled images" in other.output


def test_data_prepared_again_for_a_comparison_must_be_of_the_same_unlabelled_images(compared, tiny, tmp_path):
    out, moved = shutil.copytree(compared, tmp_path / "out"), shutil.copytree(tiny.data, tmp_path / "COVID-SemiSeg")
    (out / "data.safetensors").unlink()
    unlabeled = next(path for path in moved.rglob("*") if path.name == "Imgs" and not (path.parent / "GT").exists())
    image = next(unlabeled.iterdir())
    image.rename(tmp_path / image.name)
    arguments = [*tiny.arguments(out, "plain,ssa", "1"), "--data", str(moved)]
    other = CliRunner().invoke(app, arguments)
    assert other.exit_code == 2, other.output
    assert "was begun with other unlabelled images" in " ".join(other.output.split())
    assert not (out / "data.safetensors").exists()
    (tmp_path / image.name).rename(image)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("begun_with", "what"),
    [
        ({"imagenet_sha256": "0" * 64}, "with other ImageNet weights"),
        ({"folds": [["2", "3"]]}, "with other folds"),
        ({"version": "0.0.9"}, "by cohortseg 0.0.9"),
    ],
)
def test_a_comparison_does_not_go_on_with_other_weights_folds_or_code(compared, tiny, begun_with, what):
    settings = compared / "comparison.json"
    begun = settings.read_text()
    settings.write_text(json.dumps(json.loads(begun) | begun_with))
    other = CliRunner().invoke(app, tiny.arguments(compared, "plain"))
    settings.write_text(begun)
    assert other.exit_code == 2
    assert f"{compared.name}: was begun {what}" in " ".join(other.output.split())
    assert "cannot be read" not in other.output


def test_held_out_images_are_not_trained_on(tmp_path, tiny, monkeypatch):
    trained_on = []

    class Ended(Exception):
        pass

    def record(_config, data, *_args, **_kwargs):
        trained_on.append(data)
        raise Ended

    monkeypatch.setattr(fold, "train", record)
    images = tuple(labeled_slices(tiny.data, "all"))
    config = resolve_config(TrainConfig, tiny.config, {})
    everything = prepare(images, unlabeled_slices(tiny.data), config.canonical, "", lambda *_: None)
    write_prepared(tmp_path / DATA, everything)
    with pytest.raises(Ended):
        fold.run_fold(fold.FoldJob(out=tmp_path, images=images, config=config, row="ssa", fold=1), lambda _: None)
    (data,) = trained_on
    others = [index for index, image in enumerate(images) if image.name not in FOLD_1]
    assert len(others) == 3
    assert torch.equal(data.labeled, everything.labeled[others])
    assert torch.equal(data.labels, everything.labels[others])
    assert torch.equal(data.unlabeled, everything.unlabeled)
    assert len(data.labeled_images) == 3


def test_a_start_that_failed_or_was_killed_early_does_not_stand_in_the_way(tmp_path, tiny):
    out, data = tmp_path / "out", shutil.copytree(tiny.data, tmp_path / "COVID-SemiSeg")
    mask = data / "TrainingSet/MultiClassInfection-Train/GT/3.png"
    good = mask.read_bytes()
    mask.write_bytes(good[:40])
    arguments = [*tiny.arguments(out, "plain", "1"), "--data", str(data)]
    damaged = CliRunner().invoke(app, arguments)
    assert damaged.exit_code == 2
    assert "3.png" in damaged.output
    mask.write_bytes(good)
    (out / f".comparison.json.{'0' * 32}.tmp").write_bytes(b"{")
    (out / "folds").mkdir()
    (out / "folds/plain-1").write_bytes(b"")
    foreign = CliRunner().invoke(app, arguments)
    assert "holds no comparison" in foreign.output
    (out / "folds/plain-1").unlink()
    (out / "folds").rmdir()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output

    shutil.rmtree(out / "folds/plain-1")
    (out / "folds/plain-1").write_bytes(b"")
    blocked = CliRunner().invoke(app, arguments)
    assert blocked.exit_code == 1, blocked.output
    assert "plain-1: cannot be written or read" in " ".join(blocked.output.split())


def test_slices_that_a_killed_start_prepared_of_other_images_are_not_trained_on(tmp_path, tiny, monkeypatch):
    trained_on = []

    class Ended(Exception):
        pass

    def record(job, _report):
        trained_on.append(load_prepared(job.data))
        raise Ended

    monkeypatch.setattr("cohortseg.compare.run.run_fold", record)
    images = labeled_slices(tiny.data, "all")
    canonical = resolve_config(TrainConfig, tiny.config, {}).canonical
    write_prepared(tmp_path / fold.LABELED_DATA, prepare(images[:2], [], canonical, "", lambda *_: None))
    (tmp_path / LOCK).touch()
    with pytest.raises(Ended):
        CliRunner().invoke(app, tiny.arguments(tmp_path, "plain", "1"), catch_exceptions=False)
    assert [len(data.labeled) for data in trained_on] == [len(images)]


def test_rows_without_phase_2_need_no_unlabelled_images(tmp_path, tiny):
    out, data = tmp_path / "out", shutil.copytree(tiny.data, tmp_path / "COVID-SemiSeg")
    unlabeled = next(path for path in data.rglob("*") if path.name == "Imgs" and not (path.parent / "GT").exists())
    moved = unlabeled.rename(tmp_path / "elsewhere")
    arguments = ["--data", str(data)]
    done = CliRunner().invoke(app, [*tiny.arguments(out, "plain", "1"), *arguments])
    assert done.exit_code == 0, done.output
    missing = CliRunner().invoke(app, [*tiny.arguments(out, "plain,ssa", "1"), *arguments])
    assert missing.exit_code == 2
    assert "folder is missing" in missing.output
    moved.rename(unlabeled)
    both = CliRunner().invoke(app, [*tiny.arguments(out, "plain,ssa", "1"), *arguments])
    assert both.exit_code == 0, both.output
    assert read_table(out / COMPARISON.file_name, COMPARISON)["row"].unique(maintain_order=True).to_list() == [
        "plain",
        "ssa-phase1",
        "ssa",
    ]


def test_workers_that_do_not_fit_a_cluster_are_refused_before_the_data_are_prepared(tmp_path, tiny, monkeypatch):
    resources = Resources(((2.0, 0.0),), "the cluster")
    monkeypatch.setattr("cohortseg.cluster.connected", lambda _: nullcontext(resources))
    arguments = [*tiny.arguments(tmp_path / "out", "plain", "1"), "--address", "127.0.0.1:6379", "--workers", "3"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "3 workers x 1 CPU need 3 CPUs, the cluster has 2; use --workers 2" in " ".join(refused.output.split())
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_where_no_node_has_room_any_more_the_wait_is_told_and_ends(monkeypatch, caplog):
    room = iter([0.0, 1.0, 0.0, 0.0])
    ray = SimpleNamespace(wait=lambda references, timeout: ([], references))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(on_ray, "connected_resources", lambda: Resources(((next(room), 0.0),), "the cluster"))
    monkeypatch.setattr(on_ray, "LONGEST_WAIT_S", 0.0)
    with pytest.raises(WorkerError, match="run the same command again"):
        on_ray._next_ended({}, WorkerRequest(num_workers=1, cpus_per_worker=1, gpus_per_worker=0))
    assert caplog.messages == ["Ray has no room for a worker now; waiting up to 0 minutes for more"] * 2, "it came back"


def test_folders_and_folds_of_something_else_are_refused(tmp_path, tiny):
    (tmp_path / "notes.txt").write_text("mine")
    foreign = CliRunner().invoke(app, tiny.arguments(tmp_path, "plain"))
    assert foreign.exit_code == 2
    assert "holds no comparison" in foreign.output
    empty = CliRunner().invoke(app, tiny.arguments(tmp_path / "out", "plain", "1,4"))
    assert empty.exit_code == 2
    assert "none of the images of fold 4 is here" in empty.output
    alone = write_covid_semiseg(tmp_path / "alone" / "COVID-SemiSeg", names=FOLD_1)
    nothing_left = CliRunner().invoke(app, [*tiny.arguments(tmp_path / "out", "plain", "1"), "--data", str(alone)])
    assert nothing_left.exit_code == 2
    assert "leaves none to train on" in nothing_left.output
    words = CliRunner().invoke(app, tiny.arguments(tmp_path / "out", "plain", "one"))
    assert words.exit_code == 2
    assert "--folds must be numbers" in words.output
    assert not (tmp_path / "out").exists()
    many = CliRunner().invoke(app, [*tiny.arguments(tmp_path / "out", "plain", "1"), "--workers", "64"])
    assert many.exit_code == 2
    assert "use --workers" in many.output
    assert "--cpus-per-worker" not in many.output
