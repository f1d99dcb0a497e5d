"""The measurements run: a stage of the GPU script for real, and the changed copies of the robustness benchmark."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from lung_phantoms import make_chest
from training_data import canonical_of, write_covid_semiseg
from typer.testing import CliRunner

from cohortseg.cli import app
from cohortseg.config import CanonicalConfig, TrainConfig
from cohortseg.datasets.covid_semiseg import labeled_slices
from cohortseg.datasets.prepared import load_prepared
from cohortseg.store.layout import DATA
from cohortseg.train.history import HISTORY
from cohortseg.train.loop import MODEL, train
from cohortseg.weights import load_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SERIES = Path(__file__).parents[1] / "sample_data/cohort/dicom/SYN-001/20200302"
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "${@:3}" > "$COMMANDS/$(ls "$COMMANDS" | wc -l)"
"""
"""In place of Python: it runs nothing, but notes the arguments of cohortseg."""


def gpu_script(*arguments: str, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SMOKE": "1", "OUT": str(out), "PYTHON": sys.executable} | variables
    command = ["bash", str(BENCHMARKS / "gpu.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


def test_a_stage_of_the_gpu_script_measures_steps_against_bare_passes(tmp_path):
    done = gpu_script("throughput", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "throughput.log").read_text(encoding="utf-8").splitlines()[-1])
    for phase in (1, 2):
        speed, bare = result[f"phase{phase}_images_per_s"], result[f"phase{phase}_bare_images_per_s"]
        assert result[f"phase{phase}_ratio"] == pytest.approx(speed / bare, rel=0.05)
    if not torch.cuda.is_available():
        assert result["phase1_peak_gpu_gib"] is None  # not measured is null


def test_the_gpu_script_lists_its_stages_and_says_when_time_is_up(tmp_path):
    listed = gpu_script(out=tmp_path / "none")
    assert listed.returncode == 2
    assert "table2" in listed.stderr
    assert not (tmp_path / "none").exists()
    assert gpu_script("throughput", out=tmp_path, LIMIT="0").returncode == 124


def train_in_this_process(config: TrainConfig, run: Path, **_: Any) -> Path:
    """Stand in for `fit`: to start Ray for every training takes minutes."""
    train(
        config,
        load_prepared(run / DATA),
        run,
        wrap=lambda module: module,
        sum_over_workers=lambda values: values,
        report=lambda _metrics, _save: None,
        rank=0,
        world=1,
        device=torch.device("cpu"),
        restore=None,
    )
    return run / MODEL


def test_the_gpu_script_trains_what_the_packaged_model_is(tmp_path, monkeypatch):
    """But for the tiny settings; a stage that was stopped trains only what is not there."""
    monkeypatch.setattr("cohortseg.train.run.fit", train_in_this_process)
    monkeypatch.setattr("cohortseg.train.page.RunPage.draw", lambda *_, **__: None)  # it takes most of the time
    monkeypatch.setenv("COHORTSEG_DATA", str(write_covid_semiseg(tmp_path / "COVID-SemiSeg")))
    out, recorder, commands = tmp_path / "out", tmp_path / "python", tmp_path / "commands"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)

    def stage() -> list[str]:
        """Run the stage, then its commands here; return the names of the folders they train into."""
        commands.mkdir()
        done = gpu_script("package", out=out, PYTHON=str(recorder), COMMANDS=str(commands))
        assert done.returncode == 0, done.stdout + done.stderr
        recorded = [path.read_text().splitlines() for path in sorted(commands.iterdir())]
        shutil.rmtree(commands)
        for command in recorded:
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 0, result.stderr
        return [Path(command[command.index("-o") + 1]).name for command in recorded]

    assert stage() == [f"package-{name}" for name in ("foci-0", "plain-0", "foci-1", "plain-1", "student")]
    models = {path.parent.name: load_model(path) for path in out.glob(f"package-*/{MODEL}")}
    student, packaged = models.pop("package-student"), load_model()
    tiny = {line.split(" ")[0] for line in (out / "smoke.toml").read_text().splitlines()}
    apart = {*tiny, "canonical", "model", "iterations_done"}
    shipped = {name: value for name, value in packaged.card.recipe.items() if name not in apart}
    assert {name: student.card.recipe[name] for name in shipped} == shipped
    assert student.card.model == packaged.card.model
    assert len(student.training_images) == 4 + 4, "none is held out"
    labels = {name: (model.card.recipe["seed"], model.card.recipe["painted_foci"]) for name, model in models.items()}
    assert labels == {
        "package-foci-0": (0, 0.35),
        "package-foci-1": (1, 0.35),
        "package-plain-0": (0, 0.0),
        "package-plain-1": (1, 0.0),
    }
    assert sorted(student.card.teachers) == sorted(model.sha256 for model in models.values())
    assert len(packaged.card.teachers) == len(models)
    assert stage() == []
    (out / "package-student" / MODEL).unlink()
    assert gpu_script("package", out=out, LIMIT="0").returncode == 124
    assert stage() == ["package-student"]
    assert load_model(out / "package-student" / MODEL).card == student.card


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_can_be_loaded(path):
    """Each makes numbers that README or the model card state; types are mypy's."""
    with patch.dict(os.environ), patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        assert callable(runpy.run_path(str(path))["main"])


@pytest.mark.parametrize(
    ("script", "options", "ratio"),
    [("infer_overhead.py", ["--engines", "local", "--cohort"], "ratio_local"), ("scan_headers.py", [], "ratio")],
)
def test_ratios_of_the_cohort_pipeline_are_measured(script, options, ratio):
    command = [sys.executable, str(BENCHMARKS / script), *options, str(SERIES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[ratio] > 0


def test_scaling_of_training_is_the_median_speed_of_two_workers_over_that_of_one(monkeypatch, capsys):
    measured = {
        1: {1: (1.0, 10.0, 12.0, 11.0), 2: (2.0, 8.0, 8.0)},
        2: {1: (1.0, 22.0, 20.0, 18.0), 2: (9.0, 14.0, 14.0)},
    }

    def fit(config, run, *, num_workers, cpus_per_worker):
        assert cpus_per_worker == 1
        assert load_prepared(run / DATA).labeled.shape[-1] == config.canonical.size == 64
        rows = [(phase, speed) for phase, speeds in measured[num_workers].items() for speed in speeds]
        lines = ({"iteration": i, "phase": phase, "images_per_s": speed} for i, (phase, speed) in enumerate(rows))
        (run / HISTORY).write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    main = runpy.run_path(str(BENCHMARKS / "train_scaling.py"))["main"]
    monkeypatch.setitem(main.__globals__, "fit", fit)
    monkeypatch.setitem(main.__globals__, "connected", nullcontext)
    monkeypatch.setattr(sys, "argv", ["train_scaling.py", "--size", "64"])
    main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["workers"], result["phase1_images_per_s"], result["phase2_images_per_s"]) == (2, 20, 14)
    assert (result["phase1_speedup"], result["phase2_speedup"]) == (round(20 / 11, 3), 1.75)


def test_copies_that_lie_otherwise_are_the_same_slice_and_others_nearly(tmp_path):
    robustness = runpy.run_path(str(BENCHMARKS / "robustness.py"))
    source = labeled_slices(write_covid_semiseg(tmp_path / "data"), "all")[0]
    copies = {}
    for name, copy in robustness["COPIES"].items():
        folder = tmp_path / name
        folder.mkdir()
        copies[name] = canonical_of(robustness["changed"](source, copy, folder), CanonicalConfig(size=128))
    same = copies.pop("unchanged")
    for name in ("turned", "upside down", "mirrored"):
        assert torch.equal(copies[name].image, same.image)
        assert np.array_equal(copies[name].labels, same.labels)
    for name, copy in copies.items():
        overlap = (
            2 * ((copy.labels > 0) & (same.labels > 0)).sum() / ((copy.labels > 0).sum() + (same.labels > 0).sum())
        )
        assert overlap > 0.9, name


def test_crops_of_one_chest_are_laid_where_they_were_taken():
    real_volumes = runpy.run_path(str(BENCHMARKS / "real_volumes.py"))
    chest = make_chest((4.0, 1.6, 1.2), shape=(56, 224, 320))
    lower, upper = (np.clip((chest.volume_hu[z] + 1024) / 8, 0, 255).astype(np.uint8) for z in (27, 28))
    found = real_volumes["offset"](lower[10:190, 20:300], upper[17:200, 12:280])
    assert found.tolist() == [7, -8]
