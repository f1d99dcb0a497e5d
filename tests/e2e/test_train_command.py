"""``cohortseg train`` as its users run it: on a real Ray, killed, resumed, with two workers, and with wrong flags."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import lesion_slice, write_covid_semiseg
from typer.testing import CliRunner, Result

from cohortseg import __version__
from cohortseg.cli import app
from cohortseg.cluster import WorkerRequest, connected
from cohortseg.config import PRESETS, Preset, TrainConfig, config_from_mapping, preset_config
from cohortseg.datasets.prepared import load_prepared
from cohortseg.errors import ConfigError, DataError, StoreError, WorkerError
from cohortseg.processors import num_processors
from cohortseg.store.files import replacing
from cohortseg.store.layout import DATA
from cohortseg.train import fit, loop
from cohortseg.train.folder import SETTINGS, DataOptions, begin_run, claimed_run, reopen_run, saved_settings
from cohortseg.train.history import read_history
from cohortseg.train.run import train_model
from cohortseg.weights import load_model

TINY = """
supervised_iterations = {supervised}
adversarial_iterations = {adversarial}
warmup_iterations = 2
batch_labeled = {batch}
batch_unlabeled = {batch}
checkpoint_every = 5
bf16 = false
augment = false
[canonical]
size = 64
[model]
encoder_width = 32
decoder_channels = [32, 16, 16, 8]
codebook_size = 16
code_dim = 8
discriminator_channels = 8
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_covid_semiseg(tmp_path_factory.mktemp("data") / "COVID-SemiSeg")


def config_file(folder: Path, *, supervised: int = 10, adversarial: int = 10, batch: int = 2) -> Path:
    path = folder / f"tiny{supervised}-{batch}.toml"
    path.write_text(TINY.format(supervised=supervised, adversarial=adversarial, batch=batch), encoding="utf-8")
    return path


def begin(*arguments: object) -> subprocess.Popen[str]:
    """Train in a process that starts a Ray of its own."""
    command = [sys.executable, "-m", "cohortseg", "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(*arguments: object) -> Result:
    """Train from this process."""
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for all that `train` starts: most of a short training is the start of Ray."""
    with connected():
        yield


def own_slices(folder: Path) -> Path:
    """Write three labelled images as a user's own folder holds them."""
    for number in range(3):
        gray, labels = lesion_slice(number)
        for kind, image in (("images", gray), ("masks", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{kind}/s{number}.png")
    return folder


def checkpoints_in(run_folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last."""
    return sorted(run_folder.glob("checkpoints/checkpoint_*/"))


def started_by(pid: int) -> set[int]:
    """Return the processes that a process started, and those that these started."""
    found: set[int] = set()
    with suppress(OSError):  # it has just ended
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            found |= {int(child) for child in file.read_text().split()}
    return found.union(*map(started_by, found))


def is_training(pid: int) -> bool:
    """Return whether this is a worker of Ray Train, or what leads them; what has ended is not."""
    try:
        return b"Train" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@dataclass(frozen=True)
class Trained:
    """The same training twice: to its end, and on a Ray of its own, killed after its second checkpoint."""

    config: Path
    whole: Path
    killed: Path
    """Tests work on copies of it."""

    def resumed(self, folder: Path, data: Path) -> Result:
        return train("--data", data, "--config", self.config, "-o", folder, "--resume")


@pytest.fixture(scope="module")
def trained(data: Path, ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    config = config_file(folder, supervised=20, adversarial=30)
    whole, killed = folder / "whole", folder / "killed"
    process = begin("--data", data, "--config", config, "-o", killed)
    deadline = time.monotonic() + 200
    while not any(row["iteration"] >= 10 for row in read_history(killed)) or len(checkpoints_in(killed)) < 2:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes = started_by(process.pid)
    assert any(map(is_training, processes))
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(is_training, processes)):  # workers that lost their driver run on for a moment
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = train("--data", data, "--config", config, "-o", whole)
    assert (done.exit_code, done.stdout) == (0, f"{whole / 'model.safetensors'}\n"), done.stderr
    return Trained(config, whole, killed)


def assert_equal_models(run_folder: Path, other: Path) -> None:
    first, second = (load_model(folder / "model.safetensors") for folder in (run_folder, other))
    assert first.card == second.card
    for name in ("segmenter", "discriminator"):
        weights, others = getattr(first, name).state_dict(), getattr(second, name).state_dict()
        for key, value in weights.items():
            assert torch.equal(value, others[key]), key


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_killed_run_whose_newest_checkpoint_is_cut_off_is_resumed_and_equals_an_unbroken_one(data, trained, tmp_path):
    broken = shutil.copytree(trained.killed, tmp_path / "broken")
    refused = train("--data", data, "--config", trained.config, "-o", broken)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    newest = checkpoints_in(broken)[-1]
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-1000])
    begun = read_history(broken)[0]
    resumed = trained.resumed(broken, data)
    assert resumed.exit_code == 0, resumed.stderr
    assert resumed.stdout == f"{broken / 'model.safetensors'}\n"
    assert f"{newest}isdamaged" in "".join(resumed.stderr.split())
    rows = read_history(broken)
    assert [row["iteration"] for row in rows] == list(range(5, 51, 5))
    assert rows[0] == begun, "with its speed: it was not trained again"
    assert_equal_models(trained.whole, broken)
    assert [path.name for path in checkpoints_in(broken)] == ["checkpoint_00000045", "checkpoint_00000050"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_of_a_finished_run_nothing_is_written_again_whatever_may_change_on_resume(trained, tmp_path):
    whole = shutil.copytree(trained.whole, tmp_path / "run[/a]b")
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    changed = config_file(tmp_path, supervised=20, adversarial=30, batch=3)
    again = train("--config", changed, "-o", whole, "--resume")
    assert again.exit_code == 0, again.stderr
    assert "nothing is done" in " ".join(again.stderr.split())
    assert again.stdout == f"{whole / 'model.safetensors'}\n"
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_run_does_not_go_on_with_other_slices_than_those_it_began_with(data, trained, tmp_path):
    lost = shutil.copytree(trained.killed, tmp_path / "lost")
    (lost / "data.safetensors").unlink()
    refused = trained.resumed(lost, data)
    assert refused.exit_code == 2
    assert "data.safetensors: is missing" in " ".join(refused.stderr.split())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_student_is_trained_on_own_folders_with_a_finished_model_as_its_teacher(trained, tmp_path):
    labeled, unlabeled = own_slices(tmp_path / "labeled"), tmp_path / "unlabeled"
    unlabeled.mkdir()
    for number in range(3):
        Image.fromarray(lesion_slice(10 + number)[0]).save(unlabeled / f"u{number}.png")
    config = config_file(tmp_path, supervised=3, adversarial=3)
    config.write_text(config.read_text().replace("batch_labeled", "batch_pseudo = 2\nbatch_labeled"), encoding="utf-8")
    teacher = trained.whole / "model.safetensors"
    arguments = ["--labeled", labeled, "--unlabeled", unlabeled, "--teacher", teacher, "--config", config]
    labels = np.asarray(Image.open(labeled / "masks/s2.png"))
    Image.fromarray(labels | 4).save(labeled / "masks/s2.png")
    refused = train(*arguments, "-o", tmp_path / "student")
    assert (refused.exit_code, "labels must be 0, 1, 2" in refused.stderr) == (2, True)
    Image.fromarray(labels).save(labeled / "masks/s2.png")
    done = train(*arguments, "-o", tmp_path / "student")
    assert done.exit_code == 0, "once the label map is mended, the same command works: " + done.stderr
    student = load_model(tmp_path / "student/model.safetensors")
    assert "3 labelled + 3 unlabelled slices" in student.name
    assert "non-commercial" in student.card.licence, "as for its teacher"
    assert student.training_images > load_model(teacher).training_images
    assert student.card.recipe["batch_pseudo"] == 2
    assert student.card.teachers == (load_model(teacher).sha256,)
    facts = json.loads((tmp_path / "student/run.json").read_text())
    assert facts["counts"] == {"labeled_slices": 3, "unlabeled_slices": 3}
    assert facts["data"]["teachers_sha256"] == list(student.card.teachers)
    options = json.loads((tmp_path / "student/data-options.json").read_text())
    assert options["teachers"] == [str(teacher)]
    again = train("-o", tmp_path / "student", "--resume")
    assert again.exit_code == 0, again.stderr


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
@pytest.mark.skipif(num_processors() < 2, reason="needs two cores")
def test_two_workers_go_on_from_a_checkpoint_and_learn_what_one_learns_here(data, trained, tmp_path):
    one, two = (tmp_path / name for name in ("one", "two"))
    config = config_from_mapping(TrainConfig, tomllib.loads(TINY.format(supervised=8, adversarial=7, batch=2)))
    begin_run(two, config, DataOptions(data=str(data)))
    shutil.copy(trained.whole / "data.safetensors", two)

    def report(metrics, save):
        if metrics["iteration"] == 5:
            save(two / "checkpoints/checkpoint_00000005")
            shutil.copy(one / "history.jsonl", two)

    one.mkdir()
    loop.train(
        replace(config, batch_labeled=4, batch_unlabeled=4),
        load_prepared(two / "data.safetensors"),
        one,
        wrap=lambda module: module,
        sum_over_workers=lambda values: values,
        report=report,
        rank=0,
        world=1,
        device=torch.device("cpu"),
        restore=None,
    )
    (two / "checkpoints/checkpoint_manager_snapshot.json").write_text("{cut off")
    done = train("-o", two, "--resume", "--workers", 2)
    assert done.exit_code == 0, done.stderr
    single, double = (read_history(run) for run in (one, two))
    assert double[0] == single[0], "the first five iterations, with their speed: they were not trained again"
    for row, other in zip(single[1:], double[1:], strict=True):
        for name in ("ce", "proportion", "vq", "discriminator", "semi"):
            if name in row:
                assert other[name] == pytest.approx(row[name], rel=2e-3, abs=1e-5), (row["iteration"], name)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
@pytest.mark.skipif(num_processors() < 2, reason="needs two cores")
def test_what_only_one_of_two_workers_meets_ends_both(data, tmp_path, monkeypatch):
    monkeypatch.setattr("cohortseg.train.fit._MAX_FAILURES", 0)  # each further attempt takes 15 seconds
    config = config_from_mapping(TrainConfig, tomllib.loads(TINY.format(supervised=4, adversarial=4, batch=2)))
    begin_run(tmp_path / "run", config, DataOptions(data=str(data)))
    (tmp_path / "run/model-phase1.safetensors/full").mkdir(parents=True)
    # the first worker cannot write that model, and the second waits for it in phase 2
    result = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "run"), "--resume", "--workers", "2"])
    assert result.exit_code == 1
    assert "model-phase1.safetensors: cannot be written" in " ".join(result.stderr.split())
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_training_that_diverges_ends_at_once_with_advice(data, tmp_path):
    config = config_file(tmp_path, supervised=30)
    config.write_text("learning_rate = 1e12\n" + config.read_text(encoding="utf-8"), encoding="utf-8")
    done = train("--data", data, "--config", config, "-o", tmp_path / "run", "--workers", 1)
    assert done.exit_code == 1
    assert "not finite any more" in done.stderr
    assert "lower learning_rate" in done.stderr
    assert "RETRY" not in done.stderr
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_workers_that_do_not_fit_a_cluster_are_refused_before_the_data_are_read(data, tmp_path):
    refused = train("--data", data, "-o", tmp_path / "run", "--address", "127.0.0.1:6379", "--workers", 99)
    assert (refused.exit_code, "99 workers" in refused.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("WorkerGroupStartupError", "no room\nfor 2 workers", "Ray could not start the workers: no room for 2 workers"),
        (
            "Exception",
            "Traceback (most recent call last):\n  ...\nOSError: full",
            "Ray ended the training: OSError: full",
        ),
    ],
)
def test_where_ray_cannot_start_the_workers_what_to_do_is_said(tmp_path, monkeypatch, kind, text, expected):
    import ray.train
    import ray.train.torch

    failure = type(kind, (Exception,), {})(text)

    def fit_in_vain():
        raise ray.train.ControllerError(failure)

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", lambda *_, **__: SimpleNamespace(fit=fit_in_vain))
    request = WorkerRequest(num_workers=2, cpus_per_worker=1, gpus_per_worker=0)
    with pytest.raises(WorkerError) as raised:
        fit._run_trainer(TrainConfig(), tmp_path, request)
    assert str(raised.value) == f"{expected}; go on with --resume"


def test_own_labelled_images_alone_are_enough_for_phase_1(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr("cohortseg.train.run.fit", lambda _, run, **__: begun.append(load_prepared(run / DATA)) or run)
    config = tmp_path / "phase1.toml"
    config.write_text(f"semi_supervised = false\n{TINY.format(supervised=4, adversarial=4, batch=2)}")
    done = train("--labeled", own_slices(tmp_path / "own"), "--config", config, "-o", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert [(len(data.labeled), len(data.unlabeled)) for data in begun] == [(3, 0)]
    assert "non-commercial" not in begun[0].terms


def test_a_run_whose_data_cannot_be_used_leaves_nothing_so_that_the_same_command_works_later(tmp_path):
    own = own_slices(tmp_path / "own")
    whole = (own / "images/s1.png").read_bytes()
    (own / "images/s1.png").write_bytes(whole[:100])
    config = TrainConfig(semi_supervised=False)
    for _ in range(2):
        with pytest.raises(DataError, match=r"s1\.png"):
            train_model(config, tmp_path / "run", DataOptions(labeled=str(own)))
        assert not (tmp_path / "run").exists()


def test_more_workers_than_cores_are_refused_with_the_flags_that_fit_before_ray_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr("cohortseg.cluster._init", lambda *_: pytest.fail("Ray is started"))
    cores = num_processors()
    arguments = ["--workers", f"{4 * cores}", "--cpus-per-worker", "1", "-o", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert f"need {4 * cores} CPUs" in message
    assert f"--workers {cores}" in message
    assert "--cpus-per-worker 0.25" in message
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "TrainingSet/MultiClassInfection-Train"),
        (["--unlabeled", "x"], "--unlabeled goes with --labeled"),
        (["--labeled", "x"], "phase 2 needs --unlabeled"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_an_unknown_setting_is_refused_with_the_valid_ones(tmp_path):
    (tmp_path / "bad.toml").write_text("learning_rat = 1\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "bad.toml"), "-o", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "learning_rat;" in result.stderr
    assert "learning_rate" in result.stderr


def test_resume_without_a_run_and_with_other_settings_is_refused(tmp_path):
    data = write_covid_semiseg(tmp_path / "data" / "COVID-SemiSeg")
    result = CliRunner().invoke(app, ["train", "--data", str(data), "-o", str(tmp_path / "none"), "--resume"])
    assert result.exit_code == 2
    assert "no run to resume" in result.stderr
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / SETTINGS).write_text(json.dumps({"learning_rate": 1.0}), encoding="utf-8")
    other = tmp_path / "other.toml"
    other.write_text("learning_rate = 0.5\n", encoding="utf-8")
    for changed, words in (
        (["--preset", "cpu"], "was begun with --preset paper"),
        (["--config", str(other)], "learning_rate was 1.0, is 0."),
    ):
        arguments = ["train", "--data", str(data), "-o", str(run_folder), "--resume", *changed]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize("named", [[], ["--preset", "cpu"]])
def test_a_run_is_resumed_with_the_settings_that_it_began_with(tmp_path, named):
    config = replace(preset_config("cpu"), batch_labeled=16)
    begin_run(tmp_path / "run", config, DataOptions(data=str(tmp_path)))
    assert saved_settings(tmp_path / "run") == config
    result = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "run"), "--resume", *named])
    assert "cannot resume with other settings" not in result.stderr
    assert saved_settings(tmp_path / "run") == config
    assert "COVID-SemiSeg" in result.stderr, "it goes on to the data, which are not there"


def test_what_may_change_on_resume_holds_from_then_on_and_is_told(tmp_path, caplog):
    config = replace(preset_config("cpu"), checkpoint_every=50)
    begin_run(tmp_path / "run", config, DataOptions(data=str(tmp_path)))
    changed = replace(config, checkpoint_every=10)
    reopen_run(tmp_path / "run", changed, DataOptions())
    assert saved_settings(tmp_path / "run") == changed
    assert "goes on with other checkpoint_every than it had" in caplog.text


def test_a_start_killed_before_its_settings_were_noted_is_no_run(tmp_path):
    run_folder = tmp_path / "run"
    begin_run(run_folder, TrainConfig(), DataOptions(data=str(tmp_path)))
    (run_folder / "settings.json").rename(run_folder / f".settings.json.{'0' * 32}.tmp")
    begin_run(run_folder, TrainConfig(), DataOptions(data=str(tmp_path)))
    assert saved_settings(run_folder) == TrainConfig()
    with pytest.raises(ConfigError, match="is not empty"):
        begin_run(run_folder, TrainConfig(), DataOptions(data=str(tmp_path)))


def test_a_second_start_leaves_what_the_first_is_writing(tmp_path):
    run = tmp_path / "run"
    with claimed_run(run, new=True):
        with replacing(run / "data.safetensors") as file:
            with pytest.raises(StoreError, match="at work here"), claimed_run(run, new=True):
                pass
            file.write(b"whole")
        assert (run / "data.safetensors").read_bytes() == b"whole"


@pytest.mark.parametrize("content", ["[]", "null", '{"seed": '])
def test_damaged_settings_of_a_run_are_named(tmp_path, content):
    begin_run(tmp_path / "run", TrainConfig(), DataOptions(data=str(tmp_path)))
    (tmp_path / "run/settings.json").write_text(content)
    with pytest.raises(ConfigError, match=r"settings\.json: (cannot be read|holds no settings)"):
        reopen_run(tmp_path / "run", TrainConfig())


def test_pictures_that_a_killed_run_left_half_drawn_go_once_it_is_resumed(tmp_path):
    begin_run(tmp_path / "run", TrainConfig(), DataOptions(data=str(tmp_path)))
    (tmp_path / "run/pictures").mkdir()
    for name in ("labeled.png", f".labeled.png.{'a' * 32}.tmp"):
        (tmp_path / "run/pictures" / name).touch()
    with claimed_run(tmp_path / "run", new=False):
        assert [path.name for path in (tmp_path / "run/pictures").iterdir()] == ["labeled.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--labeled", "x", "--unlabeled", "y", "--no-holdout"), "--holdout is about COVID-SemiSeg"),
        (("--data", "x", "--orientation", "upright"), "--orientation goes with --labeled"),
        (("--orientation", "upright"), "--orientation goes with --labeled"),
        (("--data", "x", "--labeled", "y", "--unlabeled", "z"), "exclude each other"),
        (("--preset", "student", "--teacher", "x", "--labeled", "y"), "teachers label what --unlabeled holds: add it"),
    ],
)
def test_options_that_would_be_ignored_are_refused(tmp_path, options, words):
    result = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "run"), *options])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_a_recipe_is_no_setting_of_a_file(tmp_path):
    (tmp_path / "a.toml").write_text('preset = "cpu"\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "a.toml"), "-o", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "give it as --preset cpu" in " ".join(result.stderr.split())


def test_options_hold_from_whichever_folder_a_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = DataOptions(labeled="own", unlabeled="more", teachers=("a.safetensors", "../b.safetensors"))
    assert given.resolved() == DataOptions(
        labeled=str(tmp_path / "own"),
        unlabeled=str(tmp_path / "more"),
        teachers=(str(tmp_path / "a.safetensors"), str(tmp_path.parent / "b.safetensors")),
    )


def test_a_resumed_run_may_be_told_one_of_its_folders_alone(tmp_path):
    began = DataOptions(labeled=str(tmp_path / "own"), unlabeled=str(tmp_path / "more"))
    begin_run(tmp_path / "run", TrainConfig(), began)
    done = train("--unlabeled", tmp_path / "other", "-o", tmp_path / "run", "--resume")
    assert done.exit_code == 2
    assert "cannot resume on other data: unlabeled was" in " ".join(done.stderr.split())


def test_a_run_is_resumed_on_the_data_that_it_began_with(tmp_path):
    first, other = (write_covid_semiseg(tmp_path / name / "COVID-SemiSeg") for name in ("a", "b"))
    began = DataOptions(data=str(first), holdout=False)
    begin_run(tmp_path / "run", TrainConfig(), began)
    result = CliRunner().invoke(app, ["train", "--data", str(other), "-o", str(tmp_path / "run"), "--resume"])
    assert result.exit_code == 2
    assert "cannot resume on other data: data was" in " ".join(result.stderr.split())
    assert replace(reopen_run(tmp_path / "run", TrainConfig(), DataOptions()), version=None) == began
    for said in ("--holdout", "--orientation=transposed"):
        result = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "run"), "--resume", said])
        assert result.exit_code == 2, said
        assert "cannot resume on other data" in " ".join(result.stderr.split())
    assert reopen_run(tmp_path / "run", TrainConfig(), DataOptions(data=str(first))).holdout is False
    begin_run(tmp_path / "silent", TrainConfig(), DataOptions(data=str(first)))
    reopen_run(tmp_path / "silent", TrainConfig(), DataOptions(holdout=True, orientation="upright"))
    with pytest.raises(ConfigError, match="holdout was True, is False"):
        reopen_run(tmp_path / "silent", TrainConfig(), DataOptions(holdout=False))
    (tmp_path / "run" / "data-options.json").unlink()
    with pytest.raises(ConfigError, match=r"data-options.json: cannot be read"):
        reopen_run(tmp_path / "run", TrainConfig(), DataOptions(data=str(first)))


def test_slices_of_readers_and_of_teachers_stay_in_proportion(tmp_path):
    began = preset_config("student")
    options = DataOptions(data=str(write_covid_semiseg(tmp_path / "COVID-SemiSeg")), teachers=("t.safetensors",))
    begin_run(tmp_path / "run", began, options)
    before = (tmp_path / "run" / SETTINGS).read_bytes()
    for changed in ({"batch_pseudo": 0}, {"batch_labeled": 2}, {"batch_pseudo": 8}):
        with pytest.raises(ConfigError, match="they were 4 and 4, and must stay in proportion"):
            reopen_run(tmp_path / "run", replace(began, **changed))
    assert (tmp_path / "run" / SETTINGS).read_bytes() == before, "so that the same run can be resumed as it was"
    assert reopen_run(tmp_path / "run", replace(began, batch_labeled=2, batch_pseudo=2)).teachers == ("t.safetensors",)


def test_labelled_and_unlabelled_slices_stay_in_proportion(tmp_path):
    """L_adv and the loss of the VQ-VAE are means over both: their share would change what is minimised."""
    began = replace(TrainConfig(), batch_labeled=4, batch_unlabeled=4)
    begin_run(tmp_path / "run", began, DataOptions(data=str(write_covid_semiseg(tmp_path / "COVID-SemiSeg"))))
    with pytest.raises(ConfigError, match="batch_unlabeled 28: they were 4 and 4, and must stay in proportion"):
        reopen_run(tmp_path / "run", replace(began, batch_unlabeled=28))
    reopen_run(tmp_path / "run", replace(began, batch_labeled=2, batch_unlabeled=2))


def test_a_run_of_another_version_is_not_gone_on_with(tmp_path):
    begin_run(tmp_path / "run", TrainConfig(), DataOptions(data=str(write_covid_semiseg(tmp_path / "COVID-SemiSeg"))))
    options = tmp_path / "run" / "data-options.json"
    options.write_text(options.read_text().replace(__version__, "0.0.9"))
    result = CliRunner().invoke(app, ["train", "-o", str(tmp_path / "run"), "--resume"])
    assert result.exit_code == 2
    assert "was begun by cohortseg 0.0.9" in " ".join(result.stderr.split())


def test_the_command_offers_every_recipe():
    assert set(get_args(Preset)) == set(PRESETS)


def test_a_folder_that_ray_cannot_take_is_refused_and_not_made(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    with pytest.raises(ConfigError, match="the path of the run's folder must be UTF-8"), claimed_run(folder, new=True):
        pass
    assert not folder.exists()
