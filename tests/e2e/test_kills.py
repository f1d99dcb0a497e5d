"""Actors, nodes and the run itself are killed on a cluster of three nodes; the same command goes on to the same end."""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from socket import gethostname
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from runs import hiding
from typer.testing import CliRunner, Result

from cohortseg.cli import app
from cohortseg.config import InferConfig
from cohortseg.errors import ModelError, StoreError
from cohortseg.infer.attempts import suspects
from cohortseg.pipeline import infer_cohort
from cohortseg.store.schemas import BURDEN
from cohortseg.store.tables import read_table

KILL_LOG = Path(__file__).parents[2] / "benchmarks/kill_log.py"
SAMPLE = Path(__file__).parents[2] / "sample_data/cohort/dicom"
LIMIT_S = 240.0
"""For each wait: a run that hangs fails its test."""

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def kill_log() -> Iterator[Any]:
    """The benchmark that does the same twenty times over."""
    with patch.dict(os.environ):  # it sets what ray reads while it is imported
        yield SimpleNamespace(**runpy.run_path(str(KILL_LOG)))


@pytest.fixture(scope="module")
def cluster(kill_log: Any) -> Iterator[Any]:
    with kill_log.three_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen series, so that seconds of work are left on a fast machine when six are done; only read.

    Each is of a patient of its own, and one of the sample data, moved aside so that no two have the same masks.
    """
    root = tmp_path_factory.mktemp("cohort")
    sources = sorted(SAMPLE.glob("*/*"))
    for number in range(16):
        source, aside = sources[number % len(sources)], number // len(sources)
        (root / f"p{number}").mkdir()
        for path in source.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.PatientID = f"P{number}"
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
                dataset[keyword].value = generate_uid(entropy_srcs=[dataset[keyword].value, str(number)])
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.PixelData = np.roll(dataset.pixel_array, 3 * aside, axis=1).tobytes()
            dataset.save_as(root / f"p{number}" / path.name)
    return root


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Half the work per series, and no series that is given up because it was at work at three of the kills."""
    path = tmp_path_factory.mktemp("options") / "infer.toml"
    path.write_text("flips = false\nmax_attempts = 9\n")
    return ["--config", str(path)]


@pytest.fixture(scope="module")
def unbroken(cohort: Path, cluster: Any, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert infer(cohort, out, cluster, options).exit_code == 0
    return out


def infer(cohort: Path, out: Path, cluster: Any, options: Sequence[str] = ()) -> Result:
    """Run here the command that `kill_log.start` starts in a process of its own."""
    where = ["--workers", "2", "--engine", "ray", "--address", cluster.address]
    return CliRunner().invoke(app, ["infer", str(cohort), "-o", str(out), *where, *options])


def test_info_shows_the_nodes_of_a_cluster(cluster: Any) -> None:
    shown = CliRunner().invoke(app, ["info", "--json", "--address", cluster.address])
    assert shown.exit_code == 0, shown.output
    alive = json.loads(shown.stdout)["cluster"]
    assert len(alive["nodes"]) == 3
    assert (alive["cpus"], alive["gpus"]) == (sum(float(node.split()[0]) for node in alive["nodes"]), 0)


def work_begins(kill_log: Any, run: subprocess.Popen[str], out: Path, done: int) -> None:
    """Wait until so many series are done, and a random moment longer."""
    kill_log.wait_for_work(run, out, LIMIT_S, done)
    time.sleep(random.uniform(0, 0.5))
    assert run.poll() is None, "the cohort is too small for this machine: nothing was left to kill"


def test_a_run_outlives_two_killed_actors_and_two_killed_nodes(
    kill_log: Any, cluster: Any, cohort: Path, options: list[str], unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = kill_log.start(cohort, out, cluster.address, *options)
    for done, kind in ((0, "node"), (2, "actor"), (4, "node"), (6, "actor")):
        work_begins(kill_log, run, out, done)
        assert f"{kind} killed" in kill_log.kill_one(kind, run, cluster, random)
    code, messages = kill_log.ended(run, LIMIT_S)
    assert code == 0, messages
    assert "(raylet)" not in messages, "what Ray tells of it belongs neither to results nor, unasked, to messages"
    assert kill_log.differences(out, unbroken) == []
    again = infer(cohort, out, cluster, options)
    assert (again.exit_code, "nothing to do" in again.stderr) == (0, True)
    assert kill_log.differences(out, unbroken) == []


def test_a_run_interrupted_once_and_killed_twice_goes_on(
    kill_log: Any, cluster: Any, cohort: Path, options: list[str], unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = kill_log.start(cohort, out, cluster.address, *options)
    work_begins(kill_log, run, out, 0)
    os.killpg(run.pid, signal.SIGINT)  # as Ctrl-C does
    code, messages = kill_log.ended(run, LIMIT_S)
    assert code == 1
    assert messages.splitlines()[-1] == "error: interrupted; run the same command again to go on where it stopped"
    assert "Traceback" not in messages
    assert not suspects(out), "who is asked to stop leaves nothing open"
    for done in (1, 3):
        run = kill_log.start(cohort, out, cluster.address, *options)
        work_begins(kill_log, run, out, done)
        assert kill_log.kill_one("driver", run, cluster, random) == "run killed"
        assert kill_log.ended(run, LIMIT_S)[0] == -signal.SIGKILL
        assert not (out / "burden.parquet").exists()
    assert infer(cohort, out, cluster, options).exit_code == 0
    assert kill_log.differences(out, unbroken) == []


def test_a_cohort_that_vanishes_from_the_actors_ends_the_run_as_it_does_here(
    cluster: Any, cohort: Path, tmp_path: Path
) -> None:
    out, root = tmp_path / "out", tmp_path / "cohort"
    for name in ("p0", "p1"):
        shutil.copytree(cohort / name, root / name)

    progress = hiding(root, tmp_path / "unmounted")
    config = InferConfig(engine="ray", workers=2)
    with pytest.raises(StoreError, match=rf"^\S+: the cohort has gone; make it .* again \(on node {gethostname()}\)$"):
        infer_cohort(root, out, config=config, model_path=None, progress=progress, address=cluster.address)
    assert not suspects(out)
    (tmp_path / "unmounted").rename(root)
    assert infer(root, out, cluster).exit_code == 0
    assert read_table(out / "burden.parquet", BURDEN)["po_pct"].null_count() == 0


def test_a_model_that_the_nodes_do_not_have_ends_the_run_as_it_does_here(
    cluster: Any, cohort: Path, model_path: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.safetensors"
    shutil.copy(model_path, model)
    progress = hiding(model, tmp_path / "unmounted")
    config = InferConfig(engine="ray", workers=2)
    with pytest.raises(ModelError, match=r"^\S+: no such model file; train one with 'cohortseg train'"):
        infer_cohort(
            cohort, tmp_path / "out", config=config, model_path=model, progress=progress, address=cluster.address
        )


def test_a_run_that_waits_in_vain_ends_and_says_why(
    cluster: Any, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("cohortseg.infer.run.LONGEST_WAIT_S", 0.6)
    result = infer(cohort, out, cluster)
    assert result.exit_code == 1
    assert "no series has ended for 0.01 minutes, and Ray has room for 2 of 2 workers" in result.stderr
    assert "run the same command again" in result.stderr
    assert not suspects(out)
